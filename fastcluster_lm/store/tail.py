"""Rows of a table of JSON lines as they come, for a reader beside the writer; it writes and mends nothing."""

import os
from pathlib import Path
from typing import Any

from fastcluster_lm.store.files import explaining
from fastcluster_lm.store.lines import decode_row


class LineTail:
    """Reads on from where its last reading ended; what is not a whole line yet is left for the next one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._end = 0
        self._inode: int | None = None

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """Give the rows that came, and whether they replace all that were given before: the file was written anew.

        A line that ends but cannot be read is torn by a crash: the reading stops before it, since the next writer
        cuts it off.
        Errors: RunFolderError if the file cannot be read
        """
        with explaining("read", self._path):
            try:
                descriptor = os.open(self._path, os.O_RDONLY)
            except FileNotFoundError:
                anew = self._inode is not None
                self._inode, self._end = None, 0
                return [], anew
            try:
                found = os.fstat(descriptor)
                anew = self._inode is not None and (found.st_ino != self._inode or found.st_size < self._end)
                if anew:
                    self._end = 0
                self._inode = found.st_ino
                data = _read_from(descriptor, self._end, found.st_size)
            finally:
                os.close(descriptor)
        rows = []
        for line in data.split(b"\n")[:-1]:
            try:
                rows.append(decode_row(line))
            except (ValueError, RecursionError):
                break
            self._end += len(line) + 1
        return rows, anew


def _read_from(descriptor: int, start: int, end: int) -> bytes:
    pieces = []
    while start < end and (piece := os.pread(descriptor, end - start, start)):
        pieces.append(piece)
        start += len(piece)
    return b"".join(pieces)
