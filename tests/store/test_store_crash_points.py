"""Crashes: the process ends before, during or after each system call of a write; the old or the new state is there."""

import os

import numpy as np
import pytest

from fastcluster_lm.errors import RunFolderError
from fastcluster_lm.store import RunFolder
from fastcluster_lm.store.checkpoints import read_checkpoint
from fastcluster_lm.store.lines import read_lines
from tests.store.minimal import minimal

TENSORS = {"model": {"w": np.arange(4.0)}, "optimizer": {"m": np.ones(3)}}
CALLS = ("write", "fsync", "replace", "mkdir", "unlink", "rmdir", "ftruncate")


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Leave out the wait for the disk: a process that ends loses nothing of what the system took."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Crash(BaseException):
    """Stands for the end of the process: no handler of the program catches it."""


class CrashAt:
    """Counts the system calls that change a disk and ends the process at one of them."""

    def __init__(self, patch, at, moment):
        self.at, self.moment, self.count, self.names = at, moment, 0, []
        for name in CALLS:
            patch.setattr(os, name, self.wrap(name, getattr(os, name)))

    def wrap(self, name, real):
        def call(*args, **kwargs):
            self.count += 1
            self.names.append(name)
            if self.count > self.at:
                # after the end nothing runs any more, clean-up included
                raise Crash
            if self.count == self.at and self.moment == "before":
                raise Crash
            if self.count == self.at and self.moment == "during" and name == "write":
                real(args[0], args[1][: len(args[1]) // 2])
                raise Crash
            result = real(*args, **kwargs)
            if self.count == self.at:
                raise Crash
            return result

        return call


def prepare(root):
    run = RunFolder.create(root / "run", minimal(seed=1), {})
    for step in (1, 2):
        run.append_steps([{"step": step, "loss": 0.5}])
        run.append_scores([{"step": step, "layer": 0}, {"step": step, "layer": 1}])
        run.write_map(step, {"points": np.full(2, step)}, {})
        run.write_checkpoint(step, TENSORS, {"step": step})
    return run


def state_of(run):
    return {
        "steps": [row["step"] for row in run.steps()],
        "scores": [(row["step"], row["layer"]) for row in run.scores()],
        "maps": {step: run.read_map(step)[0]["points"].tolist() for step in run.map_steps()},
        "checkpoints": {step: run.read_checkpoint(step)[1] for step in run.checkpoint_steps()},
        "summary": run.summary(),
        "config": run.config(),
    }


ACTIONS = {
    "append_steps": lambda run: run.append_steps([{"step": 3, "loss": 0.25}]),
    "write_map": lambda run: run.write_map(2, {"points": np.zeros(3)}, {}),
    "write_checkpoint": lambda run: run.write_checkpoint(3, TENSORS, {"step": 3}),
    "mark_finished": lambda run: run.mark_finished({"steps": 2}),
    "keep_last": lambda run: run.keep_last(1),
}


def crashes(tmp_path, monkeypatch, act, prepared=prepare):
    """Yield (call reached, state before, state after, crashed run folder) for every call and moment of an action."""
    for moment in ("before", "during", "after"):
        at = 0
        while True:
            at += 1
            root = tmp_path / f"{moment}-{at}"
            run = prepared(root)
            before = state_of(run) if run else None
            with monkeypatch.context() as patch:
                crash = CrashAt(patch, at, moment)
                try:
                    act(run, root)
                except Crash:
                    pass
                else:
                    break
            yield crash, before, RunFolder(root / "run")
        assert at > 2, "the action made no system call that was watched"


@pytest.mark.filterwarnings("ignore::fastcluster_lm.store.TornLineWarning")
@pytest.mark.parametrize("name", ACTIONS)
def test_old_or_new_state_is_there(tmp_path, monkeypatch, name):
    finished = prepare(tmp_path / "whole")
    ACTIONS[name](finished)
    new = state_of(finished)
    seen = []
    for _, old, run in crashes(tmp_path, monkeypatch, lambda run, root: ACTIONS[name](run)):
        found = state_of(RunFolder.open(run.path))
        assert found in (old, new)
        seen.append(found == new)
        run.clean()
        assert state_of(run) == found
        assert len(os.listdir(run.path / "checkpoints")) == len(found["checkpoints"])
        if found == old:
            ACTIONS[name](run)
        assert state_of(run) == new
        assert not [path for path in run.path.rglob(".*")]
    assert True in seen and False in seen


@pytest.mark.filterwarnings("ignore::fastcluster_lm.store.TornLineWarning")
def test_crashed_append_of_scores_loses_only_rows_of_that_append(tmp_path, monkeypatch):
    def act(run, root):
        run.append_scores([{"step": 3, "layer": layer} for layer in range(3)])

    counts = set()
    for _, old, run in crashes(tmp_path, monkeypatch, act):
        found = state_of(run)["scores"]
        assert found[: len(old["scores"])] == old["scores"]
        counts.add(len(found) - len(old["scores"]))
        # what a resumed run does: back to the checkpoint, then the same step again
        run.set_aside_after(2)
        assert state_of(run) == old
        act(run, None)
        assert state_of(run)["scores"] == [*old["scores"], (3, 0), (3, 1), (3, 2)]
    assert counts == {0, 1, 3}


def test_run_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def prepared(root):
        root.mkdir()

    def act(run, root):
        RunFolder.create(root / "run", minimal(seed=1), {"x": 2})

    seen = set()
    for _, _, run in crashes(tmp_path, monkeypatch, act, prepared):
        try:
            found = RunFolder.open(run.path)
        except RunFolderError:
            seen.add("absent")
            found = RunFolder.create(run.path, minimal(seed=1), {"x": 2})
        else:
            seen.add("whole")
        assert (found.config(), found.environment()) == (minimal(seed=1), {"x": 2})
        assert (run.path / "maps").is_dir() and (run.path / "checkpoints").is_dir()
    assert seen == {"absent", "whole"}


def kept_apart(run):
    """What was set aside, of all places together, each once."""
    places = sorted((run.path / "set-aside").iterdir())
    kept = {
        table: [row["step"] for place in places for row in read_lines(place / table)]
        for table in ("steps.jsonl", "scores.jsonl")
    }
    kept["maps"] = [path.name for place in places for path in (place / "maps").glob("*")]
    folders = [path for place in places for path in (place / "checkpoints").glob("*")]
    kept["checkpoints"] = {path.name: read_checkpoint(path.parent, 2)[0].keys() for path in folders}
    assert len(folders) == 1
    return kept


def finish(run):
    run.append_steps([{"step": 2, "loss": 0.5}])
    run.append_scores([{"step": 2, "layer": 0}, {"step": 2, "layer": 1}])
    run.write_map(2, {"points": np.full(2, 2)}, {})
    run.write_checkpoint(2, TENSORS, {"step": 2})


def test_crashed_setting_aside_leaves_no_checkpoint_without_its_lines_loses_nothing_and_can_be_done_again(
    tmp_path, monkeypatch
):
    wanted = prepare(tmp_path / "whole")
    wanted.set_aside_after(1)
    whole = state_of(prepare(tmp_path / "untouched"))
    new = state_of(wanted)
    assert new["steps"] == [1] and new["checkpoints"] == {1: {"step": 1}}
    reached = 0
    for _, _, run in crashes(tmp_path, monkeypatch, lambda run, root: run.set_aside_after(1)):
        found = state_of(run)
        for step in found["checkpoints"]:
            assert set(range(1, step + 1)) <= set(found["steps"])
            assert {(s, layer) for s in range(1, step + 1) for layer in (0, 1)} <= set(found["scores"])
            assert set(range(1, step + 1)) <= set(found["maps"])
        # as a resume does
        run.clean()
        run.let_go_of_repeated()
        run.set_aside_after(1)
        assert state_of(run) == new
        kept = kept_apart(run)
        assert sorted(kept["steps.jsonl"]) == [2] and sorted(kept["scores.jsonl"]) == [2, 2]
        assert kept["maps"] == ["step-000002.safetensors"] and kept["checkpoints"] == {"step-000002": TENSORS.keys()}
        # the steps are taken again
        finish(run)
        run.let_go_of_repeated()
        assert state_of(run) == whole
        assert not (run.path / "set-aside").exists() and not list(run.path.rglob("*.tmp-*"))
        reached += 1
    assert reached > 30


def test_crashed_letting_go_loses_nothing_that_the_run_does_not_hold(tmp_path, monkeypatch):
    def prepared(root):
        run = prepare(root)
        run.set_aside_after(1)
        finish(run)
        return run

    new = state_of(prepared(tmp_path / "whole"))
    reached = 0
    for _, _, run in crashes(tmp_path, monkeypatch, lambda run, root: run.let_go_of_repeated(), prepared):
        assert state_of(run) == new
        run.let_go_of_repeated()
        assert state_of(run) == new and not (run.path / "set-aside").exists()
        reached += 1
    assert reached > 10


@pytest.mark.parametrize("name", ["write_map", "write_checkpoint", "mark_finished", "create"])
def test_names_are_given_only_to_what_is_on_disk(tmp_path, monkeypatch, name):
    run = prepare(tmp_path)
    calls = []
    for call in ("write", "fsync", "replace"):
        real = getattr(os, call)
        monkeypatch.setattr(os, call, lambda *a, call=call, real=real: (calls.append(call), real(*a))[1])
    if name == "create":
        RunFolder.create(tmp_path / "new", minimal(seed=1), {})
    else:
        ACTIONS[name](run)
    # each file is synced when written, a new folder before its rename, the parent after it
    assert calls.count("replace") == 1
    rename = calls.index("replace")
    written = calls[:rename].count("write")
    assert calls[: 2 * written] == ["write", "fsync"] * written
    assert calls[2 * written : rename] == (["fsync"] if name in ("write_checkpoint", "create") else [])
    assert calls[rename + 1 :] == ["fsync"]
