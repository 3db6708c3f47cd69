"""kmeans_assign on a CPU against float64, and the op's registration; the kernel is proven in test_triton_kernels.py."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.library import opcheck

from fastcluster_lm.errors import DataError, ShapeError
from fastcluster_lm.kernels.kmeans_assign import kmeans_assign, op, reference

HERE = Path(__file__).parent


@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 32])
@pytest.mark.parametrize("n", [0, 1, 97])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_cpu_agrees_with_the_reference(batch: tuple[int, ...], n: int, width: int) -> None:
    generator = torch.Generator().manual_seed(n + width)
    X = torch.randn(*batch, n, width, generator=generator)
    centroids = torch.randn(*batch, 7, width, generator=generator)
    labels, sq_dist = kmeans_assign(X, centroids)
    true_labels, truth = reference.kmeans_assign(X.double(), centroids.double())
    assert labels.shape == (*batch, n) and labels.dtype == torch.int64
    assert torch.equal(labels, true_labels)
    torch.testing.assert_close(sq_dist.double(), truth, rtol=1e-4, atol=2e-5)


def test_ties_and_tiles_keep_the_lower_label(monkeypatch: pytest.MonkeyPatch) -> None:
    X = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    centroids = torch.tensor([[1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    assert kmeans_assign(X, centroids)[0].tolist() == [0, 0]
    X, centroids = torch.randn(2, 97, 4), torch.randn(2, 5, 4)
    whole = kmeans_assign(X, centroids)[0]
    monkeypatch.setattr(op, "MEMORY_BUDGET", 400)
    assert torch.equal(kmeans_assign(X, centroids)[0], whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_points_are_summed_in_float32(dtype: torch.dtype) -> None:
    X, centroids = torch.randn(50, 64).to(dtype), torch.randn(6, 64).to(dtype)
    labels, sq_dist = kmeans_assign(X, centroids)
    true_labels, truth = reference.kmeans_assign(X.double(), centroids.double())
    assert sq_dist.dtype == torch.float32 and torch.equal(labels, true_labels)
    torch.testing.assert_close(sq_dist.double(), truth, rtol=1e-5, atol=1e-4)


def test_runs_share_their_points() -> None:
    X, centroids = torch.randn(2, 33, 4), torch.randn(2, 3, 5, 4)
    labels, sq_dist = kmeans_assign(X, centroids)
    assert labels.shape == (2, 3, 33)
    for run in range(3):
        own = kmeans_assign(X, centroids[:, run])
        assert torch.equal(labels[:, run], own[0]) and torch.equal(sq_dist[:, run], own[1])


def test_op_is_registered_as_torch_wants_it() -> None:
    opcheck(torch.ops.fclm.kmeans_assign.default, (torch.randn(2, 9, 3), torch.randn(2, 2, 4, 3)))


def test_compiles_into_one_graph() -> None:
    X, centroids = torch.randn(2, 9, 3), torch.randn(2, 4, 3)
    compiled = torch.compile(lambda X, centroids: kmeans_assign(X * 2, centroids), fullgraph=True, backend="eager")
    assert torch.equal(compiled(X, centroids)[0], kmeans_assign(X * 2, centroids)[0])


def test_unfit_arguments_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"X has shape \(5, 3\), centroids \(2, 4\)"):
        kmeans_assign(torch.zeros(5, 3), torch.zeros(2, 4))
    with pytest.raises(ShapeError, match="must match"):
        kmeans_assign(torch.zeros(2, 5, 3), torch.zeros(1, 2, 3))
    with pytest.raises(DataError, match="at least one centroid"):
        kmeans_assign(torch.zeros(5, 3), torch.zeros(0, 3))
    with pytest.raises(DataError, match="float64"):
        kmeans_assign(torch.zeros(5, 3).double(), torch.zeros(2, 3).double())


def test_the_workshop_is_imported_without_triton() -> None:
    root = str(HERE.parent.parent)
    code = "import sys, fastcluster_lm.kernels; print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stdout + done.stderr[-1000:]
