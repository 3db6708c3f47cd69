"""Dispatch of point_frames: compiled C++ for float32 on a CPU; None elsewhere, where the caller has torch code."""

import ctypes
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fastcluster_lm.kernels.native import address, library, thread_count

SOURCE = Path(__file__).with_name("cpu.cpp")
# points whose sums are taken together, whatever the number of threads
CHUNK = 512


class Frames(NamedTuple):
    """What one pass over the points tells.

    means:   (layers, 1, d), each layer's own
    reach:   root of the sum of all squares: no coordinate is farther from 0; NaN or infinite where one is, or where its
             square is beyond float32
    apart:   the least, over layers, of the largest deviation from the mean among some of a layer's points
    """

    means: Float[Tensor, "layers 1 d"]
    reach: float
    apart: float


def point_frames_native(X: Float[Tensor, "layers n d"], every: int) -> Frames | None:
    """Find the frames of points, whose deviations are those of each `every`-th; None where compiled code cannot.

    Shapes: X (layers, n, d), no axis of length 0
    Units:  those of X; sums in float64 of sums over few points in float32
    """
    if X.device.type != "cpu" or X.dtype != torch.float32 or not X.is_contiguous():
        return None
    native = library(SOURCE)
    if native is None:
        return None
    n_layers, n, width = X.shape
    means = torch.empty(n_layers, 1, width, dtype=torch.float32)
    # the sums of each chunk's coordinates and of its squares; of each layer its squares and deviation
    sums = torch.empty(n_layers, -(-n // CHUNK), width + 1, dtype=torch.float64)
    sizes = torch.empty(2, n_layers, dtype=torch.float64)
    native.point_frames(
        address(X, torch.float32),
        *(ctypes.c_int64(size) for size in (n_layers, n, width, CHUNK, every)),
        address(sums, torch.float64), address(means, torch.float32), address(sizes, torch.float64),
        ctypes.c_int32(thread_count()),
    )  # fmt: skip
    squares, apart = sizes.tolist()
    return Frames(means, sum(squares) ** 0.5, min(apart))
