"""Event files, read back by TensorBoard's own reader."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

from fastcluster_lm.views.events import EventWriter  # noqa: E402


def score(step, layer, labels="task", **values):
    return {"step": step, "layer": layer, "split": "val", "space": "hidden", "group": "all", "labels": labels, **values}


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(one.step, round(one.value, 4)) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_what_is_written_is_read_with_its_steps(tmp_path):
    writer = EventWriter(tmp_path)
    writer.update({"step": 0, "loss": None, "val_accuracy": 0.0}, None)
    writer.update({"step": 1, "loss": 2.5, "val_accuracy": None}, [score(0, 3, ari=0.5, null_ari=0.1, ami=None)])
    writer.update({"step": 2, "loss": 1.5}, [score(2, 3, ari=0.75), score(2, 3, labels="input", ari=0.9)])
    writer.close()
    assert read(tmp_path) == {
        "val/accuracy": [(0, 0.0)],
        "train/loss": [(1, 2.5), (2, 1.5)],
        "val hidden all/ari layer 3": [(0, 0.5), (2, 0.75)],
        "val hidden all/null_ari layer 3": [(0, 0.1)],
    }


def test_a_resumed_run_takes_back_what_came_after_its_checkpoint(tmp_path):
    first = EventWriter(tmp_path)
    for step in (1, 2, 3, 4):
        first.update({"step": step, "loss": float(step)})
    first.close()
    second = EventWriter(tmp_path, resumed_from=2)
    second.update({"step": 3, "loss": 30.0})
    second.close()
    assert read(tmp_path)["train/loss"] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_the_writer_never_loads_torch():
    code = "import sys, fastcluster_lm.views.events; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
