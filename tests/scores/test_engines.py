"""Which engine is chosen and why, what is refused, and that the engines agree where they should."""

import subprocess
import sys
from importlib import metadata

import pytest
import torch

from fastcluster_lm.errors import DataError, EngineError
from fastcluster_lm.scores import engines
from fastcluster_lm.scores.engines import choose_engine, decide_engine, engine_report
from fastcluster_lm.scores.engines._rapids import RapidsEngine
from fastcluster_lm.scores.engines.params import Engine, KMeansParams, NeighborsParams, TsneParams
from tests.scores.engines import ON_CPU


def test_auto_is_fused_where_rapids_cannot_run() -> None:
    assert choose_engine("auto", "cpu").name == "fused"
    if not torch.cuda.is_available():
        assert choose_engine("auto", torch.device("cuda")).name == "fused"
    assert choose_engine("reference", "cpu").name == "reference"
    assert all(isinstance(choose_engine(name, "cpu"), Engine) for name in ON_CPU)


def test_unknown_engine_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(EngineError, match="did you mean 'reference'"):
        choose_engine("referense", "cpu")


def test_missing_packages_are_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "REFERENCE_PACKAGES", {"no_such_module": "no-such-package"})
    with pytest.raises(EngineError, match=r"no-such-package; pip install 'fastcluster-lm\[reference\]'"):
        choose_engine("reference", "cpu")
    reference = next(row for row in engine_report() if row["name"] == "reference")
    assert not reference["available"] and "no-such-package" in reference["reason"]


def test_reference_refuses_a_gpus_points() -> None:
    with pytest.raises(EngineError, match="'cuda'"):
        choose_engine("reference", "cuda")


def test_rapids_says_what_is_missing() -> None:
    if torch.cuda.is_available():
        pytest.skip("tells what a machine without a GPU lacks")
    with pytest.raises(EngineError, match="no CUDA device.*use 'fused'"):
        choose_engine("rapids", "cpu")
    with pytest.raises(EngineError, match="no CUDA device"):
        RapidsEngine()
    assert "no CUDA device" in engine_report()[2]["reason"] and not engine_report()[2]["available"]
    assert decide_engine("auto", "cuda")[1].startswith("auto on cuda, where rapids cannot run: no CUDA device")


def test_the_reason_of_a_choice_is_told() -> None:
    assert decide_engine("auto", "cpu") == ("fused", "auto on cpu: fused is the engine for it")
    assert decide_engine("reference", "cpu") == ("reference", "asked for by name")


def test_report_lists_every_engine_with_a_reason() -> None:
    report = {row["name"]: row for row in engine_report()}
    assert tuple(report) == engines.ENGINES
    assert all(row["reason"] for row in report.values())
    assert report["fused"]["available"] and report["fused"]["versions"]["torch"] == metadata.version("torch")
    assert report["reference"]["versions"].keys() == {"scikit-learn", "openTSNE", "faiss-cpu"}


def test_engines_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(2, 4, 6, generator=generator) * 5
    X = centers[:, torch.arange(120) % 4] + torch.randn(2, 120, 6, generator=generator) + 100
    fused, reference = choose_engine("fused", "cpu"), choose_engine("reference", "cpu")
    ids = torch.arange(120) // 3
    params = NeighborsParams(8, ids, ids)
    ours, theirs = fused.neighbors(X, X, params), reference.neighbors(X, X, params)
    torch.testing.assert_close(ours.distances, theirs.distances, rtol=1e-4, atol=1e-4)
    assert (ours.indices == theirs.indices).float().mean() > 0.999
    clusters = fused.kmeans(X, KMeansParams(4)).inertia / reference.kmeans(X, KMeansParams(4)).inertia
    assert (clusters - 1).abs().max() < 0.005
    maps = fused.tsne(X, TsneParams()).kl_divergence / reference.tsne(X, TsneParams()).kl_divergence
    assert maps.max() <= 1.05


