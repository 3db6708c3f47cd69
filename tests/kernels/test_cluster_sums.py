"""cluster_sums on a CPU against its reference, and the op's registration; the kernel is in test_triton_kernels.py."""

import pytest
import torch
from torch.library import opcheck

from fastcluster_lm.errors import DataError, ShapeError
from fastcluster_lm.kernels.cluster_sums import cluster_sums, reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 3, 97, 5, 4), (1, 1, 1, 1, 1), (2, 1, 0, 3, 2), (0, 1, 5, 3, 2)])
def test_cpu_agrees_with_the_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    n_layers, runs, n, k, width = shape
    X = torch.randn(n_layers, n, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    # labels below and above all clusters are counted nowhere
    labels = torch.randint(-1, k + 1, (n_layers, runs, n), generator=torch.Generator().manual_seed(1))
    sums, sizes = cluster_sums(X, labels, k)
    truth, counts = reference.cluster_sums(X.double(), labels, k)
    assert sums.dtype == dtype and torch.equal(sizes, counts)
    torch.testing.assert_close(sums.double(), truth, rtol=0, atol=1e-5)


def test_sums_by_hand() -> None:
    X = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    sums, sizes = cluster_sums(X, torch.tensor([[[0, 2, 0]]]), 3)
    assert sums.tolist() == [[[[6.0, 8.0], [0.0, 0.0], [3.0, 4.0]]]] and sizes.tolist() == [[[2, 0, 1]]]


def test_op_is_registered_as_torch_wants_it() -> None:
    labels = torch.randint(0, 3, (2, 2, 9))
    for dtype in (torch.float32, torch.float64):
        opcheck(torch.ops.fclm.cluster_sums.default, (torch.randn(2, 9, 3, dtype=dtype), labels, 3))


def test_compiles_into_one_graph() -> None:
    X, labels = torch.randn(2, 9, 3), torch.randint(0, 3, (2, 2, 9))
    compiled = torch.compile(lambda X, labels: cluster_sums(X * 2, labels, 3)[0], fullgraph=True, backend="eager")
    assert torch.equal(compiled(X, labels), cluster_sums(X * 2, labels, 3)[0])


def test_unfit_arguments_are_refused() -> None:
    X, labels = torch.zeros(2, 5, 3), torch.zeros(2, 1, 5, dtype=torch.int64)
    with pytest.raises(ShapeError, match=r"labels \(2, 1, 4\)"):
        cluster_sums(X, labels[..., :4], 2)
    with pytest.raises(DataError, match="float16"):
        cluster_sums(X.half(), labels, 2)
    with pytest.raises(DataError, match="n_clusters is 0"):
        cluster_sums(X, labels, 0)
