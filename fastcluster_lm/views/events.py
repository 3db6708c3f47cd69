"""A run's losses and task scores as TensorBoard event files, through TensorBoard's own writer; it never loads torch."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from fastcluster_lm.views.summary import number

Row = Mapping[str, object]

STEP_TAGS = {
    "loss": "train/loss",
    "lr": "train/lr",
    "grad_norm": "train/grad_norm",
    "val_accuracy": "val/accuracy",
    "step_ms": "cost/step_ms",
    "probe_ms": "cost/probe_ms",
    "probe_wait_ms": "cost/probe_wait_ms",
    "tokens_per_s": "cost/tokens_per_s",
}
SCORE_NAMES = ("ari", "ami", "f1", "knn_share", "knn_share_across")


class EventWriter:
    """Writes a run's scalars as they come; a resumed run takes back those later than where it goes on.

    first: the probed token whose scores have no name of it in their tags
    """

    def __init__(self, folder: Path, *, resumed_from: int = 0, first: str | None = None) -> None:
        self._first = first
        self._writer = EventFileWriter(str(folder))
        if resumed_from:
            # TensorBoard drops what has this step or a later one when it reads such a line
            self._write(resumed_from + 1, session_log=SessionLog(status=SessionLog.START))

    def update(self, step_row: Row, score_rows: Sequence[Row] | None = None) -> None:
        """Take a step's row, and the score rows that have come since the one before."""
        self._add(step_row, {tag: number(step_row, name) for name, tag in STEP_TAGS.items()})
        by_step: dict[object, dict[str, float | None]] = {}
        for row in score_rows or ():
            if row["labels"] == "task":
                token = "" if row.get("position") in (self._first, None) else f"{row['position']} "
                place = f"{token}{row['split']} {row['space']} {row['group']}"
                values = {
                    f"{place}/{column} layer {row['layer']}": number(row, column)
                    for name in SCORE_NAMES
                    for column in (name, f"null_{name}")
                }
                by_step.setdefault(row["step"], {}).update(values)
        for step, values in by_step.items():
            self._add({"step": step}, values)

    def close(self) -> None:
        """Write what is left, and end the writer's thread."""
        self._writer.close()

    def _add(self, row: Row, values: Mapping[str, float | None]) -> None:
        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items() if value is not None]
        if scalars:
            self._write(int(number(row, "step") or 0), summary=Summary(value=scalars))

    def _write(self, step: int, **content: object) -> None:
        self._writer.add_event(Event(step=step, wall_time=time.time(), **content))
