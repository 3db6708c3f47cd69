"""When auto takes the rapids engine, and what keeps it from running: packages missing, old, broken or without a GPU."""

import sys

import pytest

from fastcluster_lm.errors import EngineError
from fastcluster_lm.scores import engines
from fastcluster_lm.scores.engines import _rapids_packages, choose_engine, decide_engine
from fastcluster_lm.scores.engines._rapids import RapidsEngine
from tests.scores import fake_rapids


@pytest.fixture
def fakes(monkeypatch):
    return fake_rapids.install(monkeypatch)


def test_auto_is_rapids_on_cuda_where_it_can_run(fakes):
    assert decide_engine("auto", "cuda") == (
        "rapids",
        "auto on cuda, with cuml-cu13 26.10.0, cupy-cuda13x 14.2.0, faiss-gpu 1.15.1",
    )
    assert choose_engine("auto", "cuda").name == "rapids" and choose_engine("auto", "cpu").name == "fused"
    report = {row["name"]: row for row in engines.engine_report()}["rapids"]
    assert report["available"] and report["versions"]["cuml-cu13"] == "26.10.0"
    with pytest.raises(EngineError, match="the points are on 'cpu'"):
        choose_engine("rapids", "cpu")


@pytest.mark.parametrize(
    ("versions", "reason"),
    [
        ({"cuml-cu13": "26.6.0"}, r"cuML is 26\.6\.0, expected 26\.08 or newer"),
        ({"cuml-cu13": "25.12.1"}, r"cuML is 25\.12\.1"),
        ({"faiss-gpu": None}, "faiss is installed without GPU support, faiss-gpu is needed"),
        ({"cuml-cu13": None}, "cuml is installed without GPU support"),
    ],
)
def test_an_old_or_wrong_package_makes_auto_fused_with_the_reason(fakes, monkeypatch, versions, reason):
    monkeypatch.setattr(_rapids_packages, "version_of", {**fake_rapids.VERSIONS, **versions}.get)
    name, said = decide_engine("auto", "cuda")
    assert name == "fused"
    with pytest.raises(EngineError, match=reason):
        RapidsEngine()
    assert _rapids_packages.missing() in said


@pytest.mark.parametrize("version", ["26.8.0", "26.08.00", "26.10.0", "27.2.0"])
def test_newer_ones_are_taken(fakes, monkeypatch, version):
    monkeypatch.setattr(_rapids_packages, "version_of", {**fake_rapids.VERSIONS, "cuml-cu13": version}.get)
    assert _rapids_packages.missing() == ""


def test_faiss_is_not_used_where_it_sees_no_gpu(fakes):
    fakes.n_gpus = 0
    assert "FAISS 1.15.1 sees no GPU" in decide_engine("auto", "cuda")[1]
    with pytest.raises(EngineError, match="sees no GPU"):
        RapidsEngine()
    assert not fakes.calls


def test_an_import_that_fails_is_the_reason(fakes, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuml.manifold", None)
    assert "fails to import" in _rapids_packages.missing()
