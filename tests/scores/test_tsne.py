"""tsne against openTSNE and the definition of KL: blobs, warm starts, tiny and degenerate data, dense and sparse."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastcluster_lm.errors import DataError, ShapeError
from fastcluster_lm.scores.engines import choose_engine
from fastcluster_lm.scores.engines.params import Neighbors, NeighborsParams, TsneParams
from fastcluster_lm.scores.neighbors import nearest_neighbors
from fastcluster_lm.scores.tsne import tsne
from tests.scores.engines import ON_CPU


def make_blobs(n_layers: int, n: int, width: int, k: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(n_layers, k, width, generator=generator) * 6
    labels = torch.arange(n) % k
    return centers[:, labels] + torch.randn(n_layers, n, width, generator=generator), labels


def affinity_matrix(X: torch.Tensor, perplexity: float) -> np.ndarray:
    """openTSNE's symmetrised affinities of the exact nearest neighbours, dense."""
    from openTSNE.affinity import PerplexityBasedNN

    return PerplexityBasedNN(X.double().numpy(), perplexity=perplexity, method="exact").P.toarray()


def exact_kl(P: np.ndarray, points: np.ndarray) -> float:
    kernel = 1 / (1 + np.square(points[:, None] - points[None]).sum(-1))
    np.fill_diagonal(kernel, 0)
    used = P > 0
    return float((P[used] * np.log(P[used] / (kernel / kernel.sum())[used])).sum())


def test_kl_is_as_low_as_opentsnes_and_measured_on_the_same_affinities() -> None:
    ratios = []
    for seed in range(3):
        X, _ = make_blobs(1, 120, 10, 5, seed)
        ours, theirs = tsne(X, perplexity=20, n_iter=500), tsne(X, perplexity=20, n_iter=500, engine="reference")
        P = affinity_matrix(X[0], 20)
        # one definition of KL for both engines, and it is the textbook's
        np.testing.assert_allclose(ours.kl_divergence[0], exact_kl(P, ours.points[0].double().numpy()), rtol=1e-3)
        np.testing.assert_allclose(theirs.kl_divergence[0], exact_kl(P, theirs.points[0].double().numpy()), rtol=1e-3)
        ratios.append(float(ours.kl_divergence[0] / theirs.kl_divergence[0]))
    assert np.median(ratios) <= 1.05


def test_blobs_stay_apart_and_a_random_map_would_not() -> None:
    X, labels = make_blobs(2, 200, 10, 8)
    found = tsne(X, n_iter=400)

    def share_of_own(points: torch.Tensor) -> torch.Tensor:
        near = nearest_neighbors(points, points, 5, exclude_self=True).indices
        return (labels[near] == labels[:, None]).float().mean()

    assert share_of_own(found.points) > 0.99
    assert share_of_own(torch.randn(2, 200, 2, generator=torch.Generator().manual_seed(0))) < 0.3
    assert found.points.mean(1).abs().max() < 1e-3


