"""The line that shows a run on its way, live on a terminal and plain when piped; it measures nothing but the clock."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from fastcluster_lm.views.positions import rows_at
from fastcluster_lm.views.summary import best_layer, number

Row = Mapping[str, object]

# a plain line this often where nothing is scored; a live line is redrawn this often
PLAIN_PAUSE_S = 5.0
LIVE_PAUSE_S = 0.1


class Progress:
    """One run's line on stderr: step, loss, accuracy, best layer's scores, the probe's share of the time, time left."""

    def __init__(
        self,
        total_steps: int,
        stream: TextIO | None = None,
        *,
        space: str = "hidden",
        group: str = "input_output",
        position: str = "input",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total_steps, self._clock = total_steps, clock
        self._space, self._group, self._position = space, group, position
        self._console = Console(file=stream or sys.stderr, markup=False, highlight=False, emoji=False)
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False)
            self._live.start()
        self._line = ""
        self._row: Row = {}
        self._best: Row | None = None
        self._accuracy: float | None = None
        self._step_ms = self._wait_ms = 0.0
        self._first: tuple[int, float] | None = None
        self._drawn_at: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, step_row: Row, score_rows: Sequence[Row] | None = None) -> None:
        """Take a step's row, and its scores if it was probed, and draw the line if it is time.

        Units:  milliseconds: step_ms without the probe, probe_wait_ms that training stood still for one
        """
        now = self._clock()
        self._row = step_row
        self._step_ms += number(step_row, "step_ms") or 0.0
        self._wait_ms += number(step_row, "probe_wait_ms") or 0.0
        step = int(number(step_row, "step") or 0)
        if self._first is None:
            self._first = (step, now)
        accuracy = number(step_row, "val_accuracy")
        if accuracy is not None:
            self._accuracy = accuracy
        if score_rows:
            own = rows_at(score_rows, self._position)
            self._best = best_layer(own, self._space, self._group) or self._best
        pause = PLAIN_PAUSE_S if self._live is None else LIVE_PAUSE_S
        is_due = self._drawn_at is None or now - self._drawn_at >= pause
        if is_due or score_rows or accuracy is not None or step == self._total_steps:
            self._draw(step, now)

    def note(self, text: str) -> None:
        """Print a line of its own, above the live one."""
        self._console.print(text, soft_wrap=True)

    def close(self) -> None:
        """Leave the last line standing and give the terminal back; a second call does nothing."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _draw(self, step: int, now: float) -> None:
        self._drawn_at = now
        self._line = self._describe(step, now)
        if self._live is None:
            self._console.print(self._line, soft_wrap=True)
        else:
            self._live.update(Text(self._line, no_wrap=True, overflow="ellipsis"), refresh=True)

    def _describe(self, step: int, now: float) -> str:
        width = len(str(self._total_steps))
        parts = [f"step {step:>{width}}/{self._total_steps}"]
        loss = number(self._row, "loss")
        if loss is not None:
            parts.append(f"loss {loss:.3f}")
        if self._accuracy is not None:
            parts.append(f"accuracy {self._accuracy:.3f}")
        if self._best is not None:
            ari, share = number(self._best, "ari"), number(self._best, "knn_share")
            parts.append(f"layer {self._best['layer']}: ARI {_score(ari)} KNN {_score(share)}")
        if self._wait_ms:
            parts.append(f"probe {self._wait_ms / (self._wait_ms + self._step_ms):.0%}")
        left_s = self._left_s(step, now)
        if left_s is not None:
            parts.append(f"{timedelta(seconds=round(left_s))} left")
        return "  ".join(parts)

    def _left_s(self, step: int, now: float) -> float | None:
        # from the first row on, so that compiling and earlier runs do not count
        if self._first is None or step <= self._first[0]:
            return None
        return (now - self._first[1]) / (step - self._first[0]) * (self._total_steps - step)


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
