"""The t-SNE kernels, compiled and in torch, against float64 references: weights, edges, forces, KL, steps."""

import logging
import os
import subprocess
import sys

import pytest
import torch

from fastcluster_lm.errors import DataError, ShapeError
from fastcluster_lm.kernels import native
from fastcluster_lm.kernels.edges import PAIRED_POINTS, Edges, Pairs
from fastcluster_lm.kernels.tsne_affinities import pair_affinities, tsne_affinities
from fastcluster_lm.kernels.tsne_affinities.reference import symmetrise, weights_of
from fastcluster_lm.kernels.tsne_forces import StepRule, op, start_descent, tiled
from fastcluster_lm.kernels.tsne_forces.reference import dense_affinities, gradient, kl_divergence
from fastcluster_lm.kernels.tsne_forces.tiled import TiledDescent
from fastcluster_lm.scores.kmeans import kmeans
from fastcluster_lm.scores.neighbors import nearest_neighbors

needs_compiler = pytest.mark.skipif(not native.status()[0], reason=native.status()[1])
# prime sizes, below one vector, one vector, several chunks
SIZES = [2, 3, 7, 8, 9, 61, 131, 520]


def near(n: int, k: int, layers: int = 2, seed: int = 0):
    X = torch.randn(layers, n, 5, generator=torch.Generator().manual_seed(seed))
    return nearest_neighbors(X, X, min(k, n - 1), exclude_self=True)


def none_of(layers: int, n: int) -> Edges:
    """No edges at all, for points that only repel."""
    return Edges(torch.zeros(layers * n + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int32), torch.zeros(0))


def descents(points: torch.Tensor, edges) -> list:
    return [start_descent(points, edges), TiledDescent(points, edges)]


@needs_compiler
@pytest.mark.parametrize("n", SIZES)
def test_compiled_affinities_are_those_of_torch(n):
    found = near(n, 30)
    perplexity = max(1.0, min(10.0, (n - 1) / 3))
    ours = tsne_affinities(found.distances, found.indices, perplexity)
    theirs = symmetrise(weights_of(found.distances, perplexity), found.indices)
    assert torch.equal(ours.starts, theirs.starts)
    torch.testing.assert_close(dense_affinities(ours, 2, n), dense_affinities(theirs, 2, n), rtol=2e-4, atol=2e-6 / n)
    assert dense_affinities(ours, 2, n).sum((1, 2)).sub(1).abs().max() < 1e-5


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_compiler), False])
@pytest.mark.parametrize("perplexity", [5.0, 30.0])
def test_weights_have_the_perplexity_asked_for(perplexity, compiled):
    X = torch.randn(2, 200, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1e-6])[:, None, None]
    found = nearest_neighbors(X, X, int(3 * perplexity), exclude_self=True)
    if compiled:
        # each point is chosen by nobody but itself here, so that the edges hold its weights alone
        bipartite = torch.arange(int(3 * perplexity)).expand_as(found.indices).contiguous()
        edges = tsne_affinities(found.distances, bipartite, perplexity)
        rows = [slice(int(edges.starts[r]), int(edges.starts[r]) + int(3 * perplexity)) for r in range(200, 400)]
        # rows beyond the first 3 * perplexity points are chosen by none
        rows = [row for r, row in zip(range(200), rows, strict=True) if r >= int(3 * perplexity)]
        weights = torch.stack([edges.values[row] for row in rows]).double() * 400
    else:
        weights = weights_of(found.distances, perplexity).double()
    assert ((-torch.xlogy(weights, weights).sum(-1)).exp() / perplexity - 1).abs().max() < 1e-4
    assert weights.sum(-1).sub(1).abs().max() < 1e-5


@needs_compiler
def test_equal_and_nearly_equal_distances_give_equal_weights():
    # a rounded square less itself is 0 only where the compiler does not fuse the two
    distances = torch.full((1, 7, 6), 0.1) + torch.arange(7)[None, :, None] * 0.3
    indices = torch.stack([torch.tensor([j for j in range(7) if j != i]) for i in range(7)])[None]
    edges = tsne_affinities(distances, indices, 2.0)
    torch.testing.assert_close(edges.values, torch.full((42,), 1 / 42), rtol=1e-6, atol=0)


