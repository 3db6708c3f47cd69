"""Cells that several processes make at once: each is made once, whole, and the dead hold nobody up."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from fastcluster_lm.errors import HeldError, RunFolderError
from fastcluster_lm.store.lock import is_locked, locked
from fastcluster_lm.studies import StudyFolder
from fastcluster_lm.studies.cells import cells_of, work_name
from fastcluster_lm.studies.code import code_digest
from fastcluster_lm.studies.experiments.real_llm import ask_model
from fastcluster_lm.studies.runs import run_studies
from fastcluster_lm.studies.study import Arm, Lines, Measured, Study, train_run

FORK = multiprocessing.get_context("fork")


def write_slowly(config, folder: Path, options) -> None:
    """Stand in for a run that takes a while: two files, and a line in a log of who was at work."""
    with Path(options["log"]).open("a") as log:
        log.write(f"{config.seed} {options['name']} {os.getpid()}\n")
    (folder / "run").mkdir()
    (folder / "run" / "run.toml").write_text("")
    time.sleep(options.get("seconds", 0.05))
    (folder / "number").write_text(f"{config.seed}.5")
    if options["name"] != "hollow":
        (folder / "run" / "summary.json").write_text("{}")


def study_of(log: Path, names: tuple[str, ...] = ("effect", "null"), seconds: float = 0.05) -> Study:
    words = (("log", str(log)), ("seconds", seconds))
    arms = {name: Arm(work=write_slowly, options=(("name", name), *words)) for name in names}
    return Study(
        name="made",
        question="Is there one?",
        claim="There is one.",
        statistic="number",
        control="other number",
        margin=0.0,
        arms=lambda preset: arms,
        measure=lambda cells: Measured(*(float((cells[name] / "number").read_text()) for name in names), []),
        figure=Lines("x", "y", "arm"),
    )


def test_finished_cells_are_found_again_whichever_folder_their_study_lies_in():
    # the names of works are part of the names of cells that others have on their disks
    assert work_name(ask_model) == "fastcluster_lm.studies.real_llm.ask_model"
    assert work_name(train_run) == "fastcluster_lm.studies.study.train_run"


def work_on(root: Path, study: Study, seeds: int, together: Any = None) -> None:
    if together is not None:
        together.wait()
    run_studies([study], "nano", range(seeds), StudyFolder(root), lambda text: None)


def test_two_workers_on_one_folder_make_each_cell_once_and_both_end(tmp_path):
    study, together = study_of(tmp_path / "log", seconds=0.2), FORK.Barrier(2)
    # digested once, before the fork
    code_digest()
    workers = [FORK.Process(target=work_on, args=(tmp_path / "s", study, 4, together)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    made = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(line[:2] for line in made) == sorted(
        [str(seed), name] for seed in range(4) for name in study.arms("")
    )
    # neither waited while a cell was free
    assert len({line[2] for line in made}) == 2
    folder = StudyFolder(tmp_path / "s")
    assert all(folder.cells.has(cell) for seed in range(4) for cell in cells_of(study, "nano", seed).values())
    assert [entry.name for entry in folder.cells.root.iterdir() if entry.name.startswith(".")] == [".locks"]
    assert folder.measured(study, "nano", 3) == Measured(3.5, 3.5, [])


def test_a_dead_workers_cell_is_taken_over_and_its_leftovers_go(tmp_path):
    study, said = study_of(tmp_path / "log", seconds=1.0), []
    worker = FORK.Process(target=work_on, args=(tmp_path / "s", study, 1))
    worker.start()
    cells = StudyFolder(tmp_path / "s").cells
    cell = cells_of(study, "nano", 0)["effect"]
    while not (tmp_path / "log").exists():
        assert worker.is_alive()
        time.sleep(0.01)
    with pytest.raises(HeldError, match=f"{cell.name} is being written by process {worker.pid} on"):
        cells.fill(cell)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert not cells.has(cell) and list(cells.root.glob(f".{cell.name}.tmp-*"))
    run_studies([study], "nano", [0], StudyFolder(tmp_path / "s"), said.append)
    assert cells.has(cell) and not list(cells.root.glob(".*.tmp-*"))
    assert len((tmp_path / "log").read_text().splitlines()) == 3


def test_a_worker_waits_for_the_last_cell_says_for_whom_and_uses_it(tmp_path):
    study, said = study_of(tmp_path / "log", ("effect", "effect"), seconds=0.8), []
    worker = FORK.Process(target=work_on, args=(tmp_path / "s", study, 1))
    worker.start()
    while not (tmp_path / "log").exists():
        assert worker.is_alive()
        time.sleep(0.01)
    run_studies([study], "nano", [0], StudyFolder(tmp_path / "s"), said.append)
    worker.join()
    waits = [text for text in said if text.startswith("waiting: ")]
    assert len(waits) == 1 and waits[0].endswith(f"is being written by process {worker.pid} on {os.uname().nodename}")
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def test_a_cell_with_an_unfinished_run_is_never_published(tmp_path):
    study = study_of(tmp_path / "log", ("hollow", "hollow"))
    cells = StudyFolder(tmp_path / "s").cells
    cell = cells_of(study, "nano", 0)["hollow"]
    with pytest.raises(RunFolderError, match="cannot be finished: run run has no summary.json"):
        cells.fill(cell)
    assert not cells.has(cell) and not cells.path(cell).exists()


@pytest.mark.parametrize("harm", ["gone", "cut", "hollow", "garbled", "no name", "empty"])
def test_a_published_cell_that_is_not_whole_is_moved_aside_and_made_again(tmp_path, harm):
    study, said = study_of(tmp_path / "log"), []
    folder = StudyFolder(tmp_path / "s")
    run_studies([study], "nano", [0], folder, said.append)
    cell = cells_of(study, "nano", 0)["effect"]
    path = folder.cells.path(cell)
    if harm == "gone":
        (path / "number").unlink()
    elif harm == "cut":
        (path / "number").write_text("")
    elif harm == "garbled":
        (path / "cell.json").write_text("{")
    elif harm == "no name":
        known = json.loads((path / "cell.json").read_text())
        (path / "cell.json").write_text(json.dumps(known | {"files": known["files"] | {"a\0b": 1}}))
    else:
        # an older version's cell lists no files
        (path / "cell.json").write_text(json.dumps({"seconds": 1.0, "cost": 1.0}))
        (path / "run" / "summary.json").unlink()
        if harm == "empty":
            (path / "run" / "run.toml").unlink()
            (path / "number").unlink()
    assert not folder.cells.has(cell)
    run_studies([study], "nano", [0], folder, said.append)
    assert folder.cells.has(cell) and (path / "number").read_text() == "0.5"
    assert path.with_name(f"{path.name}.broken-1").is_dir()
    assert sum("is not whole" in text for text in said) == 1
    assert len((tmp_path / "log").read_text().splitlines()) == 3


def hold_and_fork(path: Path, told: Any) -> None:
    with locked(path):
        child = os.fork()
        if child == 0:
            told.send(os.getpid())
            time.sleep(60)
            os._exit(0)
        time.sleep(60)


def test_a_forked_child_does_not_keep_its_dead_parents_lock(tmp_path):
    ours, theirs = FORK.Pipe()
    parent = FORK.Process(target=hold_and_fork, args=(tmp_path / "lock", theirs))
    parent.start()
    assert ours.poll(60)
    child = ours.recv()
    try:
        assert is_locked(tmp_path / "lock")
        parent.kill()
        parent.join()
        assert not is_locked(tmp_path / "lock")
    finally:
        os.kill(child, signal.SIGKILL)
