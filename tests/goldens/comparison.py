"""In what two records differ, by run, file and name; what is new is told apart from what is another or gone."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.goldens.contents import Contents, Row

# what tells the rows of a table apart, so far as the recorded ones have it
KEY = ("step", "layer", "split", "space", "group", "labels", "position")
ABSENT = "nothing"


@dataclass
class Comparison:
    """Lines for what differs, which is a failure, and for what is new, which is none."""

    differences: list[str] = field(default_factory=list)
    news: list[str] = field(default_factory=list)


def compare(recorded: Mapping[str, Contents], found: Mapping[str, Contents]) -> Comparison:
    """Hold what was found against what was recorded, run by run and file by file."""
    comparison = Comparison()
    _names(comparison, "run", recorded, found)
    for run in recorded.keys() & found.keys():
        was, now = recorded[run], found[run]
        _names(comparison, f"{run}: file", was, now)
        for name in was.keys() & now.keys():
            before, after = was[name], now[name]
            if isinstance(before, list) and isinstance(after, list):
                _compare_rows(comparison, f"{run}: {name}", before, after)
            elif isinstance(before, dict) and isinstance(after, dict):
                _compare_values(comparison, f"{run}: {name}", before, after)
            else:
                comparison.differences.append(f"{run}: {name} is another kind of file")
    comparison.differences.sort()
    comparison.news.sort()
    return comparison


def _names(comparison: Comparison, what: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    comparison.differences += [f"{what} {name} is gone" for name in was if name not in now]
    comparison.news += [f"{what} {name} is new" for name in now if name not in was]


def _compare_values(comparison: Comparison, where: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    _names(comparison, f"{where}:", was, now)
    comparison.differences += [
        f"{where}: {name} was {_text(was[name])}, is {_text(now[name])}"
        for name in was
        if name in now and _differ(was, now, name)
    ]


def _compare_rows(comparison: Comparison, where: str, was: Sequence[Row], now: Sequence[Row]) -> None:
    """Hold each recorded row against the row found with its key, or the nearest of several."""
    key = [name for name in KEY if any(name in row for row in was)]
    waiting: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for number, row in enumerate(now):
        waiting[_key(row, key)].append(number)
    pairs, gone = [], []
    for row in was:
        # a table with a column more may have several rows where there was one
        candidates = waiting[_key(row, key)]
        if not candidates:
            gone.append(row)
            continue
        nearest = min(candidates, key=lambda number: sum(_differ(row, now[number], name) for name in row))
        candidates.remove(nearest)
        pairs.append((row, nearest))
    if gone:
        comparison.differences.append(f"{where}: {len(gone)} of {len(was)} rows are gone, first {_place(gone[0], key)}")
    places = [number for _, number in pairs]
    if places != sorted(places):
        comparison.differences.append(f"{where}: its rows come in another order")
    for name in dict.fromkeys(name for row in was for name in row):
        changed = [(row, now[number]) for row, number in pairs if name in row and _differ(row, now[number], name)]
        if changed:
            row, other = changed[0]
            comparison.differences.append(
                f"{where}: {name} differs in {len(changed)} of {len(was)} rows, first {_place(row, key)}: was "
                f"{_text(row[name])}, is {_text(other[name]) if name in other else ABSENT}"
            )
    known = {name for row in was for name in row}
    new = dict.fromkeys(name for row in now for name in row if name not in known)
    comparison.news += [f"{where}: column {name} is new" for name in new]
    left = sorted(number for numbers in waiting.values() for number in numbers)
    if left:
        named = _place(now[left[0]], [name for name in KEY if name in now[left[0]]])
        comparison.news.append(f"{where}: {len(left)} rows are new, first {named}")


def _differ(was: Mapping[str, Any], now: Mapping[str, Any], name: str) -> bool:
    """Say whether a value is gone or another, to the last bit and in its type."""
    return name not in now or _text(was[name]) != _text(now[name])


def _key(row: Row, names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in names)


def _place(row: Row, names: Sequence[str]) -> str:
    return " ".join(f"{name}={row.get(name)}" for name in names)


def _text(value: Any) -> str:
    return json.dumps(value)
