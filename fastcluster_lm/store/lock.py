"""One writer per run folder, by a file lock that ends with its process; readers need none."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastcluster_lm.errors import HeldError
from fastcluster_lm.store.files import explaining, write_all
from fastcluster_lm.untrusted import check_regular, opened_regular

# is_locked holds the lock for some microseconds, so one refusal is not yet another writer
ATTEMPTS = 5
PAUSE_S = 0.02


# open locks: a forked child must not keep what its parent holds
_held: set[int] = set()


@contextmanager
def locked(path: Path, *, what: Path | None = None) -> Iterator[None]:
    """Hold the lock for the length of the body; the kernel frees it if the process dies.

    what: the path that is being written, the lock's folder by default
    Errors: HeldError naming process and host, if another holds it; RunFolderError if the disk refuses
    """
    with explaining("lock", path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        with explaining("lock", path):
            check_regular(os.fstat(descriptor).st_mode, path)
            if not any(_try_lock(descriptor, attempt) for attempt in range(ATTEMPTS)):
                raise HeldError(
                    f"{what or path.parent} is being written by {_holder(descriptor)}; wait for it to end, stop it, "
                    f"or use another run folder"
                )
            _held.add(descriptor)
            os.ftruncate(descriptor, 0)
            write_all(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        yield
    finally:
        if descriptor in _held:
            _held.discard(descriptor)
            # whoever was forked meanwhile may share the lock until it has run
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Say whether some process holds the lock; leaves the folder as it is."""
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


def _let_go() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
