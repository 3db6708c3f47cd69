"""Calls of the file system that fail, once or for good, in runs and resumes: what can be read then, and what goes on.

Each call that a run or a resume makes on its folder is tried, reads too: with EIO, and where it needs room with ENOSPC.
"""

import errno
import random
import re
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from itertools import zip_longest
from pathlib import Path
from signal import SIGKILL
from typing import Any, NamedTuple

from fastcluster_lm.engine import Hooks, resume_run
from tests.campaign.calls import READING, WITHOUT_SPACE, counted, fail_at
from tests.campaign.children import End, fork
from tests.campaign.outcome import Outcome
from tests.campaign.survival import ended_well
from tests.campaign.tiny import contents, difference, killed_after, read_all, resumed, tiny, trained

PROMISE = (
    "A disk that fails at any call ends a run with one clear error, or not at all; nothing that could be read is lost, "
    "and the run goes on, byte for byte, from its newest checkpoint."
)
TIMES = (72, 1200)
STEPS = 24
# behind a checkpoint (14) and a map, rows and a step that have none (15 to 17)
KILLED = 17
NEWEST = 14
WHERE = ("run", "resume")
# tried once all calls have failed with the two that are promised
OTHERS = ("EDQUOT", "EROFS", "EACCES", "EPERM")
CONTENT = ("open to read", "read", "pread")


class Failure(NamedTuple):
    """One call that fails: in a run or in a resume, its number and name and file, the error, once or for good."""

    where: str
    number: int
    call: str
    error: str
    for_good: bool = False


def run(times: int, seed: int, folder: Path) -> Outcome:
    """Let as many calls fail, drawn evenly from all there are."""
    config = tiny(steps=STEPS)
    ended_well(fork(partial(trained, config, folder / "whole")))
    whole = contents(folder / "whole")
    killed = folder / "killed"
    end = fork(partial(killed_after, config, killed, KILLED))
    assert end.signal == SIGKILL and fork(partial(read_all, killed)).value == [7, NEWEST], end.told()
    failures, all_calls = _failures(times, random.Random(seed), folder)
    broken, ended = [], 0
    for number, failure in enumerate(failures):
        at = folder / f"{number}"
        at.mkdir()
        if failure.where == "resume":
            shutil.copytree(killed, at / "run")
        end = fork(partial(_failing, at, failure))
        ended += bool(end.error)
        if fault := _judge(end, failure, at / "run", whole):
            broken.append(f"{failure.where} {failure.number}, {failure.error} in {failure.call}: {fault}")
        shutil.rmtree(at)
    figure = f"{ended} ended with an error, {len(failures) - ended} went on; {all_calls} calls are there to fail"
    return Outcome(
        "calls that failed (EIO, ENOSPC; then EDQUOT, EROFS, EACCES, EPERM)",
        len(failures),
        len(failures) - len(broken),
        figure,
        broken,
    )


def _action(where: str, path: Path) -> Callable[[], Any]:
    if where == "run":
        return partial(trained, tiny(steps=STEPS), path)
    return partial(_resumed, path)


def _resumed(path: Path) -> tuple[int | None, bool]:
    """Resume; say where it went on from, and whether it told that something stays set aside: no loss is silent."""
    notes: list[str] = []
    outcome = resume_run(path, Hooks(note=notes.append))
    return outcome.resumed_from, any("stays, since it cannot be compared" in note for note in notes)


def _failures(times: int, draw: random.Random, folder: Path) -> tuple[list[Failure], int]:
    """Count the calls of a run and of a resume; give so many failures, no two alike, and how many there are."""
    found = []
    for where in WHERE:
        at = folder / f"counted-{where}"
        at.mkdir()
        if where == "resume":
            shutil.copytree(folder / "killed", at / "run")
        end = fork(lambda at=at, where=where: counted(at, _action(where, at / "run")))
        ended_well(end)
        for number, (name, path) in enumerate(end.value):
            call = f"{name} of {path}"
            found.append(Failure(where, number, call, "EIO"))
            if name not in READING and name not in WITHOUT_SPACE:
                found.append(Failure(where, number, call, "ENOSPC"))
                found.append(Failure(where, number, call, "ENOSPC", for_good=True))
    draw.shuffle(found)
    # a few tries must see all that a resume reads, whose failure could lose most, then all that a run changes
    files = {_file(one): one for one in found if one.where == "resume" and _call(one) in CONTENT}
    files |= {_file(one): one for one in found if one.where == "run" and _call(one) not in READING}
    kinds: dict[tuple[str, bool, str], list[Failure]] = {}
    for failure in found:
        kinds.setdefault((failure.where, _call(failure) in READING, failure.error), []).append(failure)
    turns = [failure for turn in zip_longest(*kinds.values()) for failure in turn if failure is not None]
    once = list(dict.fromkeys([*files.values(), *turns]))
    others = [draw.choice(found)._replace(error=draw.choice(OTHERS)) for _ in range(times - len(once))]
    return [*once, *others][:times], len(found)


def _call(failure: Failure) -> str:
    return failure.call.partition(" of ")[0]


def _file(failure: Failure) -> tuple[str, str, str]:
    """Name the call and the kind of file: those of all steps are one, whoever writes them."""
    return failure.where, _call(failure), re.sub(r"\d+", "", Path(failure.call.partition(" of ")[2]).name)


def _failing(folder: Path, failure: Failure) -> Any:
    action = _action(failure.where, folder / "run")
    fail_at(folder, failure.number, getattr(errno, failure.error), for_good=failure.for_good)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return action()


def _judge(end: End, failure: Failure, path: Path, whole: dict) -> str:
    """Say what is wrong with how it ended and what it left, or nothing."""
    if end.signal or end.timed_out or (end.error and not end.ours):
        return end.told()
    kept_aside = False
    if not end.error and failure.where == "resume":
        step, kept_aside = end.value
        if step != NEWEST:
            return f"it went on from step {step} and not from the newest checkpoint, {NEWEST}, without a word"
    if end.error:
        if not path.exists():
            again = fork(partial(trained, tiny(steps=STEPS), path))
        else:
            left = fork(partial(read_all, path))
            if left.error:
                return f"cannot be read after it: {left.told()}"
            if failure.where == "resume" and not {7, NEWEST} <= set(left.value):
                return f"lost a checkpoint: {left.value} are left of 7 and {NEWEST}; it said {end.told()}"
            again = fork(lambda: resumed(path).resumed_from)
            newest = max(left.value, default=0)
            if not again.error and again.value not in (newest, None):
                return f"the resume went on from {again.value} and not from {newest}"
        if again.error or again.signal or again.timed_out:
            return f"the resume: {again.told()}"
    if fault := difference(path, whole, kept_aside=kept_aside):
        return fault
    left_over = [entry.name for entry in path.parent.iterdir() if entry != path]
    return f"{', '.join(left_over)} is left beside it" if left_over else ""
