"""A probe from its captured states to its rows: what its device was given to do, and what was fetched of it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fastcluster_lm.kernels.deferred import Checks
from fastcluster_lm.kernels.transfer import Fetch
from fastcluster_lm.probe.whole_layers import describe_broken
from fastcluster_lm.scores.points import Points, nowhere
from fastcluster_lm.scores.rows import PendingSpace

# the columns of one number a layer, and the space in whose rows of group "all" each stands
LAYER_COLUMNS = {"hidden": ("intrinsic_dimension", "neighbor_overlap"), "map": ("kl", "trustworthiness")}
# labels that are stored beside a map's points, where there are such
MAP_LABELS = ("task", "distribution", "input", "output")
# what is known of a row's points without a look at them; all else is None where a layer's states are not finite
KNOWN = {
    *("step", "layer", "split", "space", "group", "labels", "position"),
    *("tier", "source", "age_steps", "n_points", "n_clusters", "engine"),
}


@dataclass(frozen=True)
class Captured:
    """The points of one probe, by split, where the weights at its step put them; the first split is the bank.

    points: of all splits, or of the training points on the map for a step probe, none where that comes too early
    full, key_frame: what is scored: all there is, on a map that is drawn anew
    source, age_steps: of the training points
    position: the token whose states these are; None where several tokens' stand side by side
    """

    step: int
    points: dict[str, Points]
    full: bool = True
    key_frame: bool = True
    source: str = "fresh"
    age_steps: float = 0.0
    position: str | None = None

    def without_states(self) -> "Captured":
        """Give what its rows say of it."""
        return replace(self, points={})

    def copied(self) -> "Captured":
        """Copy the states, whose buffers training and the next probe write into."""
        return replace(self, points={name: replace(own, X=own.X.clone()) for name, own in self.points.items()})


@dataclass(frozen=True)
class ProbeResult:
    """What one probe gave.

    Shapes: maps: points (layers, n_train + n_val, 2) float32, and (n_train + n_val,) int64 labels and the instances'
            numbers beside them; points/NAME of each further position; empty for a step probe
    Units:  seconds of wall clock for the whole probe, the states' forward passes included
    skipped: the layers that were not scored, and why; None where all were
    warm: whether the map went on from the last one; also_warm: those of further positions, by name
    """

    rows: list[dict[str, Any]]
    maps: dict[str, np.ndarray]
    warm: bool
    seconds: float
    skipped: str | None = None
    also_warm: dict[str, bool] = field(default_factory=dict)

    def map_notes(self) -> dict[str, str]:
        """Say what stands beside the maps in their file."""
        others = {f"warm/{name}": warm for name, warm in self.also_warm.items()}
        return {name: str(warm).lower() for name, warm in {"warm": self.warm, **others}.items()}


class Found(NamedTuple):
    """What the device work of one probe gives: on the device, or once fetched on the host.

    spaces:  what the rows of each space need, in the order of PendingSpace.tensors
    columns: of the map and of the points it shows, by name
    spread:  CDNV by split, kind of labels and space
    place:   of the points on the map
    placed:  whether a layer has a place on the map of a step probe; None: all have
    finite:  by split whether a layer's states are finite; empty where it was known at the launch that all are
    warm:    whether the map went on from the last one
    """

    spaces: list[list[Tensor]]
    columns: dict[str, Float[Tensor, " layers"]]
    spread: dict[tuple[str, str, str], Float[Tensor, " layers"]]
    place: Float[Tensor, "layers n 2"] | None = None
    placed: Bool[Tensor, " layers"] | None = None
    finite: Mapping[str, Bool[Tensor, " layers"]] = MappingProxyType({})
    warm: bool = False

    def tensors(self) -> list[Tensor]:
        """List all of them, in the order in which `with_tensors` takes them."""
        named = chain(self.columns.values(), self.spread.values(), self.finite.values())
        return [*chain(*self.spaces), *named, *(one for one in (self.place, self.placed) if one is not None)]

    def with_tensors(self, came: Iterator[Tensor]) -> "Found":
        """Put other tensors in their places."""
        return Found(
            [[next(came) for _ in own] for own in self.spaces],
            {name: next(came) for name in self.columns},
            {key: next(came) for key in self.spread},
            finite={name: next(came) for name in self.finite},
            place=None if self.place is None else next(came),
            placed=None if self.placed is None else next(came),
            warm=self.warm,
        )

    def broken(self) -> set[int]:
        """Give the layers that could not be scored, once all is on the host: not finite in some split."""
        return {layer for own in self.finite.values() for layer, finite in enumerate(own.tolist()) if not finite}


class PendingProbe:
    """A probe whose device work is launched but not yet fetched, and what its rows say beside what was found.

    captured: without its states, which whoever shares a device between streams must keep until all has come
    spaces: of hidden states and of the map, in the order of the rows; shown: the points that the map places
    """

    def __init__(
        self,
        captured: Captured,
        spaces: list[PendingSpace],
        found: Found,
        shown: list[Points],
        checks: Checks,
    ) -> None:
        self.captured, self.spaces = captured.without_states(), spaces
        self._shown = [own.at(nowhere(len(own))) for own in shown]
        self._found, self._checks = found, checks
        self._fetch = Fetch([*checks.values(), *found.tensors()])

    def ready(self) -> bool:
        """Whether all has come; this waits for nothing."""
        return self._fetch.ready()

    def fetch(self) -> Found:
        """Wait for what was found, and judge it.

        Errors: what a check that was put off finds: DataError for too few points, say
        """
        came = iter(self._fetch.wait())
        self._checks.settle([next(came) for _ in self._checks.values()])
        return self._found.with_tensors(came)

    def result(self, found: Found) -> ProbeResult:
        """Make rows and map of what was fetched; their seconds are for whoever saw the probe begin."""
        finite = {name: own.tolist() for name, own in found.finite.items()}
        return ProbeResult(self._rows(found), self._maps(found), found.warm, 0.0, describe_broken(finite))

    def _rows(self, found: Found) -> list[dict[str, Any]]:
        """Make all rows, with one layer's numbers in those of group "all", None where they are undefined."""
        captured, broken = self.captured, found.broken()
        # of each space: agreement of its clusters, and what its neighbours voted
        rows = [row for space, own in zip(self.spaces, found.spaces, strict=True) for row in space.finish(own)]
        columns = {name: tensor.tolist() for name, tensor in found.columns.items()}
        spread = {key: tensor.tolist() for key, tensor in found.spread.items()}
        unplaced = set() if found.placed is None else set((~found.placed).nonzero()[:, 0].tolist())
        for row in rows:
            layer, source = row["layer"], captured.source if row["split"] == "train" else "fresh"
            if row["group"] == "all":
                own = {name: columns[name][layer] for name in LAYER_COLUMNS[row["space"]] if name in columns}
                if spread:
                    own["cdnv"] = spread[row["split"], row["labels"], row["space"]][layer]
                row.update({name: value if math.isfinite(value) else None for name, value in own.items()})
            row["warm"] = found.warm and (row["space"] == "map" or not captured.full)
            row.update(step=captured.step, tier="full" if captured.full else "step", source=source)
            row["age_steps"] = captured.age_steps if source == "batch" else 0
            row["position"] = captured.position
            # the numbers of a layer that another stood in for are that one's
            if layer in broken or (row["space"] == "map" and layer in unplaced):
                row.update(dict.fromkeys(row.keys() - KNOWN))
        return rows

    def _maps(self, found: Found) -> dict[str, np.ndarray]:
        """Give the map to be stored, with what is known of its points."""
        shown = self._shown
        if found.place is None:
            return {}
        points = found.place.numpy()  # (layers, n, 2)
        if broken := sorted(found.broken()):
            points = points.copy()
            points[broken] = np.nan
        kinds = [kind for kind in MAP_LABELS if kind in shown[0].labels]
        return {
            "points": points,
            "is_val": np.repeat([int(own.name == "val") for own in shown], [len(own) for own in shown]),
            "ids": numbers_of(shown).numpy(),
            **{kind: np.concatenate([own.labels[kind] for own in shown]) for kind in kinds},
        }


def numbers_of(splits: list[Points]) -> Tensor:
    """Join the numbers of the points of all splits.

    Shapes: -> (n,) i64 on the host
    """
    ids = [own.ids for own in splits if own.ids is not None]
    assert len(ids) == len(splits), "every source numbers its points"
    return torch.cat(ids)
