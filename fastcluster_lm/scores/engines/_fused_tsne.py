"""t-SNE over all layers at once: schedule, start and stop; forces and affinities are kernels."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fastcluster_lm.kernels.transfer import Glance, to_device
from fastcluster_lm.kernels.tsne_affinities import pair_affinities
from fastcluster_lm.kernels.tsne_forces import Descent, StepRule, start_descent
from fastcluster_lm.scores.batches import MODEST, powers_of_two, scaled, scaling
from fastcluster_lm.scores.engines._fused_neighbors import MEMORY_BUDGET, find_neighbors
from fastcluster_lm.scores.engines.checks import check_tsne
from fastcluster_lm.scores.engines.params import CHECK_EVERY, Map, NeighborsParams, TsneParams
from fastcluster_lm.scores.precision import full_precision

# standard deviation of the first coordinate at the start, and of the noise on top: openTSNE 1.0.4, initialization.py
START_STD, NOISE_STD = 1e-4, 1e-6
# beyond this many coordinates the start's components are found by a few subspace iterations with spare directions
EXACT_WIDTH, SUBSPACE_ITER, SPARE_AXES = 128, 4, 6
# without the rotation at the end so many iterations leave the leading directions as near
LONE_ITER = 24


@torch.no_grad()
def draw_maps(X: Float[Tensor, "layers n d"], params: TsneParams, memory_budget: int = MEMORY_BUDGET) -> Map:
    """Lay each layer's points out in the plane.

    Shapes: X (layers, n, d) -> points (layers, n, 2), kl_divergence (layers,)
    Units:  KL in nats, float64, over the symmetrised affinities of the floor(3 perplexity) nearest neighbours
    Errors: ShapeError, DataError as in check_tsne
    Source: van der Maaten and Hinton 2008; constants and step rule of openTSNE 1.0.4
    """
    check_tsne(X, params)
    n_layers, n, _ = X.shape
    perplexity = params.effective_perplexity(n)
    # 1. each point's neighbours, the point itself left out
    near = params.neighbors
    if near is None:
        ids = torch.arange(n)
        near = find_neighbors(X, X, NeighborsParams(params.affinity_neighbors(n), ids, ids), memory_budget)
    # 2. bandwidths that give each point its perplexity, and the symmetrised affinities
    affinities = pair_affinities(_in_reach(near.distances), near.indices, perplexity)
    # 3. down the gradient from the start, all layers at once
    with full_precision():
        descent = start_descent(_start(X, params), affinities)
        _descend(descent, params, n, torch.ones(n_layers, dtype=torch.bool, device=X.device))
        kl = descent.kl_divergence()
    return Map(descent.points().mT.contiguous(), kl)


def _in_reach(distances: Float[Tensor, "layers n k"]) -> Float[Tensor, "layers n k"]:
    """Give sorted distances in a unit in which float32 holds their squares; the affinities do not depend on it.

    Each point has its own: those beside one that lies far off may be as near to each other as before
    """
    largest = distances[..., -1:]
    if distances.device.type == "cpu":
        modest = (largest == 0) | ((largest > 1 / MODEST) & (largest < MODEST))
        if bool(modest.all()):
            return distances
    return distances / powers_of_two(largest)


def _descend(descent: Descent, params: TsneParams, n: int, active: Bool[Tensor, " layers"]) -> None:
    """Take the exaggerated steps, then the plain ones; a layer whose gradient has gone stands still from then on."""
    exaggerated, plain = params.schedule()
    rule = StepRule(
        params.early_exaggeration,
        params.initial_momentum,
        params.step_size(n, params.early_exaggeration),
        params.max_step_norm,
    )
    if exaggerated:
        descent.advance(exaggerated, rule, active)
    rule = StepRule(1.0, params.final_momentum, params.step_size(n, 1.0), params.max_step_norm)
    if params.min_gradient_norm == 0:
        descent.advance(plain, rule, active)
        return
    glance = Glance()
    for start in range(0, plain, CHECK_EVERY):
        descent.advance(min(CHECK_EVERY, plain - start), rule, active)
        if start + CHECK_EVERY >= plain:
            return
        active = active & (descent.gradient_norm() >= params.min_gradient_norm)
        if not glance.sees(active.any()):
            return


def _start(X: Float[Tensor, "layers n d"], params: TsneParams) -> Float[Tensor, "layers 2 n"]:
    """Start at the points given, or at the first two principal components, tiny, with a little seeded noise."""
    n_layers, n, width = X.shape
    # 1. points that are given, centred
    if params.init is not None:
        points = to_device(params.init, X.device).expand(n_layers, -1, -1).to(torch.float32, copy=True).mT.contiguous()
        return points.sub_(points.mean(-1, keepdim=True))
    generator = torch.Generator().manual_seed(params.seed)
    noise = to_device(torch.randn(2, n, generator=generator, dtype=torch.float32), X.device)
    # 2. else the components, as many as there are, the first of the spread that starts have
    X = scaled(X, *scaling(X))
    points = X.new_zeros(n_layers, 2, n)
    axes = min(2, width, n)
    scores = _principal_components(X, axes)  # (layers, axes, n)
    spread = scores.std(-1, correction=0)[:, :1, None]
    points[:, :axes] = torch.where(spread > 0, scores / torch.where(spread > 0, spread, 1.0) * START_STD, 0.0)
    # 3. noise parts points that coincide; an axis on which nothing differs is noise alone
    flat = points.std(-1, correction=0, keepdim=True) < NOISE_STD
    points += noise * torch.where(flat, points.new_full((), START_STD), NOISE_STD)
    return points.sub_(points.mean(-1, keepdim=True))


def _principal_components(X: Float[Tensor, "layers n d"], axes: int) -> Float[Tensor, "layers axes n"]:
    """Project centred points on their leading components; of each, the score largest in size is positive."""
    n, width = X.shape[1:]
    if X.is_cuda:
        scores = _leading_without_waiting(X, axes)
    elif min(n, width) > EXACT_WIDTH:
        scores = _leading_by_iteration(X, axes)
    elif width <= n:
        vectors = _eigh(X.mT @ X)[1][..., -axes:].flip(-1)
        scores = (X @ vectors).mT
    else:
        values, vectors = _eigh(X @ X.mT)
        scores = (vectors[..., -axes:] * values[:, None, -axes:].clamp(min=0).sqrt()).flip(-1).mT
    largest = scores.gather(-1, scores.abs().argmax(-1, keepdim=True))
    return torch.where(largest < 0, -scores, scores)


def _eigh(matrix: Float[Tensor, "layers m m"]) -> tuple[Tensor, Tensor]:
    """Give eigenvalues and vectors; in float64 where float32 finds none, for entries that lie very far apart."""
    try:
        values, vectors = torch.linalg.eigh(matrix)
        if bool(vectors.isfinite().all()):
            return values, vectors
    except torch.linalg.LinAlgError:
        pass
    values, vectors = torch.linalg.eigh(matrix.double())
    return values.float(), vectors.float()


def _leading_by_iteration(X: Float[Tensor, "layers n d"], axes: int) -> Float[Tensor, "layers axes n"]:
    """Approximate the leading components by subspace iteration: a start for a map needs no more.

    Source: Halko, Martinsson and Tropp 2011, algorithm 4.4
    """
    reduced = X @ _subspace(X, axes + SPARE_AXES, SUBSPACE_ITER)  # (layers, n, axes + spare)
    vectors = _eigh(reduced.mT @ reduced)[1][..., -axes:].flip(-1)
    return (reduced @ vectors).mT


def _leading_without_waiting(X: Float[Tensor, "layers n d"], axes: int) -> Float[Tensor, "layers axes n"]:
    """Approximate the leading components by as many more iterations as spare the rotation at the end.

    Source: orthogonal iteration, whose columns turn to the eigenvectors one after the other (Golub and Van Loan 2013,
            section 8.2.4); torch's eigh waits for a GPU to learn whether it converged
    """
    directions = min(axes + SPARE_AXES, X.shape[-1])
    return (X @ _subspace(X, directions, LONE_ITER)[..., :axes]).mT


def _subspace(X: Float[Tensor, "layers n d"], directions: int, iterations: int) -> Float[Tensor, "layers d m"]:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(X.shape[-1], directions, generator=generator, dtype=torch.float32)
    basis = to_device(drawn, X.device).expand(len(X), -1, -1)
    for _ in range(iterations):
        basis = torch.linalg.qr(X.mT @ (X @ basis)).Q
    return basis
