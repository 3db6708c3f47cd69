"""A run's maps as 16-bit frames and the labels of their points, ready for a page; it reads maps and draws nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, UInt16

from fastcluster_lm.errors import RunFolderError
from fastcluster_lm.store import FIRST_VAL_ID
from fastcluster_lm.views.report.history import RunHistory

TOP = 65535
# the square around a layer's points is this much wider than they are, so that no mark is cut off or behind the heading
MARGIN = 1.16
# what is in a stored map beside labels
NO_LABELS = ("points", "ids")
# labels of two kinds that a map may hold: what their values 0 and 1 mean
TRUTHS = {
    "right": ("wrong", "right"),
    "correct": ("wrong", "right"),
    "hard": ("easy", "hard"),
    "split": ("training", "validation"),
}


@dataclass
class MapFrames:
    """All maps of a run in one frame for each layer.

    Shapes: each of points (2, layers, P * n) uint16, x before y, the n points of the first token before those of the
            next, 0 and 0 where a layer has no map; bounds (3, layers): centre x, centre y, half width; warm by token
    Names:  sets holds label columns, uint16 (n,) each; frame i shows the points of sets[set_of[i]]
    """

    steps: list[int] = field(default_factory=list)
    warm: list[list[bool]] = field(default_factory=list)
    points: list[UInt16[np.ndarray, "2 layers n"]] = field(default_factory=list)
    set_of: list[int] = field(default_factory=list)
    sets: list[dict[str, np.ndarray]] = field(default_factory=list)
    bounds: Float[np.ndarray, "3 layers"] = field(default_factory=lambda: np.zeros((3, 0), np.float32))
    tables: list[np.ndarray] = field(default_factory=list)


def read_frames(history: RunHistory, steps: Sequence[int]) -> MapFrames:
    """Read the maps of these steps, all in the bounds that hold them all.

    Errors: RunFolderError if a map is damaged
    """
    frames = MapFrames()
    found: list[np.ndarray] = []
    first: tuple[int, ...] = ()
    for step in steps:
        arrays, notes = history.read_map(step)
        first = first or arrays["points"].shape
        frames.steps.append(step)
        frames.warm.append([notes.get(name.replace("points", "warm", 1)) == "true" for name in history.points_names])
        if arrays["points"].shape != first:
            raise RunFolderError(
                f"the maps of {history.folder.path} differ in shape: {first} at step {frames.steps[0]}, "
                f"{arrays['points'].shape} at step {step}; one of them is another run's"
            )
        frames.set_of.append(_place(frames.sets, _labels(arrays, history.config)))
        points = np.concatenate([arrays[name] for name in history.points_names], 1)
        found.append(np.moveaxis(points, 2, 0))
    if found:
        frames.bounds = bounds_of(found)
        frames.points = [quantise(points, frames.bounds) for points in found]
    return frames


def bounds_of(frames: Sequence[Float[np.ndarray, "2 layers n"]]) -> Float[np.ndarray, "3 layers"]:
    """Find the square that holds every layer's points in every frame, with a margin.

    Shapes: frames of (2, layers, n), NaN where a layer has no map -> (3, layers) float32: centre x, y, half width
    """
    low = np.min([np.where(np.isfinite(points), points, np.inf).min(-1) for points in frames], axis=0)
    high = np.max([np.where(np.isfinite(points), points, -np.inf).max(-1) for points in frames], axis=0)
    # of a layer that never had a map
    low, high = (np.where(np.isfinite(ends), ends, 0.0) for ends in (low, high))
    # layer 0 has few distinct points and may have one place for them all
    half = np.maximum((high - low).max(0) / 2 * MARGIN, 1e-6)
    return np.concatenate([(low + high) / 2, half[None]]).astype(np.float32)


def quantise(
    points: Float[np.ndarray, "2 layers n"], bounds: Float[np.ndarray, "3 layers"]
) -> UInt16[np.ndarray, "2 layers n"]:
    """Write coordinates as 16-bit steps between the bounds: 0 is the lower end, 65535 the upper; no other rounding.

    The margin leaves both ends free, so that 0 and 0 is where NaN goes, and is not drawn
    Units:  off by at most half a step, half width / 65535
    """
    low, width = bounds[:2, :, None].astype(np.float64) - bounds[2][None, :, None], 2.0 * bounds[2][None, :, None]
    known = np.where(np.isfinite(points), points, low)
    return np.clip(np.rint((known - low) / width * TOP), 0, TOP).astype(np.uint16)


def label_names(config: Mapping[str, Any], kinds: Sequence[str], texts: Sequence[str] = ()) -> dict[str, list[str]]:
    """Name the values of each label kind as the run's task set does; kinds without names are left out."""
    if "attached" in config:
        # labels of a caller, who named them
        return {kind: [*names] for kind, names in {**config["attached"]["names"], **TRUTHS}.items() if kind in kinds}
    tasks = config["taskset"]["tasks"]
    known = {
        "task": [task["name"] for task in tasks],
        "distribution": [expression for task in tasks for expression in task["expressions"]],
        "input": list(config["taskset"]["inputs"]),
        "output": list(config["taskset"]["outputs"]),
        "instruction": list(texts),
        **{kind: list(words) for kind, words in TRUTHS.items()},
    }
    return {kind: known[kind] for kind in kinds if kind in known}


def thinned(steps: Sequence[int], most: int) -> list[int]:
    """Keep at most so many steps, evenly, the first and the last among them."""
    if len(steps) <= most:
        return list(steps)
    return [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, max(most, 2)).round().astype(int))]


def _labels(arrays: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Take what is known of each point: one whole number a point and kind."""
    n_points = arrays["points"].shape[1]
    kept = {
        {"is_val": "split"}.get(kind, kind): values
        for kind, values in arrays.items()
        if kind not in NO_LABELS and values.shape == (n_points,) and values.dtype.kind in "biu"
    }
    if "ids" in arrays and "taskset" in config:
        kept["instruction"] = _instructions(arrays["ids"], config)
    return {kind: values.astype(np.uint32 if kind == "instruction" else np.uint16) for kind, values in kept.items()}


def _instructions(ids: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """Number each point's instruction: those of training first, then those of validation."""
    n_inputs = len(config["taskset"]["inputs"])
    n_distributions = sum(len(task["expressions"]) for task in config["taskset"]["tasks"])
    is_val = ids >= FIRST_VAL_ID
    first_val = n_distributions * config["data"]["n_train_instructions"]
    return np.where(is_val, ids - FIRST_VAL_ID, ids) // n_inputs + np.where(is_val, first_val, 0)


def _place(sets: list[dict[str, np.ndarray]], labels: dict[str, np.ndarray]) -> int:
    """Find the set that has these labels, from the newest on, or add it."""
    for place in range(len(sets) - 1, -1, -1):
        if sets[place].keys() == labels.keys() and all(np.array_equal(sets[place][k], labels[k]) for k in labels):
            return place
    sets.append(labels)
    return len(sets) - 1
