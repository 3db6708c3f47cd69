"""Dispatch of kmeans_runs: compiled C++ on a CPU; None elsewhere, where the caller has torch code."""

import ctypes
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.kernels.native import address, library, thread_count
from fastcluster_lm.kernels.pages import room
from fastcluster_lm.kernels.rounding import row_squares

SOURCE = Path(__file__).with_name("cpu.cpp")
# beyond this many coordinates seeding, whose distances outnumber those of a few iterations, sees a sketch of the points
SKETCH_FROM, SKETCH_WIDTH = 512, 256
# from so many coordinates, and centroids of all runs, points are first compared by eight-bit codes
LEAST_WIDTH, LEAST_PRODUCTS, QUAD = 256, 32, 4


class Runs(NamedTuple):
    """What every run of every layer came to; centroids and inertia are float64."""

    labels: Int[Tensor, "layers runs n"]
    centroids: Float[Tensor, "layers runs k d"]
    inertia: Float[Tensor, "layers runs"]
    n_iter: Int[Tensor, "layers runs"]


def kmeans_runs_native(
    X: Float[Tensor, "layers n d"],
    n_clusters: int,
    draws: Float[Tensor, "k fresh trials"],
    init: Float[Tensor, "layers k d"] | None,
    max_iter: int,
    tol: float,
) -> Runs | None:
    """Run KMeans from every start to its end; None where compiled code cannot.

    Shapes: X (layers, n, d) f32, centred and of size about 1; draws in [0, 1) f64, fresh may be 0; init is run 0
    Units:  tol on the summed squared shift of a run's centroids, as a share of the mean variance of a layer's
            coordinates, as scikit-learn has it; inertia f64 by direct differences
    """
    native = library(SOURCE) if X.device.type == "cpu" else None
    if native is None:
        return None
    n_layers, n, width = X.shape
    fresh, trials = draws.shape[1:]
    runs = fresh + (init is not None)
    X, draws = X.contiguous(), draws.double().contiguous()
    x_sq = torch.empty(n_layers, n, dtype=torch.float32)
    sketch, sketch_sq = X, x_sq
    if width > SKETCH_FROM and fresh:
        # a random projection keeps distances within a tenth, enough for odds (Johnson and Lindenstrauss 1984)
        generator = torch.Generator().manual_seed(0)
        sketch = X @ (torch.randn(width, SKETCH_WIDTH, generator=generator, dtype=torch.float32) / SKETCH_WIDTH**0.5)
        sketch_sq = row_squares(sketch)
    init = None if init is None else init.float().contiguous()
    labels = torch.empty(n_layers, runs, n, dtype=torch.int32)
    centroids = torch.empty(n_layers, runs, n_clusters, width, dtype=torch.float64)
    inertia = torch.empty(n_layers, runs, dtype=torch.float64)
    n_iter = torch.empty(n_layers, runs, dtype=torch.int64)
    # kept by name until the call is over
    codes = _code_room(X, n_clusters * runs)
    encoded: list[ctypes.c_void_p | None] = [address(part, part.dtype) for part in codes]
    native.kmeans_runs(
        *(address(part, torch.float32) for part in (X, x_sq, sketch, sketch_sq)),
        *(ctypes.c_int64(size) for size in (n_layers, n, width, sketch.shape[-1], n_clusters, fresh, trials)),
        address(draws, torch.float64), None if init is None else address(init, torch.float32), ctypes.c_int64(max_iter),
        ctypes.c_double(tol / (n * width)), *(encoded or [None] * 5),
        address(labels, torch.int32), address(centroids, torch.float64),
        address(inertia, torch.float64), address(n_iter, torch.int64),
        ctypes.c_int32(thread_count()),
    )  # fmt: skip
    return Runs(labels, centroids, inertia, n_iter)


def _code_room(X: Tensor, products: int) -> list[Tensor]:
    """Give room for the points' codes, or none where products with so few centroids cost less than encoding them."""
    n_layers, n, width = X.shape
    if width < LEAST_WIDTH or products < LEAST_PRODUCTS:
        return []
    kinds = (torch.float32, torch.float32, torch.float32, torch.int32)
    rows = [room(n_layers * n, dtype=kind) for kind in kinds]
    return [room(n_layers * n, -(-width // QUAD) * QUAD, dtype=torch.int8), *rows]
