"""What a run has left so far, held in memory for a page: its rows, and the steps that have maps; it draws nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastcluster_lm.errors import RunFolderError
from fastcluster_lm.store import RunFolder
from fastcluster_lm.views.positions import chosen_position, points_name, positions_of
from fastcluster_lm.views.report.stored_map import read_map

Row = dict[str, Any]


@dataclass
class RunHistory:
    """One run's rows in the order written, and the steps with maps that have rows too.

    position: the token that is shown at first, or alone
    """

    folder: RunFolder
    config: Mapping[str, Any]
    position: str
    score_rows: list[Row] = field(default_factory=list)
    step_rows: list[Row] = field(default_factory=list)
    map_steps: list[int] = field(default_factory=list)
    summary: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name the run as its folder is named."""
        return self.folder.path.resolve().name

    @property
    def positions(self) -> list[str]:
        """Name the probed tokens."""
        return positions_of(self.config)

    @property
    def points_names(self) -> list[str]:
        """Name the arrays of a map that hold the points of each token."""
        return [points_name(self.config, position) for position in self.positions]

    @property
    def n_layers(self) -> int:
        """Count the layers that are scored, the embedding among them."""
        return self.config["model"]["n_layers"] + 1

    @property
    def headline_layer(self) -> int:
        """Give the headline's layer with -1 resolved."""
        layer = self.config["report"]["layer"]
        return self.n_layers - 1 if layer < 0 else min(layer, self.n_layers - 1)

    @property
    def last_step(self) -> int:
        """Give the step that the run goes to, or, for a probe attached to another loop, the one it has reached."""
        reached = self.step_rows[-1]["step"] if self.step_rows else 0
        return int(self.config.get("training", {}).get("steps", reached))

    @property
    def mark_step(self) -> int | None:
        """Give the early-stopping mark, which is known once the run is finished."""
        return self.summary.get("early_stopping_step")

    def read_map(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Read a step's maps and the text beside them.

        Errors: RunFolderError if there are none, or they are damaged
        """
        return read_map(self.folder, step, self.config)

    def take(self, rows: Sequence[Row]) -> None:
        """Take in more rows of scores; those of an older version, which say no token, are of the only one.

        Errors: RunFolderError for layers that the run does not have
        """
        highest = max((row["layer"] for row in rows), default=0)
        if highest >= self.n_layers:
            raise RunFolderError(
                f"{self.folder.path}: expected layers up to {self.n_layers - 1}, as run.toml says, found scores of "
                f"layer {highest}; one of run.toml and scores.jsonl is another run's"
            )
        self.score_rows += [{**row, "position": row.get("position") or self.positions[0]} for row in rows]


def read_history(folder: RunFolder, position: str | None = None) -> RunHistory:
    """Read all of a run, to show one of its tokens first, which is the first by default.

    Errors: RunFolderError if a file is damaged; a torn last line is dropped with a warning; UsageError if there is no
            such token
    """
    config = folder.config()
    history = RunHistory(folder, config, chosen_position(config, position), step_rows=folder.steps())
    history.take(folder.scores())
    _look_around(history)
    return history


class Follower:
    """A run's history that is read on as the run goes; the run may end, be torn in mid-line, or be taken up again."""

    def __init__(self, folder: RunFolder, position: str | None = None) -> None:
        config = folder.config()
        self.history = RunHistory(folder, config, chosen_position(config, position))
        self._tails = {"scores": folder.follow("scores"), "steps": folder.follow("steps")}

    def refresh(self) -> bool:
        """Take in what came since; say whether anything did.

        Errors: RunFolderError if a file cannot be read
        """
        history = self.history
        before = (len(history.map_steps), dict(history.summary))
        changed = False
        for table, kept in (("scores", history.score_rows), ("steps", history.step_rows)):
            rows, anew = self._tails[table].read()
            if anew:
                kept.clear()
            if table == "scores":
                history.take(rows)
            else:
                kept += rows
            changed = changed or anew or bool(rows)
        _look_around(history)
        return changed or before != (len(history.map_steps), dict(history.summary))


def _look_around(history: RunHistory) -> None:
    # a map is written before its rows, and may be left from steps that a resumed run has dropped
    scored = {row["step"] for row in history.score_rows}
    history.map_steps = [step for step in history.folder.map_steps() if step in scored]
    history.summary = history.folder.summary() or {}
