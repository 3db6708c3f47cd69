"""Runs studies: cells first, then what each study measures at each seed, all of it kept; it computes no statistic."""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from fastcluster_lm.errors import HeldError, RunFolderError
from fastcluster_lm.kernels.native import threads_kept
from fastcluster_lm.store.files import encode_json, explaining, read_json, replace_file
from fastcluster_lm.studies.cells import Cell, CellStore, Plan, cells_of
from fastcluster_lm.studies.code import code_digest
from fastcluster_lm.studies.stored import Found
from fastcluster_lm.studies.study import Measured, Study, Verdict, judge

Say = Callable[[str], None]

# between two looks at cells that other processes are making
PAUSE_S = 0.5


class StudyFolder:
    """Where studies keep what they found: `cells/` for all, and a folder for each study."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.cells = CellStore(self.root / "cells")

    def of(self, study: Study) -> Path:
        """Say where a study's results are."""
        return self.root / study.name

    def measured(self, study: Study, preset: str, seed: int) -> Measured | None:
        """Read what a study found at a seed; None if it has not been measured on these very cells by this very code.

        Errors: RunFolderError naming the file, if it is damaged
        """
        path = self._path(study, preset, seed)
        if not os.path.lexists(path):
            return None
        stored = read_json(path, Found)
        if stored.pop("cells", None) != _digest(cells_of(study, preset, seed).values()):
            return None
        try:
            return Measured(**stored)
        except TypeError as error:
            raise RunFolderError(f"{path} is damaged: {error}; remove it to measure again") from error

    def keep(self, study: Study, preset: str, seed: int, found: Measured) -> None:
        """Write what a study found at a seed."""
        path = self._path(study, preset, seed)
        with explaining("make", path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        cells = _digest(cells_of(study, preset, seed).values())
        replace_file(path, encode_json({"cells": cells, **asdict(found)}, f"{study.name} at seed {seed}"))

    def _path(self, study: Study, preset: str, seed: int) -> Path:
        return self.of(study) / f"{preset}-seed-{seed}.json"


def run_studies(
    studies: Sequence[Study], preset: str, seeds: Sequence[int], folder: StudyFolder, say: Say
) -> dict[str, dict[int, Measured]]:
    """Fill every cell that is missing, then measure every seed that is not; give what was found, by study and seed.

    A stop loses the cell or the measurement at hand. Several processes may work on one folder at once.
    Errors: whatever a cell's work or a measurement raises, with all that was finished kept
    """
    plan = Plan.of(studies, preset, seeds, folder.cells)
    say(describe(plan, studies, seeds))
    for study in studies:
        say(f"{study.name}: {study.claim} Rule: {study.rule}")
    _fill(plan, folder.cells, say)
    found: dict[str, dict[int, Measured]] = {}
    for study in studies:
        found[study.name] = {}
        for seed in seeds:
            known = folder.measured(study, preset, seed)
            if known is None:
                begun = time.monotonic()
                paths = {name: folder.cells.path(cell) for name, cell in cells_of(study, preset, seed).items()}
                with threads_kept():
                    known = study.measure(paths)
                folder.keep(study, preset, seed, known)
                say(f"measured {study.name} at seed {seed}  {time.monotonic() - begun:.1f} s")
            found[study.name][seed] = known
    return found


def _fill(plan: Plan, store: CellStore, say: Say) -> None:
    """Fill the cells of a plan; one that another process is making is left to it, and waited for in the end."""
    started, spent, total = time.monotonic(), 0.0, len(plan.cells)
    waiting = [cell for cell in plan.cells.values() if not store.has(cell)]
    left = sum(cell.arm.cost for cell in waiting)
    said: set[str] = set()
    while waiting:
        elsewhere: list[Cell] = []
        for cell in waiting:
            try:
                seconds = store.fill(cell, say)
            except HeldError as error:
                elsewhere.append(cell)
                last = str(error)
                continue
            spent += cell.arm.cost
            rest = (time.monotonic() - started) / spent * (left - spent)
            number = total - sum(not store.has(one) for one in plan.cells.values())
            say(f"run {number}/{total}  {cell.name}  {seconds:.1f} s  about {_clock(rest)} left")
        if len(elsewhere) == len(waiting):
            # nothing was free: the holder finishes the cell, or dies and leaves it to whoever comes first
            if last not in said:
                say(f"waiting: {last.partition(';')[0]}")
                said.add(last)
            time.sleep(PAUSE_S)
        waiting = elsewhere


def judge_all(studies: Sequence[Study], found: dict[str, dict[int, Measured]], *, n_studies: int) -> dict[str, Verdict]:
    """Judge all studies together: each p is adjusted over n_studies, of which those not run count as p = 1."""
    alone = {study.name: judge(study, found[study.name]) for study in studies}
    return {
        study.name: judge(
            study,
            found[study.name],
            others=[verdict.p for name, verdict in alone.items() if name != study.name],
            n_studies=n_studies,
        )
        for study in studies
    }


def describe(plan: Plan, studies: Sequence[Study], seeds: Sequence[int]) -> str:
    """Say what a plan comes to."""
    if plan.seconds_left is None:
        estimate = f"no run of preset {plan.preset!r} has been timed here, so there is no estimate yet"
    else:
        estimate = f"about {_clock(plan.seconds_left)} left on one core, measurements aside"
    return (
        f"{_many(len(studies), 'study', 'studies')}, {_many(len(seeds), 'seed', 'seeds')}, preset {plan.preset}: "
        f"{_many(len(plan.cells), 'run', 'runs')}, {plan.finished} of them finished; {estimate}"
    )


def _digest(cells: Iterable[Cell]) -> str:
    names = sorted(cell.name for cell in cells)
    return hashlib.sha256(" ".join([code_digest(), *names]).encode()).hexdigest()[:12]


def _many(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"


def _clock(seconds: float) -> str:
    minutes, hours = round(seconds / 60) % 60, int(round(seconds / 60) // 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if seconds >= 60 else f"{round(seconds)} s"
