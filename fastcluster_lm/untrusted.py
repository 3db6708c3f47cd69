"""Reads files that anybody may have put there, within bounds of size and depth; it knows no run and no task."""

import errno
import os
import re
import stat
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MIB = 2**20
# TOML is read at a MB a second; the largest files that are known have a tenth of this
MOST_TOML = 2 * MIB
MOST_JSON = 64 * MIB
# of a read, so that no call asks for more memory than a file has
PIECE = 16 * MIB
# tomllib takes memory and time as the square of a key's parts
_DEEP_KEY = re.compile(r"""(?<![\w-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){64}""")

_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@contextmanager
def opened_regular(path: str | Path) -> Iterator[int]:
    """Open a regular file for reading and give its descriptor; a link is followed to one, and nothing else is opened.

    Errors: OSError as the system gives it; with EINVAL for a folder, a pipe, a socket or a device, at once
    """
    # asked before it is opened, since to open a device can set it going
    check_regular(os.stat(path).st_mode, path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        check_regular(os.fstat(descriptor).st_mode, path)
        yield descriptor
    finally:
        os.close(descriptor)


def read_regular(path: str | Path, *, most_bytes: int) -> bytes:
    """Read a regular file whole, as long as it was when it was opened.

    Errors: OSError as for opened_regular; with EFBIG, before anything is read, for one of more bytes
    """
    with opened_regular(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > most_bytes:
            raise OSError(
                errno.EFBIG, f"expected at most {most_bytes / MIB:g} MiB, found {size / MIB:.0f} MiB", str(path)
            )
        return read_piece(descriptor, 0, size)


def read_lines(descriptor: int, start: int = 0) -> bytes:
    """Read an opened file of lines from a place on, as long as it is by now, whatever its size.

    Errors: OSError as the system gives it; with EFBIG for a line of 16 MiB or more, for which no memory is asked
    """
    size, pieces = os.fstat(descriptor).st_size, []
    while start < size and (piece := os.pread(descriptor, min(size - start, PIECE), start)):
        # a hole in a file reads as zeros without an end of a line
        if len(piece) == PIECE and b"\n" not in piece:
            raise OSError(errno.EFBIG, f"expected lines, found none that ends in {PIECE / MIB:g} MiB")
        pieces.append(piece)
        start += len(piece)
    return b"".join(pieces)


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a file of TOML.

    Errors: OSError as for read_regular; ValueError, in one line, for what is no UTF-8, no TOML, or nested too deep
    """
    try:
        text = read_regular(path, most_bytes=MOST_TOML).decode()
        if _DEEP_KEY.search(text):
            raise ValueError("a key of more than 64 parts")
        return tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"a broken byte at {error.start}, which is no UTF-8; save it anew") from error
    except RecursionError as error:
        raise ValueError("brackets that nest too deep") from error


def read_piece(descriptor: int, start: int, size: int) -> bytes:
    """Read so many bytes from a place on, or all that there are.

    Errors: OSError as the system gives it
    """
    pieces = []
    while size > 0 and (piece := os.pread(descriptor, min(size, PIECE), start)):
        pieces.append(piece)
        start, size = start + len(piece), size - len(piece)
    return b"".join(pieces)


def check_regular(mode: int, path: str | Path) -> None:
    """Refuse what is no regular file.

    Errors: OSError with EISDIR for a folder, else with EINVAL and what it is
    """
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        found = next((name for is_it, name in _KINDS if is_it(mode)), "something else")
        raise OSError(errno.EINVAL, f"expected a regular file, found {found}", str(path))
