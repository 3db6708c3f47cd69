"""Label and number the points that are probed, and choose which the map shows; their states come from a source."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from fastcluster_lm.data import Instances
from fastcluster_lm.errors import ConfigError, ShapeError, UsageError, nearest_name
from fastcluster_lm.scores.contingency import factorize, host_array
from fastcluster_lm.scores.points import Points, nowhere
from fastcluster_lm.store import FIRST_VAL_ID

# what can be known of an instance; only its task must be
KINDS = ("task", "distribution", "input", "output", "instruction")


def label_kinds(instances: Instances, n_inputs: int) -> dict[str, Int[np.ndarray, " n"]]:
    """Give each instance's label of every kind that is scored, on the host.

    Shapes: n instances -> (n,) by kind
    """
    kinds = {
        "task": instances.task,
        "distribution": instances.distribution,
        "input": instances.input,
        "output": instances.output,
        "task_input": instances.task * n_inputs + instances.input,
    }
    return {kind: codes.cpu().numpy() for kind, codes in kinds.items()}


def points_of(
    instances: Instances, split: str, n_inputs: int, index: Int[Tensor, " n"], on_map: Int[Tensor, " m"]
) -> Points:
    """Take what is known of instances of a task set; their states come later.

    Shapes: n instances, index (n,) their numbers within the split, on_map (m,) which of them the map shows
    """
    return Points(
        split,
        nowhere(len(instances)),
        label_kinds(instances, n_inputs),
        # the two splits number their instructions apart, and share none
        instances.instruction.cpu().numpy(),
        ids=index.cpu() + (FIRST_VAL_ID if split == "val" else 0),
        on_map=on_map.cpu(),
    )


def labelled_points(
    given: Mapping[str, Any], *, map_points: int, n_neighbors: int, seed: int
) -> tuple[dict[str, Points], dict[str, list[str]]]:
    """Number the labels of all splits together, and choose which instances the map shows: equally many of each kind.

    given: by split, task labels (n,) or a mapping with `task` and any of the other KINDS, (n,) each
    Gives the points by split, and by kind the labels' names in the order of their numbers
    Errors: UsageError for an unknown kind, one task alone, too few instances of a task; ShapeError for unlike lengths
    """
    named = {name: _named(labels, name) for name, labels in given.items()}
    kinds = list(next(iter(named.values())))
    for name, labels in named.items():
        if list(labels) != kinds:
            raise UsageError(
                f"labels: expected the same kinds in each split, got {list(labels)} in {name}, not {kinds}"
            )
    sizes = [len(labels["task"]) for labels in named.values()]
    codes, names = {}, {}
    for kind in kinds:
        whole = np.concatenate([labels[kind] for labels in named.values()])
        codes[kind] = np.split(factorize(whole)[0], np.cumsum(sizes)[:-1])
        names[kind] = [str(name) for name in np.unique(whole)]
    if len(np.unique(np.concatenate(codes["task"]))) < 2:
        raise UsageError(
            f"labels: expected two tasks or more, got one, {names['task'][0]!r}; clusters of one label cannot be told "
            "apart"
        )
    points: dict[str, Points] = {}
    for at, (name, n) in enumerate(zip(named, sizes, strict=True)):
        own = {kind: codes[kind][at] for kind in kinds}
        instructions = own.pop("instruction", np.arange(n))
        if "input" in own:
            own["task_input"] = own["task"] * (1 + max(int(part.max()) for part in codes["input"])) + own["input"]
        fewest, worst = fewest_partners(own["task"], instructions)
        if fewest < n_neighbors:
            of_others = " of other instructions" if "instruction" in kinds else ""
            raise UsageError(
                f"labels: expected {n_neighbors} other instances{of_others} for each of a task in {name}, as "
                f"scores.n_neighbors asks for, got {fewest} for one of task {names['task'][own['task'][worst]]!r}; "
                "give more, or lower it"
            )
        shown = torch.from_numpy(_balanced(own, min(map_points, n), seed))
        # the second split's numbers begin beyond all that the first could have
        points[name] = Points(
            name, nowhere(n), own, instructions, ids=torch.arange(n) + at * FIRST_VAL_ID, on_map=shown
        )
    return points, names


def check_reachable(points: Points, n_neighbors: int) -> None:
    """Refuse a k for which even perfect clusters could not fill every neighbour list with the query's own task.

    Errors: ConfigError naming the largest k that could
    """
    labels = {kind: host_array(codes) for kind, codes in points.labels.items()}
    groups = {
        "input": labels["input"],
        "input and output": labels["input"] * (labels["output"].max() + 1) + labels["output"],
    }
    apart = {} if points.instructions is None else {"other instructions": host_array(points.instructions)}
    if len(np.unique(labels["distribution"])) > len(np.unique(labels["task"])):
        apart["other distributions"] = labels["distribution"]
    for group_name, group in groups.items():
        for apart_name, identity in apart.items():
            cell = np.unique(np.stack([labels["task"], group]), axis=1, return_inverse=True)[1].ravel()
            fewest, _ = fewest_partners(cell, identity)
            if fewest < n_neighbors:
                raise ConfigError(
                    f"scores.n_neighbors: expected at most {fewest}, the fewest points of one task and "
                    f"{group_name} under {apart_name} in the probe set, got {n_neighbors}; raise probe.n_points or "
                    "lower it"
                )


def fewest_partners(cell: Int[np.ndarray, " n"], identity: Int[np.ndarray, " n"]) -> tuple[int, int]:
    """Count, for the worst-placed point, the points of its cell that have another identity, and say which one it is.

    Shapes: cell (n,), a task's or finer, identity (n,)
    """
    both = np.unique(np.stack([cell, identity]), axis=1, return_inverse=True)[1].ravel()
    partners = np.bincount(cell)[cell] - np.bincount(both)[both]
    return int(partners.min()), int(partners.argmin())


def _named(given: Any, split: str) -> dict[str, np.ndarray]:
    labels = given if isinstance(given, Mapping) else {"task": given}
    if unknown := [kind for kind in labels if kind not in KINDS]:
        raise UsageError(f"labels: expected {', '.join(KINDS)}, got {unknown[0]!r}{nearest_name(unknown[0], KINDS)}")
    if "task" not in labels:
        raise UsageError(f"labels: expected task among them, got {', '.join(labels) or 'none'}")
    arrays = {kind: host_array(labels[kind]) for kind in KINDS if kind in labels}
    n = len(arrays["task"])
    for kind, values in arrays.items():
        if values.shape != (n,):
            raise ShapeError(f"labels: {kind} of {split} has shape {values.shape}; expected ({n},), one an instance")
    return arrays


def _balanced(labels: Mapping[str, np.ndarray], m: int, seed: int) -> Int[np.ndarray, " m"]:
    """Draw m instances, in turn from every task, within a task in turn from every distribution, and so on."""
    n = len(labels["task"])
    order = np.random.default_rng(seed).permutation(n)
    kinds = list(labels.values())
    # from the finest cells to the tasks: the k-th point of every cell comes before the next of any
    for depth in range(len(kinds), 0, -1):
        cell = np.unique(np.stack(kinds[:depth]), axis=1, return_inverse=True)[1].ravel()[order]
        by_cell = np.argsort(cell, kind="stable")
        turn = np.empty(n, dtype=np.int64)
        turn[by_cell] = np.arange(n) - np.searchsorted(cell[by_cell], cell[by_cell])
        order = order[np.argsort(turn, kind="stable")]
    return np.sort(order[:m])
