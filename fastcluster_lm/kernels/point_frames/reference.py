"""point_frames in plain torch: what runs for other numbers than float32, and where no C++ compiler is."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Frames(NamedTuple):
    """Where points lie and how far they reach.

    means:   (layers, 1, d), each layer's own
    reach:   root of the sum of all squares: no coordinate is farther from 0; NaN or infinite where one is, or where its
             square is beyond float32
    apart:   the least, over layers, of the largest deviation from the mean among some of a layer's points; a layer
             whose points are all one, which its mean then is exactly, does not count; infinite where none does
    """

    means: Float[Tensor, "layers 1 d"]
    reach: float
    apart: float


def frames_of(X: Float[Tensor, "layers n d"], every: int) -> Frames:
    """Find the frames of points, whose deviations are those of each `every`-th.

    Shapes: X (layers, n, d), no axis of length 0
    """
    alike = (X[:, :1] == X).all(1, keepdim=True).all(2, keepdim=True)
    means = torch.where(alike, X[:, :1], X.mean(1, keepdim=True))
    apart = (X[:, ::every] - means).abs_().amax((1, 2)).masked_fill_(alike[:, 0, 0], torch.inf)
    return Frames(means, float(torch.linalg.vector_norm(X)), float(apart.amin()))
