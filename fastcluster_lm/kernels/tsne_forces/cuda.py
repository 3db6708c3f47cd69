"""The t-SNE descent by two Triton kernels a step, for CUDA; it takes no step on a grid."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from fastcluster_lm.kernels.edges import Edges
from fastcluster_lm.kernels.tsne_forces.tiled import cross_entropy

if TYPE_CHECKING:
    from fastcluster_lm.kernels.tsne_forces.op import StepRule


def block_sizes(n: int) -> dict[str, int]:
    """Choose the tile of the forces, smaller for few points, so that they fill a GPU.

    Source: compiled ahead of time without a GPU; tests/kernels/budgets.toml has the registers
    """
    if n <= 4096:
        return {"BLOCK_I": 16, "BLOCK_J": 128, "BLOCK_E": 32, "num_warps": 4}
    return {"BLOCK_I": 32, "BLOCK_J": 64, "BLOCK_E": 32, "num_warps": 8}


def step_sizes() -> dict[str, int]:
    """Choose the tile of the step: points of one program, and sums that it reads at once."""
    return {"BLOCK_I": 256, "BLOCK_P": 256, "num_warps": 4}


class TritonDescent:
    """Momentum descent with gains, exact repulsion, one pass for all forces; nothing waits for the device.

    Every sum has one order, so that the same start gives the same bits on the same device. The mean is taken off the
    points one step late, which no force notices, and points() takes off the last one.
    """

    def __init__(self, start: Float[Tensor, "layers 2 n"], edges: Edges) -> None:
        n_layers, _, n = start.shape
        self.n, self.device = n, start.device
        self.edges = Edges(*(part.contiguous() for part in edges))
        self._points = start.clone(memory_format=torch.contiguous_format)
        self.update, self.gradient = torch.zeros_like(self._points), torch.zeros_like(self._points)
        self.gains = torch.ones_like(self._points)
        self.attraction = torch.empty(n_layers, 2, n, dtype=torch.float32, device=self.device)
        self.repulsion = torch.empty(n_layers, 2, n, dtype=torch.float32, device=self.device)
        self.parts = -(-n // block_sizes(n)["BLOCK_I"])
        self.sums = torch.empty(n_layers, self.parts, dtype=torch.float64, device=self.device)
        # shares of the mean after the last step, and room for those after the next
        self.steps = -(-n // step_sizes()["BLOCK_I"])
        shape = (n_layers, 2, self.steps)
        self.centres = torch.zeros(shape, dtype=torch.float64, device=self.device)
        self.new_centres = torch.empty(shape, dtype=torch.float64, device=self.device)

    def advance(self, iterations: int, rule: "StepRule", active: Tensor) -> None:
        from fastcluster_lm.kernels.tsne_forces.kernel import tsne_step_kernel

        moves = active.to(torch.uint8).to(self.device, non_blocking=True)
        numbers = (rule.exaggeration, rule.momentum, rule.step_size, rule.max_step_norm)
        for _ in range(iterations):
            self._compute_forces(moves)
            with torch.cuda.device_of(moves):
                tsne_step_kernel[(self.steps, len(moves))](
                    self._points, self.update, self.gains, self.gradient, self.attraction, self.repulsion, self.sums,
                    moves, self.centres, self.new_centres, self.n, self.parts, *map(float, numbers), **step_sizes(),
                )  # fmt: skip
            self.centres, self.new_centres = self.new_centres, self.centres

    def _compute_forces(self, moves: Tensor) -> None:
        from fastcluster_lm.kernels.tsne_forces.kernel import tsne_forces_kernel

        outputs = (self.attraction, self.repulsion, self.sums)
        with torch.cuda.device_of(moves):
            tsne_forces_kernel[(self.parts, len(moves))](
                self._points, *self.edges, moves, *outputs, self.n, **block_sizes(self.n)
            )

    def gradient_norm(self) -> Tensor:
        return self.gradient.double().square().sum(1).mean(1).sqrt() * self.n

    def points(self) -> Tensor:
        return self._points - self.centres.sum(-1, keepdim=True).float()

    def kl_divergence(self) -> Tensor:
        """Sum the edges' terms in float64, and the normaliser as the forces have it."""
        everywhere = torch.ones(len(self._points), dtype=torch.uint8, device=self.device)
        self._compute_forces(everywhere)
        return cross_entropy(self._points, self.edges) + self.sums.sum(1).log()
