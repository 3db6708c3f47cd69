"""Files of a run that are no files, of absurd size, or of another shape: refused at once, each by one reader."""

import json
import os
import time

import numpy as np
import pytest
import tomli_w
from click.testing import CliRunner
from safetensors.numpy import save

from fastcluster_lm.benchmarks.table import read_results, table
from fastcluster_lm.cli import main
from fastcluster_lm.config import load_config
from fastcluster_lm.errors import ConfigError, FclmError, RunFolderError, TaskError
from fastcluster_lm.store import RunFolder
from fastcluster_lm.tasks import load_questions, load_taskset
from fastcluster_lm.views.report.history import read_history
from tests.store.minimal import minimal

READERS = {
    "run.toml": lambda run: run.config(),
    "environment.json": lambda run: run.environment(),
    "summary.json": lambda run: run.summary(),
    "steps.jsonl": lambda run: run.steps(),
    "scores.jsonl": lambda run: run.scores(),
    "maps/step-000001.safetensors": lambda run: run.read_map(1),
    "checkpoints/step-000001/state.json": lambda run: run.read_checkpoint(1),
    "checkpoints/step-000001/model.safetensors": lambda run: run.read_checkpoint(1),
    "lock": lambda run: run.status(),
}


@pytest.fixture
def run(tmp_path):
    run = RunFolder.create(tmp_path / "run", minimal(), {"torch": "2"})
    run.append_steps([{"step": 0, "loss": 1.0}])
    run.append_scores([{"step": 0, "layer": layer, "ari": 0.5} for layer in range(3)])
    run.write_map(1, {"points": np.zeros((3, 4, 2), np.float32)}, {})
    run.write_checkpoint(1, {"model": {"w": np.zeros(3)}}, {"step": 1})
    return run


def put(kind, path):
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "dangling":
        path.symlink_to("nowhere")
    else:
        with path.open("wb") as file:
            file.truncate(2**36)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "dangling", "endless"])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_refused_at_once(run, name, kind):
    if name == "lock" and kind in ("dangling", "endless"):
        pytest.skip("nothing is read of a lock")
    put(kind, run.path / name)
    started = time.perf_counter()
    with pytest.raises(RunFolderError, match=r"run"):
        READERS[name](run)
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "dangling", "endless"])
@pytest.mark.parametrize("read", [load_config, load_taskset, load_questions])
def test_settings_and_tasks_are_read_from_files_alone(tmp_path, read, kind):
    put(kind, tmp_path / "one.toml")
    with pytest.raises((ConfigError, TaskError), match=r"one\.toml: "):
        read(tmp_path / "one.toml")


@pytest.mark.parametrize(
    "text", ["a." * 50_000 + "a = 1", '"a".' * 50_000 + "a = 1", "a = " + "[" * 50_000, "a = 1" * 10**6]
)
@pytest.mark.parametrize("read", [load_config, load_taskset, load_questions])
def test_keys_that_tomllib_would_take_all_memory_for_are_refused(tmp_path, read, text):
    (tmp_path / "one.toml").write_text(text)
    started = time.perf_counter()
    with pytest.raises((ConfigError, TaskError), match=r"one\.toml: "):
        read(tmp_path / "one.toml")
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model", None, "object missing required field `model`"),
        ("model.n_layers", "6", r"model\.n_layers: expected `int`, got `str`"),
        ("model.n_layers", 10**9, r"model\.n_layers: expected `int` <= 1000"),
        ("resolved", None, "object missing required field `resolved`"),
        ("report.space", "nowhere", r"report\.space: invalid enum value 'nowhere'"),
        ("taskset.tasks", {}, r"taskset\.tasks: expected `array`, got `object`"),
    ],
)
def test_what_run_toml_lacks_is_named(run, path, value, message):
    config = minimal()
    *outer, last = path.split(".")
    place = config
    for key in outer:
        place = place[key]
    place.pop(last)
    if value is not None:
        place[last] = value
    (run.path / "run.toml").write_text(tomli_w.dumps(config))
    with pytest.raises(RunFolderError, match=rf"run\.toml is damaged: {message}"):
        run.config()


@pytest.mark.parametrize("row", ['{"step": 0}', '{"step": 0, "layer": "1"}', '{"step": 0, "layer": 1, "ari": []}'])
def test_rows_of_other_types_are_named_by_line(run, row):
    (run.path / "scores.jsonl").write_text('{"step": 0, "layer": 1}\n' + row + "\n")
    with pytest.raises(RunFolderError, match=r"scores\.jsonl, line 2 is damaged"):
        run.scores()
    with pytest.raises(RunFolderError, match=r"scores\.jsonl, line 2 is damaged"):
        run.follow("scores").read()


