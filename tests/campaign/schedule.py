"""Which promises are tried, and how often each within the time at hand; what a try is, its module says."""

import ast
import importlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.campaign.children import fork
from tests.campaign.outcome import Outcome

HERE = Path(__file__).parent
# a short form that takes so long hangs; beside other work they take a tenth of it
SHORT_LIMIT_S = 300.0


@dataclass(frozen=True)
class Row:
    """One promise's row: its module, what it promises, what came, how often it was to be tried, how long it took."""

    name: str
    promise: str
    outcome: Outcome
    wanted: int
    seconds: float

    @property
    def counted(self) -> str:
        """Say how often it was tried, and of how many that the whole campaign has."""
        fewer = self.outcome.times < self.wanted
        return f"{self.outcome.times:,} of {self.wanted:,}" if fewer else f"{self.outcome.times:,}"


def names() -> list[str]:
    """List the modules that put a promise to the test; read and not imported, for what they import may be much."""
    return sorted(path.stem for path in HERE.glob("*.py") if {"PROMISE", "TIMES", "run"} <= _defined(path))


def short_rows(chosen: Sequence[str], seed: int) -> Iterator[Row]:
    """Try each promise in its short form."""
    for name in chosen:
        yield _row(name, None, seed, SHORT_LIMIT_S)


def long_rows(chosen: Sequence[str], seed: int, hours: float) -> Iterator[Row]:
    """Try each promise in its long form, or as often as its fair share of the time allows.

    The short forms tell the pace; one that does not hold is its row: there is no need to try it more often
    """
    started = time.monotonic()
    tried = {row.name: row for row in short_rows(chosen, seed)}
    for name in [name for name, row in tried.items() if not row.outcome.met]:
        yield tried.pop(name)
    # those that need the least first: what they leave of their share is the others'
    waiting = sorted(tried, key=lambda name: _needs(tried[name]))
    while waiting:
        left = max(0.0, hours * 3600 - (time.monotonic() - started))
        name = waiting.pop(0)
        share, row = left / (len(waiting) + 1), tried[name]
        times = min(row.wanted, int(row.outcome.times * share / row.seconds))
        if times <= row.outcome.times:
            yield row
        else:
            # a pace can deceive, a hang is seen all the same
            yield _row(name, times, seed, 2 * share + SHORT_LIMIT_S)


def _needs(row: Row) -> float:
    return row.wanted * row.seconds / row.outcome.times


def _row(name: str, times: int | None, seed: int, limit_s: float) -> Row:
    """Try one promise in a process of its own, so that whatever ends it is a row too; None: its short form."""
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        end = fork(lambda: _try(name, times, seed, Path(folder)), limit_s=limit_s)
    if end.value is not None:
        promise, wanted, outcome = end.value
        return Row(name, promise, outcome, wanted, end.seconds)
    told = [f"the module itself: {end.told()}", *end.output.splitlines()[-20:]]
    return Row(name, "", Outcome("was to be tried", times or 0, 0, "", told), times or 0, end.seconds)


def _try(name: str, times: int | None, seed: int, folder: Path) -> tuple[str, int, Outcome]:
    # all that is made is made below this folder, by those too that ask for a temporary one
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    module: Any = importlib.import_module(f"tests.campaign.{name}")
    short, long = module.TIMES
    inner = folder / name
    inner.mkdir()
    return module.PROMISE, long, module.run(short if times is None else times, seed, inner)


def _defined(path: Path) -> set[str]:
    """Name what a module defines at its top."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
    return found
