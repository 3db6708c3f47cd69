"""Law 1: the probe leaves training alone, bit for bit."""

from dataclasses import replace

import pytest
import torch

from fastcluster_lm.engine import Rooms, start_run
from fastcluster_lm.probe import RunProbe
from tests.laws.conftest import fingerprint, run_to_end
from tests.scores.engines import ON_CPU


def probed(config, every, **changes):
    return replace(config, probe=replace(config.probe, every=every), **changes)


@pytest.mark.parametrize("engine", ON_CPU)
def test_losses_and_weights_are_the_same_with_the_probe_off_and_on(small, tmp_path, engine):
    if engine == "reference":
        pytest.importorskip("openTSNE")
        pytest.importorskip("faiss")
    small = replace(small, scores=replace(small.scores, engine=engine))
    before = torch.get_rng_state()
    prints = {
        every: fingerprint(run_to_end(probed(small, every), tmp_path / f"every-{every}").folder) for every in (0, 7, 1)
    }
    assert len(set(prints.values())) == 1, prints
    assert torch.equal(before, torch.get_rng_state())


def test_the_hash_sees_a_run_that_differs(small, tmp_path):
    one = run_to_end(small, tmp_path / "one").folder
    other = run_to_end(replace(small, seed=1), tmp_path / "other").folder
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize("fault", ["draws a batch", "touches a weight", "leaves the model in another mode"])
def test_a_probe_that_disturbs_training_is_caught(small, tmp_path, monkeypatch, fault):
    small = replace(small, model=replace(small.model, dropout=0.2))
    honest = fingerprint(run_to_end(probed(small, 4), tmp_path / "honest").folder)
    runs: list[Rooms] = []
    build, score = Rooms.__init__, RunProbe.score
    monkeypatch.setattr(Rooms, "__init__", lambda self, *args: (runs.append(self), build(self, *args))[1])

    def disturb(self, step):
        trainer = runs[-1].trainer
        if fault == "draws a batch":
            trainer.sampler.draw()
        elif fault == "touches a weight":
            with torch.no_grad():
                trainer.model.ln_f.bias.add_(1e-7)
        else:
            trainer.model.eval()
        return score(self, step)

    monkeypatch.setattr(RunProbe, "score", disturb)
    start_run(probed(small, 4), tmp_path / "disturbed")
    assert fingerprint(run_to_end(probed(small, 4), tmp_path / "again").folder) != honest
