"""Dispatch of the t-SNE descent: C++ on a CPU, Triton on CUDA, else tiled torch; it decides on no schedule."""

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fastcluster_lm.kernels.edges import PAIRED_POINTS, VECTOR, Affinities, Edges, Pairs
from fastcluster_lm.kernels.native import NativeError, address, library, thread_count
from fastcluster_lm.kernels.pages import room
from fastcluster_lm.kernels.tsne_forces.cuda import TritonDescent
from fastcluster_lm.kernels.tsne_forces.tiled import TiledDescent

SOURCE, TREE = Path(__file__).with_name("cpu.cpp"), Path(__file__).with_name("tree.cpp")
Repulsion = Literal["pairs", "tree", "grid"]
# up to so many points all pairs are summed: by compiled code, where a tree follows, and elsewhere, where a grid does;
# `fclm bench forces` measures them
PAIRS_POINTS, GRID_POINTS = 1_800, 30_000
# a group of points is far from a leaf of the tree if its radius is below so large a share of their distance: forces on
# maps then err by less than 0.1 % (root mean square); the points move little between so many steps as share an order
ANGLE, REORDER_EVERY = 0.5, 20
# and that of the last sum, for KL, which errs by less than 1e-6 nats
FINE_ANGLE = 0.1
# beyond so many points a layer's do not fit the nearest cache (8 bytes of 32 KiB each, and edges pass by): those that
# attract each other are then put together, which halves the time of the attraction at 5,000 points
SCATTERED_POINTS = 2_500
# where padding stands: so far off that the square is finite and its kernel is 0
FAR = 1e18
# rows are dealt to as many chunks whatever the number of threads, so that sums have one order
CHUNKS, CHUNK_POINTS = 8, 128


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


def start_descent(
    start: Float[Tensor, "layers 2 n"], affinities: Affinities, *, repulsion: Repulsion | None = None
) -> Descent:
    """Begin a descent at these points.

    Shapes: start (layers, 2, n) f32, n >= 2; affinities of as many points
            repulsion: over all pairs, by a tree (compiled code on a CPU alone) or a grid (torch code alone); None: what
            is quickest for n
    Errors: ValueError for a tree where there is no compiled code for it, or Pairs of another number of points
    Source: van der Maaten and Hinton 2008; gains and step rule of openTSNE 1.0.4; tree.cpp and grid.py have theirs
    """
    n = start.shape[-1]
    native = library(SOURCE) if start.device.type == "cpu" else None
    if repulsion is None:
        beyond: tuple[int, Repulsion] = (GRID_POINTS, "grid") if native is None else (PAIRS_POINTS, "tree")
        repulsion = beyond[1] if n > beyond[0] else "pairs"
    if isinstance(affinities, Pairs):
        if affinities.n != n:
            raise ValueError(f"affinities are of {affinities.n} points, the start has {n}")
        if native is None or repulsion != "pairs":
            affinities = affinities.edges()
    if native is not None and repulsion != "grid":
        return NativeDescent(native, start, affinities, repulsion)
    assert isinstance(affinities, Edges)
    if repulsion == "tree":
        raise ValueError(f"repulsion by a tree needs compiled code on a CPU; the points are on {start.device}")
    if start.device.type == "cuda" and repulsion == "pairs":
        return TritonDescent(start, affinities)
    return TiledDescent(start, affinities, repulsion == "grid")


