"""Which tokens a run's scores and maps are of, and what there is of one of them; it reads no file and draws nothing."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from fastcluster_lm.errors import UsageError, nearest_name

Row = TypeVar("Row", bound=Mapping[str, Any])


def positions_of(config: Mapping[str, Any]) -> list[str]:
    """Name the probed tokens as run.toml does, the first one first; one without a name where it names none."""
    probe = config.get("probe", {})
    return list(probe.get("positions", ())) or [str(probe.get("position", ""))]


def chosen_position(config: Mapping[str, Any], asked: str | None) -> str:
    """Give the token that is asked for, the first by default.

    Errors: UsageError if the run has no such token, naming those it has
    """
    known = positions_of(config)
    if asked is not None and asked not in known:
        named = ", ".join(name for name in known if name) or "no name at all"
        raise UsageError(
            f"--position: expected one of the run's tokens ({named}), got {asked!r}{nearest_name(asked, known)}"
        )
    return known[0] if asked is None else asked


def rows_at(rows: Sequence[Row], position: str) -> list[Row]:
    """Keep the rows of one token; what an older version wrote says none, and is of the only one."""
    return [row for row in rows if row.get("position") in (position, None)]


def points_name(config: Mapping[str, Any], position: str) -> str:
    """Name the array of a stored map that holds one token's points."""
    return "points" if position == positions_of(config)[0] else f"points/{position}"
