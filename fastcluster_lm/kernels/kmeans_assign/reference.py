"""kmeans_assign in plain torch, by direct differences in the points' own precision; never optimised."""

from jaxtyping import Float, Int
from torch import Tensor


def kmeans_assign(
    X: Float[Tensor, "*batch n d"], centroids: Float[Tensor, "*batch k d"]
) -> tuple[Int[Tensor, "*batch n"], Float[Tensor, "*batch n"]]:
    """Give each point its nearest centroid.

    Shapes: X (*batch, n, d), centroids (*batch, k, d) -> labels (*batch, n), sq_dist (*batch, n)
    Units:  sq_dist in squared input units
    Source: Lloyd 1982, assignment step; ties to the lower index
    """
    apart = X[..., :, None, :] - centroids[..., None, :, :]  # (*batch, n, k, d)
    sq_dist, labels = apart.square().sum(-1).min(-1)
    return labels, sq_dist
