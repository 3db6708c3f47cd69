"""Tables of JSON lines, each with a step: append, read, cut off after a step; it does not know the columns."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from fastcluster_lm import untrusted
from fastcluster_lm.errors import DataError, RunFolderError
from fastcluster_lm.store.files import decode_object, explaining, sync_folder, write_all
from fastcluster_lm.store.schemas import check

# read back from the end in pieces of this size to find the last line; a line of scores has 700 bytes
TAIL_BYTES = 1 << 16


class TornLineWarning(UserWarning):
    """The last line of a file was not written to its end, and was dropped."""


def append_lines(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Append rows in one write, forced to disk; a torn last line is first cut off.

    Numbers that are not finite would become null; rows.py lets none pass
    Errors: DataError if a row has no whole-number step or no place in JSON; RunFolderError if the disk refuses, and no
            row is then added
    """
    if not rows:
        return
    data = b"".join(_encode(row) for row in rows)
    with explaining("append to", path):
        is_new = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            untrusted.check_regular(os.fstat(descriptor).st_mode, path)
            whole_size = _whole_size(descriptor)
            if whole_size < os.fstat(descriptor).st_size:
                _warn_torn(path)
                os.ftruncate(descriptor, whole_size)
            try:
                write_all(descriptor, data)
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, whole_size)
                raise
        finally:
            os.close(descriptor)
        if is_new:
            sync_folder(path.parent)


def read_lines(path: Path, schema: Any = dict) -> list[dict[str, Any]]:
    """Read all rows; none if there is no file. A torn last line is dropped with a TornLineWarning.

    Errors: RunFolderError naming file and line, if a line before the last is damaged, or any does not fit the schema
    """
    rows = [row for _, row in _whole_lines(path)[0]]
    for number, row in enumerate(rows, start=1):
        check_row(path, number, row, schema)
    return rows


def check_row(path: Path, number: int, row: Mapping[str, object], schema: Any) -> None:
    """Refuse a row that does not fit a schema.

    Errors: RunFolderError naming file and line
    """
    try:
        check(row, schema)
    except ValueError as error:
        raise RunFolderError(
            f"{path}, line {number} is damaged: {error}; restore the file, or delete this line if its row may go"
        ) from error


@dataclass(frozen=True)
class SplitTable:
    """A table's bytes up to a step and later ones, and the last step of the first.

    damaged: a last line that ends but cannot be read; torn: whether the last one has no end
    """

    kept: bytes
    later: bytes
    damaged: bytes
    torn: bool
    last: int | None


def split_after(path: Path, step: int) -> SplitTable:
    """Split a table behind a step; nothing is written, and the bytes of each line stay as they are.

    Errors: RunFolderError as for read_lines
    """
    whole, rest = _whole_lines(path)
    kept, later = (
        b"".join(line + b"\n" for line, row in whole if (_step_of(row) > step) is is_later)
        for is_later in (False, True)
    )
    last = max((_step_of(row) for _, row in whole if _step_of(row) <= step), default=None)
    ended = rest.endswith(b"\n")
    return SplitTable(kept, later, rest if ended else b"", bool(rest) and not ended, last)


def _encode(row: Mapping[str, object]) -> bytes:
    step = row.get("step")
    if type(step) is not int or step < 0:
        raise DataError(f"a row to be stored has step={step!r}; expected a whole number of 0 or more")
    try:
        return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError as error:
        raise DataError(f"a row of step {step} cannot be stored as JSON: {error}") from error


def decode_row(line: bytes) -> dict[str, object]:
    """Read one line; ValueError if it is no JSON object with a whole-number step."""
    row = decode_object(line)
    if type(row.get("step")) is not int:
        raise ValueError("no whole-number step")
    return row


def _step_of(row: Mapping[str, object]) -> int:
    step = row["step"]
    assert isinstance(step, int)
    return step


def _whole_lines(path: Path) -> tuple[list[tuple[bytes, dict[str, object]]], bytes]:
    """Read the lines that are whole, and the bytes of the last one if it is not."""
    with explaining("read", path):
        data = _bytes_of(path) if os.path.lexists(path) else b""
    lines = data.split(b"\n")
    # what follows the last newline was not written to its end; of a whole file nothing follows it
    rest = lines.pop()
    whole: list[tuple[bytes, dict[str, object]]] = []
    for number, line in enumerate(lines, start=1):
        try:
            whole.append((line, decode_row(line)))
        except (ValueError, RecursionError) as error:
            # a power cut can lose a middle piece of the last write and keep its end
            if number < len(lines) or rest:
                raise RunFolderError(
                    f"{path}, line {number} is damaged: expected a JSON object with a step, found {error}; "
                    f"restore the file, or delete this line if its row may go"
                ) from error
            rest = line + b"\n"
    if rest:
        _warn_torn(path)
    return whole, rest


def _bytes_of(path: Path) -> bytes:
    with untrusted.opened_regular(path) as descriptor:
        return untrusted.read_lines(descriptor)


def _whole_size(descriptor: int) -> int:
    """Count the bytes up to the end of the last whole line."""
    size = start = os.fstat(descriptor).st_size
    tail = b""
    while start > 0:
        take = min(start, TAIL_BYTES)
        start -= take
        tail = os.pread(descriptor, take, start) + tail
        ended = tail.endswith(b"\n")
        line_start = tail.rfind(b"\n", 0, len(tail) - 1 if ended else len(tail)) + 1
        if line_start or not start:
            return size if ended and _is_whole(tail[line_start:-1]) else start + line_start
    return 0


def _is_whole(line: bytes) -> bool:
    try:
        decode_row(line)
    except (ValueError, RecursionError):
        return False
    return True


def _warn_torn(path: Path) -> None:
    warnings.warn(f"{path}: the last line was torn and is dropped", TornLineWarning, stacklevel=3)