def test_what_a_newer_version_adds_is_let_be(run):
    config = minimal(added={"later": 1})
    config["model"]["added"] = [1]
    (run.path / "run.toml").write_text(tomli_w.dumps(config))
    (run.path / "scores.jsonl").write_text('{"step": 0, "layer": 1, "added": {"later": 1}}\n')
    assert run.config() == config
    assert run.scores()[0]["added"] == {"later": 1}


N = 4
LABELS = {"task": np.zeros(N, np.int64), "is_val": np.array([0, 0, 1, 1])}
POINTS = np.zeros((3, N, 2), np.float32)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"points": POINTS[0]}, r"points: expected floats of shape \(layers, n, 2\)"),
        ({"points": POINTS.astype(np.int32)}, "points: expected floats"),
        ({"points": POINTS[:2]}, "points: expected 3 layers, as run.toml says, found 2"),
        ({"task": np.zeros(N + 1, np.int64)}, r"task: expected whole numbers of shape \(4,\)"),
        ({"task": np.full(N, 1)}, "task: expected numbers from 0 to 0, found 1 to 1"),
        ({"is_val": np.full(N, 2)}, "is_val: expected numbers from 0 to 1"),
        ({"task": None}, "expected an array task, found is_val, points"),
    ],
)
def test_maps_that_do_not_fit_are_named(run, changed, message):
    arrays = {"points": POINTS, **LABELS, **changed}
    run.write_map(0, {name: array for name, array in arrays.items() if array is not None}, {})
    history = read_history(run)
    with pytest.raises(RunFolderError, match=f"the map of step 0 in .*run is damaged: {message}"):
        history.read_map(0)


def test_a_header_of_absurd_length_is_refused(run):
    path = run.path / "maps" / "step-000001.safetensors"
    path.write_bytes((2**63).to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(RunFolderError, match="found a header of 9223372036854775808 bytes"):
        run.read_map(1)
    path.write_bytes(save({"points": POINTS}) + b"more")
    with pytest.raises(RunFolderError, match="as its header says, found"):
        run.read_map(1)


def test_one_damaged_run_hides_no_other(run, tmp_path):
    for name in ("broken", "piped", "whole"):
        RunFolder.create(tmp_path / name, minimal(), {})
    (tmp_path / "broken" / "run.toml").write_text("name = 1")
    put("pipe", tmp_path / "piped" / "run.toml")
    done = CliRunner().invoke(main, ["runs", str(tmp_path), "--json"])
    rows = {os.path.basename(row["run"]): row for row in json.loads(done.stdout)}
    assert done.exit_code == 0 and set(rows) == {"run", "broken", "piped", "whole"}
    assert rows["whole"]["status"] == "stopped" and rows["whole"]["problem"] is None
    assert rows["broken"]["status"] == rows["piped"]["status"] == "damaged"
    assert "a named pipe" in rows["piped"]["problem"] and "name: expected `str`, got `int`" in rows["broken"]["problem"]


def test_layers_that_the_run_does_not_have_are_refused(run):
    run.append_scores([{"step": 1, "layer": 3}])
    with pytest.raises(FclmError, match="expected layers up to 2, as run.toml says, found scores of layer 3"):
        read_history(run)


@pytest.mark.parametrize("key", ["name", "seed", "model", "report", "resolved"])
def test_a_run_toml_without_what_every_run_has_is_damaged(run, key):
    values = minimal()
    del values[key]
    (run.path / "run.toml").write_text(tomli_w.dumps(values))
    with pytest.raises(RunFolderError, match=f"missing required field `{key}`"):
        run.config()


def test_a_map_without_points_of_validation_is_damaged(run):
    labels = {"task": np.zeros(4, np.int64), "ids": np.arange(4)}
    run.write_map(1, {"points": np.ones((3, 4, 2), np.float32), "is_val": np.zeros(4, np.int64), **labels}, {})
    with pytest.raises(RunFolderError, match="is_val: expected points of validation, found none"):
        read_history(run).read_map(1)


@pytest.mark.parametrize("key", ["kind", "target", "target_is", "pass", "steps"])
def test_a_measured_figure_without_what_it_is_judged_by_is_damaged(tmp_path, key):
    line = {"bench": "maps", "kind": "a", "found": 1.0, "target": 2.0, "target_is": "at most", "pass": True, "steps": 3}
    (tmp_path / "one.jsonl").write_text(json.dumps(line) + "\n")
    assert table(read_results(tmp_path)).count("\n") == 2
    del line[key]
    (tmp_path / "one.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(RunFolderError, match=f"line 1 is damaged: expected {key} beside found"):
        read_results(tmp_path)
