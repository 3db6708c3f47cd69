"""Power cuts, by a model of what a disk keeps, at every call that changes it; each run is then resumed.

What was written and not forced to disk is lost, by `outage.py`: a missing fsync shows here, and nowhere else.
"""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from signal import SIGKILL
from typing import Any

from tests.campaign.children import fork
from tests.campaign.outage import SURE, Outage
from tests.campaign.outcome import Outcome
from tests.campaign.survival import WHERE, begun, changing_calls, gone_on, unreadable, whole_runs
from tests.campaign.tiny import tiny

PROMISE = (
    "A run that lost its power at any moment keeps its checkpoints, and goes on, byte for byte, as if it never had."
)
TIMES = (16, 500)


def run(times: int, seed: int, folder: Path) -> Outcome:
    """Cut as often: each call once in a shuffled order, and again with other losses."""
    whole, draw = whole_runs(folder)["fresh"], random.Random(seed)
    calls = [(where, at) for where in WHERE for at in range(len(changing_calls(where, folder / where)))]
    rounds = [draw.sample(calls, len(calls)) for _ in range(times // len(calls) + 1)]
    cuts = [cut for one in rounds for cut in one][:times]
    broken, damaged = [], 0
    for number, (where, at) in enumerate(cuts):
        place = folder / f"{number}"
        place.mkdir()
        vault = folder / f"vault-{number}"
        action = begun(where, tiny(), place / "run")
        losses = draw.randrange(2**32)
        end = fork(partial(_cut, place, vault, at, losses, action))
        if end.signal != SIGKILL:
            fault = f"before the cut: {end.told()}"
        elif told := unreadable(place):
            fault, damaged = f"cannot be read: {told}", damaged + 1
        elif lost := [name for name in (vault / SURE).read_text().split() if not (place / name).exists()]:
            fault = f"lost {', '.join(lost)}, which were written before the newest"
        else:
            fault = gone_on(tiny(), place / "run", whole)
        if fault:
            broken.append(f"{where}, call {at}, losses {losses}: {fault}")
    figure = f"{len(set(cuts))} of {len(calls)} calls, {damaged} unreadable"
    return Outcome("power cuts (modelled), each resumed", len(cuts), len(cuts) - len(broken), figure, broken)


def _cut(folder: Path, vault: Path, at: int, losses: int, action: Callable[[], Any]) -> None:
    Outage(folder, vault, at, random.Random(losses))
    action()
