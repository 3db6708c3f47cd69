"""One writer per run folder, by a file lock that ends with its process; readers need none."""

import fcntl
import json
import os
import socket
import time
import weakref
from contextlib import AbstractContextManager
from pathlib import Path

from fastcluster_lm.errors import HeldError
from fastcluster_lm.store.files import explaining, write_all
from fastcluster_lm.untrusted import check_regular, opened_regular

# is_locked holds the lock for some microseconds, so one refusal is not yet another writer
ATTEMPTS = 5
PAUSE_S = 0.02


# descriptors of the locks that are held, each in a list of its own that whoever lets go of it empties
_held: list[list[int]] = []


def locked(path: Path, *, what: Path | None = None) -> AbstractContextManager[None]:
    """Hold the lock for the length of a `with` block; the kernel frees it if the process dies.

    what: the path that is being written, the lock's folder by default
    Errors: HeldError naming process and host, if another holds it; RunFolderError if the disk refuses
    """
    return _Lock(path, path.parent if what is None else what)


class _Lock:
    """A lock that goes with its holder, be that forgotten, or alive when the interpreter ends.

    A generator would be closed there in a process whose modules are half gone, or in a fork that holds no lock, and
    the error of that would stand below the one that ended the program
    """

    def __init__(self, path: Path, what: Path) -> None:
        self._path, self._what = path, what

    def __enter__(self) -> None:
        with explaining("lock", self._path):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
            try:
                self._take(descriptor)
            except BaseException:
                # this frees the lock, too
                os.close(descriptor)
                raise
        holding = [descriptor]
        _held.append(holding)
        self._end = weakref.finalize(self, _let_go, holding)

    def __exit__(self, *error: object) -> None:
        self._end()

    def _take(self, descriptor: int) -> None:
        check_regular(os.fstat(descriptor).st_mode, self._path)
        if not any(_try_lock(descriptor, attempt) for attempt in range(ATTEMPTS)):
            raise HeldError(
                f"{self._what} is being written by {_holder(descriptor)}; wait for it to end, stop it, or use another "
                "run folder"
            )
        os.ftruncate(descriptor, 0)
        write_all(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())


def is_locked(path: Path) -> bool:
    """Say whether some process holds the lock; leaves the folder as it is."""
    with explaining("look at", path):
        if not path.exists():
            return False
    with explaining("read", path), opened_regular(path) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _try_lock(descriptor: int, attempt: int) -> bool:
    if attempt:
        time.sleep(PAUSE_S)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> str:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {found['pid']} on {found['host']}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "a process that has not given its name"


def _let_go(holding: list[int]) -> None:
    while holding:
        descriptor = holding.pop()
        # whoever was forked meanwhile may share the lock until it has run
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
    _held[:] = [one for one in _held if one]


def _forget_in_fork() -> None:
    """Close what a forked child must not keep; the lock stays its parent's."""
    while _held:
        holding = _held.pop()
        while holding:
            os.close(holding.pop())


os.register_at_fork(after_in_child=_forget_in_fork)
