"""The data behind a page: from a run's history to the sources that its scripts draw from; it lays out nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource

from fastcluster_lm.errors import RunFolderError
from fastcluster_lm.views.report.frames import MapFrames, label_names, read_frames, thinned
from fastcluster_lm.views.report.history import RunHistory
from fastcluster_lm.views.report.packing import pack, rounded
from fastcluster_lm.views.report.series import score_blocks, training_curves

# (points (layers, n, 2), task (n,)) of one split -> points by cluster and task (layers, k, k)
Tabulate = Callable[[np.ndarray, np.ndarray], np.ndarray]
# a page holds at most this many map coordinates; maps are left out evenly beyond it
MOST_COORDINATES = 2_000_000


def _empty(*columns: str) -> Any:
    return field(default_factory=lambda: ColumnDataSource({column: [] for column in columns}))


@dataclass
class Sources:
    """What a page draws from; maps and scores hold one array an entry, whose shapes are those of their makers."""

    frames: ColumnDataSource = _empty("step", "set", "warm")
    maps: ColumnDataSource = _empty("points", "tables")
    sets: ColumnDataSource = _empty()
    bounds: ColumnDataSource = _empty("x", "y", "half")
    probes: ColumnDataSource = _empty("step")
    scores: ColumnDataSource = _empty("values")
    series: ColumnDataSource = _empty("name", "settled")
    training: ColumnDataSource = _empty("step", "loss", "val_accuracy", "step_ms", "probe_ms", "probe_wait_ms")
    packed: ColumnDataSource = _empty("target", "column", "bytes", "type", "entries", "moving")


class RunSources:
    """The sources of one run, filled from its history as often as it grows.

    texts are the run's instructions, training first; tabulate counts clusters by task, None where nobody does
    """

    def __init__(self, history: RunHistory, *, texts: Sequence[str] = (), tabulate: Tabulate | None = None) -> None:
        self.history = history
        self.models = Sources()
        self.n_shown = 0
        self._texts, self._tabulate = texts, tabulate
        self._tables: dict[int, np.ndarray] = {}

    @property
    def has_tables(self) -> bool:
        """Say whether clusters are counted by task."""
        return self._tabulate is not None

    def names(self) -> dict[str, list[str]]:
        """Name the values of each label kind."""
        return label_names(
            self.history.config,
            ("task", "distribution", "input", "output", "instruction", "right", "correct", "hard", "split"),
            self._texts,
        )

    def fill(self, *, packed: bool) -> None:
        """Take over all that the history holds, as bytes for a file or as arrays for a live page.

        Errors: RunFolderError if a map is damaged
        """
        history, models = self.history, self.models
        frames = self._read_frames()
        blocks = score_blocks(history.score_rows, history.n_layers)
        points = np.stack(frames.points) if frames.points else None
        tables = np.stack(frames.tables) if frames.tables else None
        models.sets.data = {kind: [one.get(kind) for one in frames.sets] for kind in _kinds(frames)}
        models.bounds.data = dict(zip(("x", "y", "half"), frames.bounds, strict=True))
        models.probes.data = {"step": blocks.steps}
        models.series.data = {"name": blocks.series, "settled": list(blocks.settled)}
        models.training.data = training_curves(history.step_rows)
        entries = {"points": (models.maps, points), "tables": (models.maps, tables)}
        entries["values"] = (models.scores, rounded(blocks.values) if packed else blocks.values)
        if packed:
            rows = [
                (
                    "scores" if source is models.scores else "maps",
                    name,
                    pack(array, moving=name == "points"),
                    array.dtype.name,
                    len(array),
                    name == "points",
                )
                for name, (source, array) in entries.items()
                if array is not None
            ]
            columns = ("target", "column", "bytes", "type", "entries", "moving")
            models.packed.data = {name: [row[i] for row in rows] for i, name in enumerate(columns)}
        else:
            models.scores.data = {"values": [block.reshape(-1) for block in blocks.values]}
            models.maps.data = {
                name: [one.reshape(-1) for one in array]
                for name, (source, array) in entries.items()
                if source is models.maps and array is not None
            }
        # last, since the page draws when these have come
        models.frames.data = {"step": frames.steps, "set": frames.set_of, "warm": frames.warm}

    def _read_frames(self) -> MapFrames:
        """Read the maps; a run within store.max_mib may let go of one between its listing and its reading."""
        history = self.history
        while True:
            try:
                return self._frames_of(history.map_steps)
            except RunFolderError:
                there = set(history.folder.map_steps())
                if there.issuperset(history.map_steps):
                    raise
                history.map_steps = [step for step in history.map_steps if step in there]

    def _frames_of(self, steps: Sequence[int]) -> MapFrames:
        if steps:
            per_map = self.history.read_map(steps[0])[0]["points"].size * len(self.history.positions)
            steps = thinned(steps, max(2, MOST_COORDINATES // per_map))
        self.n_shown = len(steps)
        frames = read_frames(self.history, steps)
        if self._tabulate is not None and frames.steps:
            for step in frames.steps:
                if step not in self._tables:
                    self._tables[step] = self._count(step)
            frames.tables = [self._tables[step] for step in frames.steps]
        return frames

    def _count(self, step: int) -> np.ndarray:
        assert self._tabulate is not None
        arrays, _ = self.history.read_map(step)
        of_val = arrays["is_val"] == 1
        # all layers of the first token, then those of the next: (P * layers, n, 2)
        points = np.concatenate([arrays[name] for name in self.history.points_names])[:, of_val]
        # a layer whose states were not finite has no map, and so no clusters
        known = np.isfinite(points).all((1, 2))
        counted = self._tabulate(np.where(known[:, None, None], points, 0.0), arrays["task"][of_val])
        return np.where(known[:, None, None], counted, 0).astype(np.uint16)


def _kinds(frames: MapFrames) -> list[str]:
    return list(dict.fromkeys(kind for one in frames.sets for kind in one))
