"""Divide the points of a plan into the parts that are clustered and scored together; it looks at labels only."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastcluster_lm.errors import DataError, ShapeError
from fastcluster_lm.scores.arguments import LARGEST_COUNT, LARGEST_EFFORT, joined_labels, seed_number, whole_number
from fastcluster_lm.scores.contingency import factorize, host_array
from fastcluster_lm.scores.nulls import derive_seed, reassign_blocks
from fastcluster_lm.scores.points import Points

_Ints = NDArray[np.int64]

# (group, labels) of every row of a space, in their order
PLANS: dict[str, tuple[tuple[str, str], ...]] = {
    "hidden": (
        ("all", "task"),
        ("all", "distribution"),
        ("all", "input"),
        ("all", "output"),
        ("all", "task_input"),
        ("input", "task"),
        ("input", "distribution"),
        ("input", "output"),
        ("input_output", "task"),
    ),
    "map": (
        ("all", "task"),
        ("all", "distribution"),
        ("all", "input"),
        ("all", "output"),
        ("all", "task_input"),
    ),
}

SPACES = tuple(PLANS)

# labels with a null, in which groups (None: all), and what they are made of: the reassigned part and the kept one
_NULLS: dict[str, tuple[str | None, str, str | None]] = {
    "task": (None, "task", None),
    "task_input": ("all", "task", "input"),
}


@dataclass(frozen=True)
class Scoring:
    """How a space is scored.

    n_neighbors:      of every vote, at least 1
    n_init, max_iter: fresh restarts of KMeans (0 only with centroids to go on from), most iterations of one
    n_nulls:          reassignments of distributions to tasks, or of points where those are not known; 0 for none
    seed:             of KMeans and the nulls; every call derives its own from it
    min_label_points: points each label of a group needs for the group to count
    n_clusters:       clusters in the group "all"; None: the number of labels, as in all other groups
    """

    n_neighbors: int = 5
    n_init: int = 10
    max_iter: int = 300
    n_nulls: int = 20
    seed: int = 0
    min_label_points: int = 5
    n_clusters: int | None = None

    def __post_init__(self) -> None:
        # the least value and the largest; the numbers are kept as Python's own, for rows are written as JSON
        bounds = {
            "n_neighbors": (1, LARGEST_COUNT),
            "n_init": (0, LARGEST_EFFORT),
            "max_iter": (1, LARGEST_EFFORT),
            "n_nulls": (0, LARGEST_EFFORT),
            "min_label_points": (0, LARGEST_COUNT),
            "n_clusters": (1, LARGEST_COUNT),
        }
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if value is None and name == "n_clusters":
                continue
            number = whole_number(value, name, most=most)
            if number < least:
                raise DataError(f"{name} is {number}; it must be at least {least}")
            object.__setattr__(self, name, number)
        object.__setattr__(self, "seed", seed_number(self.seed))


class Place(NamedTuple):
    """A set of points: of one split, those with one value of what groups are made of; 0 for all of them."""

    split: str
    group: str
    value: int


@dataclass(frozen=True, eq=False)
class Part:
    """One group of one split under one kind of labels: n points scored against m points of the bank.

    place: which set of points, whatever their labels
    true, bank_true: (n,), (m,) codes 0..n_codes-1, shared by both; n_clusters is the number of them among the n points
    base_rate: share of the n points that have the commonest label
    nulls, bank_nulls: (S, n), (S, m) reassigned codes 0..n_null_codes-1, or None
    null_kind: what was reassigned: "distributions", or "permutation" of points; None without nulls
    output: (n,) codes 0..n_outputs-1, or None where the row has no ceiling
    """

    place: Place
    labels: str
    points: _Ints
    bank_points: _Ints
    true: _Ints
    bank_true: _Ints
    n_codes: int
    n_clusters: int
    base_rate: float
    nulls: _Ints | None = None
    bank_nulls: _Ints | None = None
    null_kind: str | None = None
    n_null_codes: int = 0
    output: _Ints | None = None
    n_outputs: int = 0


def divide(split: Points, bank: Points, plan: Sequence[tuple[str, str]], scoring: Scoring) -> Iterator[Part]:
    """List the parts of every row of a plan: one for the group "all", one for each eligible group otherwise.

    Shapes: labels (n,) and (m,) of split and bank
    Errors: DataError if a label or group of the plan is unknown; ShapeError if labels and points differ in number
    Notes:  a group counts with >= 2 labels and >= min_label_points points of each of its labels
    """
    # 1. labels of both sides as codes: (n,), (m,) by name
    both = {name: joint_codes(name, split, bank) for name in split.labels}
    blocks = _null_blocks(both, split, bank)
    for group, labels in plan:
        if labels not in both:
            raise DataError(f"the plan scores labels {labels!r}; split {split.name!r} has {', '.join(sorted(both))}")
        # 2. which group each point is in, and the points of each group on both sides
        ids, bank_ids = _group_ids(group, both, split, bank)
        for value in (0,) if group == "all" else np.unique(ids):
            points, bank_points = np.flatnonzero(ids == value), np.flatnonzero(bank_ids == value)
            if group != "all":
                sizes = np.bincount(both[labels][0][points])
                sizes = sizes[sizes > 0]
                if len(sizes) < 2 or sizes.min() < scoring.min_label_points:
                    continue
            # 3. the part: its labels, and the nulls of them, drawn by the group's own seed
            part_seed = derive_seed(scoring.seed, "null", group, int(value))
            part = _part(Place(split.name, group, int(value)), labels, points, bank_points, both)
            part = _with_nulls(part, both, blocks, scoring.n_nulls, part_seed)
            fixed = scoring.n_clusters if group == "all" else None
            yield part if fixed is None else replace(part, n_clusters=fixed)


class Division(NamedTuple):
    """The parts of a split, and who may not vote for its points.

    withheld: by column of votes, identities (n,) of its points and (m,) of the bank's: none votes for its own
    """

    parts: list[Part]
    withheld: dict[str, tuple[_Ints, _Ints]]


class Divisions:
    """Divisions made before: scoring points of the same labels again divides them no more."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[list[NDArray[Any]], Division]] = {}

    def of(self, split: Points, bank: Points, plan: Sequence[tuple[str, str]], scoring: Scoring) -> Division:
        """Give the parts that `divide` lists, and whose votes are withheld, for the labels at hand."""
        both = [(owner.name, len(owner), *owner.labels, owner.instructions is None) for owner in (split, bank)]
        key = (*both, split.X is bank.X, tuple(plan), scoring)
        labels = [
            host_array(values)
            for owner in (split, bank)
            for values in (*owner.labels.values(), owner.instructions)
            if values is not None
        ]
        known = self._known.get(key)
        if known is None or not all(map(np.array_equal, known[0], labels)):
            # copies, since the caller may write into its own
            known = (
                [values.copy() for values in labels],
                Division(list(divide(split, bank, plan, scoring)), _withheld(split, bank)),
            )
            self._known[key] = known
        return known[1]


