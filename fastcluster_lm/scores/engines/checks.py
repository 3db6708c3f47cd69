"""What every engine checks before it computes: shapes that fit, finite values, enough points; it changes nothing.

checked: that the caller has seen the points to be finite, who is not asked again
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fastcluster_lm.errors import DataError, ShapeError
from fastcluster_lm.kernels.deferred import check
from fastcluster_lm.kernels.neighbor_votes import most_shared
from fastcluster_lm.scores.batches import check_finite
from fastcluster_lm.scores.engines.params import KMeansParams, NeighborsParams, TsneParams

# beyond this a map's squared distances leave float32
FARTHEST = 1e15


def check_neighbors(
    queries: Float[Tensor, "layers nq d"],
    bank: Float[Tensor, "layers nb d"],
    params: NeighborsParams,
    *,
    checked: bool = False,
) -> None:
    """Refuse queries and banks that do not fit, are not finite, or leave a query too few admissible points.

    Errors: ShapeError for layers, widths or ids that differ; DataError for NaN, infinity, too few points
    """
    if queries.shape[0] != bank.shape[0] or queries.shape[2] != bank.shape[2]:
        raise ShapeError(
            f"queries have shape {tuple(queries.shape)}, bank {tuple(bank.shape)}; layers and d must match"
        )
    if not checked:
        check_finite(queries, "queries")
        if bank is not queries:
            check_finite(bank, "bank")
    n_layers, n_bank = bank.shape[:2]
    fewer = None
    if params.query_ids is not None and params.bank_ids is not None:
        _check_ids(params.query_ids, "query_ids", n_layers, queries.shape[1])
        _check_ids(params.bank_ids, "bank_ids", n_layers, n_bank)
        if queries.shape[1]:
            fewer = most_forbidden(params.query_ids, params.bank_ids)

    def judge(most: Tensor) -> DataError | None:
        fewest = n_bank - int(most)
        if params.n_neighbors <= fewest:
            return None
        return DataError(
            f"n_neighbors is {params.n_neighbors}, but a query has only {fewest} admissible points of {n_bank}; "
            "ask for fewer neighbours or give more points"
        )

    check(torch.zeros((), dtype=torch.int64) if fewer is None else fewer, judge)


def check_kmeans(X: Float[Tensor, "layers n d"], *asked: KMeansParams, checked: bool = False) -> None:
    """Refuse points that are not finite or fewer than the clusters, and starting centroids that do not fit.

    Errors: DataError for NaN, infinity, n_clusters > n; ShapeError for init
    """
    if not checked:
        check_finite(X, "X")
    n_layers, n, width = X.shape
    for params in asked:
        if params.n_clusters > n:
            raise DataError(f"n_clusters is {params.n_clusters}, but there are only {n} points; ask for at most {n}")
        if params.init is not None:
            fits = ((params.n_clusters, width), (n_layers, params.n_clusters, width))
            if tuple(params.init.shape) not in fits:
                raise ShapeError(f"init has shape {tuple(params.init.shape)}; expected {fits[0]} or {fits[1]}")
            check_finite(params.init.expand(fits[1]), "init")


def check_tsne(X: Float[Tensor, "layers n d"], params: TsneParams) -> None:
    """Refuse points that are not finite or fewer than two, and a starting map that does not fit.

    Errors: DataError for NaN, infinity, n < 2; ShapeError for init or neighbors, whose indices tsne_affinities checks
    """
    check_finite(X, "X")
    n_layers, n, _ = X.shape
    if n < 2:
        raise DataError(f"X has {n} points a layer; a map needs at least 2")
    if params.init is not None:
        fits = ((n, 2), (n_layers, n, 2))
        if tuple(params.init.shape) not in fits:
            raise ShapeError(f"init has shape {tuple(params.init.shape)}; expected {fits[0]} or {fits[1]}")
        check_finite(params.init.expand(fits[1]), "init")
        if params.init.numel():
            check(params.init.abs().max(), _within_reach)
    if params.neighbors is not None:
        shape, expected = tuple(params.neighbors.indices.shape), (n_layers, n, params.affinity_neighbors(n))
        if shape != expected:
            raise ShapeError(f"neighbors have shape {shape}; expected {expected}, three perplexities of each point")
        if tuple(params.neighbors.distances.shape) != expected:
            raise ShapeError(f"neighbors' distances have another shape than their indices {expected}")


def forbidden(params: NeighborsParams, start: int, stop: int) -> Bool[Tensor, "*layers rows nb"] | None:
    """Mark the bank points that share an id with the queries start..stop; None where no ids are given."""
    if params.query_ids is None or params.bank_ids is None:
        return None
    return params.query_ids[..., start:stop, None] == params.bank_ids[..., None, :]


def _within_reach(farthest: Tensor) -> DataError | None:
    reach = float(farthest)
    return DataError(f"init reaches {reach:.3g}; expected a map within {FARTHEST:g}") if reach > FARTHEST else None


def _check_ids(ids: Tensor, name: str, n_layers: int, n: int) -> None:
    if tuple(ids.shape) not in ((n,), (n_layers, n)):
        raise ShapeError(f"{name} have shape {tuple(ids.shape)}; expected {(n,)} or {(n_layers, n)}")


def most_forbidden(query_ids: Int[Tensor, "*layers nq"], bank_ids: Int[Tensor, "*layers nb"]) -> Int[Tensor, ""]:
    """Count the most bank points that any query may not have, where the ids lie."""
    layers = max(ids.shape[0] if ids.ndim == 2 else 1 for ids in (query_ids, bank_ids))
    if layers == 1:
        return most_shared(query_ids.flatten(), bank_ids.flatten())
    return most_shared(query_ids.expand(layers, -1), bank_ids.expand(layers, -1)).max()
