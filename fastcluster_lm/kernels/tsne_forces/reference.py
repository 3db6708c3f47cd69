"""t-SNE's gradient and KL divergence in plain float64 torch, pair by pair; never optimised."""

import torch
from jaxtyping import Float
from torch import Tensor

from fastcluster_lm.kernels.edges import Edges


def dense_affinities(edges: Edges, n_layers: int, n: int) -> Float[Tensor, "layers n n"]:
    """Spread the edges over whole matrices."""
    block = torch.zeros(n_layers * n, n, dtype=torch.float64)
    block[edges.rows(), edges.columns.long()] = edges.values.double()
    return block.view(n_layers, n, n)


def kl_divergence(points: Float[Tensor, "layers 2 n"], affinities: Float[Tensor, "layers n n"]) -> Tensor:
    """KL divergence of each layer in nats, float64."""
    y = points.double()
    kernel = 1 / (1 + (y[:, :, :, None] - y[:, :, None, :]).square().sum(1))
    kernel = kernel * (1 - torch.eye(y.shape[-1], dtype=torch.float64))
    q = kernel / kernel.sum((1, 2), keepdim=True)
    used = affinities > 0
    ratio = torch.where(used, affinities, 1.0) / torch.where(used, q, 1.0)
    return (affinities * ratio.log()).sum((1, 2))


def gradient(points: Float[Tensor, "layers 2 n"], affinities: Float[Tensor, "layers n n"]) -> Tensor:
    """A quarter of the gradient of the KL divergence, (layers, 2, n) float64."""
    leaf = points.double().detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(kl_divergence(leaf, affinities).sum(), leaf)[0] / 4
