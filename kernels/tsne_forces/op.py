"""Dispatch of the t-SNE descent: C++ on a CPU, Triton on CUDA, else tiled torch; it decides on no schedule."""

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fastcluster_lm.kernels.edges import Edges
from fastcluster_lm.kernels.native import address, library, thread_count
from fastcluster_lm.kernels.tsne_forces.fused import TritonDescent
from fastcluster_lm.kernels.tsne_forces.grid import grid_repulsion
from fastcluster_lm.kernels.tsne_forces.tiled import TiledDescent

SOURCE = Path(__file__).with_name("cpu.cpp")
# floats of a vector in cpu.cpp, and where its padding stands: so far off that the square is finite and its kernel is 0
VECTOR, FAR = 8, 1e18
# rows are dealt to as many chunks whatever the number of threads, so that sums have one order
CHUNKS, CHUNK_POINTS = 8, 64


@dataclass(frozen=True)
class StepRule:
    """How far a step goes: factor on the attraction, momentum, learning rate, and the longest step of a point."""

    exaggeration: float
    momentum: float
    step_size: float
    max_step_norm: float


class Descent(Protocol):
    """Points on their way down, with their momentum and gains."""

    def advance(self, iterations: int, rule: StepRule, active: Bool[Tensor, " layers"]) -> None:
        """Take steps in the active layers, and leave the others as they are."""

    def gradient_norm(self) -> Float[Tensor, " layers"]:
        """Give the root mean square over points of a quarter of KL's gradient times n, at the last step taken."""

    def points(self) -> Float[Tensor, "layers 2 n"]:
        """Copy the points out."""

    def kl_divergence(self) -> Float[Tensor, " layers"]:
        """KL divergence in nats, float64, over the affinities given, unexaggerated."""


def start_descent(start: Float[Tensor, "layers 2 n"], edges: Edges, *, grid: bool = False) -> Descent:
    """Begin a descent at these points, with exact repulsion or one interpolated on a grid.

    Shapes: start (layers, 2, n) f32, n >= 2
    Source: van der Maaten and Hinton 2008; gains and step rule of openTSNE 1.0.4
    """
    if start.device.type == "cuda" and not grid:
        return TritonDescent(start, edges)
    native = library(SOURCE) if start.device.type == "cpu" else None
    return TiledDescent(start, edges, grid) if native is None else NativeDescent(native, start, edges, grid)


class NativeDescent:
    """The descent by cpu.cpp, its buffers padded to whole vectors and laid out once."""

    def __init__(self, native: ctypes.CDLL, start: Tensor, edges: Edges, grid: bool = False) -> None:
        self.native, self.edges, self.grid = native, edges, grid
        n_layers, _, n = start.shape
        padded = -(-n // VECTOR) * VECTOR
        self.chunks = max(1, min(CHUNKS, n // CHUNK_POINTS))
        self.n = n
        self._points = torch.full((n_layers, 2, padded), FAR, dtype=torch.float32)
        self._points[..., :n] = start
        self.update = torch.zeros_like(self._points)
        self.gains = torch.ones_like(self._points)
        self.scratch = torch.zeros(n_layers, self.chunks, 2, padded, dtype=torch.float32)
        self.sums = torch.zeros(n_layers, self.chunks, dtype=torch.float64)
        self.gradient_sq = torch.zeros(n_layers, n, dtype=torch.float64)
        self.sizes = [ctypes.c_int64(size) for size in (n_layers, n, padded)]
        self.flow = [
            address(edges.starts, torch.int64),
            address(edges.columns, torch.int32),
            address(edges.values, torch.float32),
        ]

    def advance(self, iterations: int, rule: StepRule, active: Tensor) -> None:
        flags = active.to(torch.uint8).contiguous()
        threads = ctypes.c_int32(thread_count())
        chunks = ctypes.c_int64(1 if self.grid else self.chunks)
        moving = [address(part, torch.float32) for part in (self._points, self.update, self.gains)]
        forces = [address(self.scratch, torch.float32), address(self.sums, torch.float64)]
        numbers = [
            ctypes.c_float(value) for value in (rule.exaggeration, rule.momentum, rule.step_size, rule.max_step_norm)
        ]
        last = [address(self.gradient_sq, torch.float64), address(flags, torch.uint8), threads]
        for _ in range(iterations):
            if self.grid:
                forces = self._interpolate()
            else:
                self.native.tsne_repulsion(moving[0], *self.sizes, chunks, *forces, last[1], threads)
            self.native.tsne_step(*moving, *self.sizes, chunks, *forces, *self.flow, *numbers, *last)

    def _interpolate(self) -> list[ctypes.c_void_p]:
        # one chunk, in buffers of its own that live until the next step
        repulsion, sums = grid_repulsion(self._points[..., : self.n])
        self._gridded = torch.nn.functional.pad(repulsion, (0, self._points.shape[-1] - self.n)), sums.double()
        return [address(self._gridded[0], torch.float32), address(self._gridded[1], torch.float64)]

    def gradient_norm(self) -> Tensor:
        return self.gradient_sq.mean(1).sqrt() * self.n

    def points(self) -> Tensor:
        return self._points[..., : self.n].clone()

    def repulsion(self) -> Tensor:
        """Sum the repulsion of all pairs, (layers, 2, n), not yet divided by the normaliser; sums holds that."""
        everywhere = torch.ones(len(self._points), dtype=torch.uint8)
        threads = ctypes.c_int32(thread_count())
        self.native.tsne_repulsion(
            address(self._points, torch.float32), *self.sizes, ctypes.c_int64(self.chunks),
            address(self.scratch, torch.float32), address(self.sums, torch.float64),
            address(everywhere, torch.uint8), threads,
        )  # fmt: skip
        return self.scratch.sum(1)[..., : self.n]

    def kl_divergence(self) -> Tensor:
        self.repulsion()
        threads = ctypes.c_int32(thread_count())
        rows = torch.empty(len(self._points), self.n, dtype=torch.float64)
        self.native.tsne_cross_entropy(
            address(self._points, torch.float32), *self.sizes, *self.flow, address(rows, torch.float64), threads
        )
        return rows.sum(1) + self.sums.sum(1).log()
