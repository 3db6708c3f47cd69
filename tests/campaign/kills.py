"""Kills at random moments and at every call that changes the disk, in runs and in resumes; each is then resumed.

A kill on leaving a call finds the disk as one on entering the next does, so that the entries are all there is to try; a
write is also killed halfway.
"""

import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from signal import SIGKILL
from typing import Any, NamedTuple

from fastcluster_lm.config import RunConfig
from tests.campaign.calls import STRUCK, kill_at
from tests.campaign.children import End, fork
from tests.campaign.outcome import Outcome
from tests.campaign.survival import SOURCES, WHERE, begun, changing_calls, gone_on, life, unreadable, whole_runs
from tests.campaign.tiny import resumed, tiny

PROMISE = "A run that is killed at any moment can be read, and goes on, byte for byte, as if it never was."
TIMES = (24, 1000)
# of the random ones, every third is killed twice, and every twentieth has its probes in a process beside it: that takes
# seconds to start, training waits for it, and it notices that it is alone once it has started
TWICE, BESIDE = 3, 20
# the second kill comes at one of so many calls of the resume; a kill that does not come is planned anew so often
AGAIN, TRIES = 60, 5
BESIDE_LIFE_S, BESIDE_GRACE_S = 3.0, 30.0


class Kill(NamedTuple):
    """One kill, or two: in a run or a resume, at a call (its number, and when in it) or at a share of its life."""

    where: str
    source: str
    call: tuple[int, str] | None = None
    share: float = 0.0
    again: int | None = None
    beside: bool = False

    @property
    def kind(self) -> str:
        """Say which of the kinds it is, in the row's words."""
        if self.call is not None:
            return "within calls"
        return "beside a process" if self.beside else "at random moments" if self.again is None else "twice"

    @property
    def config(self) -> RunConfig:
        """The run's config."""
        return tiny(self.source, worker="on" if self.beside else "off")


def run(times: int, seed: int, folder: Path) -> Outcome:
    """Kill as often: at calls and at random moments in turns."""
    whole = whole_runs(folder)
    lives = {
        (where, source): life(where, source, folder / f"{where}-{source}") for where in WHERE for source in SOURCES
    }
    kills = _kills(times, random.Random(seed), {where: changing_calls(where, folder / where) for where in WHERE})
    draw, done, broken, damaged, held = random.Random(f"{seed} again"), list[Kill](), list[str](), 0, 0
    struck = Counter[str]()
    for number, planned in enumerate(kills):
        kill, ends, at = _until_killed(planned, folder / f"{number}", lives, draw)
        fault = _fault_of(kill, ends)
        if not fault and (told := unreadable(at)):
            fault, damaged = f"cannot be read: {told}", damaged + 1
        if fault := fault or gone_on(kill.config, at / "run", whole[kill.source]):
            broken.append(f"{kill}: {fault}")
        if _happened(kill, ends):
            done.append(kill)
            held += not fault
            struck.update(where for end in ends if (where := _struck(end)))
    broken += _miscounted(Counter(kill.kind for kill in kills), Counter(kill.kind for kill in done), struck)
    missed = f"{len(kills) - len(done)} planned ones never came"
    figure = f"{len(done)} killed on their way, {damaged} unreadable; {_counts(done)}; {missed}"
    return Outcome("kills (SIGKILL), each resumed", len(done), held, figure, broken)


def _struck(end: End) -> str:
    """Say where a process was killed, by what it left and not by what was planned; nothing if it was not."""
    if end.signal != SIGKILL:
        return ""
    return "at a call" if STRUCK in end.output else "from outside"


def _miscounted(planned: Counter[str], came: Counter[str], struck: Counter[str]) -> list[str]:
    """Say what is wrong with the count of kills: a kind that never came, or ends that do not add up to it."""
    expected = {
        "at a call": came["within calls"] + came["twice"],
        "from outside": came.total() - came["within calls"],
    }
    return [f"none of {times} kills {kind} came" for kind, times in planned.items() if not came[kind]] + [
        f"{times} kills are counted that came {where}, but {struck[where]} processes were killed so"
        for where, times in expected.items()
        if struck[where] != times
    ]


def _until_killed(
    kill: Kill, folder: Path, lives: dict[tuple[str, str], float], draw: random.Random
) -> tuple[Kill, list[End], Path]:
    """Kill as planned; what ends before its kill comes is begun anew, to be killed at an earlier moment."""
    folder.mkdir()
    for attempt in range(TRIES):
        at = folder / f"{attempt}"
        at.mkdir()
        ends = _kill(kill, at / "run", lives[kill.where, kill.source])
        if attempt == TRIES - 1 or _happened(kill, ends) or _fault_of(kill, ends):
            break
        kill = _sooner_or_later(kill, ends, draw)
    return kill, ends, at


def _sooner_or_later(kill: Kill, ends: list[End], draw: random.Random) -> Kill:
    """Plan a kill that did not come anew: earlier if the run was over, later if there was nothing yet to resume."""
    if ends[0].signal != SIGKILL:
        return kill._replace(share=kill.share * draw.random())
    if len(ends) == 1:
        return kill._replace(share=1 - (1 - kill.share) * draw.random())
    return kill._replace(again=draw.randrange(kill.again or 1))


def _happened(kill: Kill, ends: list[End]) -> bool:
    """Say whether every kill that was planned ended its process."""
    return len(ends) == 1 + (kill.again is not None) and all(end.signal == SIGKILL for end in ends)


def _fault_of(kill: Kill, ends: list[End]) -> str:
    """Say what was wrong before the kills, or nothing; one at a moment may come too late, one at a call may not."""
    for end in ends:
        if end.left:
            return f"it left {end.left} processes"
        if end.error or end.timed_out:
            return f"before the kill: {end.told()}"
        if end.signal not in (0, SIGKILL):
            return f"in place of the kill: {end.told()}"
    return "" if kill.call is None or _happened(kill, ends) else f"it was not killed at its call: {ends[0].told()}"


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
    source, share = draw.choice(SOURCES), draw.random()
    if number % BESIDE == 1:
        return Kill("run", source, share=share, beside=True)
    if number % TWICE == 2:
        return Kill("run", source, share=share, again=draw.randrange(AGAIN))
    return Kill(draw.choice(WHERE), source, share=share)


def _kill(kill: Kill, path: Path, life_s: float) -> list[End]:
    """Begin the run and kill it as told, its resume too where it is to be killed twice; gives how each ended."""
    action = begun(kill.where, kill.config, path)
    if kill.call is not None:
        return [fork(partial(_killed, path.parent, *kill.call, action))]
    if kill.beside:
        return [fork(action, kill_after_s=(life_s + BESIDE_LIFE_S) * kill.share, grace_s=BESIDE_GRACE_S)]
    end = fork(action, kill_after_s=life_s * kill.share)
    if kill.again is not None and path.exists():
        return [end, fork(partial(_killed, path.parent, kill.again, "before", partial(resumed, path)))]
    return [end]


def _killed(folder: Path, at: int, moment: str, action: Callable[[], Any]) -> None:
    kill_at(folder, at, moment)
    action()


def _counts(kills: list[Kill]) -> str:
    came = Counter(kill.kind for kill in kills)
    return ", ".join(f"{came[kind]} {kind}" for kind in ("within calls", "twice", "beside a process"))
