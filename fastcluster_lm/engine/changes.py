"""How a run changed on its way: entries of its run.toml, each from a step on; no file is read or written here."""

import copy
from collections.abc import Mapping
from typing import Any

from fastcluster_lm.config import changes_of
from fastcluster_lm.errors import ConfigError
from fastcluster_lm.store.schemas import check_run

# the list of entries in run.toml: step, was, now, by dotted keys; what lies beside it is what holds now
CHANGES = "changes"


def values_at(stored: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Give a run.toml as it was when this step was taken; what changed after it or later is taken back.

    Errors: ConfigError for a list of changes that is damaged
    """
    found = copy.deepcopy(dict(stored))
    known = changes_of(stored, "run.toml")
    entries = found.pop(CHANGES, [])
    while known and known[-1][0] >= step:
        _, was, now = known.pop()
        entries.pop()
        for key in now:
            _put(found, key, was.get(key))
    try:
        check_run(found)
    except ValueError as error:
        raise ConfigError(f"run.toml: changes: what they say that was before them is damaged: {error}") from error
    return {**found, CHANGES: entries} if entries else found


def with_change(stored: Mapping[str, Any], step: int, now: Mapping[str, Any]) -> dict[str, Any]:
    """Lay values by dotted keys over a run.toml and say so in an entry; from step 0 on they simply hold."""
    found = copy.deepcopy(dict(stored))
    was = {}
    for key, value in now.items():
        if (before := _put(found, key, value)) is not None:
            was[key] = before
    if step and now:
        found[CHANGES] = [*found.get(CHANGES, []), {"step": step, "was": was, "now": dict(now)}]
    return found


def _put(values: dict[str, Any], key: str, value: Any) -> Any:
    """Set a dotted key, or take it out for None; give what was there."""
    *outer, last = key.split(".")
    for part in outer:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ConfigError(f"run.toml: changes: expected the name of a setting, got {key!r}")
    before = values.pop(last, None)
    if value is not None:
        values[last] = value
    return before
