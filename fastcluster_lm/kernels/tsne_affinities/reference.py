"""tsne_affinities in plain torch: also what runs where no C++ compiler is, and, but for `symmetrise`, on CUDA."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.kernels.edges import Edges


def weights_of(distances: Float[Tensor, "layers n k"], perplexity: float) -> Float[Tensor, "layers n k"]:
    """Find, by bisection, the Gaussian weights whose perplexity is the one asked for, in all rows at once.

    Shapes: distances (layers, n, k) ascending -> weights (layers, n, k); a row sums to 1
    Source: van der Maaten and Hinton 2008, section 2; where more points coincide than the perplexity, they share alike
    """
    sq_dist = distances.square()
    sq_dist = sq_dist - sq_dist[..., :1]
    typical = sq_dist.mean(-1, keepdim=True)
    sq_dist /= torch.where(typical > 0, typical, 1.0)
    target = math.log(perplexity)
    low = torch.full_like(typical, -20.0)
    high = torch.full_like(typical, 60.0)
    # 32 halvings of log2(precision) leave 2e-8, below float32's own rounding
    for _ in range(32):
        middle = (low + high) / 2
        precision = torch.exp2(middle)
        weights = torch.exp(-precision * sq_dist)
        mass = weights.sum(-1, keepdim=True)
        entropy = mass.log() + precision * (weights * sq_dist).sum(-1, keepdim=True) / mass
        wide = entropy > target
        low = torch.where(wide, middle, low)
        high = torch.where(wide, high, middle)
    weights = torch.exp(-torch.exp2(high) * sq_dist)
    return weights / weights.sum(-1, keepdim=True)


def symmetrise(weights: Float[Tensor, "layers n k"], indices: Int[Tensor, "layers n k"]) -> Edges:
    """Give every pair of which one chose the other the mean of both weights, over n.

    Shapes: weights, indices (layers, n, k) -> edges in ascending order of the column within a row
    """
    n_layers, n, k = weights.shape
    first = torch.arange(n_layers, device=weights.device)[:, None, None] * n
    columns = (indices + first).flatten()
    rows = torch.arange(n_layers * n, device=weights.device).repeat_interleave(k)
    both = torch.stack([torch.cat([rows, columns]), torch.cat([columns, rows])])
    values = weights.flatten().repeat(2) / (2 * n)
    edges = torch.sparse_coo_tensor(both, values, (n_layers * n, n_layers * n), check_invariants=False).coalesce()
    rows, columns = edges.indices()
    lengths = torch.bincount(rows, minlength=n_layers * n)
    starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return Edges(starts, (columns % n).int(), edges.values())


def symmetrise_padded(weights: Float[Tensor, "layers n k"], indices: Int[Tensor, "layers n k"]) -> Edges:
    """Do the same with 2 layers n k entries whatever the pairs, so that a GPU need not wait for their number.

    Shapes: weights, indices (layers, n, k), the indices of a row distinct -> edges; of a pair that chose each other
            the second entry is 0
    """
    n_layers, n, k = weights.shape
    own = torch.arange(n_layers * n, device=weights.device).view(n_layers, n, 1)
    others = indices + own[:, :1]
    # a key is row * n + column; in one order, so that the sum of two halves has one too
    keys = torch.stack([own * n + indices, others * n + own % n]).flatten()
    keys, order = keys.sort(stable=True)
    values = (weights.flatten() / (2 * n)).repeat(2)[order]
    again = keys[1:] == keys[:-1]
    second = torch.where(again, values[1:], 0.0)
    values = torch.cat([values[:1], values[1:] - second])
    values = torch.cat([values[:-1] + second, values[-1:]])
    starts = torch.searchsorted(keys, torch.arange(n_layers * n + 1, device=weights.device) * n)
    return Edges(starts, (keys % n).int(), values)