@pytest.mark.parametrize("n", SIZES)
def test_forces_and_kl_are_the_references(n):
    found = near(n, 20)
    edges = tsne_affinities(found.distances, found.indices, max(1.0, min(6.0, (n - 1) / 3)))
    dense = dense_affinities(edges, 2, n)
    points = torch.randn(2, 2, n, generator=torch.Generator().manual_seed(1)) * torch.tensor([0.5, 20.0])[:, None, None]
    points -= points.mean(-1, keepdim=True)
    exact = gradient(points, dense)
    rule = StepRule(exaggeration=1.0, momentum=0.0, step_size=1.0, max_step_norm=1e9)
    # tiles take squares of coordinates from each other; the compiled kernel takes coordinates
    for descent, rounding in zip(descents(points, edges), (1e-7, 1e-4), strict=True):
        torch.testing.assert_close(descent.kl_divergence(), kl_divergence(points, dense), rtol=1e-5, atol=1e-6)
        descent.advance(1, rule, torch.ones(2, dtype=torch.bool))
        # the first step is -1.2 times the gradient: no momentum yet, and every gain grows by 0.2
        moved = (points - descent.points()).double() / 1.2
        assert (
            (moved - exact).abs().amax((1, 2)).le(1e-5 * exact.abs().amax((1, 2)) + rounding * points.abs().max()).all()
        )
        norm = exact.square().sum(1).mean(1).sqrt() * n
        torch.testing.assert_close(descent.gradient_norm(), norm, rtol=1e-3, atol=1e3 * rounding)


@needs_compiler
@pytest.mark.parametrize("spread", [300.0, 1e6, 1e12, "one"])
def test_points_that_lie_far_off_are_moved_as_the_reference_says(spread, monkeypatch):
    n = 33
    found = near(n, 20)
    edges = tsne_affinities(found.distances, found.indices, 6.0)
    points = torch.randn(2, 2, n, generator=torch.Generator().manual_seed(1)) * (1.0 if spread == "one" else spread)
    if spread == "one":
        points[:, 0, 5] = 1e12
    points -= points.mean(-1, keepdim=True)
    exact = gradient(points, dense_affinities(edges, 2, n))
    # three tiles of columns, so that the points that are left out of their own sums lie apart
    monkeypatch.setattr(tiled, "CPU_PAIRS", 11 * n)
    for descent in descents(points, edges):
        torch.testing.assert_close(
            descent.kl_divergence(), kl_divergence(points, dense_affinities(edges, 2, n)), rtol=1e-5, atol=1e-6
        )
        descent.advance(1, StepRule(1.0, 0.0, 1.0, 1e30), torch.ones(2, dtype=torch.bool))
        torch.testing.assert_close(
            descent.gradient_norm(), exact.square().sum(1).mean(1).sqrt() * n, rtol=1e-3, atol=1e-7 * n
        )
        descent.advance(20, StepRule(4.0, 0.8, 200.0, 5.0), torch.ones(2, dtype=torch.bool))
        assert bool(descent.points().isfinite().all() & descent.kl_divergence().isfinite().all())


@needs_compiler
def test_many_steps_stay_together_and_an_inactive_layer_stands_still():
    found = near(131, 30)
    edges = tsne_affinities(found.distances, found.indices, 10.0)
    start = torch.randn(2, 2, 131, generator=torch.Generator().manual_seed(2))
    start -= start.mean(-1, keepdim=True)
    rule = StepRule(exaggeration=4.0, momentum=0.5, step_size=131 / 4, max_step_norm=5.0)
    ours, theirs = descents(start, edges)
    for descent in (ours, theirs):
        descent.advance(15, rule, torch.tensor([True, False]))
        assert torch.equal(descent.points()[1], start[1])
    scale = (theirs.points() - start)[0].abs().max()
    assert scale > 0.5
    assert (ours.points()[0] - theirs.points()[0]).abs().max() < 2e-2 * scale
    assert ours.points().mean(-1).abs().max() < 1e-4


@needs_compiler
def test_the_longest_step_is_held():
    found = near(61, 20)
    edges = tsne_affinities(found.distances, found.indices, 6.0)
    start = torch.randn(2, 2, 61, generator=torch.Generator().manual_seed(3)) * 10
    start -= start.mean(-1, keepdim=True)
    for descent in descents(start, edges):
        before = descent.points()
        descent.advance(1, StepRule(1.0, 0.0, 1e6, 0.25), torch.ones(2, dtype=torch.bool))
        step = (descent.points() - before).square().sum(1).sqrt()
        # centring moves all points alike, by no more than the longest step
        assert 0.2 < step.max() <= 0.5


