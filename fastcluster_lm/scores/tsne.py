"""The verb tsne: 2-D maps of all layers at once; how good they are is scored elsewhere."""

import warnings
from typing import NamedTuple

from jaxtyping import Float

from fastcluster_lm.scores.arguments import Array, as_points, as_start
from fastcluster_lm.scores.engines import choose_engine
from fastcluster_lm.scores.engines.params import TsneParams


class TsneMap(NamedTuple):
    """A map of each layer, in the caller's kind of array; without layers, kl_divergence has no axis."""

    points: Float[Array, "*layers n 2"]
    kl_divergence: Float[Array, "*layers"]


def tsne(
    X: Float[Array, "*layers n d"],
    *,
    perplexity: float = 30.0,
    n_iter: int = 500,
    seed: int = 0,
    init: Float[Array, "*layers n 2"] | None = None,
    engine: str = "auto",
) -> TsneMap:
    """Lay the points of each layer out in the plane; from init if given, then without early exaggeration.

    Shapes: X (*layers, n, d), init (n, 2) or (layers, n, 2) -> points f32 (*layers, n, 2)
    Units:  kl_divergence in nats, float64
    Notes:  exaggerated iterations count too, and the schedule depends on n_iter: min(100, n_iter // 3) are exaggerated,
            so that a map after n_iter=200 (66 of them) is no stage of one of n_iter=500 (100). init is centred first:
            with n_iter=0 what comes back is init less its mean. Too large a perplexity is lowered to (n - 1) / 3, with
            a UserWarning
    Errors: ShapeError for init; DataError for NaN, infinity, fewer than 2 points, perplexity <= 0, and for what is no
            such argument
    """
    points = as_points(X, "X")
    start = as_start(init, points.batch.device)
    params = TsneParams(perplexity=perplexity, n_iter=n_iter, seed=seed, init=start)
    if lowered := params.lowered(points.batch.shape[1]):
        warnings.warn(lowered, stacklevel=2)
    drawn = choose_engine(engine, points.batch.device).tsne(points.batch, params)
    return TsneMap(*(points.as_given(part) for part in (drawn.points, drawn.kl_divergence)))
