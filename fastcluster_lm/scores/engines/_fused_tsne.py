"""t-SNE over all layers at once with exact forces, in plain torch; its neighbours are found elsewhere."""

import logging
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.scores.batches import scaling
from fastcluster_lm.scores.engines._fused_neighbors import find_neighbors, full_precision
from fastcluster_lm.scores.engines.checks import check_tsne
from fastcluster_lm.scores.engines.params import Map, NeighborsParams, TsneParams

log = logging.getLogger(__name__)

# up to this many points the affinities are one dense block a layer: its passes are cheaper than sparse gathers
DENSE_POINTS = 2000
# pairs of one block of forces: two float32 blocks stay in a CPU's cache; a GPU wants few large ones
CPU_PAIRS, GPU_PAIRS = 2**20, 2**26
# standard deviation of the first coordinate at the start, and of the noise on top: openTSNE 1.0.4, initialization.py
START_STD, NOISE_STD = 1e-4, 1e-6


@torch.no_grad()
def draw_maps(X: Float[Tensor, "layers n d"], params: TsneParams) -> Map:
    """Lay each layer's points out in the plane.

    Shapes: X (layers, n, d) -> points (layers, n, 2), kl_divergence (layers,)
    Units:  KL in nats, float64, over the symmetrised affinities of the floor(3 perplexity) nearest neighbours
    Errors: ShapeError, DataError as in check_tsne
    Source: van der Maaten and Hinton 2008; constants and step rule of openTSNE 1.0.4, but momentum 0.5 at first
    """
    check_tsne(X, params)
    n_layers, n, _ = X.shape
    perplexity = params.effective_perplexity(n)
    if perplexity < params.perplexity:
        log.warning("perplexity %g is too large for %d points; %g is used", params.perplexity, n, perplexity)
    offset, scale = scaling(X)
    scaled = ((X - offset) / scale).float()
    ids = torch.arange(n, device=X.device)
    k = min(n - 1, max(1, math.floor(3 * perplexity)))
    near = find_neighbors(X, X, NeighborsParams(k, ids, ids))
    weights = conditional_affinities(near.distances / scale.float(), perplexity)
    dense = n <= DENSE_POINTS
    affinities = _DenseAffinities(weights, near.indices) if dense else _SparseAffinities(weights, near.indices)
    with full_precision():
        start = _start(scaled, params)
        points = _Descent(start, affinities, params).run()
    kl = affinities.entropy_term() + affinities.cross_term(points) + _log_normaliser(points)
    return Map(points.mT.contiguous(), kl)


def conditional_affinities(distances: Float[Tensor, "layers n k"], perplexity: float) -> Float[Tensor, "layers n k"]:
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


class _DenseAffinities:
    """The symmetrised affinities as one block (layers, n, n); they sum to 1 over a layer."""

    def __init__(self, weights: Tensor, indices: Int[Tensor, "layers n k"]) -> None:
        n_layers, n, _ = weights.shape
        one_way = weights.new_zeros(n_layers, n, n).scatter_(2, indices, weights)
        self.block = (one_way + one_way.mT).div_(2 * n)

    def entropy_term(self) -> Float[Tensor, " layers"]:
        values = [p[p > 0].double() for p in self.block]
        return torch.stack([torch.xlogy(p, p).sum() for p in values])

    def cross_term(self, points: Float[Tensor, "layers 2 n"]) -> Float[Tensor, " layers"]:
        terms = []
        for p, y in zip(self.block, points.double(), strict=True):
            rows, columns = p.nonzero(as_tuple=True)
            apart = (y[:, rows] - y[:, columns]).square().sum(0)
            terms.append((p[rows, columns].double() * torch.log1p(apart)).sum())
        return torch.stack(terms)


