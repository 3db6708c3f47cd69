"""Where the scored states come from: a fixed probe set run afresh, or the ring of the newest training batches."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.data import Instances
from fastcluster_lm.kernels.transfer import to_device
from fastcluster_lm.model import Evaluator
from fastcluster_lm.probe.probe_set import ProbeSet, label_kinds
from fastcluster_lm.probe.ring import StateRing
from fastcluster_lm.scores.clusters import Split


@dataclass(frozen=True)
class LabelledSet:
    """The instances of one split but for their states, which change.

    Shapes: labels and instructions (n,) integers; on_map (m,) which of them the map shows, ids (n,) over both splits;
            all on the host
    """

    labels: dict[str, Int[np.ndarray, " n"]]
    instructions: Int[np.ndarray, " n"]
    on_map: Int[Tensor, " m"]
    ids: Int[Tensor, " n"]

    @classmethod
    def of(cls, chosen: ProbeSet, n_inputs: int, first_id: int) -> "LabelledSet":
        """Take what is known of a probe set's instances; their numbers begin at first_id."""
        return cls(
            _on_host(label_kinds(chosen.instances, n_inputs)),
            # the two splits number their instructions apart, and share none
            chosen.instances.instruction.cpu().numpy(),
            chosen.on_map.nonzero()[:, 0].cpu(),
            chosen.index.cpu() + first_id,
        )


@dataclass(frozen=True)
class Sample:
    """The states of one split and what is known of each point.

    Shapes: states (layers, n, d); sq_norms (layers, n) of the states, if they came along; all else on the host: labels
            and instructions (n,), on_map (m,) which points the map shows, ids (n,) numbers of the instances, over both
            splits
    """

    name: str
    states: Float[Tensor, "layers n d"]
    labels: dict[str, Int[np.ndarray, " n"]]
    instructions: Int[np.ndarray, " n"]
    on_map: Int[Tensor, " m"]
    ids: Int[Tensor, " n"]
    sq_norms: Float[Tensor, "layers n"] | None = None

    def split(self, *kinds: str) -> Split:
        """Give the points and their labels of these kinds, all by default, to be scored."""
        labels = {kind: self.labels[kind] for kind in kinds} if kinds else self.labels
        return Split(self.name, self.states, labels, self.instructions, self.sq_norms)

    def shown(self) -> "Sample":
        """Keep the points on the map alone."""
        at = self.on_map.numpy()
        return Sample(
            self.name,
            self.states[:, to_device(self.on_map, self.states.device)],
            {kind: values[at] for kind, values in self.labels.items()},
            self.instructions[at],
            torch.arange(len(at)),
            self.ids[self.on_map],
        )

    def placed(self, points: Float[Tensor, "layers n 2"]) -> "Sample":
        """Give the same points where the map puts them."""
        return replace(self, states=points, sq_norms=None)


class FreshSource:
    """A fixed probe set, run through the evaluation graph at every probe."""

    def __init__(self, name: str, chosen: ProbeSet, n_inputs: int, n_layers: int, d_model: int, first_id: int) -> None:
        self.instances = chosen.instances
        device = self.instances.tokens.device
        known = LabelledSet.of(chosen, n_inputs, first_id)
        self.on_map = known.on_map
        self._shown_instances = self.instances.select(known.on_map.to(device))
        # all but the states stays as it is, and these are written into the same buffers at every probe
        self.sample = Sample(
            name,
            torch.zeros(n_layers, len(self.instances), d_model, device=device),
            known.labels,
            known.instructions,
            known.on_map,
            known.ids,
        )
        self._shown = self.sample.shown()

    def take(self, evaluator: Evaluator) -> Sample:
        """Run all instances."""
        return replace(self.sample, sq_norms=evaluator.states_into(self.instances, self.sample.states))

    def take_shown(self, evaluator: Evaluator) -> Sample:
        """Run the instances on the map alone."""
        return replace(self._shown, sq_norms=evaluator.states_into(self._shown_instances, self._shown.states))


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
        self._on_map = torch.arange(n_shown)

    def take(self) -> Sample:
        """Give what the ring holds now."""
        return self._first(len(self.ring.instances), self._on_map)

    def take_shown(self) -> Sample:
        """Give those of them on the map alone."""
        return self._first(len(self._on_map), self._on_map)

    def _first(self, count: int, on_map: Tensor) -> Sample:
        # a copy, since the ring goes on while a probe is under way
        ids = self.ring.instances[:count].clone()
        at = ids.numpy()
        labels = {kind: values[at] for kind, values in self._labels.items()}
        return Sample("train", self.ring.states[:, :count].contiguous(), labels, self._instructions[at], on_map, ids)


def _on_host(labels: dict[str, Any]) -> dict[str, np.ndarray]:
    return {kind: values.cpu().numpy() for kind, values in labels.items()}
