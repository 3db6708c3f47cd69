"""Kills at random moments and at every call that changes the disk, in runs and in resumes; each is then resumed.

A kill on leaving a call finds the disk as one on entering the next does, so that the entries are all there is to try; a
write is also killed halfway.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from signal import SIGKILL
from typing import Any, NamedTuple

from fastcluster_lm.config import RunConfig
from fastcluster_lm.engine import resume_run
from fastcluster_lm.store import list_runs
from tests.campaign.calls import READING, counted, kill_at
from tests.campaign.children import End, fork
from tests.campaign.outcome import Outcome
from tests.campaign.tiny import contents, difference, killed_after, read_all, resumed, tiny, trained

PROMISE = "A run that is killed at any moment can be read, and goes on, byte for byte, as if it never was."
TIMES = (24, 800)
# where a resume finds rows and maps later than its checkpoint
KILLED = 33
# a process beside training notices that it is alone once it has started
WORKER_GRACE_S = 30.0
WORKER_SHARE = 60


class Kill(NamedTuple):
    """One kill, or two: in a run or in a resume, at a call (number and moment) or at a share of its life."""

    where: str
    source: str
    call: tuple[int, str] | None = None
    share: float = 0.0
    again: int | None = None


def run(times: int, seed: int, folder: Path) -> Outcome:
    """Kill as often: calls and random moments in turns, a process beside training every sixtieth time."""
    whole = {}
    for source in ("fresh", "batch"):
        _told(fork(partial(trained, tiny(source), folder / source)))
        whole[source] = contents(folder / source)
    lives, calls = _lives(folder)
    kills = _kills(times, random.Random(seed), calls)
    broken, killed, unreadable = [], 0, 0
    for number, kill in enumerate(kills):
        at = folder / f"{number}"
        at.mkdir()
        end = _kill(kill, at / "run", lives)
        killed += end.signal == SIGKILL
        fault = f"it left {end.left} processes" if end.left else ""
        if end.error or end.timed_out:
            fault = f"before the kill: {end.told()}"
        elif unread := fork(partial(_read, at)).error:
            fault, unreadable = f"cannot be read: {unread}", unreadable + 1
        if fault := fault or _go_on(kill, at / "run", whole[kill.source]):
            broken.append(f"{kill}: {fault}")
    figure = f"{killed} killed on their way, {unreadable} unreadable; {_counts(kills)}"
    return Outcome("kills (SIGKILL), each resumed", len(kills), len(kills) - len(broken), figure, broken)


def _lives(folder: Path) -> tuple[dict[tuple[str, str], float], dict[str, list[str]]]:
    """Measure how long a run and a resume take, and list the calls of each that change the disk."""
    lives, calls = {}, {}
    for source in ("fresh", "batch"):
        for where in ("run", "resume"):
            at = folder / f"measured-{source}-{where}"
            at.mkdir()
            if where == "resume":
                _killed_after(tiny(source), at / "run")
            action = partial(_action(where, tiny(source)), at / "run")
            end = fork(partial(counted, at, action) if source == "fresh" else action)
            _told(end)
            lives[where, source] = end.seconds
            if source == "fresh":
                calls[where] = [name for name, _ in end.value if name not in READING]
    return lives, calls


def _action(where: str, config: RunConfig) -> Callable[[Path], Any]:
    return partial(trained, config) if where == "run" else resumed


def _kills(times: int, draw: random.Random, calls: dict[str, list[str]]) -> list[Kill]:
    """Give so many kills: each call once in a shuffled order, and random ones between them and behind them."""
    at_calls = [
        Kill(where, "fresh", (number, moment))
        for where, names in calls.items()
        for number, name in enumerate(names)
        for moment in (("before", "during") if name == "write" else ("before",))
    ]
    draw.shuffle(at_calls)
    random_ones = (_random_kill(draw, number) for number in range(times))
    # a third are random until all calls are through, and all of them then
    mixed = chain.from_iterable(zip_longest(random_ones, at_calls[::2], at_calls[1::2]))
    return [kill for kill in mixed if kill is not None][:times]


def _random_kill(draw: random.Random, number: int) -> Kill:
    source, share = draw.choice(("fresh", "batch")), draw.random()
    if number % (WORKER_SHARE // 3) == 1:
        return Kill("beside", source, share=share)
    if number % 3 == 2:
        return Kill("run", source, share=share, again=draw.randrange(60))
    return Kill(draw.choice(("run", "resume")), source, share=share)


def _kill(kill: Kill, path: Path, lives: dict[tuple[str, str], float]) -> End:
    """Begin the run and kill it as told."""
    config = tiny(kill.source, worker="on" if kill.where == "beside" else "off")
    where = "run" if kill.where == "beside" else kill.where
    if where == "resume":
        _killed_after(config, path)
    action = partial(_action(where, config), path)
    if kill.call is not None:
        return fork(partial(_killed, path.parent, *kill.call, action))
    life = lives[where, kill.source]
    if kill.where == "beside":
        # the process beside it takes seconds to start, and training waits for it
        return fork(action, kill_after_s=life + 8 * kill.share, grace_s=WORKER_GRACE_S)
    end = fork(action, kill_after_s=life * kill.share)
    if kill.again is not None and path.exists():
        return fork(partial(_killed, path.parent, kill.again, "before", partial(resumed, path)))
    return end


def _killed_after(config: RunConfig, path: Path) -> None:
    end = fork(partial(killed_after, config, path, KILLED))
    assert end.signal == SIGKILL, end.told() + end.output


def _killed(folder: Path, at: int, moment: str, action: Callable[[], Any]) -> None:
    kill_at(folder, at, moment)
    action()


def _read(folder: Path) -> None:
    for run_folder in list_runs(folder):
        read_all(run_folder.path)


def _go_on(kill: Kill, path: Path, whole: dict) -> str:
    """Resume it, or begin again where nothing had begun; say what went wrong, or nothing."""
    within = partial(_within, path) if path.exists() else partial(trained, tiny(kill.source), path)
    end = fork(within)
    if end.error or end.signal or end.timed_out:
        return f"the resume: {end.told()}"
    if kill.where != "beside":
        if fault := difference(path, whole):
            return fault
    elif fault := difference(path, {**whole, **_described(path)}):
        return fault
    left = [entry.name for entry in path.parent.iterdir() if entry != path]
    return f"{', '.join(left)} is left beside it" if left else ""


def _within(path: Path) -> None:
    """Resume with the probe in training's own process, which changes no byte."""
    resume_run(path, wanted=lambda config: replace(config, probe=replace(config.probe, worker="off")))


def _described(path: Path) -> dict[str, bytes]:
    """Give the file that says where probes run; it differs by the worker."""
    return {"run.toml": (path / "run.toml").read_bytes()}


def _counts(kills: list[Kill]) -> str:
    calls = sum(kill.call is not None for kill in kills)
    twice = sum(kill.again is not None for kill in kills)
    beside = sum(kill.where == "beside" for kill in kills)
    return f"{calls} within calls, {twice} twice, {beside} beside a process"


def _told(end: End) -> None:
    assert not end.error and not end.signal and not end.timed_out, end.told() + end.output
