"""What `fclm train` does about signals: when it ends and with which status, when it saves; it trains nothing."""

import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import click

# as the shell has them: 128 and the number
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# a signal that comes twice at once, to a process and to its group, counts once
TWICE_S = 0.2
# after a second one the process ends, whatever it is about, within so many seconds
GRACE_S = 5.0


class Interrupted(KeyboardInterrupt):
    """A signal ends the program from where it is."""


class Signals:
    """SIGINT, SIGTERM and SIGHUP end the program, a second one at once; SIGUSR1 asks for a checkpoint.

    While `patient`, the first one only asks for an end: a step is finished and saved before. At other times nothing is
    at stake, and it ends the program from where it is. The exit status is that of the first one
    """

    def __init__(self) -> None:
        self.caught: list[int] = []
        self.patient = False
        # the run folder, once it is known where it is or will be
        self.run: Path | None = None
        self.finished = False
        self._last = 0.0
        self._save = False
        self._before: dict[int, Any] = {}

    @property
    def status(self) -> int:
        """The exit status of a program that these signals ended."""
        return 128 + (self.caught[0] if self.caught else signal.SIGINT)

    def wants_end(self) -> bool:
        """Whether a signal has asked for the end."""
        return bool(self.caught)

    def wants_save(self) -> bool:
        """Whether a checkpoint was asked for since the last time that this was asked."""
        wanted, self._save = self._save, False
        return wanted

    def __enter__(self) -> "Signals":
        for number in STOPS:
            # nohup has it ignored, and means it
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._take)
        self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._take_save)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if isinstance(error, KeyboardInterrupt):
            click.echo(self._advice(), err=True)
            sys.exit(self.status)

    def _advice(self) -> str:
        if self.run is None or not (self.run / "run.toml").is_file():
            return "stopped before there was a run folder; nothing was written"
        if self.finished:
            return f"{self.run} is finished; what it came to is printed by: fclm train --resume {self.run}"
        return f"stopped; go on with: fclm train --resume {self.run}"

    def _take(self, number: int, _frame: Any) -> None:
        first, now = not self.caught, time.monotonic()
        if not first and now - self._last < TWICE_S:
            return
        self._last = now
        self.caught.append(number)
        if first and self.patient:
            return
        if not first:
            # what cannot be interrupted, such as a step or a write, is not waited for much longer
            end = threading.Timer(GRACE_S, os._exit, (self.status,))
            end.daemon = True
            end.start()
        raise Interrupted

    def _take_save(self, _number: int, _frame: Any) -> None:
        self._save = True


def stoppable(command: Callable) -> Callable:
    """Let signals end a command, from its first import to its last word; the command gets `signals`."""

    @functools.wraps(command)
    def wrapped(*args: Any, **options: Any) -> None:
        with Signals() as signals:
            command(*args, signals=signals, **options)

    return wrapped
