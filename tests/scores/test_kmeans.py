"""kmeans against scikit-learn: blobs, digits, warm starts, duplicates, and the promises about randomness."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score

from fastcluster_lm.errors import DataError, ShapeError
from fastcluster_lm.kernels.kmeans_runs import op
from fastcluster_lm.scores.engines import _fused_kmeans as fused
from fastcluster_lm.scores.engines import choose_engine
from fastcluster_lm.scores.engines.params import KMeansParams
from fastcluster_lm.scores.kmeans import kmeans
from tests.scores.engines import ON_CPU


@pytest.fixture(autouse=True, params=["as here", "in torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take each test through the compiled kernel, where there is one, and through torch, as a GPU goes."""
    if request.param == "in torch":
        monkeypatch.setattr(op, "library", lambda source: None)


def make_blobs(n_layers: int, n: int, width: int, k: int, spread: float = 1.0, apart: float = 6.0, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(n_layers, k, width, generator=generator) * apart
    labels = torch.arange(n) % k
    return centers[:, labels] + spread * torch.randn(n_layers, n, width, generator=generator), labels


def exact_inertia(X: torch.Tensor, centroids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    own = centroids.double().gather(-2, labels[..., None].expand(*labels.shape, X.shape[-1]))
    return (X.double() - own).square().sum((-2, -1))


@pytest.mark.parametrize("engine", ON_CPU)
def test_separated_blobs_are_recovered(engine: str) -> None:
    X, labels = make_blobs(3, 240, 8, 6)
    found = kmeans(X + 1e3, 6, n_init=4, engine=engine)
    for layer in range(3):
        assert adjusted_rand_score(labels, found.labels[layer]) == 1.0


@pytest.mark.parametrize("k", [3, 7, 20])
def test_inertia_is_as_low_as_scikit_learns(k: int) -> None:
    X, _ = make_blobs(3, 300, 8, k, apart=3.0)
    found = kmeans(X, k)
    for layer in range(3):
        theirs = KMeans(k, n_init=10, random_state=0).fit(X[layer].double().numpy()).inertia_
        assert found.inertia[layer] <= 1.005 * theirs


def test_inertia_on_digits() -> None:
    X = load_digits().data
    theirs = KMeans(10, n_init=10, random_state=0).fit(X).inertia_
    assert kmeans(X, 10).inertia <= 1.005 * theirs


def test_labels_centroids_and_inertia_fit_together() -> None:
    X = torch.randn(4, 150, 5, generator=torch.Generator().manual_seed(0)) * 3 + 50
    found = kmeans(X, 9, n_init=3)
    distances = (X.double()[:, :, None] - found.centroids.double()[:, None]).square().sum(-1)
    own = distances.gather(-1, found.labels[..., None])[..., 0]
    assert (own <= distances.amin(-1) * (1 + 1e-5) + 1e-6).all()
    torch.testing.assert_close(found.inertia, exact_inertia(X, found.centroids, found.labels), rtol=1e-6, atol=0)
    assert found.inertia.dtype == torch.float64 and found.labels.dtype == torch.int64


def test_order_of_points_only_permutes_the_labels() -> None:
    X, _ = make_blobs(1, 200, 6, 5)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(3))
    plain, permuted = kmeans(X, 5), kmeans(X[:, order], 5)
    assert adjusted_rand_score(plain.labels[0][order], permuted.labels[0]) == 1.0
    torch.testing.assert_close(plain.inertia, permuted.inertia, rtol=1e-6, atol=0)


def test_ten_reruns_are_equal_and_the_seed_matters() -> None:
    X = torch.randn(2, 120, 4, generator=torch.Generator().manual_seed(0))
    first = kmeans(X, 8, n_init=2)
    for _ in range(9):
        again = kmeans(X, 8, n_init=2)
        assert torch.equal(first.labels, again.labels) and torch.equal(first.centroids, again.centroids)
    assert not torch.equal(first.labels, kmeans(X, 8, n_init=2, seed=1).labels)


def test_a_layer_does_not_depend_on_those_beside_it() -> None:
    X = np.random.default_rng(0).normal(size=(5, 90, 4)).astype(np.float32)
    X[2] = X[2].round()
    batch = kmeans(X, 7, n_init=3)
    assert isinstance(batch.labels, np.ndarray)
    for layer in range(5):
        single = kmeans(torch.from_numpy(X[layer]), 7, n_init=3)
        np.testing.assert_array_equal(single.labels.numpy(), batch.labels[layer])
        np.testing.assert_allclose(single.inertia.numpy(), batch.inertia[layer], rtol=1e-6)


def test_a_run_that_ended_waits_unchanged_for_the_others() -> None:
    # a wide tolerance ends runs before they settle, at different iterations; beside others they must not go on
    X = torch.randn(6, 200, 3, generator=torch.Generator().manual_seed(0))
    engine = choose_engine("auto", "cpu")
    params = KMeansParams(9, n_init=4, tol=0.05)
    batch = engine.kmeans(X, params)
    assert len(batch.n_iter.unique()) > 1
    for layer in range(6):
        single = engine.kmeans(X[layer : layer + 1], params)
        assert torch.equal(single.labels[0], batch.labels[layer])
        assert single.n_iter[0] == batch.n_iter[layer]


def test_small_memory_gives_the_same_clusters() -> None:
    X, _ = make_blobs(3, 101, 4, 5)
    params = KMeansParams(5, n_init=3)
    whole, tiled = fused.find_clusters(X, params), fused.find_clusters(X, params, memory_budget=4000)
    assert torch.equal(whole.labels, tiled.labels)
    # a start of its own for each layer goes with its layer
    start = KMeansParams(5, n_init=0, init=whole.centroids)
    assert torch.equal(fused.find_clusters(X, start, memory_budget=4000).labels, whole.labels)


@pytest.mark.parametrize("engine", ON_CPU)
@pytest.mark.parametrize("whole_bytes", [None, 1])
def test_clusters_under_each_of_several_parameters_are_those_under_one(engine: str, whole_bytes, monkeypatch) -> None:
    if whole_bytes is not None:
        monkeypatch.setattr(fused, "WHOLE_BYTES", whole_bytes)
    X = torch.randn(3, 80, 5, generator=torch.Generator().manual_seed(0)) * 1e8
    asked = [
        KMeansParams(4, n_init=2, seed=3),
        KMeansParams(9, n_init=1, init=X[:, :9]),
        KMeansParams(2, n_init=0, init=X[0, :2]),
    ]
    chosen = choose_engine(engine, "cpu")
    for found, params in zip(chosen.kmeans_each(X, asked), asked, strict=True):
        for part, expected in zip(found, chosen.kmeans(X, params), strict=True):
            assert torch.equal(part, expected)
    with pytest.raises(DataError, match="n_clusters is 81"):
        chosen.kmeans_each(X, [*asked, KMeansParams(81)])


@pytest.mark.parametrize("engine", ON_CPU)
def test_a_good_start_wins_over_bad_restarts(engine: str) -> None:
    # 100 clusters and one restart: fresh seeding misses some in half of the layers, the true centres do not
    X, labels = make_blobs(8, 1000, 3, 100, spread=0.1)
    centers = torch.stack([X[:, labels == label].mean(1) for label in range(100)], 1)
    fresh, warm = kmeans(X, 100, n_init=1, engine=engine), kmeans(X, 100, n_init=1, init=centers, engine=engine)
    alone = kmeans(X, 100, n_init=0, init=centers, engine=engine)
    assert (fresh.inertia > alone.inertia * 1.1).any()
    torch.testing.assert_close(alone.inertia, warm.inertia, rtol=1e-5, atol=0)
    assert adjusted_rand_score(labels, warm.labels[1]) > 0.99


def test_a_bad_start_does_not_hurt() -> None:
    X, labels = make_blobs(1, 200, 4, 5)
    bad = torch.full((5, 4), 1e4)
    assert adjusted_rand_score(labels, kmeans(X, 5, init=bad).labels[0]) == 1.0
    # alone, its empty clusters are filled from the farthest points, so that five clusters come out
    assert len(kmeans(X, 5, n_init=0, init=bad).labels.unique()) == 5


def test_empty_clusters_go_to_the_farthest_points_and_one_iteration_is_one() -> None:
    X = torch.tensor([0.0, 1, 2, 10, -7])[:, None] + 100
    start = torch.tensor([[101.0], [1e3], [2e3]])
    found = choose_engine("auto", "cpu").kmeans(X[None], KMeansParams(3, n_init=0, init=start, max_iter=1))
    assert found.n_iter.tolist() == [1]
    assert found.labels[0].tolist() == [0, 0, 0, 1, 2]


def test_a_cluster_that_must_stay_empty_keeps_its_centroid() -> None:
    X = torch.tensor([0.0, 0, 4, 4])[:, None]
    start = torch.tensor([[0.0], [4], [9]])
    found = choose_engine("auto", "cpu").kmeans(X[None], KMeansParams(3, n_init=0, init=start))
    assert found.labels[0].tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(found.centroids[0], start)


def test_each_layer_starts_at_its_own_centroids() -> None:
    X, labels = make_blobs(3, 500, 4, 25, spread=0.1)
    centers = torch.stack([X[:, labels == label].mean(1) for label in range(25)], 1)
    for engine in ON_CPU:
        found = kmeans(X, 25, n_init=0, init=centers, engine=engine)
        assert torch.equal(found.labels, labels.expand(3, -1)), engine


def test_n_init_zero_needs_init() -> None:
    with pytest.raises(DataError, match="n_init=0"):
        kmeans(torch.zeros(5, 2), 2, n_init=0)


@pytest.mark.parametrize("engine", ["fused", "reference"])
def test_each_point_is_with_its_nearest_centroid_where_clusters_are_empty(engine: str) -> None:
    X = torch.randn(4, 65, generator=torch.Generator().manual_seed(0))[[3, 0, 2, 1, 2, 2, 2, 1, 0, 0]]
    for seed in range(30):
        found = kmeans(X, 7, n_init=1, seed=seed, engine=engine)
        to_all = torch.cdist(X, found.centroids)
        assert torch.equal(to_all.gather(1, found.labels[:, None]), to_all.min(1, keepdim=True).values), seed
        assert float(found.inertia) < 1e-6, seed


@pytest.mark.parametrize("n_distinct", [1, 3])
def test_more_clusters_than_distinct_points(n_distinct: int) -> None:
    points = torch.randn(n_distinct, 5, generator=torch.Generator().manual_seed(0)) * 7 + 0.3
    X = points[torch.arange(40) % n_distinct][None]
    found = choose_engine("auto", "cpu").kmeans(X, KMeansParams(8))
    assert found.inertia.item() == 0
    assert found.n_iter.item() < 5
    assert found.labels.min() >= 0 and found.labels.max() < 8
    assert len(found.labels.unique()) == n_distinct
    torch.testing.assert_close(found.centroids[0][found.labels[0]], X[0], rtol=1e-6, atol=1e-6)


def test_as_many_clusters_as_points() -> None:
    X = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    found = kmeans(X, 30)
    assert len(found.labels.unique()) == 30
    assert found.inertia < 1e-9


def test_one_cluster_is_the_mean() -> None:
    X = torch.randn(2, 30, 3, generator=torch.Generator().manual_seed(0)) + 5
    found = kmeans(X, 1)
    torch.testing.assert_close(found.centroids[:, 0], X.mean(1))
    spread = (X - X.mean(1, keepdim=True)).double().square().sum((1, 2))
    torch.testing.assert_close(found.inertia, spread, rtol=1e-5, atol=0)


def test_equal_distances_go_to_the_lower_label() -> None:
    X = torch.tensor([[-1.0], [0.0], [1.0]])
    start = torch.tensor([[-1.0], [1.0]])
    engine = choose_engine("auto", "cpu")
    found = engine.kmeans(X[None], KMeansParams(2, n_init=0, init=start, max_iter=1))
    assert found.labels[0].tolist() == [0, 0, 1]


@pytest.mark.parametrize("engine", ON_CPU)
def test_global_generators_are_left_alone(engine: str) -> None:
    ours, theirs = torch.get_rng_state(), np.random.get_state()
    kmeans(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), 3, engine=engine)
    assert torch.equal(ours, torch.get_rng_state())
    assert np.array_equal(theirs[1], np.random.get_state()[1]) and theirs[2] == np.random.get_state()[2]


