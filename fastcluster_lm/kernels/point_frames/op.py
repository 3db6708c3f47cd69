"""Dispatch of point_frames: compiled C++ for float32 on a CPU, plain torch elsewhere."""

import ctypes
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from fastcluster_lm.kernels.native import address, library, thread_count
from fastcluster_lm.kernels.point_frames.reference import Frames, frames_of

SOURCE = Path(__file__).with_name("cpu.cpp")
# points whose sums are taken together, whatever the number of threads
CHUNK = 512


def point_frames(X: Float[Tensor, "layers n d"], every: int) -> Frames:
    """Find the frames of points, whose deviations are those of each `every`-th.

    Shapes: X (layers, n, d), no axis of length 0
    Units:  those of X
    Notes:  compiled, sums in float64 of sums over few points in float32
    """
    compiled = X.device.type == "cpu" and X.dtype == torch.float32 and X.is_contiguous()
    native = library(SOURCE) if compiled else None
    if native is None:
        return frames_of(X, every)
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
