"""Two workers on one study folder lose no cell, also where one of them is killed; it times nothing."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import matplotlib.figure  # noqa: F401  (each worker would import it anew)

from fastcluster_lm import studies
from fastcluster_lm.config import RunConfig
from fastcluster_lm.studies import StudyFolder
from fastcluster_lm.studies.cells import cells_of
from fastcluster_lm.studies.code import code_digest
from fastcluster_lm.studies.reading import open_run
from fastcluster_lm.studies.results import check_packages
from fastcluster_lm.studies.study import Arm, Lines, Measured, Options, Study, train_run
from tests.campaign.outcome import Outcome

PROMISE = "Two workers on one study folder, one of them killed every other time, lose no cell"
TIMES = (2, 20)

SEEDS = 3
WORKERS = multiprocessing.get_context("fork")
TRAINING = ("training.steps=2", "training.eval_every=2", "training.block=plain")
PROBES = (
    "probe.every=2",
    "probe.n_points=216",
    "scores.n_neighbors=2",
    "scores.n_nulls=2",
    "scores.n_iter=20",
    "scores.n_init=1",
)
# no worker takes as long
LONGEST_S = 300
# a kill comes before that, at the first of so many tries, and before half of it at the next
LATEST_S, TRIES = 2.0, 5


def train_and_log(config: RunConfig, folder: Path, options: Options) -> None:
    """Train a run of a few steps, as a study does, and note it in a file beside all cells once it is done."""
    train_run(config, folder, options)
    with (folder.parents[1] / "made").open("a") as log:
        log.write(f"{config.seed} {config.training.learning_rate}\n")


def _measure(cells: dict[str, Path]) -> Measured:
    rows = [row for name in cells for row in open_run(cells[name]).scores()]
    losses = [open_run(path).steps()[-1]["loss"] for path in cells.values()]
    kept = [{"x": row["layer"], "y": row["f1"], "by": row["labels"]} for row in rows]
    return Measured(losses[0], losses[1], kept)


ARMS = {
    name: Arm((*TRAINING, *PROBES, f"training.learning_rate={rate}"), train_and_log)
    for name, rate in (("slow", "0.0001"), ("fast", "0.01"))
}
STUDY = Study(
    name="two-rates",
    question="Does a run of two steps lose less at a lower rate?",
    claim="It does.",
    statistic="loss",
    control="loss at a higher rate",
    margin=0.0,
    arms=lambda preset: ARMS,
    measure=_measure,
    figure=Lines("x", "y", "by"),
)


def run(times: int, seed: int, folder: Path) -> Outcome:
    """Let pairs of workers fill a folder of their own each, and hold it against that of one worker alone."""
    # what every worker needs is done, or imported, before the first is forked
    check_packages()
    code_digest()
    rng, broken = random.Random(seed), list[str]()
    alone = _end([_start(folder / "alone")])
    assert alone == [0], f"one worker alone ended with {alone}"
    wanted, held, killed, missed = _contents(folder / "alone"), 0, 0, 0
    for number in range(times):
        kill = number % 2 == 1
        for attempt in range(TRIES if kill else 1):
            root = folder / f"pair-{number}-{attempt}"
            codes = _pair(root, kill_after_s=rng.uniform(0.0, LATEST_S / 2**attempt) if kill else None)
            was_killed = kill and codes[0] == -signal.SIGKILL
            found = _problems(root, codes, wanted, killed=was_killed)
            shutil.rmtree(root)
            # one that was done before its kill came is no kill; another is killed sooner
            if found or was_killed:
                break
        broken += [f"pair {number}{', one killed' * was_killed}: {problem} (seed {seed})" for problem in found]
        killed, missed = killed + was_killed, missed + (kill and not was_killed)
        held += not found and was_killed == kill
    figure = f"{held * SEEDS * len(ARMS)} cells; {killed} workers killed, {missed} planned kills never came"
    return Outcome(f"two workers, {SEEDS * len(ARMS)} cells", times - missed, held, figure, broken)


def _pair(root: Path, kill_after_s: float | None) -> list[int | None]:
    workers = [_start(root) for _ in range(2)]
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        workers[0].kill()
    return _end(workers)


def _start(root: Path) -> multiprocessing.process.BaseProcess:
    worker = WORKERS.Process(target=_work, args=(root,))
    worker.start()
    return worker


def _work(root: Path) -> None:
    studies.STUDIES = {STUDY.name: STUDY}
    studies.perform(STUDY.name, "nano", SEEDS, root, lambda text: None)


def _end(workers: list[multiprocessing.process.BaseProcess]) -> list[int | None]:
    for worker in workers:
        worker.join(LONGEST_S)
        if worker.exitcode is None:
            os.kill(worker.pid or 0, signal.SIGKILL)
    return [worker.exitcode for worker in workers]


def _contents(root: Path) -> dict[str, bytes]:
    """Read what does not say when it was made: results, and the rows of every cell's run."""
    found = {name: (root / STUDY.name / name).read_bytes() for name in ("rows.jsonl", "verdict.json", "figure.png")}
    for path in sorted((root / "cells").glob("*/run/scores.jsonl")):
        found[path.relative_to(root).as_posix()] = path.read_bytes()
    return found


def _problems(root: Path, codes: list[int | None], wanted: dict[str, bytes], *, killed: bool) -> list[str]:
    wanted_codes = (-signal.SIGKILL if killed else 0, 0)
    problems = [f"a worker ended with {code}" for code, due in zip(codes, wanted_codes, strict=True) if code != due]
    cells = [cell for seed in range(SEEDS) for cell in cells_of(STUDY, "nano", seed).values()]
    store = StudyFolder(root).cells
    problems += [f"cell {cell.name} is lost" for cell in cells if not store.has(cell)]
    problems += [
        f"{path.name} is left" for path in store.root.iterdir() if path.name[0] == "." and path.name != ".locks"
    ]
    if problems:
        return problems
    made = len((root / "made").read_text().splitlines())
    if not len(cells) <= made <= len(cells) + killed:
        problems.append(f"{len(cells)} cells were made {made} times")
    found = _contents(root)
    return problems + [f"{name} differs" for name in wanted | found if wanted.get(name) != found.get(name)]
