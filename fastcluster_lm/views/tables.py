"""Tables for a terminal, and the same rows as JSON or CSV; it takes rows and gives text, and scores nothing."""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Literal, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fastcluster_lm.errors import UsageError, nearest_name
from fastcluster_lm.store import SCORE_COLUMNS

Row = Mapping[str, object]
Format = Literal["table", "json", "csv"]
UNBOUNDED = 10_000
FORMATS = ("table", "json", "csv")
# of a score's row, what a terminal has room for; the position where there are several
_SCORE_TABLE = (
    *("step", "position", "layer", "split", "space", "group", "labels"),
    *("ari", "ami", "f1", "knn_share", "null_ari"),
)


def print_scores(rows: Sequence[Row], *, format: str = "table", stream: TextIO | None = None) -> None:
    """Print the rows of a run's scores: all columns as JSON or CSV, the chief ones as a table."""
    chief = [name for name in _SCORE_TABLE if name != "position" or len({row.get(name) for row in rows}) > 1]
    print_rows(rows, chief if format == "table" else SCORE_COLUMNS, format=format, stream=stream)


def print_rows(
    rows: Sequence[Row], columns: Sequence[str], *, format: str = "table", stream: TextIO | None = None
) -> None:
    """Print chosen columns of rows; a table leaves out columns without any value, JSON and CSV leave out nothing.

    Notes:  numbers in a table have three decimals, in JSON and CSV all; no value is "-", null or empty
    Errors: UsageError for an unknown format, the nearest one named
    """
    stream = stream or sys.stdout
    if format == "json":
        json.dump([{name: row.get(name) for name in columns} for row in rows], stream, indent=1, allow_nan=False)
        stream.write("\n")
    elif format == "csv":
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_csv_cell(row.get(name)) for name in columns] for row in rows)
    elif format == "table":
        shown = [name for name in columns if not rows or any(row.get(name) is not None for row in rows)]
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for name in shown:
            is_text = any(isinstance(row.get(name), str) for row in rows)
            table.add_column(name, justify="left" if is_text else "right", overflow="fold")
        for row in rows:
            table.add_row(*(cell(row.get(name), 3) for name in shown))
        # a pipe has no width, so it loses no character
        console = console_for(stream)
        (console if console.is_terminal else console_for(stream, UNBOUNDED)).print(table)
    else:
        raise UsageError(f"format is {format!r}{nearest_name(format, FORMATS)}; known are {', '.join(FORMATS)}")


def console_for(stream: TextIO, width: int | None = None) -> Console:
    """Open a stream for tables, without markup, so that `[abc]` in a cell stays what it is."""
    return _Frank(file=stream, width=width, markup=False, highlight=False, emoji=False)


class _Frank(Console):
    """A console that says where nobody reads any more, and leaves it to its caller what that means."""

    def on_broken_pipe(self) -> None:
        raise


def cell(value: object, decimals: int) -> str:
    """Write one value for a table."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.{decimals}f}" if isinstance(value, float) else str(value)


def _csv_cell(value: object) -> object:
    return json.dumps(value) if isinstance(value, bool) else value
