"""Children forked from a process that has torch and the engine imported: ended, killed, timed; it judges nothing.

A child costs milliseconds where a new Python would import for seconds. The parent has one thread, or a fork could copy
a lock that is held.
"""

import ctypes
import os
import pickle
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# longer than any child here needs, even beside other work
LIMIT_S = 120.0
# of prctl(2)
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class End:
    """How a child ended: with a value, an error, or a signal; or it did not end in time and was killed.

    ours: whether the error is one that explains itself, in one line
    left: how many processes that it had started still ran after it
    """

    value: Any = None
    error: str = ""
    ours: bool = False
    signal: int = 0
    timed_out: bool = False
    left: int = 0
    output: str = ""
    seconds: float = 0.0

    def told(self) -> str:
        """Say it in one line."""
        if self.timed_out:
            return f"did not end within {self.seconds:.0f} s"
        if self.signal:
            return f"killed by {signal.Signals(self.signal).name}"
        return self.error or f"returned {self.value!r}"


def fork(
    action: Callable[[], Any], *, limit_s: float = LIMIT_S, kill_after_s: float | None = None, grace_s: float = 0.0
) -> End:
    """Run an action in a child with its own session and wait for it; `kill_after_s` ends it by SIGKILL there.

    What the child has started and left behind has `grace_s` to end by itself, and is then ended
    """
    alone()
    reader, writer = os.pipe()
    with tempfile.TemporaryFile() as output:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            _live(action, writer, output.fileno())
        os.close(writer)
        started = time.monotonic()
        data, timed_out = b"", True
        try:
            data, timed_out = _read(reader, limit_s if kill_after_s is None else kill_after_s)
        finally:
            os.close(reader)
            if timed_out:
                os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            left = end_session(pid, grace_s)
        seconds = time.monotonic() - started
        output.seek(0)
        printed = output.read().decode(errors="replace")
    found: dict[str, Any] = {"left": left, "output": printed, "seconds": seconds}
    if data:
        # the child's own words; it was forked from this process
        found |= pickle.loads(data)
    elif timed_out and kill_after_s is None:
        found["timed_out"] = True
    elif os.WIFSIGNALED(status):
        found["signal"] = os.WTERMSIG(status)
    elif not timed_out:
        # one that ended while it was about to be killed has nothing left to tell
        found["error"] = f"exit status {os.waitstatus_to_exitcode(status)}"
    return End(**found)


def alone() -> None:
    """Refuse a parent with threads, whose locks a fork could copy while they are held."""
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"expected a process of one thread to fork, found {len(threads)}"


def warm() -> None:
    """Import the engine and train once, so that children find all of it in memory and every kernel compiled."""
    import torch

    from tests.campaign.tiny import tiny, trained

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for source in ("fresh", "batch"):
            trained(tiny(source, steps=12), Path(folder) / source)
    alone()


def end_session(leader: int, grace_s: float) -> int:
    """Kill the processes of a session that have not ended by then; say how many. One that left it is not found."""
    ends_at = time.monotonic() + grace_s
    while (found := session(leader)) and time.monotonic() < ends_at:
        time.sleep(0.05)
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(found)


def session(leader: int) -> list[int]:
    """List the processes of a session that are alive."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            # state, parent, group, session: behind the command's name, which may hold anything
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(name))
    return found


def _live(action: Callable[[], Any], writer: int, output: int) -> None:
    """Be the child: never come back from here."""
    try:
        # what is done to its group, or its terminal, must not reach the parent, whose end is its own end
        os.setsid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.dup2(output, 1)
        os.dup2(output, 2)
        warnings.simplefilter("ignore")
        # of the parent's, and unbuffered: os.write may be made to fail in here
        told = open(writer, "wb", buffering=0)  # noqa: SIM115
        try:
            found = {"value": action()}
        except BaseException as error:
            found = _described(error)
        rest = memoryview(pickle.dumps(found))
        while len(rest):
            rest = rest[told.write(rest) :]
        sys.stdout.flush()
    finally:
        os._exit(0)


def _described(error: BaseException) -> dict[str, Any]:
    from fastcluster_lm.errors import FclmError

    traceback.print_exc()
    message = f"{type(error).__name__}: {error}"
    return {"error": message, "ours": isinstance(error, FclmError) and bool(str(error)) and "\n" not in message}


def _read(reader: int, limit_s: float) -> tuple[bytes, bool]:
    """Read what the child tells until it closes its end or the time is over; say which."""
    ends_at = time.monotonic() + limit_s
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    pieces: list[bytes] = []
    while True:
        left = ends_at - time.monotonic()
        if left <= 0:
            return b"", True
        if poll.poll(left * 1e3):
            piece = os.read(reader, 1 << 16)
            if not piece:
                return b"".join(pieces), False
            pieces.append(piece)
