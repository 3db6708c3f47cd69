"""The run folder: what is written comes back, what is damaged or missing is named, one writer at a time."""

import errno
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastcluster_lm.errors import DataError, NewerFormatError, RunExistsError, RunFolderError
from fastcluster_lm.store import RunFolder, TornLineWarning, list_runs
from fastcluster_lm.store.arrays import decode_arrays, encode_arrays
from tests.store.minimal import minimal

CONFIG = minimal()
ENVIRONMENT = {"torch": "2.13.0", "threads": 1, "gpu": None}
TENSORS = {
    "model": {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "steps": np.array(7)},
    "optimizer": {"w.exp_avg": np.ones((2, 3), np.float16)},
    "probe": {"map": np.zeros((0, 2)), "mask": np.array([True, False])},
}
STATE = {"epoch": 2, "generator": {"state": 2**127 + 1, "text": "ü"}, "losses": [0.1, None, True]}


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Leave out the wait for the disk: no test here cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "runs" / "first", CONFIG, ENVIRONMENT)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_store_never_loads_torch():
    code = "import sys, fastcluster_lm.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_created_run_holds_what_it_was_given(run):
    found = RunFolder.open(run.path)
    assert found.config() == CONFIG
    assert found.environment() == ENVIRONMENT
    assert (found.steps(), found.scores(), found.map_steps(), found.checkpoint_steps()) == ([], [], [], [])
    assert found.latest_checkpoint() is None
    assert found.status() == "stopped"
    assert os.listdir(run.path.parent) == ["first"]


def test_create_refuses_a_path_that_exists(run, tmp_path):
    with pytest.raises(RunExistsError, match="first exists already"):
        RunFolder.create(run.path, CONFIG, ENVIRONMENT)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunExistsError):
        RunFolder.create(tmp_path / "dangling", CONFIG, ENVIRONMENT)
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match=r"cannot create .*run: File exists \(.*file\)"):
        RunFolder.create(tmp_path / "file" / "run", CONFIG, ENVIRONMENT)


def test_slower_of_two_creators_is_told(tmp_path, monkeypatch):
    path = tmp_path / "run"
    real = os.replace

    def be_late(source, target):
        monkeypatch.setattr(os, "replace", real)
        RunFolder.create(tmp_path / "other", minimal(name="quicker"), {})
        real(tmp_path / "other", path)
        return real(source, target)

    monkeypatch.setattr(os, "replace", be_late)
    with pytest.raises(RunExistsError):
        RunFolder.create(path, CONFIG, ENVIRONMENT)
    assert RunFolder.open(path).config() == minimal(name="quicker")
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("config", [{"a": None}, {"a": {"b": np.float32(1)}}, {"a": "\ud800"}, {1: 2}])
def test_create_refuses_what_toml_cannot_hold(tmp_path, config):
    with pytest.raises(DataError, match="TOML"):
        RunFolder.create(tmp_path / "run", config, {})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("value", "key"), [({"a": (1,)}, "a"), ({"a": {1: 2}}, "a"), ({"a": [float("nan")]}, r"a\[0\]")]
)  # fmt: skip
def test_json_that_would_not_come_back_is_refused_by_name(run, value, key):
    with pytest.raises(DataError, match=rf"state\.json\.state\.{key}"):
        run.write_checkpoint(1, {}, value)
    with pytest.raises(DataError, match=rf"summary\.{key}"):
        run.mark_finished(value)
    assert run.status() == "stopped"


def test_open_says_what_is_missing_and_what_was_meant(run):
    with pytest.raises(RunFolderError, match="no run folder .*frist; did you mean 'first'"):
        RunFolder.open(run.path.with_name("frist"))
    run.path.with_name("empty").mkdir()
    with pytest.raises(RunFolderError, match="empty has no run.toml"):
        RunFolder.open(run.path.with_name("empty"))
    with pytest.raises(RunFolderError, match="no run folder"):
        RunFolder.open(run.path / "no" / "where")


def test_runs_are_listed_by_name(run):
    root = run.path.parent
    RunFolder.create(root / "another", CONFIG, {})
    (root / "notes").mkdir()
    (root / ".first.tmp-1").mkdir()
    (root / ".first.tmp-1" / "run.toml").touch()
    assert [found.path.name for found in list_runs(root)] == ["another", "first"]
    with pytest.raises(RunFolderError, match="no folder"):
        list_runs(root / "absent")


