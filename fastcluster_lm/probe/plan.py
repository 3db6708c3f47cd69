"""Which rows a probe has: kinds of labels, groups and spaces, as chosen and as the labels allow; it scores none."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastcluster_lm.errors import UsageError, nearest_name
from fastcluster_lm.scores.contingency import host_array
from fastcluster_lm.scores.parts import PLANS, SPACES, Scoring, divide
from fastcluster_lm.scores.points import Points, nowhere


@dataclass(frozen=True)
class ProbePlan:
    """Which rows a probe has; fewer cost less. The task among all points, in the hidden states, is always scored.

    labels: kinds whose clusters are scored: any of task, distribution, input, output, task_input; None: all there are
    groups: in which points are scored apart: any of input, input_output; `all` of them are scored together anyway
    map:    whether a map is drawn, which has rows of its own
    """

    labels: tuple[str, ...] | None = None
    groups: tuple[str, ...] = ("input", "input_output")
    map: bool = True

    def __post_init__(self) -> None:
        groups, labels = (list(dict.fromkeys(names)) for names in zip(*PLANS["hidden"], strict=True))
        for place, chosen, known in (("groups", self.groups, groups), ("labels", self.labels or (), labels)):
            for name in chosen:
                if name not in known:
                    raise UsageError(
                        f"plan: expected {place} of {', '.join(known)}, got {name!r}{nearest_name(name, known)}"
                    )

    @property
    def spaces(self) -> tuple[str, ...]:
        """The spaces that have rows."""
        return SPACES if self.map else SPACES[:1]

    def rows(self, space: str, kinds: Collection[str]) -> tuple[tuple[str, str], ...]:
        """Give the (group, labels) of a space's rows that the kinds of labels at hand allow."""
        return tuple(
            (group, labels)
            for group, labels in PLANS[space]
            if labels in kinds and (group == "all" or set(group.split("_")) <= set(kinds))
            if group in ("all", *self.groups) and (self.labels is None or labels in ("task", *self.labels))
        )

    def described(self) -> dict[str, Any]:
        """Say what it is in the words of run.toml."""
        return {"labels": list(self.labels or ()), "groups": list(self.groups), "map": self.map}

    def fitting(self, splits: Collection[Points], least: int = Scoring.min_label_points) -> "ProbePlan":
        """Name the kinds of labels that stand for all: those given, task_input only where its clusters can be seen.

        least: points that each of its clusters must have in every split; hundreds of clusters of two points say
               nothing, and cost more than all else
        Errors: UsageError if a kind was asked for that is not there
        """
        kinds = list(next(iter(splits)).labels)
        if self.labels is None:
            cells = [own.labels["task_input"] for own in splits if "task_input" in kinds]
            sparse = any(np.unique(host_array(own), return_counts=True)[1].min() < least for own in cells)
            return replace(self, labels=tuple(kind for kind in kinds if not (sparse and kind == "task_input")))
        if unknown := [kind for kind in self.labels if kind not in kinds]:
            raise UsageError(f"plan: labels asks for {unknown[0]}, but labels= gives {', '.join(kinds)} alone")
        return self


# all rows there can be
EVERYTHING = ProbePlan()


def narrowest_group(points: Points, plan: ProbePlan = EVERYTHING) -> str:
    """Name the narrowest group with enough points: where the fewest other things can stand in for the task."""
    alone = points.at(nowhere(len(points)))
    groups = [group for group, labels in plan.rows("hidden", points.labels) if labels == "task"]
    return [group for group in groups if any(divide(alone, alone, [(group, "task")], Scoring(n_nulls=0)))][-1]
