"""Points nearer than others, counted by compiled code: against whole numbers, whose distances are exact."""

import pytest
import torch

from fastcluster_lm.errors import DataError, ShapeError
from fastcluster_lm.kernels import native
from fastcluster_lm.kernels.nearest_neighbors import count_nearer, op

pytestmark = pytest.mark.skipif(not native.status()[0], reason=native.status()[1])


@pytest.mark.parametrize("n, width, k", [(2, 1, 1), (7, 3, 6), (41, 8, 5), (130, 64, 9)])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("memory_budget", [0, 2**20])
def test_points_nearer_than_others_are_counted(
    n: int, width: int, k: int, threads: int, memory_budget: int, monkeypatch
) -> None:
    monkeypatch.setattr(native, "_threads", threads)
    draw = torch.Generator().manual_seed(n)
    # whole numbers, so that distances are exact and many are equal
    X = torch.randint(-2, 3, (2, n, width), generator=draw).float()
    others = torch.rand(2, n, n - 1, generator=draw).argsort(-1)[..., :k]
    others += others >= torch.arange(n)[:, None]
    squares = (X[:, :, None] - X[:, None]).square().sum(-1)
    squares[:, torch.arange(n), torch.arange(n)] = torch.inf
    expected = (squares[:, :, None] < squares.gather(2, others)[..., None]).sum(-1)
    found = count_nearer(X, others, memory_budget)
    assert found is not None and torch.equal(found, expected)


def test_points_are_counted_by_direct_differences_where_they_are_narrow_and_named() -> None:
    X = torch.zeros(1, 4, 65)
    indices = torch.tensor([[[1], [2], [3], [0]]])
    assert count_nearer(X, indices, 0) is None and count_nearer(X[..., :2].double(), indices, 0) is None
    assert count_nearer(X[..., :64], indices, 0) is not None
    with pytest.raises(ShapeError, match="layers and n must match"):
        count_nearer(X, indices[:, :3], 0)
    for wrong in (4, -1):
        with pytest.raises(DataError, match="expected 0 to 3"):
            count_nearer(X[..., :2], indices * 0 + wrong, 0)


@pytest.mark.parametrize("threads", [1, 7])
def test_matrices_of_pairs_stay_within_the_budget(threads: int, monkeypatch) -> None:
    monkeypatch.setattr(native, "_threads", threads)
    most = [op._most_paired(budget) for budget in (0, 2**16, 2**20, 2**40)]
    assert most[0] == 0 and most[-1] == op.MOST_PAIRED
    for points, budget in zip(most[1:3], (2**16, 2**20), strict=True):
        assert 4 * threads * points**2 <= budget < 4 * threads * (points + 1) ** 2
