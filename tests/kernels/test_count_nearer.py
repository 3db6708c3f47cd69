"""Points nearer than others, counted by compiled code: against whole numbers, whose distances are exact."""

import pytest
import torch

from fastcluster_lm.errors import DataError, ShapeError
from fastcluster_lm.kernels import native
from fastcluster_lm.kernels.nearest_neighbors import count_nearer

pytestmark = pytest.mark.skipif(not native.status()[0], reason=native.status()[1])


@pytest.mark.parametrize("n, width, k", [(2, 1, 1), (7, 3, 6), (41, 8, 5), (130, 64, 9)])
@pytest.mark.parametrize("threads", [1, 3])
def test_points_nearer_than_others_are_counted(n: int, width: int, k: int, threads: int, monkeypatch) -> None:
    monkeypatch.setattr(native, "_threads", threads)
    draw = torch.Generator().manual_seed(n)
    # whole numbers, so that distances are exact and many are equal
    X = torch.randint(-2, 3, (2, n, width), generator=draw).float()
    others = torch.rand(2, n, n - 1, generator=draw).argsort(-1)[..., :k]
    others += others >= torch.arange(n)[:, None]
    squares = (X[:, :, None] - X[:, None]).square().sum(-1)
    squares[:, torch.arange(n), torch.arange(n)] = torch.inf
    expected = (squares[:, :, None] < squares.gather(2, others)[..., None]).sum(-1)
    found = count_nearer(X, others)
    assert found is not None and torch.equal(found, expected)


def test_points_are_counted_by_direct_differences_where_they_are_narrow_and_named() -> None:
    X = torch.zeros(1, 4, 65)
    indices = torch.tensor([[[1], [2], [3], [0]]])
    assert count_nearer(X, indices) is None and count_nearer(X[..., :2].double(), indices) is None
    assert count_nearer(X[..., :64], indices) is not None
    with pytest.raises(ShapeError, match="layers and n must match"):
        count_nearer(X, indices[:, :3])
    for wrong in (4, -1):
        with pytest.raises(DataError, match="expected 0 to 3"):
            count_nearer(X[..., :2], indices.clamp(max=2) * 0 + wrong)
