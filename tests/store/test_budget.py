"""The disk budget: which maps and checkpoints go, in which order, and that rows never do."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from fastcluster_lm.config import StoreConfig
from fastcluster_lm.errors import ConfigError, RunFolderError
from fastcluster_lm.store import RunFolder, disk_plan
from fastcluster_lm.store import budget as module
from fastcluster_lm.store.budget import DiskBudget
from fastcluster_lm.store.disk_plan import DiskPlan, check_budget

# a unit in place of a MiB, so that a map of 1000 bytes is large
UNIT = 1000
POINTS = {"points": np.zeros(110)}


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(module, "MIB", UNIT)
    monkeypatch.setattr(disk_plan, "MIB", UNIT)


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "run", {"name": "x"}, {})


@pytest.fixture
def sizes(tmp_path):
    """The bytes of a map and of a checkpoint, as they are written here."""
    run = RunFolder.create(tmp_path / "measured", {}, {})
    run.write_map(1, POINTS, {"warm": "true"})
    run.write_checkpoint(1, {"model": POINTS}, {"step": 1})
    return run.map_size(1), run.checkpoint_sizes()[1]


def budget(run, sizes, *, max_mib=0, keep_maps=0, key=lambda step: step % 40 == 0, notes=None):
    plan = DiskPlan(sizes[1], 3, sizes[0], 10, 0, 0)
    said = notes.append if notes is not None else pytest.fail
    return DiskBudget(run, StoreConfig(max_mib=max_mib, keep_maps=keep_maps), plan, key, said)


def write_all(run, one, steps, checkpoints=()):
    seen = []
    for step in steps:
        one.write_map(step, POINTS, {"warm": "true"})
        if step in checkpoints:
            run.write_checkpoint(step, {"model": POINTS}, {"step": step})
            one.tidy()
        seen.append(run.map_steps())
    return seen


def total(run):
    return sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())


def test_without_limits_all_stays(run, sizes):
    assert write_all(run, budget(run, sizes), range(0, 100, 10))[-1] == list(range(0, 100, 10))


def test_few_maps_are_the_first_the_last_key_frames_and_the_newest(run, sizes):
    seen = write_all(run, budget(run, sizes, keep_maps=5), range(0, 130, 10))
    assert seen[4] == [0, 10, 20, 30, 40] and seen[5] == [0, 20, 30, 40, 50]
    assert seen[-1] == [0, 40, 80, 110, 120] and all(len(maps) <= 5 for maps in seen)
    other = RunFolder.create(run.path.with_name("other"), {}, {})
    assert write_all(other, budget(other, sizes, keep_maps=2), range(0, 130, 10))[-1] == [0, 120]


def test_a_run_that_is_taken_up_with_fewer_maps_lets_go_of_the_others(run, sizes):
    write_all(run, budget(run, sizes), range(0, 100, 10))
    budget(run, sizes, keep_maps=3)
    assert run.map_steps() == [0, 80, 90]


def test_plain_maps_go_first_then_old_checkpoints_then_key_frames(run, sizes):
    of_map, of_checkpoint = sizes
    steps, saved = range(0, 130, 10), (20, 60, 100)
    fixed = total(run) + 2 * of_checkpoint
    wanted = [
        # room beside two checkpoints -> maps and checkpoints at the end
        (13 * of_map + 2 * of_checkpoint, list(steps), [20, 60, 100]),
        (6 * of_map + 2 * of_checkpoint, [0, 40, 80, 100, 110, 120], [20, 60, 100]),
        (4 * of_map, [0, 40, 80, 120], [100]),
        (3 * of_map, [0, 80, 120], [100]),
        (2 * of_map, [0, 120], [100]),
    ]
    for number, (room, maps, checkpoints) in enumerate(wanted):
        one = RunFolder.create(run.path.with_name(f"run{number}"), {"name": "x"}, {})
        limit = -(-(fixed + room) // UNIT)
        sized = budget(one, sizes, max_mib=limit)
        for step in steps:
            one.append_steps([{"step": step}]) if step == 0 else None
            sized.write_map(step, POINTS, {"warm": "true"})
            if step in saved:
                one.write_checkpoint(step, {"model": POINTS}, {"step": step})
                assert total(one) <= limit * UNIT + 200
                sized.tidy()
        kept = one.map_steps()
        # the limit is rounded up, and the row takes a little
        assert len(set(kept) ^ set(maps)) <= 2 and kept[0] == 0 and kept[-1] == 120
        assert one.checkpoint_steps()[-1] == 100 and len(one.checkpoint_steps()) in (len(checkpoints), 1)
        assert len(one.steps()) == 1


def test_where_nothing_fits_no_map_is_saved_and_it_is_said_once(run, sizes):
    notes = []
    one = budget(run, sizes, max_mib=-(-(total(run) + 2 * sizes[1]) // UNIT) + 1, notes=notes)
    write_all(run, one, range(0, 130, 10), (20, 60))
    assert run.map_steps() in ([], [0]) and run.checkpoint_steps() == [60]
    assert len(notes) == 1 and "no map is saved" in notes[0]


def test_a_limit_below_rows_and_two_checkpoints_is_refused_with_what_would_fit():
    plan = DiskPlan(checkpoint=1000, n_checkpoints=3, map=100, n_maps=20, rows=2000, beside=100)
    with pytest.raises(ConfigError, match="store.max_mib: expected at least 5, got 4: rows take 2 MiB"):
        check_budget(plan, 4)
    assert check_budget(plan, 0) == check_budget(plan, 8) == ""
    # 5000 less rows and their margin, two checkpoints and 100: 800
    assert "about 8 of 20 maps and 1 of 3 checkpoints" in check_budget(plan, 5)
    assert "about 8 of 20 maps and 2 of 3 checkpoints" in check_budget(plan, 6)


def test_a_map_that_is_let_go_takes_its_copy_that_was_set_aside_along(run, sizes):
    run.append_steps([{"step": 0}, {"step": 10}])
    for _ in range(2):
        run.write_map(0, POINTS, {})
        run.write_map(10, POINTS, {})
        run.set_aside_after(0) if not (run.path / "set-aside").exists() else None
    run.append_steps([{"step": 10}])
    run.drop_map(10)
    run.let_go_of_repeated()
    assert run.map_steps() == [0] and not (run.path / "set-aside").exists()


def test_what_the_run_did_not_write_is_not_counted_and_what_was_set_aside_is_only_told(run, sizes):
    run.append_steps([{"step": 0}, {"step": 10}])
    write_all(run, budget(run, sizes), range(0, 50, 10))
    run.set_aside_after(0)
    for name in ("report.html", "notes.jsonl", "tensorboard/events", "maps/mine/more", "set-aside/mine"):
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).write_bytes(b"x" * 50 * UNIT)
    notes = []
    # five maps, three checkpoints and a little
    one = budget(run, sizes, max_mib=-(-(5 * sizes[0] + 3 * sizes[1]) // UNIT) + 1, notes=notes)
    assert write_all(run, one, range(0, 50, 10), (20, 40))[-1] == [0, 10, 20, 30, 40]
    assert run.checkpoint_steps() == [20, 40]
    assert len(notes) == 1 and "set-aside" in notes[0] and "does not count" in notes[0]


def test_what_goes_while_it_is_measured_or_let_go_is_passed_over(run, sizes, monkeypatch):
    limit = 2 * UNIT + 4 * sizes[0] + 3 * sizes[1]
    one = budget(run, sizes, max_mib=-(-limit // UNIT))
    write_all(run, one, range(0, 40, 10), (10, 20))
    (run.path / "maps" / "step-000010.safetensors").unlink()
    (run.path / "maps" / "step-000010.safetensors").symlink_to("nowhere")
    (run.path / "checkpoints" / "step-000020" / "gone").symlink_to("nowhere")
    real = RunFolder.checkpoint_steps
    # it goes between its being listed and its being measured
    monkeypatch.setattr(RunFolder, "checkpoint_steps", lambda folder: [7, *real(folder)])
    one.tidy()
    monkeypatch.undo()
    shutil.rmtree(run.path / "checkpoints" / "step-000010")
    (run.path / "maps" / "step-000030.safetensors").unlink()
    write_all(run, one, range(50, 130, 10))
    assert run.map_steps()[-1] == 120


def test_a_checkpoint_that_cannot_be_measured_is_an_error_that_says_so(run, sizes, monkeypatch):
    run.write_checkpoint(10, {"model": POINTS}, {})
    real = Path.lstat

    def refusing(path):
        if path.name == "model.safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "lstat", refusing)
    with pytest.raises(RunFolderError, match="cannot measure .*Permission denied"):
        run.checkpoint_sizes()