def test_reference_hands_every_kmeans_parameter_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.cluster

    asked, fit = [], sklearn.cluster.KMeans
    monkeypatch.setattr(
        sklearn.cluster, "KMeans", lambda *args, **options: (asked.append(options), fit(*args, **options))[1]
    )
    X = torch.randn(1, 30, 2, generator=torch.Generator().manual_seed(0))
    params = KMeansParams(3, n_init=4, max_iter=7, tol=0.01, seed=5, init=X[0, :3])
    choose_engine("reference", "cpu").kmeans(X, params)
    assert [(options["n_init"], options["max_iter"], options["tol"]) for options in asked] == [
        (1, 7, 0.01),
        (4, 7, 0.01),
    ]
    assert torch.equal(torch.from_numpy(asked[0]["init"]).float(), X[0, :3]) and asked[1]["init"] == "k-means++"


def test_reference_hands_both_phases_of_a_map_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import openTSNE

    asked = []
    monkeypatch.setattr(openTSNE.TSNEEmbedding, "optimize", lambda self, n, **options: asked.append((n, options)))
    X, engine = torch.randn(1, 30, 4, generator=torch.Generator().manual_seed(0)), choose_engine("reference", "cpu")
    engine.tsne(X, TsneParams(perplexity=5, n_iter=60, max_step_norm=2.0, initial_momentum=0.5))
    engine.tsne(X, TsneParams(perplexity=5, n_iter=60, init=torch.zeros(30, 2), learning_rate=7.0))
    keys = ("exaggeration", "momentum", "learning_rate", "max_step_norm", "inplace")
    assert [(n, *(options[key] for key in keys)) for n, options in asked] == [
        (20, 12.0, 0.5, 30 / 12, 2.0, True),
        (40, 1.0, 0.8, 30.0, 2.0, True),
        (60, 1.0, 0.8, 7.0, 5.0, True),
    ]


def test_reference_refuses_what_opentsne_cannot_map() -> None:
    with pytest.raises(EngineError, match="5 points or more"):
        choose_engine("reference", "cpu").tsne(torch.randn(1, 4, 3), TsneParams())


def test_parameters_are_checked_where_they_are_made() -> None:
    ids = torch.arange(3)
    with pytest.raises(DataError, match="both or neither"):
        NeighborsParams(1, query_ids=ids)
    with pytest.raises(DataError, match="'auto'"):
        TsneParams(learning_rate="fast")
    assert TsneParams(n_iter=300).schedule() == (100, 200)
    assert TsneParams().schedule() == (100, 400)
    assert TsneParams(init=torch.zeros(3, 2)).schedule() == (0, 500)


def test_scores_need_neither_triton_nor_the_libraries() -> None:
    code = (
        "import sys\n"
        "for name in ('triton', 'sklearn', 'openTSNE', 'faiss', 'cuml', 'cupy'): sys.modules[name] = None\n"
        "import torch\n"
        "from fastcluster_lm.scores.kmeans import kmeans\n"
        "from fastcluster_lm.scores.neighbors import nearest_neighbors\n"
        "from fastcluster_lm.scores.tsne import tsne\n"
        "from fastcluster_lm.kernels import kmeans_assign\n"
        "X = torch.randn(20, 3)\n"
        "kmeans(X, 2), nearest_neighbors(X, X, 2), tsne(X, n_iter=3), kmeans_assign(X, X[:2])\n"
        "print('done')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr[-2000:]


FIRST_USE = """
import random
import numpy as np
import torch
import fastcluster_lm

X = np.arange(60, dtype=np.float32).reshape(20, 3)

def generators():
    name, keys, *rest = np.random.get_state()
    return random.getstate(), keys.tolist(), rest, torch.get_rng_state().tolist()

before = generators()
fastcluster_lm.{call}, engine="reference")
assert generators() == before, "a generator has moved"
"""


@pytest.mark.parametrize(
    "call",
    [
        "nearest_neighbors(X, X, 3",
        "kmeans(X, 3",
        "tsne(X, perplexity=5, n_iter=5",
        "score_clusters(X, [0, 1] * 10, spaces=['hidden']",
    ],
)
def test_the_first_use_of_the_reference_moves_no_generator_of_the_caller(call: str) -> None:
    # what is imported once is imported no more: each in a process of its own
    done = subprocess.run([sys.executable, "-c", FIRST_USE.format(call=call)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
