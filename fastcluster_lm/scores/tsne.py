"""The verb tsne: 2-D maps of all layers at once; how good they are is scored elsewhere."""

from typing import NamedTuple

import torch
from jaxtyping import Float

from fastcluster_lm.scores.batches import Array, as_batch, as_caller
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
    Units:  kl_divergence in nats, float64; n_iter counts the exaggerated iterations too
    Errors: ShapeError for init; DataError for NaN, infinity, fewer than 2 points, perplexity <= 0
    """
    batch = as_batch(X, "X")
    start = None if init is None else torch.as_tensor(init, device=batch.device)
    params = TsneParams(perplexity=perplexity, n_iter=n_iter, seed=seed, init=start)
    drawn = choose_engine(engine, batch.device).tsne(batch, params)
    return TsneMap(as_caller(drawn.points, X), as_caller(drawn.kl_divergence, X))
