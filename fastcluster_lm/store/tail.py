"""Rows of a table of JSON lines as they come, for a reader beside the writer; it writes and mends nothing."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastcluster_lm.errors import RunFolderError
from fastcluster_lm.store.files import explaining
from fastcluster_lm.store.lines import check_row, decode_row
from fastcluster_lm.untrusted import opened_regular, read_lines


class LineTail:
    """Reads on from where its last reading ended; what is not a whole line yet is left for the next one.

    columns: those that a row lacks are None
    """

    def __init__(self, path: Path, schema: Any = dict, columns: Iterable[str] = ()) -> None:
        self._path, self._schema, self._empty = path, schema, dict.fromkeys(columns)
        self._end = self._lines = 0
        self._inode: int | None = None

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """Give the rows that came, and whether they replace all that were given before: the file was written anew.

        A last line that ends but cannot be read is torn by a crash: the reading stops before it, since the next writer
        cuts it off.
        Errors: RunFolderError if the file cannot be read, or a row before the last one, or a row does not fit
        """
        with explaining("read", self._path):
            try:
                data, anew = self._read_on()
            except FileNotFoundError:
                anew = self._inode is not None
                self._inode, self._end, self._lines = None, 0, 0
                return [], anew
        rows: list[dict[str, Any]] = []
        lines = data.split(b"\n")[:-1]
        for line in lines:
            try:
                row = decode_row(line)
            except (ValueError, RecursionError) as error:
                if len(rows) + 1 < len(lines):
                    raise RunFolderError(
                        f"{self._path}, line {self._lines + 1} is damaged: expected a JSON object with a step, "
                        f"found {error}"
                    ) from error
                break
            check_row(self._path, self._lines + 1, row, self._schema)
            rows.append(self._empty | row)
            self._end += len(line) + 1
            self._lines += 1
        return rows, anew

    def _read_on(self) -> tuple[bytes, bool]:
        """Read what came since, and say whether the file was written anew."""
        with opened_regular(self._path) as descriptor:
            found = os.fstat(descriptor)
            anew = self._inode is not None and (found.st_ino != self._inode or found.st_size < self._end)
            if anew:
                self._end = self._lines = 0
            self._inode = found.st_ino
            return read_lines(descriptor, self._end), anew