@pytest.fixture
def threads():
    """Give a way to set the kernels' threads that is undone."""
    before = native._threads
    yield native.use_threads
    native.use_threads(before)


@needs_compiler
def test_threads_do_not_change_a_bit(threads):
    X = torch.randn(2, 520, 90, generator=torch.Generator().manual_seed(0))
    drawn = []
    for count in (1, 2, 3):
        threads(count)
        assert native.thread_count() == count
        found = nearest_neighbors(X[..., :8], X[..., :8], 30, exclude_self=True)
        wide = nearest_neighbors(X, X, 30, exclude_self=True)
        edges = tsne_affinities(found.distances, found.indices, 10.0)
        descent = start_descent(torch.randn(2, 2, 520, generator=torch.Generator().manual_seed(0)), edges)
        descent.advance(20, StepRule(1.0, 0.8, 520.0, 5.0), torch.ones(2, dtype=torch.bool))
        clusters = kmeans(X, 7, seed=1)
        drawn.append([*found, *wide, *edges, descent.points(), descent.kl_divergence(), *clusters])
    assert all(torch.equal(a, b) for other in drawn[1:] for a, b in zip(drawn[0], other, strict=True))


def test_threads_are_those_asked_for_or_the_environments(threads, monkeypatch):
    threads(0)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert native.thread_count() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert native.thread_count() == len(os.sched_getaffinity(0))


def test_without_a_compiler_torch_takes_over_and_says_so(monkeypatch, caplog):
    native.forget()
    monkeypatch.setenv(native.OFF, "0")
    try:
        found = near(20, 5)
        with caplog.at_level(logging.WARNING):
            descent = start_descent(torch.zeros(2, 2, 20), tsne_affinities(found.distances, found.indices, 2.0))
        assert isinstance(descent, TiledDescent)
        assert "compiled kernels are not in use, slower torch code runs in their place" in caplog.text
        assert native.status() == (False, "FCLM_NATIVE=0 turns it off")
    finally:
        monkeypatch.undo()
        native.forget()


@needs_compiler
def test_denormals_live_on_after_loading():
    # a library linked with -ffast-math would flush them in the whole process, the training's too
    start_descent(torch.zeros(1, 2, 8), tsne_affinities(*near(8, 3, layers=1), 1.0))
    tiny = torch.tensor([1e-39, 2e-39])
    assert (tiny * 0.5 > 0).all()


def test_unfit_neighbours_are_refused():
    with pytest.raises(ShapeError, match=r"distances have shape \(3, 2\)"):
        tsne_affinities(torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64), 1.0)


def test_repulsion_on_a_grid_comes_near_the_exact_one_and_nearer_with_more_intervals(monkeypatch):
    from fastcluster_lm.kernels.tsne_forces import grid

    points = torch.randn(2, 2, 700, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 9])[:, None, None]
    points[1, 0] += 50
    exact, sums = exact_repulsion(points)
    errors = []
    for fewest in (50, 150):
        monkeypatch.setattr(grid, "FEWEST", fewest)
        forces, found = grid.grid_repulsion(points)
        errors.append(float((forces - exact).square().mean().sqrt() / exact.square().mean().sqrt()))
        assert (found / sums - 1).abs().max() < 0.02
    assert errors[0] < 0.03 and errors[1] < 0.25 * errors[0]


