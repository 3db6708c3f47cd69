"""Standard streams that outlive their readers: what cannot be written is dropped; it formats nothing."""

import errno
import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

# nobody reads any more: the other end of a pipe, or of a terminal
GONE = (errno.EPIPE, errno.EIO)


class Lasting:
    """A text stream whose first failure is its last: from then on its file descriptor leads nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or drop what nobody can read."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Flush, or drop what nobody can read."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        lead_nowhere(self._stream.fileno())
        if error.errno not in GONE and self._stream is not sys.__stderr__:
            print(f"fclm: cannot write to standard output: {error.strerror}; the run goes on", file=sys.stderr)


class Unwritten(OSError):
    """What a command has to print cannot be written: a full disk, for one."""


class Told:
    """A text stream whose failures can be told from those of other files: Unwritten, unless its reader has left."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write."""
        with _told():
            return self._stream.write(text)

    def flush(self) -> None:
        """Flush."""
        with _told():
            self._stream.flush()


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Unwritten(error.errno, error.strerror) from error


def lead_nowhere(descriptor: int) -> None:
    """Let what is written to a file descriptor vanish, in the last flush of this process too."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def fill_standard_streams() -> None:
    """Open those that were closed before the start, so that no file of a run gets their number and their output."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # the lowest free number is given
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def lasting_streams(command: Callable) -> Callable:
    """Let a command's work outlive whoever reads what it prints."""

    @functools.wraps(command)
    def wrapped(*args: Any, **options: Any) -> None:
        before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = Lasting(sys.stdout), Lasting(sys.stderr)
        try:
            command(*args, **options)
            sys.stdout.flush()
        finally:
            sys.stdout, sys.stderr = before

    return wrapped