def test_unfit_arguments_are_refused() -> None:
    X = torch.randn(3, 10, 2)
    for n_clusters in (0, 11):
        with pytest.raises(DataError, match=f"n_clusters is {n_clusters}"):
            kmeans(X, n_clusters)
    with pytest.raises(ShapeError, match=r"init has shape \(3, 5\); expected \(3, 2\) or \(3, 3, 2\)"):
        kmeans(X, 3, init=torch.zeros(3, 5))
    X[2, 4, 1] = torch.inf
    with pytest.raises(DataError, match="X holds NaN or infinity in layer 2"):
        kmeans(X, 3)
    with pytest.raises(ShapeError, match=r"expected \(n, d\) or \(layers, n, d\)"):
        kmeans(torch.zeros(4), 1)


@pytest.mark.parametrize("engine", ON_CPU)
def test_clusters_of_points_in_a_graph_have_no_part_in_it(engine: str) -> None:
    X = torch.randn(1, 30, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = choose_engine(engine, "cpu").kmeans(X, KMeansParams(3, n_init=1))
    assert not found.centroids.requires_grad and not found.inertia.requires_grad


def test_results_come_in_the_points_own_units() -> None:
    X, _ = make_blobs(2, 300, 5, 6)
    plain, scaled = (kmeans(points, 6, n_init=2, engine="fused") for points in (X, X * 2.0**40))
    assert torch.equal(plain.labels, scaled.labels)
    torch.testing.assert_close(scaled.centroids, plain.centroids * 2.0**40, rtol=1e-5, atol=2.0**40 * 1e-5)
    torch.testing.assert_close(scaled.inertia, plain.inertia * 2.0**80, rtol=1e-6, atol=0)


def test_runs_end_at_the_tolerance_as_those_of_torch_do(monkeypatch: pytest.MonkeyPatch) -> None:
    X = torch.randn(3, 500, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 1, 30])[:, None, None]
    engine = choose_engine("fused", "cpu")
    asked = [KMeansParams(9, n_init=0, tol=tol, init=X[:, :9]) for tol in (0.0, 0.02, 0.1, 0.3)]
    found = [engine.kmeans(X, params).n_iter for params in asked]
    # each looser tolerance ends every layer's run earlier
    assert all((looser < stricter).all() for stricter, looser in zip(found, found[1:], strict=False))
    monkeypatch.setattr(op, "library", lambda source: None)
    assert all(
        torch.equal(engine.kmeans(X, params).n_iter, n_iter) for params, n_iter in zip(asked, found, strict=True)
    )