def _withheld(split: Points, bank: Points) -> dict[str, tuple[_Ints, _Ints]]:
    """Withhold points of the query's own instruction, or itself, and for knn_share_across those of its distribution."""
    own = {"knn_share": (np.arange(len(split)), np.arange(len(bank)))}
    if split.instructions is not None and bank.instructions is not None:
        own["knn_share"] = (host_array(split.instructions).copy(), host_array(bank.instructions).copy())
    across = {"knn_share_across": joint_codes("distribution", split, bank)} if "distribution" in split.labels else {}
    return own | across


def _part(place: Place, labels: str, points: _Ints, bank_points: _Ints, both: dict[str, tuple[_Ints, _Ints]]) -> Part:
    """Number the labels of a part's points and of its bank's together, 0 to n_codes - 1, without gaps."""
    n = len(points)
    codes, n_codes = factorize(_joint(both[labels], points, bank_points))
    sizes = np.bincount(codes[:n])
    n_clusters, base_rate = int((sizes > 0).sum()), float(sizes.max()) / n
    part = Part(place, labels, points, bank_points, codes[:n], codes[n:], n_codes, n_clusters, base_rate)
    if labels == "output" or "output" not in both:
        return part
    output, n_outputs = factorize(both["output"][0][points])
    return replace(part, output=output, n_outputs=n_outputs)