@pytest.mark.parametrize("data", [b"a = ", b"\xff", b"a = " + b"[" * 20_000])
def test_damaged_config_is_named(run, data):
    (run.path / "run.toml").write_bytes(data)
    with pytest.raises(RunFolderError, match="run.toml is damaged"):
        RunFolder.open(run.path).config()


def test_steps_and_scores_come_back_whole(run):
    run.append_steps([{"step": 1, "loss": 0.1}, {"step": 2, "loss": np.float64(1 / 3)}])
    run.append_scores([{"step": 2, "layer": 0, "ari": -0.0}])
    found = RunFolder.open(run.path)
    assert [row["loss"] for row in found.steps()] == [0.1, 1 / 3]
    assert found.scores()[0]["ari"] == 0 and found.scores()[0]["knn_share"] is None
    with pytest.raises(DataError, match="no column"):
        run.append_scores([{"step": 3}, {"step": 3, "nonsense": 1}])
    assert len(found.scores()) == 1


def test_rows_of_another_version_are_filled(run):
    (run.path / "scores.jsonl").write_text('{"step": 1, "layer": 0, "added_later": 4}\n')
    (row,) = run.scores()
    assert row["ari"] is None and row["added_later"] == 4


def test_maps_come_back(run):
    arrays = {
        "points": np.arange(8, dtype=np.float32).reshape(2, 4)[:, ::2],
        "fortran": np.asfortranarray(np.eye(3, 2)),
    }
    arrays["big_endian"] = np.arange(3, dtype=">f8")
    run.write_map(50, arrays, {"engine": "fused"})
    found, metadata = run.read_map(50)
    for name in arrays:
        np.testing.assert_array_equal(found[name], arrays[name])
    assert metadata == {"engine": "fused"}
    run.write_map(50, {}, {})
    assert run.read_map(50) == ({}, {})
    assert run.map_steps() == [50]
    with pytest.raises(RunFolderError, match="no maps of step 7; .*: 50"):
        run.read_map(7)


@pytest.mark.parametrize("array", [np.array([{}]), np.array(["a"]), np.array(["2026"], dtype="M8[D]"), [1.0]])
def test_arrays_that_would_need_a_pickle_are_refused(run, array):
    with pytest.raises(DataError, match="array 'x'"):
        run.write_map(1, {"x": array}, {})
    with pytest.raises(DataError, match="array 'x'"):
        run.write_checkpoint(1, {"model": {"x": array}}, {})
    assert run.map_steps() == run.checkpoint_steps() == []


def test_checkpoint_comes_back(run):
    run.write_checkpoint(500, TENSORS, STATE)
    run.write_checkpoint(1_000_000, {}, {})
    found = RunFolder.open(run.path)
    assert found.checkpoint_steps() == [500, 1_000_000]
    assert found.latest_checkpoint() == 1_000_000
    tensors, state = found.read_checkpoint(500)
    assert state == STATE
    assert tensors.keys() == TENSORS.keys()
    for group, arrays in TENSORS.items():
        assert_same(tensors[group], arrays)
    files = sorted(os.listdir(run.path / "checkpoints" / "step-000500"))
    assert files == ["model.safetensors", "optimizer.safetensors", "probe.safetensors", "state.json"]
    with pytest.raises(RunFolderError, match="no checkpoint of step 3; whole ones: 500, 1000000"):
        found.read_checkpoint(3)
    with pytest.raises(RunFolderError, match="exists already"):
        run.write_checkpoint(500, TENSORS, STATE)


@pytest.mark.parametrize("group", ["../model", "Model", "", "a/b"])
def test_group_names_cannot_lead_out_of_the_folder(run, group):
    with pytest.raises(DataError, match="group of tensors"):
        run.write_checkpoint(1, {group: {}}, {})


def test_state_cannot_name_a_file_elsewhere(run):
    run.write_checkpoint(1, {"model": {}}, {})
    record = run.path / "checkpoints" / "step-000001" / "state.json"
    text = record.read_text()
    (run.path / "model.safetensors").write_bytes((record.parent / "model.safetensors").read_bytes())
    record.write_text(text.replace("model.safetensors", "../../model.safetensors"))
    with pytest.raises(RunFolderError, match="state.json is damaged"):
        run.read_checkpoint(1)


@pytest.mark.parametrize("step", [-1, True, 1.5, "1"])
def test_steps_are_whole_numbers(run, step):
    with pytest.raises(DataError, match="step is"):
        run.write_checkpoint(step, {}, {})
    with pytest.raises(DataError, match="step is"):
        run.write_map(step, {}, {})


