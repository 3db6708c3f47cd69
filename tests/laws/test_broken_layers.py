"""A run whose layers are not finite now and then: training goes on, rows are whole, every view copes."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fastcluster_lm.cli import main
from fastcluster_lm.engine import Hooks, Rooms, RunFolder, resume_run, start_run
from fastcluster_lm.errors import TrainingError
from fastcluster_lm.model import Evaluator
from fastcluster_lm.tasks import taskset_of
from tests.laws.conftest import fingerprint, run_to_end
from tests.laws.test_worker import files, probing

# drawn too, which takes a while: one layer at one probe, and all at all
VIEWED = [{1: [1]}, dict.fromkeys(range(4), [0, 1, 2])]


@pytest.fixture
def breaks(monkeypatch):
    """Let the states of some layers be infinite in some of the probes to come, by number."""

    def break_at(when: dict[int, list[int]]) -> None:
        whole, calls = Evaluator.states_into, [0]

        def states_into(self, instances, buffer):
            norms = whole(self, instances, buffer)
            # each probe runs both splits
            layers = when.get(calls[0] // 2, [])
            calls[0] += 1
            buffer[layers, 0] = torch.inf
            return norms

        monkeypatch.setattr(Evaluator, "states_into", states_into)

    return break_at


@pytest.mark.parametrize(
    "when", [{1: [1]}, {0: [2], 1: [2]}, {3: [1, 2]}, {2: [0, 1, 2]}, dict.fromkeys(range(4), [0, 1, 2])]
)
def test_training_and_the_other_layers_are_the_same_and_every_view_copes(small, tmp_path, breaks, when):
    undisturbed = run_to_end(small, tmp_path / "undisturbed").folder
    breaks(when)
    folder = run_to_end(small, tmp_path / "run").folder
    assert fingerprint(folder) == fingerprint(undisturbed)
    broken = {(number * 4, layer) for number, layers in when.items() for layer in layers}
    for row, other in zip(folder.scores(), undisturbed.scores(), strict=True):
        if (row["step"], row["layer"]) in broken:
            assert row["ari"] is row["knn_share"] is row["cdnv"] is row["kl"] is row["warm"] is None
        elif row["layer"] not in {layer for _, layer in broken}:
            assert row == other
    for row in folder.steps():
        named = [] if row["skipped"] is None else row["skipped"].split("; ")
        assert named == [
            f"layer {layer}: states of train and val are not finite"
            for layer in when.get(row["step"] // 4 if row["step"] % 4 == 0 else -1, [])
        ]
    for step in folder.map_steps():
        points = folder.read_map(step)[0]["points"]
        for layer in range(3):
            assert np.isnan(points[layer]).all() if (step, layer) in broken else np.isfinite(points[layer]).all()
    if when not in VIEWED:
        return
    path = str(folder.path)
    shown = {}
    for name, command in {
        "json": ["scores", path, "--json"],
        "csv": ["scores", path, "--csv"],
        "table": ["scores", path],
        "sparklines": ["scores", path, "--sparklines"],
        "runs": ["runs", str(tmp_path), "--json"],
        "page": ["report", path, "-o", str(tmp_path / "page.html")],
        "both": ["report", path, str(undisturbed.path), "-o", str(tmp_path / "both.html")],
        "figures": ["report", path, "--png", str(tmp_path / "figures")],
        "closing": ["train", "--resume", path],
        "parquet": ["export", path, str(tmp_path / "tables"), "--to", "parquet"],
    }.items():
        done = CliRunner().invoke(main, command, catch_exceptions=False)
        assert done.exit_code == 0, (name, done.output)
        shown[name] = done.stdout
    assert (
        len(json.loads(shown["json"])) == len(list(csv.DictReader(io.StringIO(shown["csv"])))) == len(folder.scores())
    )
    assert "NaN" not in shown["json"] and "nan" not in shown["table"]
    last = max(when)
    probes = "1 probe" if len(when) == 1 else f"{len(when)} probes"
    assert f"{probes} did not score all; that of step {last * 4}: layer {when[last][0]}: states of" in " ".join(
        shown["closing"].split()
    )


def test_what_came_before_a_loss_of_nan_is_kept_wherever_probes_run(small, tmp_path):
    for worker in ("on", "off"):
        config = probing(small, worker)
        run = Rooms(config, taskset_of(config.tasks, config.seed))
        with torch.no_grad():
            run.trainer.model.blocks[1].mlp_c_proj.weight[0, 0] = torch.nan
        with pytest.raises(TrainingError):
            start_run(run, tmp_path / worker)
        folder = RunFolder.open(tmp_path / worker)
        assert [row["skipped"] for row in folder.steps()] == ["layer 2: states of train and val are not finite"]
        assert {row["layer"] for row in folder.scores() if row["ari"] is None and row["group"] == "all"} == {2}
    assert files(RunFolder.open(tmp_path / "on")) == files(RunFolder.open(tmp_path / "off"))


def test_a_run_stopped_between_broken_probes_goes_on_bit_for_bit(small, tmp_path, breaks):
    small = replace(small, training=replace(small.training, checkpoint_every=4))
    breaks({1: [1], 2: [1]})
    whole = run_to_end(small, tmp_path / "whole").folder
    stopped, seen = tmp_path / "stopped", []
    breaks({1: [1]})
    hooks = Hooks(on_step=lambda row, scores: seen.append(row["step"]), should_stop=lambda: 4 in seen)
    assert not start_run(small, stopped, hooks).finished
    breaks({0: [1]})
    assert resume_run(stopped).finished
    assert files(RunFolder.open(stopped)) == files(whole)
