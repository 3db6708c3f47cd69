"""The verb kmeans: clusters of all layers at once; how they agree with labels is scored elsewhere."""

from typing import NamedTuple

from jaxtyping import Float, Int

from fastcluster_lm.scores.arguments import Array, as_points, as_start
from fastcluster_lm.scores.engines import choose_engine
from fastcluster_lm.scores.engines.params import KMeansParams


class KMeans(NamedTuple):
    """The best run of each layer, in the caller's kind of array; without layers, inertia has no axis."""

    labels: Int[Array, "*layers n"]
    centroids: Float[Array, "*layers k d"]
    inertia: Float[Array, "*layers"]


def kmeans(
    X: Float[Array, "*layers n d"],
    n_clusters: int,
    *,
    n_init: int = 10,
    seed: int = 0,
    init: Float[Array, "*layers k d"] | None = None,
    engine: str = "auto",
) -> KMeans:
    """Cluster the points of each layer; of n_init restarts, and one from init if given, the lowest inertia wins.

    Shapes: X (*layers, n, d), init (k, d) or (layers, k, d) -> labels i64 (*layers, n), centroids f32 (*layers, k, d)
    Units:  inertia in squared input units, float64
    Notes:  distances are compared in float32 of a layer's largest deviation; X and init are arrays,
            tensors or nested lists; seed is 0 or more
    Errors: ShapeError for init; DataError for NaN, infinity, n_clusters < 1 or > n, and for what is no such argument
    """
    points = as_points(X, "X")
    start = as_start(init, points.batch.device)
    params = KMeansParams(n_clusters, n_init=n_init, seed=seed, init=start)
    found = choose_engine(engine, points.batch.device).kmeans(points.batch, params)
    return KMeans(*(points.as_given(part) for part in (found.labels, found.centroids, found.inertia)))
