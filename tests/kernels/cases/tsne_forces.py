"""What proves the t-SNE descent: forces and KL divergence in float64, and the steps of the tiled descent."""

import torch

from fastcluster_lm.kernels.edges import Edges
from fastcluster_lm.kernels.tsne_affinities.reference import symmetrise, weights_of
from fastcluster_lm.kernels.tsne_forces import StepRule, cuda
from fastcluster_lm.kernels.tsne_forces.reference import dense_affinities, gradient, kl_divergence
from fastcluster_lm.kernels.tsne_forces.tiled import TiledDescent
from tests.kernels.cases import Kernel, tiles_of
from tests.kernels.memory import assert_ten_equal, poisoned

# layers, points, neighbours
SHAPES = [(2, 2, 1), (1, 3, 2), (2, 17, 5), (2, 131, 40), (1, 293, 10)]
SLOW = [(2, n, k) for n in (61, 521, 1031) for k in (3, 33)] + [(1, 4099, 3)]


def kernels() -> list[Kernel]:
    from fastcluster_lm.kernels.tsne_forces.kernel import tsne_forces_kernel, tsne_step_kernel

    flow = {"starts_ptr": "*i64", "columns_ptr": "*i32", "values_ptr": "*fp32", "active_ptr": "*u8"}
    forces = {"points_ptr": "*fp32", **flow, "attraction_ptr": "*fp32", "repulsion_ptr": "*fp32", "sums_ptr": "*fp64"}
    state = ("points_ptr", "update_ptr", "gains_ptr", "gradient_ptr", "attraction_ptr", "repulsion_ptr")
    step = {**dict.fromkeys(state, "*fp32"), **dict.fromkeys(("sums_ptr", "centres_ptr", "new_centres_ptr"), "*fp64")}
    return [
        Kernel("tsne_forces", tsne_forces_kernel, forces, tiles_of(cuda.block_sizes, ((n,) for n in range(2, 40000)))),
        Kernel("tsne_step", tsne_step_kernel, {**step, "active_ptr": "*u8"}, [cuda.step_sizes()]),
    ]


def check(shape: tuple[int, ...], device: torch.device) -> None:
    n_layers, n, k = shape
    generator = torch.Generator().manual_seed(n)
    edges = _edges(n_layers, n, k, generator)
    sizes = torch.tensor([0.5, 20.0])[:n_layers, None, None]
    points = torch.randn(n_layers, 2, n, generator=generator) * sizes
    points -= points.mean(-1, keepdim=True)
    dense = dense_affinities(edges, n_layers, n)
    exact, kl = gradient(points, dense).to(device), kl_divergence(points, dense).to(device)
    start, flow = points.to(device), Edges(*(_behind_nan(part).to(device) for part in edges))
    everywhere = torch.ones(n_layers, dtype=torch.bool)
    with poisoned():
        descent = cuda.TritonDescent(start, flow)
        # steps of length 0, so that the gradient stays that of the start
        descent.advance(2, StepRule(1.0, 0.0, 0.0, 1e9), everywhere)
        torch.testing.assert_close(descent.kl_divergence(), kl, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(descent.points(), start, rtol=0, atol=1e-6 * float(sizes.max()))
    error = (descent.gradient - exact).abs().amax((1, 2))
    assert bool((error <= 1e-5 * exact.abs().amax((1, 2)) + 1e-7 * start.abs().max()).all()), "the forces are off"
    norm = exact.square().sum(1).mean(1).sqrt() * n
    torch.testing.assert_close(descent.gradient_norm(), norm, rtol=1e-4, atol=1e-4)
    _walk(start, flow, steps=3 if n <= 1000 else 1)


def _walk(start: torch.Tensor, edges: Edges, steps: int) -> None:
    """Go beside the tiled descent, with momentum and a bound on the steps; the last layer stands still."""
    n_layers, _, n = start.shape
    active = torch.arange(n_layers) < max(1, n_layers - 1)

    def run() -> tuple[torch.Tensor, ...]:
        descent = cuda.TritonDescent(start, edges)
        descent.advance(steps, StepRule(4.0, 0.5, n / 4, 0.25), active)
        return descent.points(), descent.update, descent.gains, descent.gradient_norm()

    ours, theirs = run(), TiledDescent(start, edges)
    theirs.advance(steps, StepRule(4.0, 0.5, n / 4, 0.25), active)
    torch.testing.assert_close(ours[0], theirs.points(), rtol=0, atol=1e-4 * float(start.abs().max()))
    torch.testing.assert_close(ours[1], theirs.update, rtol=0, atol=1e-4 * float(start.abs().max()))
    assert float(ours[1].norm(dim=1).max()) <= 0.25 * (1 + 1e-5), "a step is longer than allowed"
    if n_layers > 1:
        assert torch.equal(ours[0][-1], start[-1]), "a layer at rest moved"
        assert float(ours[0][0].mean(-1).abs().max()) <= 1e-5 * float(start.abs().max()), "the map is not centred"
    if n == 17:
        assert_ten_equal(run)


def _edges(n_layers: int, n: int, k: int, generator: torch.Generator) -> Edges:
    # a few points are everyone's neighbours, so that rows differ much in length
    X = torch.randn(n_layers, n, 5, generator=generator, dtype=torch.float64)
    apart = torch.cdist(X, X) * (1 + 3 * (torch.arange(n) > 2))
    apart.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    near = apart.sort(dim=-1)
    weights = weights_of(near.values[..., :k].float(), max(1.0, k / 3))
    return symmetrise(weights, near.indices[..., :k])


def _behind_nan(part: torch.Tensor) -> torch.Tensor:
    # what lies behind the entries is NaN, or a point that does not exist
    poison = part.new_full((64,), torch.nan if part.is_floating_point() else 2**30)
    return torch.cat([part, poison])[: len(part)]