def test_a_newest_checkpoint_that_cannot_be_read_is_named_and_never_passed_over(run):
    run.write_checkpoint(1, TENSORS, STATE)
    run.write_checkpoint(2, TENSORS, STATE)
    (run.path / "checkpoints" / "step-000002" / "probe.safetensors").unlink()
    for read in (run.latest_checkpoint, lambda: run.read_checkpoint(2)):
        with pytest.raises(RunFolderError, match="cannot read .*step-000002/probe.safetensors"):
            read()
    assert run.checkpoint_steps() == [1] and run.readable_before_newest() == 1
    assert "probe.safetensors" in run.unreadable_checkpoints()[2]
    with pytest.raises(RunFolderError, match="exists already"):
        run.write_checkpoint(2, TENSORS, STATE)
    run.keep_last(1)
    assert sorted(os.listdir(run.path / "checkpoints")) == ["step-000001", "step-000002"]


def test_no_checkpoint_yet_is_not_a_folder_that_is_gone(run):
    assert run.latest_checkpoint() is None
    (run.path / "checkpoints").rmdir()
    with pytest.raises(RunFolderError, match="checkpoints is not there"):
        run.latest_checkpoint()


def test_a_newer_format_is_refused_with_the_advice_to_update(run):
    run.write_checkpoint(1, {}, {})
    run.write_map(1, {}, {"warm": "true"})
    for path, old, new, read in (
        (run.path / "run.toml", b"format = 1", b"format = 2", run.config),
        (run._map_path(1), b'"format":"1"', b'"format":"2"', lambda: run.read_map(1)),
    ):
        data = path.read_bytes()
        assert data.count(old) == 1
        path.write_bytes(data.replace(old, new))
        with pytest.raises(NewerFormatError, match="update fclm"):
            read()
        path.write_bytes(data)
    path = run.path / "checkpoints" / "step-000001" / "state.json"
    sealed = path.read_bytes().split(b' "sha256"')[0].replace(b'"format": 2', b'"format": 3')
    path.write_bytes(sealed + f' "sha256": "{hashlib.sha256(sealed).hexdigest()}"\n}}\n'.encode())
    for read in (run.latest_checkpoint, lambda: run.read_checkpoint(1)):
        with pytest.raises(NewerFormatError, match="format 3.*update fclm"):
            read()


def test_a_checkpoint_of_the_first_format_is_read(run):
    run.write_checkpoint(1, TENSORS, STATE)
    path = run.path / "checkpoints" / "step-000001" / "state.json"
    record = json.loads(path.read_text())
    del record["sha256"]
    path.write_text(json.dumps({**record, "format": 1}))
    assert run.latest_checkpoint() == 1 and run.read_checkpoint(1)[1] == STATE


def test_text_beside_arrays_is_written_in_one_order():
    """Safetensors alone draws another one in each process, and a resumed run's maps must be equal byte for byte."""
    keys = [f"key{i}" for i in range(9)]
    data = encode_arrays({"x": np.arange(3)}, dict.fromkeys(keys, "ü"))
    found = [data.index(key.encode()) for key in keys]
    assert found == sorted(found)
    arrays, metadata = decode_arrays(data)
    assert metadata == dict.fromkeys(keys, "ü") and arrays["x"].tolist() == [0, 1, 2]


