"""Make the rows of a space from what its device found, once that is on the host; it finds nothing itself."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from fastcluster_lm.kernels.label_agreement import label_agreement
from fastcluster_lm.kernels.label_agreement.reference import AGREEMENTS
from fastcluster_lm.scores.contingency import host_array
from fastcluster_lm.scores.parts import Part, Place

# which agreement scores each kind of table gives, and in which columns they stand
_COLUMNS = {
    "scores": {name: name for name in AGREEMENTS},
    "nulls": {"ari": "null_ari", "ami": "null_ami", "f1": "null_f1"},
    "ceiling": {"ari": "ceiling_output"},
}
_SCORES = (
    *_COLUMNS["scores"],
    *("knn_share", "knn_accuracy", "knn_share_across"),
    *_COLUMNS["nulls"].values(),
    *("null_knn_share", "null_knn_share_across", "ceiling_output"),
)

_Found = dict[tuple[int, str], NDArray[np.float64]]  # of a part and column: (S, L)
_T = TypeVar("_T")


class ClusterSet(NamedTuple):
    """Which centroids: of all groups of one kind that have so many clusters, in one split and space."""

    space: str
    split: str
    group: str
    n_clusters: int

    def __str__(self) -> str:
        """Give the name under which they are saved."""
        return "/".join(map(str, self))

    @classmethod
    def named(cls, name: str) -> "ClusterSet":
        """Read such a name."""
        space, split, group, n_clusters = name.split("/")
        return cls(space, split, group, int(n_clusters))


class Votes(NamedTuple):
    """What the neighbours of some parts gave for one column, a mean over S labelings to be taken."""

    column: str
    scores: Float[Tensor, "labelings layers parts"]
    parts: list[int]


class PendingSpace(NamedTuple):
    """A space whose clusters and votes are launched but not yet fetched.

    clusters: by set of points and number of clusters the labels (layers, n); centroids: for the next call to go on from
    """

    parts: list[Part]
    plan: Sequence[tuple[str, str]]
    splits: list[str]
    space: str
    engine: str
    n_layers: int
    clusters: dict[tuple[Place, int], Int[Tensor, "layers n"]]
    centroids: dict[ClusterSet, Float[Tensor, "groups layers k d"]]
    votes: list[Votes]

    def tensors(self) -> list[Tensor]:
        """Give what has to be fetched for the rows."""
        return [*self.clusters.values(), *(votes.scores for votes in self.votes)]

    def finish(self, fetched: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Score the clusters, average and make the rows, now that `tensors` are on the host."""
        found = _agree(self.parts, dict(zip(self.clusters, fetched, strict=False)))
        for votes, tensor in zip(self.votes, fetched[len(self.clusters) :], strict=True):
            values = host_array(tensor)
            for index, i in enumerate(votes.parts):
                found[i, votes.column] = values[:, :, index]
        return [row for split in self.splits for labels in self.plan for row in self._rows(split, *labels, found)]

    def _rows(self, split: str, group: str, labels: str, found: "_Found") -> list[dict[str, Any]]:
        chosen = [
            i for i, p in enumerate(self.parts) if (p.place.split, p.place.group, p.labels) == (split, group, labels)
        ]
        k = {self.parts[i].n_clusters for i in chosen}
        head: dict[str, Any] = {"split": split, "space": self.space, "group": group, "labels": labels}
        head["n_points"] = sum(len(self.parts[i].points) for i in chosen)
        # groups with unlike numbers of labels have no one number of clusters
        head["n_clusters"] = k.pop() if len(k) == 1 else None
        head["engine"] = self.engine
        kinds = {self.parts[i].null_kind for i in chosen}
        head["null_kind"] = kinds.pop() if len(kinds) == 1 else None
        head["base_rate"] = sum(self.parts[i].base_rate for i in chosen) / len(chosen) if chosen else None
        means = {column: _mean([found.get((i, column)) for i in chosen]) for column in _SCORES}
        scores = {column: [None] if mean is None else mean.tolist() for column, mean in means.items()}
        rows = []
        for layer in range(self.n_layers):
            at_layer = {column: values[layer % len(values)] for column, values in scores.items()}
            rows.append({"layer": layer, **head, **at_layer})
        return rows


def buckets(items: Iterable[_T], key: Any) -> list[tuple[Any, list[_T]]]:
    """Put items of one key together, in order of first appearance."""
    found: dict[Hashable, list[_T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return list(found.items())


class _Item(NamedTuple):
    """What is scored for one part: every labeling (s, n) against every clustering (l, n)."""

    part: int
    kind: str
    true: NDArray[np.int64]
    n_true: int
    pred: Tensor
    n_pred: int


def _agree(parts: Sequence[Part], clusters: Mapping[Any, Tensor]) -> _Found:
    """Score all parts, nulls and ceilings, those of one shape together.

    Shapes: clusters (layers, n) by set of points and k -> by part and column (S, layers)
    """
    found: _Found = {}
    # 1. what is compared: a part's labels, and each of its nulls, with its clusters in every layer; and its labels with
    #    its outputs, for what a clustering by output alone would score
    items = []
    for i, part in enumerate(parts):
        pred, k = clusters[part.place, part.n_clusters], part.n_clusters
        items.append(_Item(i, "scores", part.true[None], part.n_codes, pred, k))
        if part.nulls is not None:
            items.append(_Item(i, "nulls", part.nulls, part.n_null_codes, pred, k))
        if part.output is not None:
            output = torch.from_numpy(part.output)[None]
            items.append(_Item(i, "ceiling", part.true[None], part.n_codes, output, part.n_outputs))
    # 2. items of one shape in one call: (items, S, n) labels with (items, layers, n) clusters -> (items, S, layers)
    for (kind, _, _, n_true, n_pred), same in buckets(
        items, lambda item: (item.kind, item.true.shape, item.pred.shape, item.n_true, item.n_pred)
    ):
        first = same[0]
        true = first.true[None] if len(same) == 1 else np.stack([item.true for item in same])
        pred = first.pred[None] if len(same) == 1 else torch.stack([item.pred for item in same])
        scores = label_agreement(torch.from_numpy(true), pred, n_true, n_pred).numpy()  # (items, S, layers, agreements)
        # 3. back to the part that each item was of, in the column of its kind
        for name, column in _COLUMNS[kind].items():
            for item, value in zip(same, scores[..., list(AGREEMENTS).index(name)], strict=True):
                found[item.part, column] = value
    return found


def _mean(values: Sequence[NDArray[np.float64] | None]) -> NDArray[np.float64] | None:
    """Average (S, L) scores over S, then over groups; None without groups or where one of them has no score."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    # numpy's means of one are slow
    one = known[0] if len(known) == 1 else np.stack(known)
    over_labelings = one.mean(-2) if one.shape[-2] > 1 else one[..., 0, :]
    return over_labelings if one is known[0] else over_labelings.mean(0)
