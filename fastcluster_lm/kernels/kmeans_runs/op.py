"""Dispatch of kmeans_runs: compiled C++ on a CPU, torch elsewhere, on CUDA with Triton's kmeans_assign."""

import ctypes
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.kernels.kmeans_runs import reference
from fastcluster_lm.kernels.kmeans_runs.starts import Best, Starts
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


def kmeans_runs(X: Float[Tensor, "layers n d"], starts: Starts, memory_budget: int) -> Best:
    """Run KMeans from every start to its end, and give each layer's best run.

    Shapes: X (layers, n, d) f32, centred and of size about 1
    Units:  inertia f64 by direct differences; memory_budget in bytes, for distances that torch holds at once
    Notes:  matmuls take the precision that the caller has set, which must be float32's own
    """
    native = library(SOURCE) if X.device.type == "cpu" else None
    if native is None:
        return reference.kmeans_runs(X, starts, memory_budget)
    return _best_of(run_compiled(native, X, starts))


def run_compiled(native: ctypes.CDLL, X: Float[Tensor, "layers n d"], starts: Starts) -> Runs:
    """Run all runs of all layers by C++; the run from `init` is the first."""
    n_clusters, draws, init, max_iter, tol = starts
    n_layers, n, width = X.shape
    fresh, trials = draws.shape[1:]
    runs = starts.runs
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


def _best_of(runs: Runs) -> Best:
    """Take each layer's run of lowest inertia, the first of equal ones."""
    n_layers, n_runs = runs.inertia.shape
    if n_runs == 1:
        return Best(runs.labels[:, 0].long(), runs.centroids[:, 0], runs.inertia[:, 0], runs.n_iter[:, 0])
    # numpy's argmin is the first of equals, torch's is any
    best = torch.from_numpy(runs.inertia.numpy().argmin(1) + np.arange(n_layers) * n_runs)
    labels, centroids, inertia, n_iter = (part.flatten(0, 1).index_select(0, best) for part in runs)
    return Best(labels.long(), centroids, inertia, n_iter)
