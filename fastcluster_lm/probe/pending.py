"""A probe on its way: what it scores, what its device was given to do, and the rows and map once that has come."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcluster_lm.kernels.deferred import Checks
from fastcluster_lm.kernels.transfer import Fetch
from fastcluster_lm.probe.samples import Sample
from fastcluster_lm.probe.warm_map import WarmMap
from fastcluster_lm.probe.whole_layers import FINITE, PLACED, Whole, describe_broken, whole_layers
from fastcluster_lm.scores.clusters import SPACES, PendingSpace, Split
from fastcluster_lm.scores.geometry import class_distance_normalized_variance

# the columns of group "all" that a map's neighbours and its descent give, by space
MAP_COLUMNS = {"hidden": ("intrinsic_dimension", "neighbor_overlap"), "map": ("kl", "trustworthiness")}
# labels that are stored beside a map's points, where there are such
MAP_LABELS = ("task", "distribution", "input", "output")
# what is known of a row's points without a look at them; all else is None where a layer's states are not finite
KNOWN = (
    "step",
    "layer",
    "split",
    "space",
    "group",
    "labels",
    "tier",
    "source",
    "age_steps",
    "n_points",
    "n_clusters",
    "engine",
)


@dataclass(frozen=True)
class Taken:
    """The points of one probe, with the states of the weights at its step; empty where a step probe comes too early.

    source, age_steps: of the training points
    """

    step: int
    full: bool
    samples: dict[str, Sample]
    source: str
    age_steps: float

    def copied(self) -> "Taken":
        """Copy the states, whose buffers training and the next probe write into."""
        samples = {name: replace(one, states=one.states.clone()) for name, one in self.samples.items()}
        return replace(self, samples=samples)


@dataclass(frozen=True)
class ProbeResult:
    """What one probe gave.

    Shapes: maps: points (layers, n_train + n_val, 2) float32, and (n_train + n_val,) int64 labels and the instances'
            numbers beside them; empty for a step probe
    Units:  seconds of wall clock for the whole probe, the states' forward passes included
    skipped: the layers that were not scored, and why; None where all were
    """

    rows: list[dict[str, Any]]
    maps: dict[str, np.ndarray]
    warm: bool
    seconds: float
    skipped: str | None = None


class PendingProbe:
    """What a device was given to do for one probe; what is still on it is on its way to the host.

    spaces: of hidden states and of the map, in the order of the rows
    columns: (layers,) of the map and of the points it shows; points: (layers, n, 2); shown: the samples they place;
            all empty without a map
    spread: (layers,) CDNV by split, kind of labels and space
    """

    def __init__(
        self,
        taken: Taken,
        spaces: list[PendingSpace],
        columns: dict[str, Tensor],
        spread: dict[tuple[str, str, str], Tensor],
        points: Tensor | None,
        shown: list[Sample],
        *,
        warm: bool,
        checks: Checks,
    ) -> None:
        self.taken, self.warm, self.points, self.shown = taken, warm, points, shown
        self._spaces, self._columns, self._spread, self._checks = spaces, columns, spread, checks
        # by split, once the columns are here; empty where all is finite
        self._finite: dict[str, list[bool]] = {}
        self._unplaced: list[int] = []
        self._sizes = [len(space.tensors()) for space in spaces]
        self._fetch = Fetch(
            [
                *checks.values(),
                *(tensor for space in spaces for tensor in space.tensors()),
                *columns.values(),
                *spread.values(),
                *([] if points is None else [points]),
            ]
        )

    def ready(self) -> bool:
        """Whether all has come; this waits for nothing."""
        return self._fetch.ready()

    def columns(self) -> dict[str, Tensor]:
        """Give the map's columns on the host, once they have come, and FINITE: 1 for each layer that was scored.

        Errors: what a check that was put off finds: DataError for too few points, say
        """
        fetched = self._fetch.wait()
        checked = len(self._checks.values())
        self._checks.settle(fetched[:checked])
        first = checked + sum(self._sizes)
        columns = dict(zip(self._columns, fetched[first:], strict=False))
        named = [name for name in columns if name.startswith(f"{FINITE}/")]
        self._finite = {name.partition("/")[2]: columns.pop(name).tolist() for name in named}
        if self._finite:
            columns[FINITE] = torch.tensor(list(self._finite.values())).all(0)
        unplaced = columns.pop(PLACED, None)
        self._unplaced = [] if unplaced is None else (~unplaced).nonzero()[:, 0].tolist()
        return columns

    @property
    def skipped(self) -> str | None:
        """The layers that are not scored, and why, once the columns are here; None where all are."""
        return describe_broken(self._finite)

    def _broken(self) -> set[int]:
        return {layer for own in self._finite.values() for layer, finite in enumerate(own) if not finite}

    def rows(self, columns: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Make all rows, with the map's columns in those of group "all", None where they are undefined."""
        fetched = iter(self._fetch.wait()[len(self._checks.values()) :])
        rows = []
        for space, size in zip(self._spaces, self._sizes, strict=True):
            rows += space.finish([next(fetched) for _ in range(size)]).rows
        for _ in self._columns:
            next(fetched)
        values = {name: tensor.tolist() for name, tensor in columns.items()}
        spread = {key: next(fetched).tolist() for key in self._spread}
        taken = self.taken
        for row in rows:
            own = taken.source if row["split"] == "train" else "fresh"
            if row["group"] == "all":
                found = {name: values[name][row["layer"]] for name in MAP_COLUMNS[row["space"]] if name in values}
                if spread:
                    found["cdnv"] = spread[row["split"], row["labels"], row["space"]][row["layer"]]
                row.update({name: value if math.isfinite(value) else None for name, value in found.items()})
            row["warm"] = self.warm and (row["space"] == "map" or not taken.full)
            row.update(step=taken.step, tier="full" if taken.full else "step", source=own)
            row["age_steps"] = taken.age_steps if own == "batch" else 0
        return self._without_broken(rows)

    def _without_broken(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Take out of the rows of layers that were not scored what came of those that stood in for them."""
        broken, unplaced = self._broken(), set(self._unplaced)
        if not broken | unplaced:
            return rows
        return [
            {name: value if name in KNOWN else None for name, value in row.items()}
            if row["layer"] in broken or (row["space"] == "map" and row["layer"] in unplaced)
            else row
            for row in rows
        ]

    def maps(self) -> dict[str, np.ndarray]:
        """Give the map to be stored, with what is known of its points."""
        if self.points is None or not self.taken.full:
            return {}
        kinds = [kind for kind in MAP_LABELS if kind in self.shown[0].labels]
        kept = {kind: np.concatenate([sample.labels[kind] for sample in self.shown]) for kind in kinds}
        sizes = [len(sample.ids) for sample in self.shown]
        is_val = np.repeat([int(sample.name == "val") for sample in self.shown], sizes)
        ids = torch.cat([sample.ids for sample in self.shown]).numpy()
        points = self._fetch.wait()[-1].numpy()
        broken = sorted(self._broken())
        if broken:
            points = points.copy()
            points[broken] = np.nan
        return {"points": points, "is_val": is_val, "ids": ids, **kept}


def launch_full(
    taken: Taken,
    warm_map: WarmMap,
    start: Callable[[str, dict[str, Split], Whole | None], PendingSpace],
    *,
    key_frame: bool,
    checks: Checks,
    wanted: Collection[str] = SPACES,
) -> PendingProbe:
    """Give the device a full probe: hidden states, their map, and what both say of geometry.

    start begins the scores of a space from its splits, the first of which is the bank; wanted: the spaces that have
    rows, whose columns do not depend on the other's; no map is drawn that is not. A layer whose states are not finite
    is not scored, and the others are as they would be without it
    """
    samples, whole, finite = whole_layers(taken.samples)
    asked = {f"{FINITE}/{name}": own for name, own in finite.items()}
    spaces = []
    if "hidden" in wanted:
        spaces.append(start("hidden", {name: sample.split() for name, sample in samples.items()}, whole))
    shown = [sample.shown() for sample in samples.values()]
    joint, ids = torch.cat([part.states for part in shown], 1), torch.cat([part.ids for part in shown])
    if "map" not in wanted:
        columns = warm_map.measure(joint) | asked
        return PendingProbe(
            taken, spaces, columns, class_spreads({"hidden": samples}), None, [], warm=False, checks=checks
        )
    points, columns, warm = warm_map.draw(joint, ids, key_frame=key_frame, whole=whole)
    columns |= asked
    parts = points.split([len(part.ids) for part in shown], dim=1)
    on_map = {part.name: part.placed(place) for part, place in zip(shown, parts, strict=True)}
    spaces.append(start("map", {name: sample.split() for name, sample in on_map.items()}, whole))
    placed = {"hidden": samples, "map": on_map}
    spread = class_spreads({space: own for space, own in placed.items() if space in wanted})
    return PendingProbe(taken, spaces, columns, spread, points, shown, warm=warm, checks=checks)


def class_spreads(spaces: dict[str, dict[str, Sample]]) -> dict[tuple[str, str, str], Tensor]:
    """Give the CDNV of every split, kind of labels and space.

    Shapes: samples by space and split -> (layers,) float64 by (split, labels, space), on the device of the points
    """
    return {
        (name, kind, space): class_distance_normalized_variance(sample.states, torch.from_numpy(codes))
        for space, samples in spaces.items()
        for name, sample in samples.items()
        for kind, codes in sample.labels.items()
    }
