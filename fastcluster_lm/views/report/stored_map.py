"""A stored map, held against itself and against run.toml before anybody draws it; it draws nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastcluster_lm.errors import RunFolderError
from fastcluster_lm.store import RunFolder
from fastcluster_lm.views.positions import points_name, positions_of

# arrays that hold one whole number a point; what a newer version adds is let be
OF_POINTS = ("ids", "is_val", "task", "distribution", "input", "output", "task_input", "right", "correct", "hard")
# labels number names, and are drawn as 16 bits
MOST_LABELS = 2**16


def read_map(folder: RunFolder, step: int, config: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read the arrays of a step's maps and the text beside them.

    Shapes: points (layers, n, 2), and so of each further token, all that is said of points (n,)
    Errors: RunFolderError if there are none, the file is damaged, or its arrays do not fit each other or run.toml
    """
    arrays, notes = folder.read_map(step)
    try:
        names = [points_name(config, position) for position in positions_of(config)]
        _check(arrays, names, config["model"]["n_layers"] + 1, _label_counts(config))
    except ValueError as error:
        raise RunFolderError(f"the map of step {step} in {folder.path} is damaged: {error}") from error
    return arrays, notes


def _check(arrays: Mapping[str, np.ndarray], places: Sequence[str], n_layers: int, counts: Mapping[str, int]) -> None:
    for name in (*places, "task", "is_val"):
        if name not in arrays:
            raise ValueError(f"expected an array {name}, found {', '.join(sorted(arrays)[:9]) or 'none at all'}")
    n = arrays[places[0]].shape[1] if arrays[places[0]].ndim > 1 else 0
    for name in places:
        points = arrays[name]
        if points.dtype.kind != "f" or points.ndim != 3 or points.shape[2] != 2 or 0 in points.shape:
            raise ValueError(f"{name}: expected floats of shape (layers, n, 2), found {_described(points)}")
        if len(points) != n_layers:
            raise ValueError(f"{name}: expected {n_layers} layers, as run.toml says, found {len(points)}")
        if points.shape[1] != n:
            raise ValueError(f"{name}: expected {n} points, as {places[0]} has, found {points.shape[1]}")
    for name in OF_POINTS:
        if name not in arrays:
            continue
        values = arrays[name]
        if values.dtype.kind not in "biu" or values.shape != (n,):
            raise ValueError(
                f"{name}: expected whole numbers of shape ({n},), as points has, found {_described(values)}"
            )
        most = counts.get(name, MOST_LABELS)
        if int(values.min()) < 0 or int(values.max()) >= most:
            raise ValueError(f"{name}: expected numbers from 0 to {most - 1}, found {values.min()} to {values.max()}")
    if not arrays["is_val"].any():
        raise ValueError("is_val: expected points of validation, found none")


def _label_counts(config: Mapping[str, Any]) -> dict[str, int]:
    """Count the values that each kind of number can have in this run."""
    # room for instances beyond FIRST_VAL_ID
    known = {"is_val": 2, "ids": 2**62}
    if "attached" in config:
        # no more labels than instances, whatever they are called
        n_instances = sum(config["attached"]["instances"].values())
        return {**dict.fromkeys(OF_POINTS, min(n_instances, MOST_LABELS)), **known}
    taskset = config["taskset"]
    return known | {
        "task": len(taskset["tasks"]),
        "distribution": sum(len(task["expressions"]) for task in taskset["tasks"]),
        "input": len(taskset["inputs"]),
        "output": len(taskset["outputs"]),
    }


def _described(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"
