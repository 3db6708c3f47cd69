"""Reads what a finished run has written: its rows, its rooms with the trained weights; it trains and judges nothing."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from fastcluster_lm.config import config_from_dict
from fastcluster_lm.engine import Rooms, RunFolder, stored_config
from fastcluster_lm.engine.checkpoint import load_checkpoint, newest_checkpoint
from fastcluster_lm.studies.study import Row
from fastcluster_lm.tasks import taskset_from_dict


def open_run(cell: Path) -> RunFolder:
    """Find the run of a cell."""
    return RunFolder.open(cell / "run")


def trained_rooms(cell: Path) -> Rooms:
    """Build the rooms of a cell's run and take over its last checkpoint.

    Errors: RunFolderError if there is none, it cannot be read, or is not of this run
    """
    rooms = untrained_rooms(cell)
    folder = open_run(cell)
    load_checkpoint(rooms, folder, newest_checkpoint(folder, "measure"), chosen=True)
    return rooms


def untrained_rooms(cell: Path) -> Rooms:
    """Build the rooms of a cell's run as they were before the first step."""
    stored = open_run(cell).config()
    config = config_from_dict({"probe": {"worker": "off"}}, stored_config(stored, str(cell)))
    return Rooms(config, taskset_from_dict(stored["taskset"]))


def pick(rows: Iterable[Row], **wanted: object) -> list[Row]:
    """Keep the rows that have these values, in their order."""
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def task_rows(rows: Iterable[Row], *, split: str = "val") -> list[Row]:
    """Keep the rows that verdicts rest on: full probes of the hidden space, of states run afresh."""
    return pick(rows, space="hidden", group="input_output", split=split, labels="task", tier="full", source="fresh")


def over_layers(rows: Sequence[Row], column: str) -> dict[int, float | None]:
    """Average a column over the layers above the embedding, by step; None where a layer has no value."""
    found: dict[int, float | None] = {}
    for step in sorted({row["step"] for row in rows}):
        values = [row[column] for row in rows if row["step"] == step and row["layer"] > 0]
        found[step] = sum(values) / len(values) if values and None not in values else None
    return found


def series(rows: Sequence[Row], column: str, *, layer: int) -> dict[int, float]:
    """Give a column of one layer by step, where it has a value."""
    return {row["step"]: row[column] for row in rows if row["layer"] == layer and row[column] is not None}


def accuracies(steps: Iterable[Row]) -> dict[int, float]:
    """Give the validation accuracy by step, where it was measured."""
    return {row["step"]: row["val_accuracy"] for row in steps if row["val_accuracy"] is not None}


def layers_of(rows: Iterable[Row]) -> list[int]:
    """List the layers above the embedding."""
    return sorted({row["layer"] for row in rows} - {0})


def difference(one: float | None, other: float | None) -> float | None:
    """Subtract where both are known."""
    return None if one is None or other is None else one - other


def mean(values: Iterable[float | None]) -> float | None:
    """Average the values that are known; None without any."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def above_layer_zero(rows: Iterable[Row]) -> tuple[float | None, float | None]:
    """Average the ARI and its block null over the layers above the embedding."""
    above = [row for row in rows if row["layer"] > 0]
    return mean(row["ari"] for row in above), mean(row["null_ari"] for row in above)