class _SparseAffinities:
    """The symmetrised affinities as the edges of all layers, sorted by row; they sum to 1 over a layer."""

    def __init__(self, weights: Tensor, indices: Int[Tensor, "layers n k"]) -> None:
        n_layers, n, k = weights.shape
        first = torch.arange(n_layers, device=weights.device)[:, None, None] * n
        columns = (indices + first).flatten()
        rows = torch.arange(n_layers * n, device=weights.device).repeat_interleave(k)
        both = torch.stack([torch.cat([rows, columns]), torch.cat([columns, rows])])
        values = weights.flatten().repeat(2) / (2 * n)
        edges = torch.sparse_coo_tensor(both, values, (n_layers * n, n_layers * n), check_invariants=False).coalesce()
        self.rows, self.columns = edges.indices()
        self.values = edges.values()
        self.lengths = torch.bincount(self.rows, minlength=n_layers * n)
        self.shape = (n_layers, n)

    def forces(self, points: Float[Tensor, "layers 2 n"]) -> Float[Tensor, "layers 2 n"]:
        flat = points.mT.reshape(-1, 2)
        away = flat.index_select(0, self.rows).sub_(flat.index_select(0, self.columns))  # (edges, 2)
        away *= (self.values / away.square().sum(1).add_(1))[:, None]
        # segment sums have one order, on a GPU too, where an index_add has not
        return torch.segment_reduce(away, "sum", lengths=self.lengths).view(*self.shape, 2).mT

    def entropy_term(self) -> Float[Tensor, " layers"]:
        values = self.values.double()
        return self._by_layer(torch.xlogy(values, values))

    def cross_term(self, points: Float[Tensor, "layers 2 n"]) -> Float[Tensor, " layers"]:
        flat = points.double().mT.reshape(-1, 2)
        away = flat[self.rows] - flat[self.columns]
        return self._by_layer(self.values.double() * torch.log1p(away.square().sum(1)))

    def _by_layer(self, terms: Tensor) -> Tensor:
        return torch.segment_reduce(terms, "sum", lengths=self.lengths.view(self.shape).sum(1))


