"""A fixed set of damaged files before the readers of a run: what they hold, or our error; the campaign tries more."""

import random
import shutil
import warnings

import numpy as np
import pytest

from fastcluster_lm.errors import FclmError
from fastcluster_lm.store import RunFolder
from fastcluster_lm.views import run_overview
from fastcluster_lm.views.report.history import Follower, read_history
from tests.campaign.damage import damaged
from tests.store.minimal import minimal


def read_maps(run):
    history = read_history(run)
    for step in history.map_steps:
        history.read_map(step)


READERS = {
    "run.toml": (RunFolder.config, read_history, run_overview),
    "environment.json": (RunFolder.environment,),
    "summary.json": (RunFolder.summary, read_history),
    "steps.jsonl": (RunFolder.steps, run_overview, lambda run: Follower(run).refresh()),
    "scores.jsonl": (RunFolder.scores, read_history, run_overview, lambda run: Follower(run).refresh()),
    "maps/step-000001.safetensors": (read_maps,),
    "checkpoints/step-000001/state.json": (lambda run: run.read_checkpoint(1), RunFolder.checkpoint_steps),
    "checkpoints/step-000001/model.safetensors": (lambda run: run.read_checkpoint(1), RunFolder.checkpoint_steps),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    run = RunFolder.create(tmp_path_factory.mktemp("base") / "run", minimal(), {"torch": "2", "packages": {"a": "1"}})
    for step in (0, 1):
        run.append_steps([{"step": step, "loss": 1.0, "val_accuracy": 0.5}])
        run.append_scores([{"step": step, "layer": layer, "ari": 0.5, "split": "val"} for layer in range(3)])
    labels = {"task": np.zeros(4, np.int64), "is_val": np.array([0, 0, 1, 1]), "ids": np.arange(4)}
    run.write_map(1, {"points": np.ones((3, 4, 2), np.float32), **labels}, {"warm": "true"})
    run.write_checkpoint(1, {"model": {"w": np.zeros(3), "v": np.ones((2, 2))}}, {"step": 1})
    run.mark_finished({"steps": 1, "val_accuracy": 0.5})
    return run.path


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused_by_our_errors(base, tmp_path, name):
    draw = random.Random(name)
    others = sorted(path for path in base.rglob("*") if path.is_file())
    refused = 0
    for number in range(60):
        run = tmp_path / f"{number}"
        shutil.copytree(base, run)
        what = damaged(run / name, others, draw)
        for read in READERS[name]:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    read(RunFolder.open(run))
            except FclmError as error:
                refused += 1
                assert "\n" not in str(error), f"{what}: {error}"
            except Exception as error:
                pytest.fail(f"mutant {number}, {what}: {type(error).__name__}: {error}")
    assert refused > 15
