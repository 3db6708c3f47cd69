"""How the process beside training comes to be: started afresh, or copied from this one; it is told later what to do."""

import importlib
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import NoReturn, Protocol, runtime_checkable

from fastcluster_lm.errors import ProbeError

# these are for the training process, which ends the one beside it once its last step is saved
LEFT_TO_TRAINING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@runtime_checkable
class Process(Protocol):
    """What subprocess.Popen offers of a process, and all that is asked of one here."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None:
        """Give its status, below 0 for a signal; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its status; subprocess.TimeoutExpired if it does not come in time."""

    def kill(self) -> None:
        """End it at once."""


class Waiting:
    """Whether training waits for the process beside it: a byte that both see, in a file without a name."""

    def __init__(self, descriptor: int) -> None:
        self._byte = mmap.mmap(descriptor, 1)

    def __bool__(self) -> bool:
        return self._byte[0] != 0

    @contextmanager
    def told(self) -> Iterator[None]:
        """Say so for the length of a `with` block."""
        self._byte[0] = 1
        try:
            yield
        finally:
            self._byte[0] = 0


class WorkerProcess:
    """A process that serves its end of a connection, and ends with it; `entry` names what it calls, as module:function.

    That gets two file descriptors: of the connection, and for a Waiting. It has a group of its own, no input, and
    leaves LEFT_TO_TRAINING to the process that made it
    """

    def __init__(self, process: Process, connection: Connection, waiting: Waiting) -> None:
        self.process, self.connection, self.waiting = process, connection, waiting

    def close(self) -> None:
        """End the process, whatever it is at, and its connection; once is enough."""
        self.process.kill()
        self.process.wait()
        self.connection.close()


def started(entry: str) -> WorkerProcess:
    """Start a fresh Python, which loads torch anew: 2 s of a core, whatever this process has done before.

    Errors: ProbeError where the system starts none
    """
    module, function = entry.split(":")
    ignored = "; ".join(f"signal.signal({number:d}, signal.SIG_IGN)" for number in LEFT_TO_TRAINING)
    unblocked = f"signal.pthread_sigmask(signal.SIG_UNBLOCK, {[*map(int, LEFT_TO_TRAINING)]})"
    called = f"from {module} import {function}; {function}(*map(int, sys.argv[1:]))"
    # found where this process found it
    path = os.pathsep.join(place or os.getcwd() for place in sys.path)
    env = {**os.environ, "PYTHONPATH": path}
    ours: Connection | None = None
    # a new program inherits the mask: what comes before it ignores these signals waits, and is then ignored too
    before = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_TRAINING)
    try:
        ours, theirs = Pipe()
        with theirs, _one_byte() as shared:
            waiting, passed = Waiting(shared), [theirs.fileno(), shared]
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-c",
                    f"import signal, sys; {ignored}; {unblocked}; {called}",
                    *map(str, passed),
                ],
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                env=env,
                process_group=0,
            )
    except OSError as error:
        if ours is not None:
            ours.close()
        raise ProbeError(
            f"the probe's process cannot be started: {error.strerror or error}; resume the run with -s probe.worker=off"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return WorkerProcess(process, ours, waiting)


def copied(entry: str) -> WorkerProcess | None:
    """Copy this process, which takes 10 ms and shares the memory of all that is loaded; None where it must not be.

    Only for who knows that torch has computed nothing yet: a copy has none of the threads that OpenMP would go on to
    wait for. (NumPy's BLAS, which has some as soon as it is loaded, ends them before a copy is made.) Elsewhere than
    on Linux system libraries have threads of their own
    """
    if sys.platform != "linux" or threading.active_count() > 1:
        return None
    module, function = entry.split(":")
    serve = getattr(importlib.import_module(module), function)
    try:
        ours, theirs = Pipe()
    except OSError:
        return None
    sys.stdout.flush()
    sys.stderr.flush()
    # a signal that comes now waits until the copy has let go of this process's handlers
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        with _one_byte() as shared:
            waiting = Waiting(shared)
            pid = os.fork()
            if pid == 0:
                # as long as the copy held this end too, it would not see that training is gone
                ours.close()
                _serve_and_exit(serve, (theirs.fileno(), shared), before)
    except OSError:
        ours.close()
        return None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    return WorkerProcess(_Copy(pid), ours, waiting)


@contextmanager
def _one_byte() -> Iterator[int]:
    """Give the descriptor of a file of one byte that is gone once nobody holds it."""
    # in memory where the system has such files, so that a full disk is no matter
    memory = hasattr(os, "memfd_create")
    with open(os.memfd_create("waiting"), "r+b") if memory else tempfile.TemporaryFile() as file:
        file.truncate(1)
        yield file.fileno()


class _Copy:
    """A forked process, with the part of subprocess.Popen's interface that is used."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        # the runner's sender may end it while training waits for it; no call holds this while it waits
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        with self._lock:
            self._reap()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if timeout is None:
            # whoever comes first reaps it
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        until = time.monotonic() + (timeout or 0.0)
        while self.poll() is None:
            if timeout is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired("the probe's process", timeout)
            time.sleep(2e-3)
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        with self._lock:
            self._reap()
            if self.returncode is None:
                # where SIGCHLD is ignored the system reaps it at any time
                with suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)

    def _reap(self) -> None:
        """Take its status if it has ended; one that the system has reaped counts as 0, as subprocess.Popen has it."""
        if self.returncode is not None:
            return
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            pid, status = self.pid, 0
        if pid:
            self.returncode = os.waitstatus_to_exitcode(status)


def _serve_and_exit(
    serve: Callable[[int, int], None], descriptors: tuple[int, int], unblocked: set[int | signal.Signals]
) -> NoReturn:
    """Be what `started` would have made; nothing that this process's maker left to be done at its end is done here."""
    code = 1
    try:
        os.setpgid(0, 0)
        for number in signal.valid_signals():
            # handlers go, as they would with a new program; what was ignored stays so
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        for number in LEFT_TO_TRAINING:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        serve(*descriptors)
        code = 0
    except BaseException:
        # as a program's end would print it, whatever it is; the status tells training
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