class NativeDescent:
    """The descent by cpu.cpp and tree.cpp, its buffers padded to whole vectors and laid out once."""

    def __init__(
        self, native: ctypes.CDLL, start: Tensor, affinities: Affinities, repulsion: Repulsion = "pairs"
    ) -> None:
        self.native, self.way = native, repulsion
        n_layers, _, n = start.shape
        padded = -(-n // VECTOR) * VECTOR
        self.n = n
        # where each point stands in the buffers
        self.places: Tensor | None = None
        if n > SCATTERED_POINTS and isinstance(affinities, Edges):
            self.places, affinities = put_together(native, affinities, n_layers, n)
            start = start.gather(2, self.places[:, None].expand(-1, 2, -1))
        self._points = torch.full((n_layers, 2, padded), FAR, dtype=torch.float32)
        self._points[..., :n] = start
        self.update = torch.zeros_like(self._points)
        self.gains = torch.ones_like(self._points)
        self.gradient_sq = torch.zeros(n_layers, n, dtype=torch.float64)
        self.sizes = [ctypes.c_int64(size) for size in (n_layers, n, padded)]
        # kept, for their addresses are
        self._moved = affinities
        self.flow: list[ctypes.c_void_p | None] = [None, None, None]
        if isinstance(affinities, Edges):
            self.flow = [
                address(affinities.starts, torch.int64),
                address(affinities.columns, torch.int32),
                address(affinities.values, torch.float32),
            ]
        self.tree_order = torch.empty(n_layers, n, dtype=torch.int32)
        # few points attract each other along so many of their pairs that all are visited, with the repulsion
        self.dense: Tensor | None = None
        if isinstance(affinities, Pairs):
            self.dense = affinities.values
        elif repulsion == "pairs" and n <= PAIRED_POINTS:
            self.dense = room(n_layers, padded, padded, dtype=torch.float32)
            out = (address(self.dense, torch.float32), ctypes.c_int32(thread_count()))
            native.tsne_dense(*self.flow, *self.sizes, *out)
        self.lines = 2 if self.dense is None else 4
        self.chunks = max(1, min(CHUNKS, n // CHUNK_POINTS)) if repulsion == "pairs" else 1
        self.scratch = torch.zeros(n_layers, self.chunks, self.lines, padded, dtype=torch.float32)
        self.sums = torch.zeros(n_layers, self.chunks, dtype=torch.float64)

    def advance(self, iterations: int, rule: StepRule, active: Tensor) -> None:
        flags = active.to(torch.uint8).contiguous()
        moving = [address(part, torch.float32) for part in (self._points, self.update, self.gains)]
        numbers = [
            ctypes.c_float(value) for value in (rule.exaggeration, rule.momentum, rule.step_size, rule.max_step_norm)
        ]
        forces = [address(self.scratch, torch.float32), address(self.sums, torch.float64)]
        shape = [ctypes.c_int64(self.chunks), ctypes.c_int64(self.lines)]
        last = [address(self.gradient_sq, torch.float64), address(flags, torch.uint8), ctypes.c_int32(thread_count())]
        step = (*moving, *self.sizes, *shape, *forces, *self.flow, *numbers, *last)
        if self.way == "pairs":
            self.native.tsne_steps(ctypes.c_int64(iterations), *step, self._dense_address())
            return
        for iteration in range(iterations):
            self._repel(flags, reorder=iteration % REORDER_EVERY == 0)
            self.native.tsne_step(*step)

    def _repel(self, flags: Tensor, *, reorder: bool, angle: float | None = None) -> None:
        """Sum the repulsion and the normaliser of the active layers into scratch and sums."""
        points, forces = address(self._points, torch.float32), address(self.scratch, torch.float32)
        normaliser, moves = address(self.sums, torch.float64), address(flags, torch.uint8)
        threads = ctypes.c_int32(thread_count())
        if self.way == "pairs":
            dense, chunks = self._dense_address(), ctypes.c_int64(self.chunks)
            self.native.tsne_repulsion(points, *self.sizes, dense, chunks, forces, normaliser, moves, threads)
            return
        tree = library(TREE)
        if tree is None:
            raise NativeError(f"{TREE.name} could not be compiled, though {SOURCE.name} was; the log says why")
        order, share = address(self.tree_order, torch.int32), ctypes.c_float(angle or ANGLE)
        if reorder:
            tree.tsne_tree_order(points, *self.sizes, order, moves, threads)
        tree.tsne_tree_repulsion(points, *self.sizes, order, share, forces, normaliser, moves, threads)

    def _dense_address(self) -> ctypes.c_void_p | None:
        return None if self.dense is None else address(self.dense, torch.float32)

    def gradient_norm(self) -> Tensor:
        return self.gradient_sq.mean(1).sqrt() * self.n

    def points(self) -> Tensor:
        return self._by_point(self._points[..., : self.n])

    def repulsion(self) -> Tensor:
        """Sum the repulsion, (layers, 2, n), not yet divided by the normaliser; sums holds that."""
        self._repel(torch.ones(len(self._points), dtype=torch.uint8), reorder=True)
        return self._by_point(self.scratch.sum(1)[:, :2, : self.n])

    def kl_divergence(self) -> Tensor:
        n_layers = len(self._points)
        points, threads = address(self._points, torch.float32), ctypes.c_int32(thread_count())
        if self.dense is not None:
            divergence = torch.empty(n_layers, dtype=torch.float64)
            out = address(divergence, torch.float64)
            self.native.tsne_divergence(points, *self.sizes, self._dense_address(), out, threads)
            return divergence
        self._repel(torch.ones(n_layers, dtype=torch.uint8), reorder=True, angle=FINE_ANGLE)
        normaliser = self.sums.sum(1)
        rows = torch.empty(n_layers, self.n, dtype=torch.float64)
        self.native.tsne_cross_entropy(points, *self.sizes, *self.flow, address(rows, torch.float64), threads)
        return rows.sum(1) + normaliser.log()

    def _by_point(self, values: Tensor) -> Tensor:
        """Give the buffers' values (layers, 2, n), point by point as the caller has them."""
        if self.places is None:
            return values.clone()
        return torch.empty_like(values).scatter_(2, self.places[:, None].expand(-1, 2, -1), values)


def put_together(native: ctypes.CDLL, edges: Edges, n_layers: int, n: int) -> tuple[Int[Tensor, "layers n"], Edges]:
    """Order each layer's points so that those that attract each other stand together, and put the edges in that order.

    Shapes: -> the point at each place (layers, n), and edges between places
    """
    order = torch.empty(n_layers, n, dtype=torch.int32)
    starts, columns, values = edges
    flow = (address(starts, torch.int64), address(columns, torch.int32))
    sizes = (ctypes.c_int64(n_layers), ctypes.c_int64(n))
    threads = ctypes.c_int32(thread_count())
    native.tsne_order(*flow, *sizes, address(order, torch.int32), threads)
    moved = Edges(*(room(*part.shape, dtype=part.dtype) for part in edges))
    native.tsne_put_in_order(
        *flow, address(values, torch.float32), *sizes, address(order, torch.int32),
        address(moved.starts, torch.int64), address(moved.columns, torch.int32), address(moved.values, torch.float32),
        threads,
    )  # fmt: skip
    return order.long(), moved
