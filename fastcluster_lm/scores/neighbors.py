"""The verb nearest_neighbors: exact Euclidean neighbours of all layers at once; what they say is scored elsewhere."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int

from fastcluster_lm.errors import ShapeError
from fastcluster_lm.scores.arguments import Array, alike, as_points, yes_or_no
from fastcluster_lm.scores.engines import choose_engine
from fastcluster_lm.scores.engines.params import NeighborsParams


class NearestNeighbors(NamedTuple):
    """Each query's neighbours, nearest first, in the caller's kind of array."""

    distances: Float[Array, "*layers nq k"]
    indices: Int[Array, "*layers nq k"]


def nearest_neighbors(
    queries: Float[Array, "*layers nq d"],
    bank: Float[Array, "*layers nb d"],
    n_neighbors: int = 10,
    *,
    exclude_self: bool = False,
    engine: str = "auto",
) -> NearestNeighbors:
    """Find the nearest points of a bank for each query.

    Shapes: queries (*layers, nq, d), bank (*layers, nb, d) -> distances f32, indices i64, both (*layers, nq, k)
    Units:  Euclidean distances in the units of the input
    Notes:  the fused engine gives ties to the lower index;
            queries and bank are arrays, tensors or nested lists; results come in the kind of the queries
    Errors: ShapeError if layers or d differ, or exclude_self and nq != nb; DataError for NaN, infinity, too few points,
            and for what is no such argument
    """
    own, others = as_points(queries, "queries"), as_points(bank, "bank")
    query_batch, bank_batch = alike(own, others)
    ids = None
    if yes_or_no(exclude_self, "exclude_self"):
        if query_batch.shape[1] != bank_batch.shape[1]:
            raise ShapeError(f"queries have shape {own.shape}, bank {others.shape}; exclude_self needs nq = nb")
        ids = torch.arange(bank_batch.shape[1], device=bank_batch.device)
    params = NeighborsParams(n_neighbors, ids, ids)
    found = choose_engine(engine, query_batch.device).neighbors(query_batch, bank_batch, params)
    return NearestNeighbors(own.as_given(found.distances), own.as_given(found.indices))
