"""End a process that makes no headway while it is waited for, so that nobody waits for ever; it starts none."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

# between two looks, and the processor time within it that counts as headway
LOOK_S, HEADWAY_S = 1.0, 0.01
# a process that is busy may take so many times the longest answer before; where processor time cannot be read, and no
# answer has come, so many times the limit
LONGEST, BLIND = 100, 12


class Patience:
    """Wait for a process as long as it works: `limit_s` without any use of a processor, and it is ended.

    One that is busy is ended once it takes LONGEST times as long as any answer before, and longer than the limit. Only
    time in which the waiting process itself ran is counted: where a machine sleeps, both do
    """

    def __init__(self, process_id: int, limit_s: float) -> None:
        self._process_id, self._limit_s = process_id, limit_s
        # seconds that the longest answer took
        self.longest = 0.0
        # why the process was ended
        self.reason: str | None = None
        self._waiting, self._closed = Event(), False
        # which wait it is, so that the next is not taken for the same
        self._number = 0
        self._thread: Thread | None = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Watch for the length of a `with` block that waits."""
        if self._thread is None:
            self._thread = Thread(target=self._watch, name="probe-patience", daemon=True)
            self._thread.start()
        self._number += 1
        self._waiting.set()
        try:
            yield
        finally:
            self._waiting.clear()

    def close(self) -> None:
        """Watch no more."""
        self._closed = True
        self._waiting.set()

    def _watch(self) -> None:
        while not self._closed:
            self._waiting.wait()
            self._watch_one_wait()

    def _watch_one_wait(self) -> None:
        number, waited, idle, used = self._number, 0.0, 0.0, processor_seconds(self._process_id)
        while self.reason is None:
            time.sleep(LOOK_S)
            if self._closed or number != self._number or not self._waiting.is_set():
                return
            now = processor_seconds(self._process_id)
            waited += LOOK_S
            moved = now is None or used is None or now - used >= HEADWAY_S
            idle = 0.0 if moved else idle + LOOK_S
            used = now
            self.reason = self._judge(waited, idle, blind=now is None)
            if self.reason is not None:
                # who started it reaps it, so that the number is still its own
                with suppress(ProcessLookupError):
                    os.kill(self._process_id, signal.SIGKILL)
        self._closed = True

    def _judge(self, waited: float, idle: float, *, blind: bool) -> str | None:
        if idle >= self._limit_s:
            return f"used no processor time for {idle:.0f} s"
        longest = LONGEST * self.longest if self.longest else self._limit_s * BLIND if blind else float("inf")
        if waited >= max(self._limit_s, longest):
            return f"gave no answer for {waited:.0f} s, where the longest so far took {self.longest:.1f}"
        return None


def processor_seconds(process_id: int) -> float | None:
    """Read how long a process has used a processor; None where the system does not say."""
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text()
    except OSError:
        return None
    # a name may hold blanks and brackets
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
