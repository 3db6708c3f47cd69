"""One writer per run folder, by a file lock that ends with its process; readers need none."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastcluster_lm.errors import RunFolderError
from fastcluster_lm.store.files import explaining, write_all

# is_locked holds the lock for some microseconds, so one refusal is not yet another writer
ATTEMPTS = 5
PAUSE_S = 0.02


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock for the length of the body; the kernel frees it if the process dies.

    Errors: RunFolderError naming process and host, if another holds it
    """
    with explaining("lock", path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        with explaining("lock", path):
            if not any(_try_lock(descriptor, attempt) for attempt in range(ATTEMPTS)):
                raise RunFolderError(
                    f"{path.parent} is being written by {_holder(descriptor)}; wait for it to end, stop it, "
                    f"or use another run folder"
                )
            os.ftruncate(descriptor, 0)
            write_all(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Say whether some process holds the lock; leaves the folder as it is."""
    if not path.exists():
        return False
    with explaining("read", path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
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
    except (ValueError, KeyError, TypeError):
        return "a process that has not given its name"
