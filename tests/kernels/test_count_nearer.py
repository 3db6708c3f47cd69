"""Points nearer than others, counted by compiled code or a matmul: against whole numbers, whose distances are exact."""

import pytest
import torch

from fastcluster_lm.errors import DataError, ShapeError
from fastcluster_lm.kernels import native
from fastcluster_lm.kernels.nearest_neighbors import count_nearer, op, ranks

pytestmark = pytest.mark.skipif(not native.status()[0], reason=native.status()[1])


@pytest.mark.parametrize("by_matmul", [False, True])
@pytest.mark.parametrize("n, width, k", [(2, 1, 1), (7, 3, 6), (41, 8, 5), (130, 64, 9)])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("memory_budget", [0, 2**20])
def test_points_nearer_than_others_are_counted(
    n: int, width: int, k: int, threads: int, memory_budget: int, by_matmul: bool, monkeypatch
) -> None:
    if by_matmul:
        monkeypatch.setattr(ranks, "library", lambda source: None)
    monkeypatch.setattr(native, "_threads", threads)
    draw = torch.Generator().manual_seed(n)
    # whole numbers, so that distances are exact and many are equal
    X = torch.randint(-2, 3, (2, n, width), generator=draw).float()
    others = torch.rand(2, n, n - 1, generator=draw).argsort(-1)[..., :k]
    others += others >= torch.arange(n)[:, None]
    squares = (X[:, :, None] - X[:, None]).square().sum(-1)
    squares[:, torch.arange(n), torch.arange(n)] = torch.inf
    expected = (squares[:, :, None] < squares.gather(2, others)[..., None]).sum(-1)
    assert torch.equal(count_nearer(X, others, memory_budget), expected)


def test_wide_points_are_counted_by_a_matmul_and_narrow_ones_are_not(monkeypatch) -> None:
    X = torch.zeros(1, 4, 65)
    indices = torch.tensor([[[1], [2], [3], [0]]])
    ways, by_matmul = [], ranks._count_by_matmul
    monkeypatch.setattr(ranks, "_count_by_matmul", lambda X, *rest: (ways.append(X.shape[-1]), by_matmul(X, *rest))[1])
    for points in (X, X[..., :64], X[..., :2].double()):
        assert not count_nearer(points, indices, 0).any()
    assert ways == [65, 2]


def test_indices_that_name_no_point_are_refused() -> None:
    X = torch.zeros(1, 4, 65)
    indices = torch.tensor([[[1], [2], [3], [0]]])
    with pytest.raises(ShapeError, match="layers and n must match"):
        count_nearer(X, indices[:, :3], 0)
    for wrong in (4, -1):
        with pytest.raises(DataError, match="expected 0 to 3"):
            count_nearer(X[..., :2], indices * 0 + wrong, 0)
        with pytest.raises(DataError, match="expected 0 to 3"):
            count_nearer(X, indices * 0 + wrong, 0)


@pytest.mark.parametrize("threads", [1, 7])
def test_matrices_of_pairs_stay_within_the_budget(threads: int, monkeypatch) -> None:
    monkeypatch.setattr(native, "_threads", threads)
    most = [op.most_paired(budget) for budget in (0, 2**16, 2**20, 2**40)]
    assert most[0] == 0 and most[-1] == op.MOST_PAIRED
    for points, budget in zip(most[1:3], (2**16, 2**20), strict=True):
        assert 4 * threads * points**2 <= budget < 4 * threads * (points + 1) ** 2
