"""What may look on while `fclm train` runs: a live page in a process of its own, event files; it changes no run."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastcluster_lm.views.extras import require

# a page that was started with the run ends this long after it, if nobody has it open
IDLE_EXIT_S = 60


class Beside:
    """The onlookers of one run, each only if it was asked for; position is the token whose scores need no name.

    Errors: UsageError before anything is written, if the package of one is missing
    """

    def __init__(self, *, live: bool, tensorboard: bool, position: str | None = None) -> None:
        if live:
            require("bokeh", extra="report", purpose="fclm train --live")
        if tensorboard:
            require("tensorboard", extra="tensorboard", purpose="fclm train --tensorboard")
        self._live, self._tensorboard, self._position = live, tensorboard, position
        self._events: Any = None

    def __enter__(self) -> "Beside":
        return self

    def __exit__(self, *_: object) -> None:
        if self._events is not None:
            self._events.close()

    def start(self, path: Path, step: int) -> None:
        """Begin, once the run folder is there."""
        if self._live:
            command = [sys.executable, "-m", "fastcluster_lm", "watch", str(path), "--port", "0"]
            # in a session of its own, so that Ctrl-C stops training and leaves the page; it says its address on stderr
            subprocess.Popen(
                [*command, "--idle-exit", str(IDLE_EXIT_S)], stdin=subprocess.DEVNULL, stdout=2, start_new_session=True
            )
        if self._tensorboard:
            from fastcluster_lm.views.events import EventWriter

            self._events = EventWriter(path / "tensorboard", resumed_from=step, first=self._position)

    def update(self, row: Mapping[str, Any], scores: Sequence[Mapping[str, Any]] | None) -> None:
        """Take a step's row, and the score rows that have come."""
        if self._events is not None:
            self._events.update(row, scores)