@pytest.mark.parametrize("engine", ON_CPU)
def test_a_warm_start_stays_near_its_start(engine: str) -> None:
    X, _ = make_blobs(1, 120, 8, 4)
    cold = tsne(X, n_iter=400)
    warm = tsne(X, n_iter=50, init=cold.points, engine=engine)
    size = cold.points.std()
    assert (warm.points - cold.points).abs().median() < 0.25 * size
    assert warm.kl_divergence[0] <= cold.kl_divergence[0] * 1.02
    untouched = tsne(X, n_iter=0, init=cold.points, engine=engine)
    torch.testing.assert_close(untouched.points, cold.points, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", ["fused", "reference"])
def test_points_that_are_all_one_get_a_map_though_their_mean_is_another(engine: str) -> None:
    X = torch.full((1, 41, 3), 0.4215522906083446, dtype=torch.float64)
    assert np.std(X.numpy(), axis=1).max() > 0
    assert tsne(X, n_iter=24, perplexity=5, engine=engine).points.isfinite().all()


@pytest.mark.parametrize("engine", ["fused", "reference"])
def test_a_start_at_one_far_point_gives_a_map(engine: str) -> None:
    X = torch.randn(1, 60, 7, generator=torch.Generator().manual_seed(0))
    start = torch.full((60, 2), 2131000105.0, dtype=torch.float64)
    assert tsne(X, n_iter=1, perplexity=5, init=start, engine=engine).points.isfinite().all()


@pytest.mark.parametrize("offset", [0.0, 2.0**32])
def test_a_cold_map_starts_at_the_leading_components_of_fixed_sign_and_seeded_noise(offset: float) -> None:
    X = torch.randn(1, 80, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 9, 2, 4, 0.5])
    X = X.double() + offset
    ours, theirs = (tsne(X, n_iter=0, perplexity=10, engine=engine).points[0] for engine in ("fused", "reference"))
    for axis in range(2):
        assert torch.corrcoef(torch.stack([ours[:, axis], theirs[:, axis]]))[0, 1].abs() > 0.99
    assert not torch.equal(ours, tsne(X, n_iter=0, perplexity=10, seed=1).points[0])
    # whichever way the points lie, and with more of them than coordinates or fewer
    for points in (X, -X, X[:, :4], -X[:, :4]):
        start = tsne(points, n_iter=0, perplexity=1).points[0]
        assert (start.gather(0, start.abs().argmax(0, keepdim=True)) > 0).all()


def test_the_first_warm_steps_are_opentsnes() -> None:
    # the only place where coordinates can be compared: both step from one start, without exaggeration
    X, _ = make_blobs(1, 120, 8, 4)
    start = torch.randn(1, 120, 2, generator=torch.Generator().manual_seed(0)) * 5
    start -= start.mean(1, keepdim=True)
    ours, theirs = (
        tsne(X, perplexity=10, n_iter=5, init=start, engine=engine).points - start for engine in ("fused", "reference")
    )
    assert (ours - theirs).norm() < 0.05 * theirs.norm()
    assert theirs.norm(dim=-1).median() > 0.5


@pytest.mark.parametrize("engine", ON_CPU)
def test_no_point_moves_farther_than_the_longest_step(engine: str) -> None:
    X, _ = make_blobs(1, 60, 8, 4)
    start = torch.randn(1, 60, 2, generator=torch.Generator().manual_seed(0))
    params = TsneParams(perplexity=10, n_iter=1, init=start, learning_rate=1e5, max_step_norm=0.25)
    moved = (choose_engine(engine, "cpu").tsne(X, params).points - start).diff(dim=1)
    # two steps of at most 0.25, whatever the centring
    assert 0.1 < moved.norm(dim=-1).max() <= 0.5 + 1e-5


@pytest.mark.parametrize("engine", ON_CPU)
def test_a_start_is_left_as_it_was(engine: str) -> None:
    X, _ = make_blobs(1, 60, 5, 3)
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(1, 60, 2, generator=generator)
    for start in (plain, torch.randn(1, 2, 60, generator=generator).mT, plain.double()):
        before = start.clone()
        found = tsne(X, perplexity=10, n_iter=5, init=start, engine=engine)
        assert torch.equal(start, before) and not torch.equal(found.points, before.float())


def test_points_on_a_line_use_the_plane() -> None:
    found = tsne(torch.arange(60.0)[:, None], perplexity=10, n_iter=300)
    assert (found.points.std(0) > 0.05).all()


def test_more_iterations_lower_kl() -> None:
    X, _ = make_blobs(2, 100, 6, 4)
    short, long = tsne(X, n_iter=60), tsne(X, n_iter=400)
    assert (long.kl_divergence < short.kl_divergence).all()


