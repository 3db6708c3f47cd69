"""Stops after every step of a run, once or twice, each resumed and compared with the run that never stopped."""

import random
from pathlib import Path
from typing import NamedTuple

from tests.campaign.children import fork
from tests.campaign.outcome import Outcome
from tests.campaign.tiny import STEPS, contents, difference, resumed, stopped_at, tiny, trained

PROMISE = "A run that is stopped after any step goes on, byte for byte, as if it never was."
# both sources at each step, then as many again with a second stop
TIMES = (10, 4 * STEPS)


class Case(NamedTuple):
    """Where a run is stopped, and whether a second time."""

    source: str
    first: int
    second: int | None = None


def run(times: int, seed: int, folder: Path) -> Outcome:
    """Stop as often; below all steps of both sources, at a sample of them."""
    whole = {source: _whole(source, folder / f"whole-{source}") for source in ("fresh", "batch")}
    broken = []
    cases = _cases(times, seed)
    for number, case in enumerate(cases):
        if fault := _try(case, folder / f"stopped-{number}", whole[case.source]):
            broken.append(f"{case}: {fault}")
    steps = len({(case.source, case.first) for case in cases})
    twice = sum(case.second is not None for case in cases)
    done = f"stops of a run of {STEPS} steps, resumed"
    figure = f"{steps} of {2 * STEPS} places in fresh and streamed probes, {twice} stopped twice"
    return Outcome(done, len(cases), len(cases) - len(broken), figure, broken)


def _cases(times: int, seed: int) -> list[Case]:
    draw = random.Random(seed)
    once = [Case(source, step) for source in ("fresh", "batch") for step in range(1, STEPS + 1)]
    if times < len(once):
        # a few of them with a second stop
        once = draw.sample(once, times)
        return [_again(case, draw) if number % 4 == 3 else case for number, case in enumerate(once)]
    return once + [_again(draw.choice(once), draw) for _ in range(times - len(once))]


def _again(case: Case, draw: random.Random) -> Case:
    return case._replace(second=draw.randint(case.first, STEPS))


def _whole(source: str, path: Path) -> dict:
    end = fork(lambda: trained(tiny(source), path))
    assert not end.error and not end.signal, end.told() + end.output
    return contents(path)


def _try(case: Case, path: Path, whole: dict) -> str:
    """Stop and resume once; say what went wrong, or nothing."""
    end = fork(lambda: stopped_at(tiny(case.source), path, case.first))
    if end.value is not (case.first == STEPS):
        return f"the stop: {end.told()}"
    if case.second is not None:
        end = fork(lambda: resumed(path, case.second).finished)
        if end.value is not (STEPS in (case.first, case.second)):
            return f"the second stop: {end.told()}"
    end = fork(lambda: resumed(path).finished)
    return f"the resume: {end.told()}" if end.value is not True else difference(path, whole, extra_checkpoints=True)
