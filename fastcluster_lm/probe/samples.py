"""Where the scored states come from: a fixed probe set run afresh, or the ring of the newest training batches."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.data import Instances
from fastcluster_lm.model import Evaluator
from fastcluster_lm.probe.probe_set import ProbeSet, label_kinds
from fastcluster_lm.probe.ring import StateRing
from fastcluster_lm.scores.clusters import Split


@dataclass(frozen=True)
class Sample:
    """The states of one split and what is known of each point.

    Shapes: states (layers, n, d); labels and instructions (n,) on the host; on_map (m,) which points the map shows;
            ids (n,) numbers of the instances, over both splits
    """

    name: str
    states: Float[Tensor, "layers n d"]
    labels: dict[str, Int[np.ndarray, " n"]]
    instructions: Int[np.ndarray, " n"]
    on_map: Int[Tensor, " m"]
    ids: Int[Tensor, " n"]

    def split(self, *kinds: str) -> Split:
        """Give the points and their labels of these kinds, all by default, to be scored."""
        labels = {kind: self.labels[kind] for kind in kinds} if kinds else self.labels
        return Split(self.name, self.states, labels, self.instructions)

    def map_split(self, points: Float[Tensor, "layers m 2"], *kinds: str) -> Split:
        """Give the points on the map and their labels."""
        at = self.on_map.cpu().numpy()
        labels = {kind: self.labels[kind][at] for kind in kinds or self.labels}
        return Split(self.name, points, labels, self.instructions[at])

    def shown(self) -> "Sample":
        """Keep the points on the map alone."""
        at = self.on_map.cpu().numpy()
        labels = {kind: values[at] for kind, values in self.labels.items()}
        everything = torch.arange(len(at), device=self.ids.device)
        return Sample(
            self.name, self.states[:, self.on_map], labels, self.instructions[at], everything, self.ids[self.on_map]
        )


class FreshSource:
    """A fixed probe set, run through the evaluation graph at every probe."""

    def __init__(self, name: str, chosen: ProbeSet, n_inputs: int, n_layers: int, d_model: int, first_id: int) -> None:
        instances = chosen.instances
        device = instances.tokens.device
        self.name, self.instances = name, instances
        self.on_map = chosen.on_map.nonzero()[:, 0]
        self.labels = _on_host(label_kinds(instances, n_inputs))
        # the two splits number their instructions apart, and share none
        self.instructions = instances.instruction.cpu().numpy()
        self.ids = chosen.index + first_id
        self._states = torch.zeros(n_layers, len(instances), d_model, device=device)
        self._shown = instances.select(self.on_map)
        self._shown_states = torch.zeros(n_layers, len(self.on_map), d_model, device=device)

    def take(self, evaluator: Evaluator) -> Sample:
        """Run all instances; the buffer is the same at every probe."""
        evaluator.states_into(self.instances, self._states)
        return self._sample()

    def take_shown(self, evaluator: Evaluator) -> Sample:
        """Run the instances on the map alone."""
        evaluator.states_into(self._shown, self._shown_states)
        return replace(self._sample().shown(), states=self._shown_states)

    def _sample(self) -> Sample:
        return Sample(self.name, self._states, self.labels, self.instructions, self.on_map, self.ids)


class RingSource:
    """The newest training instances, with the states that the training forward gave; their weights are a little old."""

    def __init__(
        self, train: Instances, n_inputs: int, n_layers: int, n_slots: int, n_shown: int, d_model: int
    ) -> None:
        device = train.tokens.device
        self.ring = StateRing(n_layers, n_slots, d_model, len(train), device)
        self._labels = _on_host(label_kinds(train, n_inputs))
        self._instructions = train.instruction.cpu().numpy()
        # slots are as good as drawn at random, so the first of them are the map's
        self._on_map = torch.arange(n_shown, device=device)

    def take(self) -> Sample:
        """Give what the ring holds now."""
        at = self.ring.instances.cpu().numpy()
        labels = {kind: values[at] for kind, values in self._labels.items()}
        return Sample("train", self.ring.states, labels, self._instructions[at], self._on_map, self.ring.instances)


def _on_host(labels: dict[str, Any]) -> dict[str, np.ndarray]:
    return {kind: values.cpu().numpy() for kind, values in labels.items()}