@pytest.mark.parametrize("n", [2, 3, 5, 20])
@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("width", [1, 3])
def test_tiny_and_constant_data_are_defined(n: int, equal: bool, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.full((2, n, width), 3.0) if equal else torch.randn(2, n, width, generator=generator)
    found = tsne(X)
    assert found.points.isfinite().all() and found.kl_divergence.isfinite().all()
    assert found.points.abs().max() < 1e3
    assert (found.kl_divergence > -1e-6).all()
    if equal or n == 2:
        # all pairs alike: any map with all pairs alike is right
        assert (found.kl_divergence < 1e-4).all()
    else:
        assert torch.pdist(found.points[0]).min() > 1e-3


def test_few_distinct_points_are_mapped() -> None:
    # the embedding layer: as many distinct points as input tokens, more copies of each than neighbours sought
    points = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    kind = torch.arange(200) % 4
    found = tsne(points[kind][None], perplexity=10, n_iter=400)
    assert found.points.isfinite().all()


def test_too_large_a_perplexity_is_lowered_and_said() -> None:
    X = torch.randn(31, 4, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="^perplexity 30 lowered to 10 for 31 points$"):
        low = tsne(X, n_iter=20)
    assert torch.equal(low.points, tsne(X, perplexity=10, n_iter=20).points)


def test_ten_reruns_are_equal_and_numpy_agrees() -> None:
    X, _ = make_blobs(2, 64, 5, 3)
    first = tsne(X, n_iter=60)
    for _ in range(9):
        assert torch.equal(first.points, tsne(X, n_iter=60).points)
    other = tsne(X.numpy(), n_iter=60)
    assert isinstance(other.points, np.ndarray) and np.array_equal(other.points, first.points.numpy())


def test_a_layer_does_not_depend_on_those_beside_it() -> None:
    X, _ = make_blobs(3, 64, 5, 3)
    batch = tsne(X, n_iter=30)
    for layer in range(3):
        single = tsne(X[layer], n_iter=30)
        assert single.kl_divergence.shape == ()
        torch.testing.assert_close(single.points, batch.points[layer], rtol=1e-2, atol=1e-4)


def test_units_and_offset_of_the_data_do_not_matter() -> None:
    X, _ = make_blobs(1, 80, 5, 4)
    plain, moved = tsne(X.double(), n_iter=30), tsne(X.double() * 2.0**20 + 2.0**20, n_iter=30)
    torch.testing.assert_close(plain.points, moved.points, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("engine", ON_CPU)
def test_global_generators_are_left_alone(engine: str) -> None:
    X, _ = make_blobs(1, 40, 3, 3)
    ours, theirs = torch.get_rng_state(), np.random.get_state()
    tsne(X, n_iter=20, engine=engine)
    assert torch.equal(ours, torch.get_rng_state())
    assert np.array_equal(theirs[1], np.random.get_state()[1]) and theirs[2] == np.random.get_state()[2]


def test_unfit_arguments_are_refused() -> None:
    X = torch.randn(2, 10, 3)
    with pytest.raises(DataError, match="perplexity is 0"):
        tsne(X, perplexity=0)
    with pytest.raises(DataError, match="n_iter=-1"):
        tsne(X, n_iter=-1)
    with pytest.raises(ShapeError, match=r"init has shape \(9, 2\); expected \(10, 2\) or \(2, 10, 2\)"):
        tsne(X, init=torch.zeros(9, 2))
    with pytest.raises(DataError, match="at least 2"):
        tsne(X[:, :1])
    X[0, 0, 0] = torch.nan
    with pytest.raises(DataError, match="X holds NaN or infinity in layer 0"):
        tsne(X)


@pytest.mark.parametrize("engine", ON_CPU)
def test_neighbours_that_are_known_already_give_the_same_map(engine: str) -> None:
    X, _ = make_blobs(2, 90, 6, 4)
    params = TsneParams(perplexity=10, n_iter=20)
    order, chosen = torch.arange(90), choose_engine(engine, "cpu")
    known = choose_engine("fused", "cpu").neighbors(X, X, NeighborsParams(params.affinity_neighbors(90), order, order))
    plain, given = chosen.tsne(X, params), chosen.tsne(X, replace(params, neighbors=known))
    torch.testing.assert_close(plain.points, given.points, rtol=1e-3, atol=1e-5 * float(plain.points.abs().max()))
    short = Neighbors(known.distances[..., :5], known.indices[..., :5])
    with pytest.raises(ShapeError, match=r"neighbors have shape \(2, 90, 5\); expected \(2, 90, 30\)"):
        chosen.tsne(X, replace(params, neighbors=short))


@pytest.mark.parametrize("engine", ON_CPU)
def test_a_map_ends_once_its_gradient_has_gone(engine: str) -> None:
    X, _ = make_blobs(2, 90, 6, 4)
    chosen = choose_engine(engine, "cpu")
    # exaggeration is not cut short, and the first look is 50 iterations after it
    params = TsneParams(perplexity=10, n_iter=450, exaggeration_iter=25)
    loose, short = (chosen.tsne(X, p) for p in (replace(params, min_gradient_norm=1e9), replace(params, n_iter=75)))
    assert torch.equal(loose.points, short.points) or engine == "reference"
    torch.testing.assert_close(loose.kl_divergence, short.kl_divergence, rtol=0.05, atol=0)
    full, tight = chosen.tsne(X, params), chosen.tsne(X, replace(params, min_gradient_norm=1e-12))
    assert torch.equal(full.points, tight.points)
    assert (full.kl_divergence < loose.kl_divergence).all()


def test_a_layer_that_is_done_stands_still_while_the_others_go_on() -> None:
    X, _ = make_blobs(2, 90, 6, 4)
    X[1] = torch.randn(90, 6, generator=torch.Generator().manual_seed(1))
    chosen, params = choose_engine("fused", "cpu"), TsneParams(perplexity=10, n_iter=450)
    norms = []
    for layer in range(2):
        alone = [chosen.tsne(X[layer : layer + 1], replace(params, n_iter=n)).kl_divergence for n in (200, 450)]
        norms.append(alone)
    assert all(a > b for a, b in norms)
    for threshold in (3e-3, 1e-3, 3e-4):
        both = chosen.tsne(X, replace(params, min_gradient_norm=threshold))
        apart = [chosen.tsne(X[i : i + 1], replace(params, min_gradient_norm=threshold)).points for i in range(2)]
        assert all(torch.equal(both.points[i], apart[i][0]) for i in range(2))


def test_a_gradient_norm_below_zero_is_refused() -> None:
    with pytest.raises(DataError, match="min_gradient_norm is -1"):
        TsneParams(min_gradient_norm=-1)


def test_a_start_found_without_waiting_is_the_start():
    from fastcluster_lm.scores.engines._fused_tsne import _leading_without_waiting, _principal_components

    generator = torch.Generator().manual_seed(5)
    # components are defined by the gaps between their sizes
    X = torch.randn(2, 120, 20, generator=generator) * 0.8 ** torch.arange(20)
    X -= X.mean(1, keepdim=True)
    for one, other in zip(_principal_components(X, 2), _leading_without_waiting(X, 2), strict=True):
        for axis in range(2):
            assert torch.nn.functional.cosine_similarity(one[axis], other[axis], dim=0).abs() > 0.999


@pytest.mark.parametrize("unit", [2.0**-80, 2.0**55])
def test_the_unit_of_the_points_changes_no_map(unit: float) -> None:
    # squares of such distances are beyond float32
    X = torch.randn(2, 60, 4, generator=torch.Generator().manual_seed(0))
    as_is, in_unit = (tsne(points, perplexity=5.0, n_iter=20, engine="fused") for points in (X, X * unit))
    torch.testing.assert_close(in_unit.points, as_is.points, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(in_unit.kl_divergence, as_is.kl_divergence, rtol=1e-6, atol=0)
