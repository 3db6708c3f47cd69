"""The rapids engine against strict stand-ins: what it hands on, gives back, refuses and leaves alone."""

import dataclasses
import importlib.machinery
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from fastcluster_lm.errors import DataError, EngineError
from fastcluster_lm.scores.engines import _rapids_neighbors, choose_engine
from fastcluster_lm.scores.engines._rapids import NOTES, RapidsEngine
from fastcluster_lm.scores.engines.params import KMeansParams, Neighbors, NeighborsParams, TsneParams
from tests.scores import fake_rapids, read_signatures
from tests.tolerances import KMEANS_INERTIA, TSNE_KL

pytest.importorskip("sklearn")


@pytest.fixture
def fakes(monkeypatch):
    return fake_rapids.install(monkeypatch)


def points(n_layers=2, n=150, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(n_layers, 5, width, generator=generator) * 4
    return centers[:, torch.arange(n) % 5] + torch.randn(n_layers, n, width, generator=generator) + 30


def tied(n_layers=2, n=90):
    """Give layers of whole numbers, in which most distances are equal, and one of few distinct points."""
    X = torch.randint(0, 3, (n_layers, n, 3), generator=torch.Generator().manual_seed(1)).float()
    X[0] = X[0, :4].repeat(23, 1)[:n]
    return X


@pytest.mark.parametrize(
    "X", [points(), points().double(), tied(), points(1, 40, 300)], ids=["f32", "f64", "tied", "wide"]
)
@pytest.mark.parametrize("ids", [None, "own", "groups", "by layer"])
def test_neighbours_are_those_of_the_fused_engine(fakes, X, ids):
    n, fused = X.shape[1], choose_engine("fused", "cpu")
    given = {
        None: None,
        "own": torch.arange(n),
        "groups": torch.arange(n) // 7,
        "by layer": torch.stack([torch.arange(n) % (9 + layer) for layer in range(len(X))]),
    }[ids]
    for bank in (X, X.flip(1)[:, : n - 5]):
        own = None if given is None else given[..., : bank.shape[1]]
        params = NeighborsParams(6, given, own)
        ours, theirs = RapidsEngine().neighbors(X, bank, params), fused.neighbors(X, bank, params)
        assert torch.equal(ours.indices, theirs.indices)
        torch.testing.assert_close(ours.distances, theirs.distances, rtol=1e-6, atol=1e-6)
        assert ours.distances.dtype == torch.float32 and ours.indices.dtype == torch.int64


def test_faiss_is_asked_once_a_layer_for_as_many_more_as_ids_forbid(fakes):
    X, ids = points(3, 60), torch.arange(60) // 10
    RapidsEngine().neighbors(X, X, NeighborsParams(4, ids, ids))
    asked = [args[3] for name, args, _ in fakes.calls if name == "faiss.knn_gpu"]
    assert asked == [4 + 10 + _rapids_neighbors.SPARE] * 3
    # a small scratch memory cuts the ranking into blocks, never the answer
    whole = RapidsEngine().neighbors(X, X, NeighborsParams(4, ids, ids))
    monkey = RapidsEngine()
    monkey.memory_budget = 1
    assert all(map(torch.equal, whole, monkey.neighbors(X, X, NeighborsParams(4, ids, ids))))


def test_more_forbidden_points_than_faiss_can_skip_are_searched_in_full(fakes, monkeypatch):
    monkeypatch.setattr(_rapids_neighbors, "FAISS_MOST", 20)
    X, ids = points(1, 100), (torch.arange(100) // 50)
    params = NeighborsParams(5, ids, ids)
    ours, theirs = RapidsEngine().neighbors(X, X, params), choose_engine("fused", "cpu").neighbors(X, X, params)
    assert torch.equal(ours.indices, theirs.indices)
    with pytest.raises(EngineError, match="at most 12"):
        RapidsEngine().neighbors(X, X, NeighborsParams(13))


def test_queries_none_give_nothing_and_faults_are_checked(fakes):
    X = points()
    assert RapidsEngine().neighbors(X[:, :0], X, NeighborsParams(3)).indices.shape == (2, 0, 3)
    with pytest.raises(DataError, match="NaN"):
        RapidsEngine().neighbors(X * torch.nan, X, NeighborsParams(3))


def test_clusters_are_as_tight_as_the_reference_and_in_the_points_units(fakes):
    X = points(2, 120) * 1000 + 5e4
    ours, theirs = (engine.kmeans(X, KMeansParams(5)) for engine in (RapidsEngine(), choose_engine("reference", "cpu")))
    assert (ours.inertia <= theirs.inertia * KMEANS_INERTIA).all() and ours.inertia.dtype == torch.float64
    for layer in range(2):
        for cluster in range(5):
            mine = X[layer, ours.labels[layer] == cluster].double().mean(0)
            torch.testing.assert_close(ours.centroids[layer, cluster].double(), mine, rtol=1e-5, atol=1e-2)
    own = X.double() - ours.centroids.double().gather(1, ours.labels[..., None].expand(-1, -1, 6))
    torch.testing.assert_close(ours.inertia, own.square().sum((1, 2)), rtol=1e-4, atol=0)


def test_clusters_go_on_from_centroids_in_the_points_units(fakes):
    X = points(2, 120)
    cold = RapidsEngine().kmeans(X, KMeansParams(5))
    fakes.calls.clear()
    warm = RapidsEngine().kmeans(X, KMeansParams(5, n_init=0, init=cold.centroids))
    assert [options["n_init"] for options in fakes.named("cuml.cluster.KMeans")] == [1, 1]
    torch.testing.assert_close(warm.inertia, cold.inertia, rtol=1e-5, atol=0)
    assert torch.equal(warm.labels, cold.labels) and (warm.n_iter <= 2).all()
    bad = X[0, :5] + torch.arange(5)[:, None] * 1e-3
    both = RapidsEngine().kmeans(X, KMeansParams(5, n_init=3, init=bad))
    assert (both.inertia <= cold.inertia * KMEANS_INERTIA).all()
    assert (RapidsEngine().kmeans(X, KMeansParams(5, max_iter=2, tol=0.0)).n_iter <= 2).all()
    flat = RapidsEngine().kmeans(torch.ones(1, 9, 2), KMeansParams(2))
    assert float(flat.inertia) == 0 and (flat.centroids == 1).all()


def test_maps_are_as_faithful_as_the_reference(fakes):
    X = points(2, 200, 12)
    order = torch.arange(200)
    near = choose_engine("fused", "cpu").neighbors(X, X, NeighborsParams(45, order, order))
    params = TsneParams(perplexity=15, seed=3, neighbors=near)
    ours, theirs = (engine.tsne(X, params) for engine in (RapidsEngine(), choose_engine("reference", "cpu")))
    assert (ours.kl_divergence <= theirs.kl_divergence * TSNE_KL).all() and ours.kl_divergence.dtype == torch.float64
    assert ours.points.shape == (2, 200, 2) and ours.points.mean(1).abs().max() < 1e-3
    assert torch.equal(ours.points, RapidsEngine().tsne(X, params).points)


def test_a_map_leaves_the_neighbours_it_is_given_as_they_are(fakes):
    X, order = points(2, 60), torch.arange(60)
    near = RapidsEngine().neighbors(X, X, NeighborsParams(15, order, order))
    before = Neighbors(near.distances.clone(), near.indices.clone())
    fakes.calls.clear()
    drawn = RapidsEngine().tsne(X, TsneParams(perplexity=5, n_iter=30, neighbors=near))
    assert all(map(torch.equal, before, near)) and not fakes.named("faiss.knn_gpu")
    assert torch.equal(drawn.points, RapidsEngine().tsne(X, TsneParams(perplexity=5, n_iter=30)).points)


def test_points_of_one_coordinate_and_maps_that_break(fakes, monkeypatch):
    assert RapidsEngine().tsne(points(1, 30, 1), TsneParams(perplexity=4, n_iter=9)).points.isfinite().all()
    monkeypatch.setattr(fake_rapids._TSNE, "fit_transform", lambda self, X: np.full((len(X), 2), np.nan, np.float32))
    with pytest.raises(DataError, match="not finite"):
        RapidsEngine().tsne(points(1, 30), TsneParams(perplexity=4, n_iter=9))


# a value of each parameter that differs from what the test below starts from; a field without one fails there
OTHER = {
    NeighborsParams: {"n_neighbors": 5, "query_ids": torch.arange(60) // 3, "bank_ids": torch.arange(60) // 3},
    KMeansParams: {"n_clusters": 4, "n_init": 3, "max_iter": 7, "tol": 0.1, "seed": 9, "init": points(2, 60)[0, :3]},
    TsneParams: {
        "perplexity": 6.0,
        # with as many exaggerated iterations as the 30 below
        "n_iter": 31,
        "seed": 9,
        "init": torch.zeros(60, 2),
        "early_exaggeration": 8.0,
        "exaggeration_iter": 5,
        "learning_rate": 50.0,
        "initial_momentum": 0.5,
        "final_momentum": 0.7,
        "max_step_norm": 2.0,
        "min_gradient_norm": 0.1,
        "neighbors": Neighbors(torch.ones(2, 60, 12), torch.arange(1, 13).expand(2, 60, 12)),
    },
}
BASE = {
    NeighborsParams: {"n_neighbors": 3},
    KMeansParams: {"n_clusters": 3, "n_init": 2},
    TsneParams: {"perplexity": 4.0, "n_iter": 30},
}


def calls_of(fakes, params):
    """Give all that a verb hands to the libraries, arrays by their bytes; None where it is refused."""
    fakes.calls.clear()
    X, engine = points(2, 60), RapidsEngine()
    verb = {KMeansParams: engine.kmeans, TsneParams: engine.tsne}.get(type(params))
    try:
        verb(X, params) if verb else engine.neighbors(X, X, params)
    except EngineError:
        return None
    return [(name, plain(args), plain(sorted(options.items()))) for name, args, options in fakes.calls]


def plain(value):
    if isinstance(value, np.ndarray | torch.Tensor):
        return np.asarray(value).tobytes()
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    return value if isinstance(value, str | int | float | None) else type(value).__name__


# what no library hears of, and a note says so
UNHEARD = {"min_gradient_norm"}


@pytest.mark.parametrize("kind", list(BASE), ids=lambda kind: kind.__name__)
def test_every_parameter_is_handed_on_or_refused_or_noted(fakes, kind):
    # FAISS's scratch memory is made once
    calls_of(fakes, NeighborsParams(1))
    before = calls_of(fakes, kind(**BASE[kind]))
    assert before == calls_of(fakes, kind(**BASE[kind]))
    for field in dataclasses.fields(kind):
        changed = {**BASE[kind], field.name: OTHER[kind][field.name]}
        if field.name in ("query_ids", "bank_ids"):
            changed |= {
                "query_ids": torch.arange(60),
                "bank_ids": torch.arange(60),
                field.name: OTHER[kind][field.name],
            }
        after = calls_of(fakes, kind(**changed))
        assert after is None or (after != before) != (field.name in UNHEARD), (
            f"{kind.__name__}.{field.name} is forgotten"
        )


def test_notes_are_of_parameters_that_exist():
    fields = {field.name for kind in BASE for field in dataclasses.fields(kind)}
    assert UNHEARD <= set(NOTES) <= fields and len(RapidsEngine.notes) == len(NOTES)


def test_parameters_arrive_under_their_names(fakes):
    X = points(1, 60)
    RapidsEngine().tsne(X, TsneParams(8.0, 90, 4, early_exaggeration=10.0, exaggeration_iter=20, initial_momentum=0.6))
    (asked,) = fakes.named("cuml.manifold.TSNE")
    expected = {
        "perplexity": 8.0, "max_iter": 90, "random_state": 5, "early_exaggeration": 10.0, "exaggeration_iter": 20,
        "pre_momentum": 0.6, "post_momentum": 0.8, "learning_rate": 10.0, "n_neighbors": 25, "n_components": 2,
    }  # fmt: skip
    assert expected.items() <= asked.items()
    RapidsEngine().kmeans(X, KMeansParams(3, n_init=4, max_iter=7, tol=0.01, seed=5))
    (asked,) = fakes.named("cuml.cluster.KMeans")
    expected = {"n_clusters": 3, "n_init": 4, "max_iter": 7, "tol": 0.01, "random_state": 6, "init": "k-means++"}
    assert expected.items() <= asked.items()
    (handed,) = [args[0] for name, args, _ in fakes.calls if name == "cuml.cluster.KMeans.fit"]
    # so that tol, which cuML takes as it is, is a share of the mean variance
    assert handed.var(0).mean() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        (TsneParams(init=torch.zeros(60, 2)), "init is given"),
        (TsneParams(learning_rate=5.0), "cuML doubles"),
        (TsneParams(max_step_norm=1.0), "no longest step"),
        (TsneParams(n_iter=0), "1 iteration or more"),
        (TsneParams(early_exaggeration=0.5), "takes 1 or more"),
        (TsneParams(final_momentum=0.0), "between 0 and 1"),
        (TsneParams(seed=2**32 - 1), "seed is"),
        (KMeansParams(2, seed=2**32), "seed is"),
    ],
)
def test_what_cuml_cannot_do_is_refused_with_the_reason(fakes, params, reason):
    engine = RapidsEngine()
    with pytest.raises(EngineError, match=reason):
        (engine.kmeans if isinstance(params, KMeansParams) else engine.tsne)(points(1, 60), params)
    assert not fakes.named("cuml.manifold.TSNE") and not fakes.named("cuml.cluster.KMeans")


def test_a_perplexity_beyond_cumls_neighbours_is_refused(fakes):
    with pytest.raises(EngineError, match="340 at most"):
        RapidsEngine().tsne(torch.randn(1, 1100, 2), TsneParams(perplexity=341))


def everything_random():
    """Give the state of every generator and switch of the caller."""
    import cupy

    flags = [getattr(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic", "allow_tf32")]
    return [
        random.getstate(),
        [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        torch.get_rng_state().tolist(),
        cupy.random.get_random_state().seeded,
        *flags,
        torch.get_float32_matmul_precision(),
    ]


@pytest.mark.parametrize("verb", ["neighbors", "kmeans", "tsne"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_callers_generators_and_switches_are_left_alone(fakes, verb, fails):
    X, engine = points(1, 40), RapidsEngine()
    params = {"neighbors": NeighborsParams(3), "kmeans": KMeansParams(3), "tsne": TsneParams(4.0, 9)}[verb]
    fakes.fails_in = {
        "neighbors": "faiss.knn_gpu", "kmeans": "cuml.cluster.KMeans.fit", "tsne": "cuml.manifold.TSNE.fit_transform",
    }[verb] if fails else None  # fmt: skip
    before = everything_random()
    count = len(fakes.calls)
    try:
        engine.neighbors(X, X, params) if verb == "neighbors" else getattr(engine, verb)(X, params)
    except RuntimeError:
        assert fails
    assert len(fakes.calls) > count and everything_random() == before


def test_the_stand_ins_do_disturb(fakes):
    before = everything_random()
    try:
        fakes._disturb()
        assert all(a != b for a, b in zip(everything_random()[:4], before[:4], strict=True))
        assert everything_random()[5] != before[5]
    finally:
        torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = False
        torch.set_float32_matmul_precision("highest")


def run_every_call(engine):
    X = points(1, 40)
    order = torch.arange(40)
    engine.neighbors(X, X, NeighborsParams(3, order, order))
    engine.kmeans(X, KMeansParams(3, init=X[0, :3]))
    engine.tsne(X, TsneParams(4.0, 9))


@pytest.mark.parametrize(
    ("call", "old", "new"),
    [
        ("cuml.manifold.TSNE", "learning_rate_method", "learning_rate_mode"),
        ("cuml.manifold.TSNE", "max_iter", "n_iter"),
        ("cuml.cluster.KMeans", "random_state", "seed"),
        ("faiss.knn_gpu", "device", "gpu"),
    ],
)
def test_a_renamed_argument_turns_the_contract_red(monkeypatch, call, old, new):
    signatures = dict(fake_rapids.RECORD["signatures"])
    assert old in signatures[call]
    signatures[call] = signatures[call].replace(f"{old}=", f"{new}=")
    fake_rapids.install(monkeypatch, signatures)
    with pytest.raises(TypeError, match=old):
        run_every_call(RapidsEngine())


def test_every_call_fits_the_recorded_signatures(fakes):
    run_every_call(RapidsEngine())
    made = {name for name, _, _ in fakes.calls}
    # the stand-ins' own generators and count of GPUs are plain functions
    assert made == {name for name in fakes.signatures if not re.match(r"cupy\.random|faiss\.get_num_gpus", name)}


@pytest.mark.rapids
def test_every_call_fits_the_installed_packages(fakes):
    """Hold the calls against the sources that are installed; the record stands in for them elsewhere."""
    spec = importlib.machinery.PathFinder.find_spec("cuml")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("cuML is not installed; its recorded signatures are held to instead")
    folder = Path(list(spec.submodule_search_locations)[0]).parent
    found = read_signatures.read_signatures(folder)
    assert set(found) == set(read_signatures.SOURCES)
    assert read_signatures.read_attributes(folder) == {
        name: list(names) for name, names in read_signatures.ATTRIBUTES.items()
    }
    run_every_call(RapidsEngine())
    for name, args, options in fakes.calls:
        if name in found:
            fake_rapids.signature_of(found[name]).bind(*args, **options)