def test_every_flipped_bit_and_cut_of_a_checkpoint_is_found(run):
    run.write_checkpoint(1, {"model": TENSORS["model"]}, {"x": 1})
    for path in sorted((run.path / "checkpoints" / "step-000001").iterdir()):
        data = path.read_bytes()
        mutants = [data[:end] for end in range(0, len(data), 7)]
        for place in range(len(data)):
            # every bit of the state, which says what all else must be
            for bit in range(8) if path.suffix == ".json" else (place % 8,):
                mutants.append(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
        assert len(mutants) > 20
        for mutant in mutants:
            path.write_bytes(mutant)
            with pytest.raises(RunFolderError) as raised:
                run.read_checkpoint(1)
            assert "step-000001" in str(raised.value) and not isinstance(raised.value, NewerFormatError)
        path.write_bytes(data)
    run.read_checkpoint(1)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_maps_and_states_raise_only_our_error(run, data):
    run.write_map(1, TENSORS["model"], {"engine": "fused"})
    if not run.checkpoint_steps():
        run.write_checkpoint(1, {}, STATE)
    path = data.draw(st.sampled_from([run._map_path(1), run.path / "checkpoints" / "step-000001" / "state.json"]))
    original = path.read_bytes()
    place = data.draw(st.integers(0, len(original)))
    piece = data.draw(st.one_of(st.just((2**63).to_bytes(8, "little")), st.binary(max_size=9)))
    path.write_bytes(original[:place] + piece + original[place + data.draw(st.integers(0, 9)) :])
    try:
        run.read_map(1)
        run.checkpoint_steps()
        run.read_checkpoint(1)
    except RunFolderError:
        pass
    finally:
        path.write_bytes(original)


class Canary:
    def __reduce__(self):
        return (os.mkdir, (os.environ["CANARY"],))


def test_pickle_under_our_names_is_refused_and_never_run(run, tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    payload = pickle.dumps(Canary())
    run.write_checkpoint(1, TENSORS, STATE)
    (run.path / "checkpoints" / "step-000001" / "model.safetensors").write_bytes(payload)
    (run.path / "maps" / "step-000001.safetensors").write_bytes(payload)
    (run.path / "scores.jsonl").write_bytes(payload + b"\n{}\n")
    for read in (lambda: run.read_checkpoint(1), lambda: run.read_map(1), run.scores):
        with pytest.raises(RunFolderError, match="damaged"):
            read()
    assert not (tmp_path / "canary").exists()
    pickle.loads(payload)
    assert (tmp_path / "canary").exists()


def fill(run, steps):
    for step in steps:
        run.append_steps([{"step": step, "loss": 1.0}])
        run.append_scores([{"step": step, "layer": layer} for layer in range(2)])
        run.write_map(step, {}, {})
        run.write_checkpoint(step, TENSORS, STATE)


def steps_of(run):
    return (
        [row["step"] for row in run.steps()],
        [row["step"] for row in run.scores()],
        run.map_steps(),
        run.checkpoint_steps(),
    )


def test_all_that_is_later_is_set_aside(run):
    fill(run, [0, 5, 10])
    run.mark_finished({"steps": 10})
    assert run.status() == "finished" and run.summary() == {"steps": 10}
    checkpoint, table = run.path / "checkpoints" / "step-000010" / "state.json", run.path / "scores.jsonl"
    wanted = {"state": checkpoint.read_bytes(), "rows": b"".join(table.read_bytes().splitlines(keepends=True)[4:])}
    gone = run.set_aside_after(5)
    assert str(gone) == f"1 checkpoint, 1 map, 3 rows set aside in {gone.path}"
    assert gone.path.parent == run.path / "set-aside"
    assert (gone.path / "checkpoints" / "step-000010" / "state.json").read_bytes() == wanted["state"]
    assert (gone.path / "scores.jsonl").read_bytes() == wanted["rows"]
    assert (gone.path / "maps" / "step-000010.safetensors").is_file() and (gone.path / "summary.json").is_file()
    assert steps_of(run) == ([0, 5], [0, 0, 5, 5], [0, 5], [0, 5])
    assert run.status() == "stopped" and run.summary() is None
    assert run.set_aside_after(5) is None
    assert run.set_aside_after(-1).path != gone.path
    assert steps_of(run) == ([], [], [], [])
    assert run.config() == CONFIG


def test_what_was_set_aside_goes_once_the_run_holds_it_again_and_all_else_stays(run):
    fill(run, [0, 5, 10])
    # as large as the one that comes again
    run.write_map(10, {"points": np.ones(1)}, {})
    run.set_aside_after(0)
    run.let_go_of_repeated()
    assert sorted(os.listdir(run.path / "set-aside" / os.listdir(run.path / "set-aside")[0])) == [
        "checkpoints", "maps", "run.toml", "scores.jsonl", "steps.jsonl",
    ]  # fmt: skip
    fill(run, [5])
    run.append_steps([{"step": 10, "loss": 1.0, "step_ms": 7.0}])
    run.append_scores([{"step": 10, "layer": 0}, {"step": 10, "layer": 1, "ari": 0.5}])
    run.write_map(10, {"points": np.zeros(1)}, {})
    run.write_checkpoint(10, TENSORS, {"other": 1})
    run.let_go_of_repeated()
    (place,) = (run.path / "set-aside").iterdir()
    # another map, checkpoint and score; a step's time may be another
    left = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.suffix)
    files = ["model.safetensors", "optimizer.safetensors", "probe.safetensors", "state.json"]
    assert left == sorted([f"checkpoints/step-000010/{name}" for name in files] + [
        "maps/step-000010.safetensors", "run.toml", "scores.jsonl",
    ])  # fmt: skip
    (run.path / "scores.jsonl").write_bytes((place / "scores.jsonl").read_bytes())
    for name in ("maps", "checkpoints"):
        shutil.rmtree(run.path / name)
        (place / name).rename(run.path / name)
    run.let_go_of_repeated()
    assert not (run.path / "set-aside").exists()


def test_a_damaged_table_is_refused_before_anything_is_set_aside(run):
    fill(run, [0, 5, 10])
    path = run.path / "scores.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"step":5', b'"step";5', 1))
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(RunFolderError, match="scores.jsonl, line 3 is damaged"):
        run.set_aside_after(5)
    assert before == {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


@pytest.mark.filterwarnings("ignore::fastcluster_lm.store.TornLineWarning")
def test_a_last_line_that_ends_but_cannot_be_read_is_kept(run):
    fill(run, [0, 5, 10])
    path = run.path / "steps.jsonl"
    damaged = path.read_bytes().replace(b'"step":10', b'"step";10')
    path.write_bytes(damaged)
    gone = run.set_aside_after(5)
    assert (gone.path / "steps.jsonl.damaged").read_bytes() == damaged.splitlines(keepends=True)[-1]
    path.write_bytes(path.read_bytes().replace(b'"step":5', b'"step";5'))
    with pytest.raises(RunFolderError, match="steps.jsonl has no row of step 5"):
        run.set_aside_after(5)


def test_a_full_disk_sets_nothing_aside(run, monkeypatch):
    fill(run, [0, 5, 10])
    before = steps_of(run)
    real = os.write
    with monkeypatch.context() as patch, pytest.raises(RunFolderError, match="disk is full"):
        patch.setattr(os, "write", lambda *_: raise_full())
        run.set_aside_after(5)
    assert os.write is real and steps_of(run) == before


def raise_full():
    raise OSError(errno.ENOSPC, "No space left on device")


def test_last_checkpoints_are_kept(run):
    fill(run, [0, 5, 10, 15])
    run.keep_last(9)
    assert run.checkpoint_steps() == [0, 5, 10, 15]
    run.keep_last(2)
    assert run.checkpoint_steps() == [10, 15]
    assert sorted(os.listdir(run.path / "checkpoints")) == ["step-000010", "step-000015"]
    with pytest.raises(DataError, match="n=0"):
        run.keep_last(0)


def test_leftovers_are_ignored_and_cleaned(run):
    fill(run, [0])
    left = [run.path / "checkpoints" / ".step-000009.tmp-1", run.path / "maps" / ".step-000009.safetensors.tmp-1"]
    left.append(run.path.with_name(".first.tmp-1"))
    left[2].mkdir()
    neighbour = run.path.with_name(".first2.tmp-1")
    neighbour.mkdir()
    left[0].mkdir()
    (left[0] / "model.safetensors").touch()
    left[1].touch()
    assert run.checkpoint_steps() == run.map_steps() == [0]
    run.clean()
    assert not any(path.exists() for path in left)
    assert neighbour.exists()
    assert steps_of(run) == ([0], [0, 0], [0], [0])


ACTIONS = {
    "checkpoint": lambda run: run.write_checkpoint(1, TENSORS, STATE),
    "map": lambda run: run.write_map(1, {}, {}),
    "finish": lambda run: run.mark_finished({}),
    "create": lambda run: RunFolder.create(run.path.with_name("second"), CONFIG, {}),
}


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("action", ACTIONS)
def test_full_disk_is_named_and_the_old_state_stays(run, monkeypatch, action, call):
    fill(run, [0])
    listing = sorted(run.path.parent.rglob("*"))

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(RunFolderError, match="disk is full"):
        patch.setattr(os, call, fail)
        ACTIONS[action](run)
    assert sorted(run.path.parent.rglob("*")) == listing
    ACTIONS[action](run)


def test_second_holder_of_the_lock_is_told_who_the_first_is(run):
    with run.lock():
        assert run.status() == "running"
        code = f"""
import sys
from fastcluster_lm.errors import RunFolderError
from fastcluster_lm.store import RunFolder
try:
    with RunFolder.open({str(run.path)!r}).lock():
        sys.exit("no error")
except RunFolderError as error:
    print(error)
"""
        found = subprocess.run(
            [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
        )
        assert f"process {os.getpid()} on {os.uname().nodename}" in found.stdout
    assert run.status() == "stopped"
    with run.lock():
        run.mark_finished({})
        assert run.status() == "finished"


def test_lock_of_a_killed_process_is_free(run):
    code = f"""
import os, signal
from fastcluster_lm.store import RunFolder
RunFolder.open({str(run.path)!r}).lock().__enter__()
os.kill(os.getpid(), signal.SIGKILL)
"""
    child = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    assert child.returncode == -9
    assert (run.path / "lock").read_text() != ""
    assert run.status() == "stopped"
    with run.lock():
        pass


def test_a_fork_that_fails_says_so_alone_and_leaves_the_lock_to_its_parent(run):
    code = f"""
import os
from fastcluster_lm.store import RunFolder
from fastcluster_lm.errors import HeldError
held = RunFolder.open({str(run.path)!r}).lock()
held.__enter__()
if os.fork() == 0:
    raise KeyError("in the child")
os.wait()
try:
    RunFolder.open({str(run.path)!r}).lock().__enter__()
except HeldError:
    print("still held")
del held
with RunFolder.open({str(run.path)!r}).lock():
    print("forgotten, so free")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["still held", "forgotten, so free"]
    assert done.stderr.count("Traceback") == 1 and done.stderr.endswith("KeyError: 'in the child'\n")


def test_torn_tables_warn_once_each(run):
    fill(run, [0, 5, 10])
    for table in ("steps.jsonl", "scores.jsonl"):
        path = run.path / table
        path.write_bytes(path.read_bytes()[:-3])
    with pytest.warns(TornLineWarning, match="steps.jsonl"):
        assert len(run.steps()) == 2
    with pytest.warns(TornLineWarning) as warned:
        run.set_aside_after(5)
    assert ["scores.jsonl" in str(one.message) for one in warned] == [True, False]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(run.scores()) == 4


@pytest.mark.parametrize("name", ["scores.jsonl", "steps.jsonl", "summary.json", "maps/step-000005.safetensors"])
def test_what_was_set_aside_and_cannot_be_read_stays_and_is_told_while_the_rest_goes(run, name):
    fill(run, [0, 5])
    run.mark_finished({"steps": 5})
    place = run.set_aside_after(-1).path
    fill(run, [0, 5])
    path = place / name
    path.unlink()
    path.mkdir()
    (run.path / "set-aside" / "mine").write_text("a file of the user")
    (said,) = run.let_go_of_repeated({"steps": 5}) if "map" not in name else [str(path)]
    run.let_go_of_repeated({"steps": 5})
    assert str(path) in said
    left = [path for path in place.rglob("*") if path.name != "run.toml"]
    assert set(left) <= {path, path.parent} and path.is_dir()
    path.rmdir()
    path.write_bytes(b"no such thing\n\n{}\n")
    run.let_go_of_repeated({"steps": 5})
    assert path.exists()


def test_a_place_that_cannot_be_listed_stays_and_is_told(run, monkeypatch):
    fill(run, [0, 5])
    place = run.set_aside_after(-1).path
    fill(run, [0, 5])
    for refused in (place / "checkpoints" / "step-000005", place, run.path / "set-aside"):
        with monkeypatch.context() as patch:
            for function in ("listdir", "scandir"):
                patch.setattr(os, function, refusing(getattr(os, function), refused))
            (said, *_) = run.let_go_of_repeated()
        assert str(refused) in said and "stays" in said and refused.is_dir()
    assert run.let_go_of_repeated() == [] and not (run.path / "set-aside").exists()


def refusing(real, refused):
    def call(path=".", *more):
        if str(path) == str(refused):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *more)

    return call


@pytest.mark.parametrize(
    ("place", "asked"),
    [
        ("checkpoints/step-000005", lambda run: run.read_checkpoint(5)),
        ("checkpoints", lambda run: run.latest_checkpoint()),
        ("maps/step-000005.safetensors", lambda run: run.read_map(5)),
        ("lock", lambda run: run.status()),
        ("set-aside", lambda run: run.let_go_of_repeated()),
        ("summary.json", lambda run: run.set_aside_after(0)),
        ("", lambda run: list_runs(run.path)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_disk_that_does_not_say_whether_a_file_is_there_is_our_error(run, place, asked, monkeypatch):
    plain = Path.stat

    def stat(path, **options):
        if path == run.path / place:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return plain(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(RunFolderError, match="Input/output error"):
        asked(run)