def exact_repulsion(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    y = points.double()
    apart = y[:, :, :, None] - y[:, :, None, :]
    kernel = 1 / (1 + apart.square().sum(1))
    return (kernel.square()[:, None] * apart).sum(-1), kernel.sum((1, 2)) - points.shape[-1]


def clumps(n: int, generator: torch.Generator) -> torch.Tensor:
    """Lay a layer of clumps, one of points on a line, one of points that coincide but for two: what maps look like."""
    centres = torch.randn(2, 12, generator=generator) * 20
    near_them = centres[:, torch.randint(12, (n,), generator=generator)] + torch.randn(2, n, generator=generator)
    line = torch.stack([torch.randn(n, generator=generator) * 40, torch.zeros(n)])
    one = torch.zeros(2, n)
    one[:, :2] = torch.tensor([[3.0, -3], [0, 1]])
    return torch.stack([near_them, line, one])


@needs_compiler
@pytest.mark.parametrize("n", [2, 3, 9, 33, 61, 700, 2501])
def test_repulsion_by_a_tree_comes_near_the_exact_one(n):
    points = clumps(n, torch.Generator().manual_seed(n))
    exact, sums = exact_repulsion(points)
    descent = start_descent(points, none_of(3, n), repulsion="tree")
    forces = descent.repulsion()
    error = (forces - exact).square().mean((1, 2)).sqrt() / exact.square().mean((1, 2)).sqrt()
    # on the line, forces from either side cancel; without second moments the clumps of 2501 points err by 0.7 %
    assert bool((error < torch.tensor([1.5e-3, 2.5e-2, 1e-5])).all())
    assert (descent.sums[:, 0] / sums - 1).abs().max() < 3e-3
    tiny = points * 1e-5
    found = start_descent(tiny, none_of(3, n), repulsion="tree").repulsion()
    # all within the kernel's width, as at the start of a map
    torch.testing.assert_close(
        found, exact_repulsion(tiny)[0].float(), rtol=1e-3, atol=float(tiny.abs().max()) * n / 1e5
    )


@needs_compiler
def test_the_order_of_a_tree_costs_time_and_not_precision_when_points_have_moved():
    generator = torch.Generator().manual_seed(0)
    points = clumps(1500, generator)
    descent = start_descent(points, none_of(3, 1500), repulsion="tree")
    descent.repulsion()
    moved = points.flip(-1) + torch.randn(points.shape, generator=generator)
    descent._points[..., :1500] = moved
    descent._repel(torch.ones(3, dtype=torch.uint8), reorder=False)
    exact, _ = exact_repulsion(moved)
    error = (descent.scratch[:, 0, :, :1500] - exact).square().mean((1, 2)).sqrt() / exact.square().mean((1, 2)).sqrt()
    assert bool((error < torch.tensor([1e-3, 2e-2, 1e-5])).all())


@needs_compiler
def test_a_map_by_a_tree_is_as_good_as_an_exact_one_whatever_the_threads(monkeypatch):
    found = near(2000, 60)
    edges = tsne_affinities(found.distances, found.indices, 20.0)
    start = torch.randn(2, 2, 2000, generator=torch.Generator().manual_seed(4)) * 1e-4
    kl, points = {}, {}
    for way, threads in (("pairs", 2), ("tree", 2), ("tree", 1)):
        monkeypatch.setattr(native, "_threads", threads)
        descent = start_descent(start, edges, repulsion=way)
        for rule, steps in ((StepRule(12.0, 0.8, 2000 / 12, 5.0), 60), (StepRule(1.0, 0.8, 2000.0, 5.0), 150)):
            descent.advance(steps, rule, torch.ones(2, dtype=torch.bool))
        kl[way], points[way, threads] = descent.kl_divergence(), descent.points()
    assert (kl["tree"] / kl["pairs"] - 1).abs().max() < 0.01
    assert torch.equal(points["tree", 1], points["tree", 2])


@needs_compiler
@pytest.mark.parametrize("way", ["pairs", "tree"])
def test_points_put_together_take_the_same_steps(way, monkeypatch):
    found = near(500, 20)
    edges = tsne_affinities(found.distances, found.indices, 6.0)
    start = torch.randn(2, 2, 500, generator=torch.Generator().manual_seed(4))
    descents = []
    for scattered in (500, 499):
        monkeypatch.setattr(op, "SCATTERED_POINTS", scattered)
        descents.append(start_descent(start, edges, repulsion=way))
    as_given, together = descents
    assert as_given.places is None and together.places.sort(1).values.equal(torch.arange(500).expand(2, -1))
    # neighbours stand nearer each other: a point's edges lead to places within fewer of its own
    spans = []
    for kept in (edges, together._moved):
        spans.append(float((kept.columns - kept.rows() % 500).abs().float().mean()))
    assert spans[1] < 0.7 * spans[0]
    torch.testing.assert_close(together.repulsion(), as_given.repulsion(), rtol=1e-4, atol=1e-4)
    for descent in descents:
        descent.advance(5, StepRule(1.0, 0.5, 20.0, 5.0), torch.ones(2, dtype=torch.bool))
    # a tree's leaves hold other points where ties were broken otherwise; sums are taken in another order
    torch.testing.assert_close(together.points(), as_given.points(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(together.kl_divergence(), as_given.kl_divergence(), rtol=1e-5, atol=0)
    torch.testing.assert_close(together.gradient_norm(), as_given.gradient_norm(), rtol=1e-4, atol=0)


@needs_compiler
def test_layers_that_stand_still_are_left_alone_by_a_tree():
    found = near(300, 30)
    edges = tsne_affinities(found.distances, found.indices, 10.0)
    start = torch.randn(2, 2, 300, generator=torch.Generator().manual_seed(4))
    descent = start_descent(start, edges, repulsion="tree")
    descent.advance(30, StepRule(1.0, 0.8, 300.0, 5.0), torch.tensor([False, True]))
    assert torch.equal(descent.points()[0], start[0]) and not torch.equal(descent.points()[1], start[1])


def test_the_way_of_repulsion_follows_from_the_number_of_points_and_the_code_there_is(monkeypatch):
    def way(n: int) -> tuple[type, str]:
        descent = start_descent(torch.zeros(1, 2, n), none_of(1, n))
        return type(descent), descent.way if isinstance(descent, op.NativeDescent) else "grid" * descent.grid

    if native.status()[0]:
        assert way(op.PAIRS_POINTS) == (op.NativeDescent, "pairs")
        assert way(op.PAIRS_POINTS + 1) == (op.NativeDescent, "tree")
    assert isinstance(start_descent(torch.zeros(1, 2, 8), none_of(1, 8), repulsion="grid"), TiledDescent)
    monkeypatch.setattr(op, "library", lambda source: None)
    monkeypatch.setattr(op, "GRID_POINTS", 50)
    assert way(50) == (TiledDescent, "")
    assert way(51) == (TiledDescent, "grid")
    with pytest.raises(ValueError, match="needs compiled code on a CPU"):
        start_descent(torch.zeros(1, 2, 8), none_of(1, 8), repulsion="tree")


def test_a_map_by_the_grid_is_as_good_as_an_exact_one():
    found = near(300, 30)
    edges = tsne_affinities(found.distances, found.indices, 10.0)
    start = torch.randn(2, 2, 300, generator=torch.Generator().manual_seed(4)) * 1e-4
    kl = {}
    for grid in (False, True):
        descent = TiledDescent(start, edges, grid)
        for rule, steps in ((StepRule(12.0, 0.5, 25.0, 5.0), 40), (StepRule(1.0, 0.8, 300.0, 5.0), 80)):
            descent.advance(steps, rule, torch.ones(2, dtype=torch.bool))
        kl[grid] = descent.kl_divergence()
    # both are still on their way down; random maps of these points have a divergence above 2
    assert (kl[True] / kl[False] - 1).abs().max() < 0.05
    assert kl[True].max() < 1.6


def test_sides_of_grids_have_small_primes_alone():
    from fastcluster_lm.kernels.tsne_forces.grid import _fft_friendly

    assert [_fft_friendly(n) for n in (50, 51, 61, 97, 101)] == [50, 54, 64, 100, 108]


@needs_compiler
def test_a_process_after_one_that_compiled_needs_no_compiler(tmp_path):
    program = (
        "import torch; from fastcluster_lm import kmeans, nearest_neighbors, tsne; X = torch.randn(2, 50, 80);"
        "from fastcluster_lm.kernels import native;"
        "tsne(X, n_iter=5, perplexity=5); kmeans(X, 3, n_init=1); nearest_neighbors(X, X, 5); print(native.compiled())"
    )
    environment = {**os.environ, "PATH": str(tmp_path), "CXX": ""}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n" and not done.stderr


@needs_compiler
@pytest.mark.parametrize("n", [2, 5, 8, 61, 300, 640])
@pytest.mark.parametrize("threads", [1, 2])
def test_attraction_over_all_pairs_is_that_along_the_edges(n, threads, monkeypatch):
    monkeypatch.setattr(native, "_threads", threads)
    found = near(n, min(20, n - 1))
    edges = tsne_affinities(found.distances, found.indices, max(1.0, min(6.0, n / 4)))
    start = torch.randn(len(found.distances), 2, n, generator=torch.Generator().manual_seed(n)) * 3
    active = torch.ones(len(start), dtype=torch.bool)
    steps = []
    for most in (n, n - 1):
        monkeypatch.setattr(op, "PAIRED_POINTS", most)
        descent = start_descent(start, edges, repulsion="pairs")
        assert (descent.dense is None) == (most < n)
        descent.advance(3, StepRule(2.0, 0.5, n / 4, 5.0), active)
        steps.append((descent.points(), descent.gradient_norm(), descent.repulsion()))
    for dense, sparse in zip(*steps, strict=True):
        torch.testing.assert_close(dense, sparse, rtol=2e-4, atol=2e-4 * float(sparse.abs().max()))


@needs_compiler
@pytest.mark.parametrize("n", [*SIZES, PAIRED_POINTS])
def test_whole_matrices_hold_the_affinities_of_the_edges_and_descend_alike(n):
    found = near(n, 20)
    perplexity = max(1.0, min(6.0, n / 4))
    edges = tsne_affinities(found.distances, found.indices, perplexity)
    pairs = pair_affinities(found.distances, found.indices, perplexity)
    assert isinstance(pairs, Pairs) and pairs.n == n
    torch.testing.assert_close(pairs.values[:, :n, :n].double(), dense_affinities(edges, 2, n), rtol=1e-6, atol=1e-12)
    assert (pairs.values[:, n:] == 0).all() and (pairs.values[:, :, n:] == 0).all()
    start = torch.randn(2, 2, n, generator=torch.Generator().manual_seed(n)) * 3
    active, steps = torch.ones(2, dtype=torch.bool), []
    for affinities in (edges, pairs):
        descent = start_descent(start, affinities)
        before = descent.kl_divergence()
        descent.advance(3, StepRule(2.0, 0.5, n / 4, 5.0), active)
        steps.append((before, descent.points(), descent.gradient_norm(), descent.kl_divergence()))
    for of_edges, of_pairs in zip(*steps, strict=True):
        torch.testing.assert_close(of_pairs, of_edges, rtol=1e-6, atol=1e-6)


@needs_compiler
@pytest.mark.parametrize("n", [2, 8, 9, 131, 520])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_divergence_is_the_formula_over_pairs_and_over_edges(n, threads, monkeypatch):
    monkeypatch.setattr(native, "_threads", threads)
    found = near(n, 20)
    perplexity = max(1.0, min(6.0, n / 4))
    start = torch.randn(2, 2, n, generator=torch.Generator().manual_seed(n)) * 4
    edges = tsne_affinities(found.distances, found.indices, perplexity)
    descent = start_descent(start, pair_affinities(found.distances, found.indices, perplexity))
    expected = kl_divergence(start, dense_affinities(edges, 2, n))
    torch.testing.assert_close(descent.kl_divergence(), expected, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(op, "PAIRED_POINTS", 1)
    along_edges = start_descent(start, edges)
    assert along_edges.dense is None
    torch.testing.assert_close(along_edges.kl_divergence(), expected, rtol=1e-5, atol=1e-6)


@needs_compiler
def test_whole_matrices_are_for_few_points_and_compiled_code(monkeypatch):
    found = near(PAIRED_POINTS + 1, 9, layers=1)
    assert isinstance(pair_affinities(*found, 3.0), Edges)
    few = near(20, 6)
    pairs = pair_affinities(*few, 2.0)
    with pytest.raises(ShapeError, match="both must be"):
        pair_affinities(few.distances[..., :2], few.indices, 2.0)
    for wrong in (-1, 20):
        outside = few.indices.clone()
        outside[1, 19, 5] = wrong
        with pytest.raises(DataError, match="indices run from"):
            pair_affinities(few.distances, outside, 2.0)
    with pytest.raises(ValueError, match="affinities are of 20 points, the start has 19"):
        start_descent(torch.zeros(2, 2, 19), pairs)


@needs_compiler
@pytest.mark.parametrize("way", ["tree", "grid", "in torch"])
def test_whole_matrices_are_walked_as_edges_where_those_are_wanted(way, monkeypatch):
    few = near(20, 6)
    start = torch.randn(2, 2, 20, generator=torch.Generator().manual_seed(0))
    pairs, edges = pair_affinities(*few, 2.0), tsne_affinities(*few, 2.0)
    assert isinstance(pairs, Pairs)
    found = pairs.edges()
    assert torch.equal(found.starts, edges.starts) and torch.equal(found.columns, edges.columns)
    torch.testing.assert_close(found.values, edges.values)
    if way == "in torch":
        # one kernel may compile where the other does not
        monkeypatch.setattr(op, "library", lambda source: None)
    after = []
    for affinities in (pairs, edges):
        descent = start_descent(start, affinities, repulsion=None if way == "in torch" else way)
        descent.advance(3, StepRule(2.0, 0.5, 5.0, 5.0), torch.ones(2, dtype=torch.bool))
        after.append(descent.points())
    torch.testing.assert_close(*after)
