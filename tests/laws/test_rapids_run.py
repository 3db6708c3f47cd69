"""A whole run scored by the rapids engine with stand-ins for its libraries: cold maps, training left alone."""

import tomllib
from dataclasses import replace

import pytest
import torch

from fastcluster_lm.config import config_from_dict
from fastcluster_lm.engine import rooms
from fastcluster_lm.scores.engines._rapids import NOTES, RapidsEngine
from tests.laws.conftest import SMALL, fingerprint, run_to_end
from tests.scores import fake_rapids


@pytest.fixture
def rapids(monkeypatch):
    """Let runs on this CPU be scored by the rapids engine."""
    fakes = fake_rapids.install(monkeypatch)
    monkeypatch.setattr(rooms, "choose_engine", lambda name, device, memory_mib: RapidsEngine(memory_mib))
    monkeypatch.setattr("fastcluster_lm.device.torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("fastcluster_lm.scores.engines._rapids.load", fake_rapids.libraries)
    return fakes


def test_a_run_has_cold_maps_says_so_and_trains_as_without_probes(tmp_path, rapids):
    short = config_from_dict(
        {
            **SMALL,
            "model": {**SMALL["model"], "n_layers": 1, "dropout": 0.2},
            "training": {**SMALL["training"], "steps": 4},
            # a full probe at step 2, which is no key frame
            "probe": {**SMALL["probe"], "every": 1, "full_every": 2},
            "scores": {**SMALL["scores"], "engine": "rapids", "n_init": 1},
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(99)
        before = torch.get_rng_state()
        folder = run_to_end(short, tmp_path / "run").folder
        # the stand-ins reseed every generator
        assert torch.equal(before, torch.get_rng_state())
    rows = folder.scores()
    on_map = [row for row in rows if row["space"] == "map"]
    assert on_map and all(row["engine"] == "rapids" for row in rows)
    assert all(row["warm"] is False and row["tier"] == "full" for row in on_map)
    assert all(row["kl"] is not None for row in on_map if row["group"] == "all")
    assert {row["space"] for row in rows if row["tier"] == "step"} == {"hidden"}
    resolved = tomllib.loads((folder.path / "run.toml").read_text())["resolved"]
    assert resolved["engine"] == "rapids" and len(resolved["engine_notes"]) == len(NOTES)
    assert rapids.named("cuml.manifold.TSNE") and rapids.named("cuml.cluster.KMeans")
    without = run_to_end(replace(short, probe=replace(short.probe, every=0)), tmp_path / "without").folder
    assert fingerprint(folder) == fingerprint(without)