class _Descent:
    """Momentum descent with gains, its blocks of forces and all its buffers laid out once."""

    def __init__(self, start: Tensor, affinities: _DenseAffinities | _SparseAffinities, params: TsneParams) -> None:
        n_layers, _, n = start.shape
        self.params, self.affinities, self.points = params, affinities, start
        # 1 + |yi - yj|^2 = left_i . right_j, and the last three rows of right are the moments 1, y of the points
        self.left = start.new_ones(n_layers, 4, n)
        self.right = start.new_ones(n_layers, 4, n)
        self.moments = self.right[:, 1:]
        self.repelled = start.new_empty(n_layers, 3, n)
        self.attracted = start.new_empty(n_layers, 3, n)
        pairs = CPU_PAIRS if start.device.type == "cpu" else GPU_PAIRS
        self.tiles = _tiles(n_layers, n, pairs)
        self.sums = start.new_empty(n_layers, len({columns.start for _, columns in self.tiles}))
        largest = max((ls.stop - ls.start) * n * (cs.stop - cs.start) for ls, cs in self.tiles)
        self.kernel, self.product = start.new_empty(largest), start.new_empty(largest)

    def run(self) -> Float[Tensor, "layers 2 n"]:
        params, points = self.params, self.points
        n = points.shape[-1]
        update, gains = torch.zeros_like(points), torch.ones_like(points)
        exaggerated, plain = params.schedule()
        for iteration in range(exaggerated + plain):
            early = iteration < exaggerated
            exaggeration = params.early_exaggeration if early else 1.0
            momentum = params.initial_momentum if early else params.final_momentum
            gradient = self._gradient(exaggeration)
            turned = update * gradient <= 0
            gains = torch.where(turned, gains + 0.2, gains * 0.8 + 0.01)
            update.mul_(momentum).addcmul_(gains, gradient, value=-params.step_size(n, exaggeration))
            # no point moves farther than max_step_norm at once
            update *= (params.max_step_norm / update.square().sum(1, keepdim=True).sqrt_()).clamp_(max=1)
            points += update
            points -= points.mean(-1, keepdim=True)
        return points

    def _gradient(self, exaggeration: float) -> Float[Tensor, "layers 2 n"]:
        """Sum attraction and repulsion; a quarter of the gradient of KL, as in openTSNE, whose step rule is used."""
        points, n = self.points, self.points.shape[-1]
        norms = points.square().sum(1)
        self.right[:, 0] = norms
        self.right[:, 2:] = points
        torch.add(norms, 1, out=self.left[:, 1])
        torch.mul(points, -2, out=self.left[:, 2:])
        dense = self.affinities.block if isinstance(self.affinities, _DenseAffinities) else None
        for layers, columns in self.tiles:
            shape = (layers.stop - layers.start, n, columns.stop - columns.start)
            kernel = self.kernel[: math.prod(shape)].view(shape)
            torch.bmm(self.left[layers].mT, self.right[layers, :, columns], out=kernel).reciprocal_()
            self.sums[layers, columns.start // (self.tiles[0][1].stop)] = kernel.sum((1, 2))
            if dense is not None:
                product = self.product[: math.prod(shape)].view(shape)
                torch.mul(kernel, dense[layers, :, columns], out=product)
                self.attracted[layers, :, columns] = torch.bmm(self.moments[layers], product)
            self.repelled[layers, :, columns] = torch.bmm(self.moments[layers], kernel.square_())
        normaliser = (self.sums.sum(1) - n)[:, None, None]
        repulsion = (points * self.repelled[:, :1]).sub_(self.repelled[:, 1:]).div_(normaliser)
        if isinstance(self.affinities, _SparseAffinities):
            attraction = self.affinities.forces(points)
        else:
            attraction = (points * self.attracted[:, :1]).sub_(self.attracted[:, 1:])
        return attraction.mul_(exaggeration).sub_(repulsion)


def _tiles(n_layers: int, n: int, pairs: int) -> list[tuple[slice, slice]]:
    """Cut layers x columns into blocks of about `pairs` pairs: whole layers if they fit, else columns of one."""
    layers = max(1, pairs // (n * n))
    columns = n if n * n <= pairs else max(1, pairs // n)
    return [
        (slice(first, min(first + layers, n_layers)), slice(start, min(start + columns, n)))
        for first in range(0, n_layers, layers)
        for start in range(0, n, columns)
    ]


def _start(X: Float[Tensor, "layers n d"], params: TsneParams) -> Float[Tensor, "layers 2 n"]:
    """Start at the points given, or at the first two principal components, tiny, with a little seeded noise."""
    n_layers, n, width = X.shape
    if params.init is not None:
        points = params.init.expand(n_layers, -1, -1).to(X.device, torch.float32, copy=True).mT.contiguous()
        return points.sub_(points.mean(-1, keepdim=True))
    generator = torch.Generator().manual_seed(params.seed)
    noise = torch.randn(2, n, generator=generator).to(X.device)
    points = X.new_zeros(n_layers, 2, n)
    axes = min(2, width, n)
    scores = _principal_components(X, axes)  # (layers, axes, n)
    spread = scores.std(-1, correction=0)[:, :1, None]
    points[:, :axes] = torch.where(spread > 0, scores / torch.where(spread > 0, spread, 1.0) * START_STD, 0.0)
    flat = points.std(-1, correction=0, keepdim=True) < NOISE_STD
    points += noise * torch.where(flat, START_STD, NOISE_STD)
    return points.sub_(points.mean(-1, keepdim=True))


def _principal_components(X: Float[Tensor, "layers n d"], axes: int) -> Float[Tensor, "layers axes n"]:
    """Project centred points on their leading components; of each, the score largest in size is positive."""
    n, width = X.shape[1:]
    if width <= n:
        vectors = torch.linalg.eigh(X.mT @ X).eigenvectors[..., -axes:].flip(-1)
        scores = (X @ vectors).mT
    else:
        values, vectors = torch.linalg.eigh(X @ X.mT)
        scores = (vectors[..., -axes:] * values[:, None, -axes:].clamp(min=0).sqrt()).flip(-1).mT
    largest = scores.gather(-1, scores.abs().argmax(-1, keepdim=True))
    return scores * torch.where(largest < 0, -1.0, 1.0)


def _exact_sq_dist(left: Float[Tensor, "2 n"], right: Float[Tensor, "2 m"]) -> Float[Tensor, "n m"]:
    return (left.double()[:, :, None] - right.double()[:, None, :]).square_().sum(0)


def _log_normaliser(points: Float[Tensor, "layers 2 n"]) -> Float[Tensor, " layers"]:
    """Sum the map's kernel over all ordered pairs of different points, in float64, in tiles."""
    n = points.shape[-1]
    rows = max(1, GPU_PAIRS // (4 * n))
    sums = [
        torch.stack([_exact_sq_dist(part, y).add_(1).reciprocal_().sum() for part in y.split(rows, dim=1)]).sum()
        for y in points
    ]
    return (torch.stack(sums) - n).log()
