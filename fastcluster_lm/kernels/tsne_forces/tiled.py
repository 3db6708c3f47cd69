"""The t-SNE descent in torch, in tiles of pairs: for a CPU without a C++ compiler, and for grids on CUDA."""

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from fastcluster_lm.kernels.edges import Edges
from fastcluster_lm.kernels.tsne_forces.grid import grid_repulsion

if TYPE_CHECKING:
    from fastcluster_lm.kernels.tsne_forces.op import StepRule

# pairs of one block of forces: two float32 blocks stay in a CPU's cache; a GPU wants few large ones
CPU_PAIRS, GPU_PAIRS = 2**20, 2**26
# beyond this squared distance from the middle float32 products no longer tell 1 + |yi - yj|^2 to a thousandth
FAR_SQUARED = 1e4


class TiledDescent:
    """Momentum descent with gains, its blocks of forces and all its buffers laid out once."""

    def __init__(self, start: Float[Tensor, "layers 2 n"], edges: Edges, grid: bool = False) -> None:
        n_layers, _, n = start.shape
        self.edges, self.n, self.grid = edges, n, grid
        self.rows, self.lengths = edges.rows(), edges.starts.diff()
        self.columns = edges.columns + self.rows // n * n
        self._points = start.clone()
        self.update, self.gains = torch.zeros_like(start), torch.ones_like(start)
        self.gradient = torch.zeros_like(start)
        # 1 + |yi - yj|^2 = left_i . right_j, and the last three rows of right are the moments 1, y of the points
        self.left = start.new_ones(n_layers, 4, n)
        self.right = start.new_ones(n_layers, 4, n)
        self.repelled = start.new_empty(n_layers, 3, n)
        self.tiles = _tiles(n_layers, n, CPU_PAIRS if start.device.type == "cpu" else GPU_PAIRS)
        self.sums = start.new_empty(n_layers, len({columns.start for _, columns in self.tiles}))
        largest = max((ls.stop - ls.start) * n * (cs.stop - cs.start) for ls, cs in self.tiles)
        self.kernel = start.new_empty(largest)

    def advance(self, iterations: int, rule: "StepRule", active: Tensor) -> None:
        moves = active.to(self._points.device)[:, None, None]
        for _ in range(iterations):
            repulsion, normaliser = grid_repulsion(self._points) if self.grid else self._repulsion()
            gradient = self._attraction().mul_(rule.exaggeration).sub_(repulsion / normaliser[:, None, None])
            turned = self.update * gradient <= 0
            gains = torch.where(turned, self.gains + 0.2, self.gains * 0.8 + 0.01)
            update = (self.update * rule.momentum).addcmul_(gains, gradient, value=-rule.step_size)
            # no point moves farther than max_step_norm at once
            update *= (rule.max_step_norm / update.square().sum(1, keepdim=True).sqrt_()).clamp_(max=1)
            points = self._points + update
            points -= points.mean(-1, keepdim=True)
            self._points, self.update, self.gains, self.gradient = (
                torch.where(moves, new, old)
                for new, old in (
                    (points, self._points),
                    (update, self.update),
                    (gains, self.gains),
                    (gradient, self.gradient),
                )
            )

    def gradient_norm(self) -> Tensor:
        return self.gradient.double().square().sum(1).mean(1).sqrt() * self.n

    def points(self) -> Tensor:
        return self._points.clone()

    def kl_divergence(self) -> Tensor:
        """Sum in float64: pair by pair over the edges, tile by tile for the normaliser."""
        rows = max(1, GPU_PAIRS // (4 * self.n))
        starts = range(0, self.n, rows)
        sums = [torch.stack([_kernel_sum(y, start, rows) for start in starts]).sum() for y in self._points]
        return cross_entropy(self._points, self.edges) + torch.stack(sums).log()

    def _attraction(self) -> Float[Tensor, "layers 2 n"]:
        flat = self._points.mT.reshape(-1, 2)
        away = flat.index_select(0, self.rows).sub_(flat.index_select(0, self.columns))  # (edges, 2)
        away *= (self.edges.values / away.square().sum(1).add_(1))[:, None]
        # segment sums have one order, on a GPU too, where an index_add has not
        return torch.segment_reduce(away, "sum", lengths=self.lengths, unsafe=True).view(-1, self.n, 2).mT.contiguous()

    def _repulsion(self) -> tuple[Float[Tensor, "layers 2 n"], Float[Tensor, " layers"]]:
        points, n = self._points, self.n
        norms = points.square().sum(1)
        if points.device.type == "cpu" and not bool((norms <= FAR_SQUARED).all()):
            return self._far_repulsion()
        self.right[:, 0] = norms
        self.right[:, 2:] = points
        torch.add(norms, 1, out=self.left[:, 1])
        torch.mul(points, -2, out=self.left[:, 2:])
        for layers, columns in self.tiles:
            shape = (layers.stop - layers.start, n, columns.stop - columns.start)
            kernel = self.kernel[: math.prod(shape)].view(shape)
            torch.bmm(self.left[layers].mT, self.right[layers, :, columns], out=kernel).reciprocal_()
            self.sums[layers, columns.start // (self.tiles[0][1].stop)] = kernel.sum((1, 2))
            self.repelled[layers, :, columns] = torch.bmm(self.right[layers, 1:], kernel.square_())
        return (points * self.repelled[:, :1]).sub_(self.repelled[:, 1:]), self.sums.sum(1) - n

    def _far_repulsion(self) -> tuple[Float[Tensor, "layers 2 n"], Float[Tensor, " layers"]]:
        """Give the same from the differences of points, which are right however far off the points lie."""
        repulsion = torch.zeros_like(self._points)
        for layers, columns in self.tiles:
            y = self._points[layers]
            apart = y[..., None] - y[:, :, None, columns]  # (layers, 2, n, columns)
            kernel = apart.square().sum(1).add_(1).reciprocal_()
            # not as n taken off a sum, in which the kernels of far points would be lost
            kernel.diagonal(-columns.start, 1, 2).zero_()
            self.sums[layers, columns.start // (self.tiles[0][1].stop)] = kernel.sum((1, 2))
            repulsion[layers] += (apart * kernel.square_()[:, None]).sum(-1)
        # where the kernels of all pairs are 0, so is what they repel
        return repulsion, self.sums.sum(1).clamp_(min=torch.finfo(torch.float32).tiny)


def cross_entropy(points: Float[Tensor, "layers 2 n"], edges: Edges) -> Float[Tensor, " layers"]:
    """Sum over the edges p log(p (1 + |yi - yj|^2)) in float64: KL divergence less the normaliser's logarithm."""
    n = points.shape[-1]
    flat, rows = points.double().mT.reshape(-1, 2), edges.rows()
    apart = (flat[rows] - flat[edges.columns + rows // n * n]).square().sum(1)
    values = edges.values.double()
    terms = torch.where(values > 0, values * (values.clamp(min=1e-300) * (1 + apart)).log(), 0)
    # unsafe: on a GPU the check of the lengths would wait
    return torch.segment_reduce(terms, "sum", lengths=edges.starts.diff().view(-1, n).sum(1), unsafe=True)


def _tiles(n_layers: int, n: int, pairs: int) -> list[tuple[slice, slice]]:
    """Cut layers x columns into blocks of about `pairs` pairs: whole layers if they fit, else columns of one."""
    layers = max(1, pairs // (n * n))
    columns = n if n * n <= pairs else max(1, pairs // n)
    return [
        (slice(first, min(first + layers, n_layers)), slice(start, min(start + columns, n)))
        for first in range(0, n_layers, layers)
        for start in range(0, n, columns)
    ]


def _kernel_sum(y: Float[Tensor, "2 n"], start: int, rows: int) -> Float[Tensor, ""]:
    """Sum 1 / (1 + |yi - yj|^2) in float64 over some points i and all others j."""
    left, right = y[:, start : start + rows].double(), y.double()
    kernel = (left[:, :, None] - right[:, None, :]).square_().sum(0).add_(1).reciprocal_()
    kernel.diagonal(start).zero_()
    return kernel.sum()
