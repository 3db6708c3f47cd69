"""Score labels by a vote of the nearest neighbours; it finds no neighbours itself."""

from jaxtyping import Bool, Float, Int
from torch import Tensor

from fastcluster_lm.errors import ShapeError
from fastcluster_lm.kernels.neighbor_votes import most_shared, neighbor_votes


def knn_share(
    indices: Int[Tensor, "*batch q k"], query_labels: Int[Tensor, "*sets q"], bank_labels: Int[Tensor, "*sets m"]
) -> Float[Tensor, "*scores"]:
    """Average the share of a query's neighbours that bear its label.

    Shapes: indices (L, q, k) into the bank, labels (q,) and (m,) -> share (L,) float64. Labels (S, q) and (S, m)
            score S labelings at once -> (S, L). Indices (L, G, q, k) with labels (S, G, q) and (S, G, m) hold G
            groups, each with a bank of its own -> (S, L, G)
    Errors: ShapeError if the labels do not fit the indices
    """
    indices, own, bank, squeeze = _by_group(indices, query_labels, bank_labels)
    return _as_asked(neighbor_votes(indices, own, bank, winners=False), squeeze)


def knn_accuracy(
    indices: Int[Tensor, "*batch q k"], query_labels: Int[Tensor, "*sets q"], bank_labels: Int[Tensor, "*sets m"]
) -> Float[Tensor, "*scores"]:
    """Give the share of queries whose label wins the vote of their neighbours.

    Shapes: as knn_share; the neighbours are sorted, nearest first
    Errors: ShapeError if the labels do not fit the indices
    Source: a tie goes to the label whose nearest member is nearest
    """
    indices, own, bank, squeeze = _by_group(indices, query_labels, bank_labels)
    return _as_asked(neighbor_votes(indices, own, bank, winners=True), squeeze)


def enough_neighbors(
    query_ids: Int[Tensor, "*batch q"], bank_ids: Int[Tensor, "*batch m"], n_neighbors: int
) -> Bool[Tensor, "*batch"]:
    """Say for each batch entry whether all its queries have n_neighbors bank points whose id is not their own."""
    return bank_ids.shape[-1] - most_shared(query_ids, bank_ids) >= n_neighbors


def _by_group(
    indices: Tensor, query_labels: Tensor, bank_labels: Tensor
) -> tuple[Int[Tensor, "L G q k"], Int[Tensor, "S G q"], Int[Tensor, "S G m"], list[int]]:
    """Bring all to one shape; list the axes of the scores that were added for it."""
    squeeze = []
    if indices.ndim == 3:
        indices = indices[:, None]
        query_labels, bank_labels = query_labels[..., None, :], bank_labels[..., None, :]
        squeeze.append(2)
    if query_labels.ndim == 2:
        query_labels, bank_labels = query_labels[None], bank_labels[None]
        squeeze.append(0)
    groups, queries = indices.shape[1:3] if indices.ndim == 4 else (-1, -1)
    if query_labels.shape[1:] != (groups, queries) or query_labels.shape[:2] != bank_labels.shape[:2]:
        raise ShapeError(
            f"indices has shape {tuple(indices.shape)}, query_labels {tuple(query_labels.shape)}, bank_labels "
            f"{tuple(bank_labels.shape)}; expected (L, G, q, k), (S, G, q) and (S, G, m)"
        )
    return indices, query_labels, bank_labels, squeeze


def _as_asked(scores: Tensor, squeeze: list[int]) -> Tensor:
    for axis in squeeze:
        scores = scores.squeeze(axis)
    return scores
