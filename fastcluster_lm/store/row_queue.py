"""Rows of a run that wait to be written, in the order of their steps; it decides nothing about when."""

from collections.abc import Sequence
from typing import Any

from fastcluster_lm.store.folder import RunFolder


class RowQueue:
    """Step and score rows on their way to a run folder; a step whose probe still runs holds back those after it."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._steps: list[dict[str, Any]] = []
        self._scores: list[dict[str, Any]] = []
        # steps whose probes are not done
        self._open: set[int] = set()

    def add_step(self, row: dict[str, Any], *, probed: bool) -> None:
        """Take a step's row; if it is being probed it waits for `add_probe`."""
        self._steps.append(row)
        if probed:
            self._open.add(row["step"])

    def add_probe(
        self, step: int, scores: Sequence[dict[str, Any]], probe_ms: float, skipped: str | None = None
    ) -> None:
        """Take a probe's rows, and how long it took and what it skipped into its step's row."""
        self._open.discard(step)
        self._scores += scores
        for row in self._steps:
            if row["step"] == step:
                row["probe_ms"], row["skipped"] = probe_ms, skipped

    def flush(self) -> None:
        """Write all rows before the first step whose probe still runs: scores first, so that no step lacks its own."""
        ready = next((i for i, row in enumerate(self._steps) if row["step"] in self._open), len(self._steps))
        # each is let go once it is written, so that none is written twice
        if self._scores:
            self._folder.append_scores(self._scores)
            self._scores = []
        if ready:
            self._folder.append_steps(self._steps[:ready])
            self._steps = self._steps[ready:]
