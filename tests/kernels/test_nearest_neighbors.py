"""nearest_neighbors as one op, on a CPU: answers by hand, registration; the kernel is in test_triton_kernels.py."""

import pytest
import torch
from torch.library import opcheck

from fastcluster_lm.errors import DataError, ShapeError
from fastcluster_lm.kernels.nearest_neighbors.cuda import MOST_NEIGHBORS, nearest_neighbors_on_cuda

OP = torch.ops.fclm.nearest_neighbors.default


def test_neighbours_by_hand() -> None:
    bank = torch.tensor([[[0.0], [3.0], [1.0], [3.0]]])
    queries = torch.tensor([[[3.0]]])
    distances, indices = nearest_neighbors_on_cuda(queries, bank, 3)
    # of the two points at 3 the lower comes first
    assert indices.tolist() == [[[1, 3, 2]]] and distances.tolist() == [[[0.0, 0.0, 2.0]]]
    assert distances.dtype == torch.float32
    ids = torch.tensor([8]), torch.tensor([5, 8, 6, 7])
    assert nearest_neighbors_on_cuda(queries, bank, 3, *ids)[1].tolist() == [[[3, 2, 0]]]


def test_op_is_registered_as_torch_wants_it() -> None:
    X, ids = torch.randn(2, 9, 3), torch.arange(9)
    opcheck(OP, (X, X.clone(), 4, None, None))
    opcheck(OP, (X.double(), X.double() + 1, 4, ids, ids.expand(2, -1).contiguous()))


def test_compiles_into_one_graph() -> None:
    X = torch.randn(2, 9, 3)
    compiled = torch.compile(lambda X: nearest_neighbors_on_cuda(X * 2, X * 2, 4)[1], fullgraph=True, backend="eager")
    assert torch.equal(compiled(X), nearest_neighbors_on_cuda(X * 2, X * 2, 4)[1])


def test_unfit_arguments_are_refused() -> None:
    X = torch.zeros(2, 300, 3)
    with pytest.raises(ShapeError, match="layers and d must match"):
        nearest_neighbors_on_cuda(X, X[..., :2], 1)
    with pytest.raises(DataError, match="float16"):
        nearest_neighbors_on_cuda(X.half(), X.half(), 1)
    for k in (0, MOST_NEIGHBORS + 1):
        with pytest.raises(DataError, match=f"k is {k}, the bank has 300 points"):
            nearest_neighbors_on_cuda(X, X, k)
    with pytest.raises(ShapeError, match="query_ids have shape"):
        nearest_neighbors_on_cuda(X, X, 1, torch.zeros(299, dtype=torch.int64), torch.zeros(300, dtype=torch.int64))