def _null_blocks(
    both: dict[str, tuple[_Ints, _Ints]], split: Points, bank: Points
) -> list[tuple[str, tuple[_Ints, _Ints]]]:
    """List what a null may move as one, the largest first, and what it is then called.

    Distributions where they are known, for they alone share the surface of an instruction. Else instructions, or single
    points where an instruction has several tasks: that such a null is passed says that the labels are not random, not
    that no surface stands in for them
    """
    if "distribution" in both:
        return [("distributions", both["distribution"])]
    n, m = len(split), len(bank)
    own, first = np.arange(n), 0 if split.X is bank.X else n
    blocks = [(own, np.arange(m) + first)]
    if split.instructions is not None and bank.instructions is not None:
        ids, bank_ids = factorize(split.instructions)[0], factorize(bank.instructions)[0]
        if split.name == bank.name:
            joint, _ = factorize(np.concatenate([host_array(split.instructions), host_array(bank.instructions)]))
            ids, bank_ids = joint[:n], joint[n:]
        else:
            # the splits number their instructions apart
            bank_ids = bank_ids + n
        blocks.insert(0, (ids, bank_ids))
    return [("permutation", ids) for ids in blocks]


def _with_nulls(
    part: Part,
    both: dict[str, tuple[_Ints, _Ints]],
    blocks: Sequence[tuple[str, tuple[_Ints, _Ints]]],
    n_nulls: int,
    seed: int,
) -> Part:
    """Draw the labels of a part anew, n_nulls times, where there is a null for them.

    Shapes: labels (n,) of the part and (m,) of its bank -> nulls (S, n), (S, m)
    """
    only, base, kept = _NULLS.get(part.labels, ("", "", None))
    if not n_nulls or base not in both or only not in (None, part.place.group) or not (kept is None or kept in both):
        return part
    n, at = len(part.points), (part.points, part.bank_points)
    for kind, ids in blocks:
        # queries and bank are drawn together, so that a block has one label in both
        drawn = reassign_blocks(
            _joint(both[base], *at),
            _joint(ids, *at),
            n_nulls=n_nulls,
            seed=seed,
            extra=None if kept is None else _joint(both[kept], *at),
        )
        if drawn is not None:
            codes = int(drawn.max()) + 1
            return replace(part, nulls=drawn[:, :n], bank_nulls=drawn[:, n:], n_null_codes=codes, null_kind=kind)
    return part


def _joint(codes: tuple[_Ints, _Ints], points: _Ints, bank_points: _Ints) -> _Ints:
    return np.concatenate([codes[0][points], codes[1][bank_points]])


def joint_codes(name: str, split: Points, bank: Points) -> tuple[_Ints, _Ints]:
    """Number the labels of a split and of its bank together.

    Shapes: labels (n,), (m,) -> codes (n,), (m,) int64
    Errors: DataError if the bank lacks them; ShapeError if labels and points differ in number
    """
    if name not in bank.labels:
        raise DataError(f"split {split.name!r} has labels {name!r}, the bank {bank.name!r} has not; give both or none")
    own, banked = host_array(split.labels[name]), host_array(bank.labels[name])
    for owner, values in ((split, own), (bank, banked)):
        if values.shape != (len(owner),):
            raise ShapeError(
                f"labels {name!r} of split {owner.name!r} have shape {values.shape}; "
                f"its X has {len(owner)} points, so expected ({len(owner)},)"
            )
    names = (f"labels {name!r} of split {owner.name!r}" for owner in (split, bank))
    labels, n = joined_labels(own, next(names), banked, next(names))
    codes, _ = factorize(labels)
    return codes[:n], codes[n:]


def _group_ids(group: str, both: dict[str, tuple[_Ints, _Ints]], split: Points, bank: Points) -> tuple[_Ints, _Ints]:
    if group == "all":
        return np.zeros(len(split), dtype=np.int64), np.zeros(len(bank), dtype=np.int64)
    names = group.split("_") if group not in both else [group]
    if any(name not in both for name in names):
        raise DataError(f"the plan has group {group!r}; split {split.name!r} has labels {', '.join(sorted(both))}")
    # a number for each combination of the labels that the group is named after
    own, banked = np.zeros((2, 1), dtype=np.int64)
    for name in names:
        first, second = both[name]
        width = 1 + max(int(first.max(initial=0)), int(second.max(initial=0)))
        own, banked = own * width + first, banked * width + second
    return own, banked
