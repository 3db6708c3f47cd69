"""The newest training instances' states, kept from the training forward itself; it scores nothing."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.data import Instances
from fastcluster_lm.kernels.transfer import to_device
from fastcluster_lm.probe.points import points_of
from fastcluster_lm.scores.points import Points


class StateRing:
    """States of the newest n distinct instances, each in a slot of its own that it keeps until it is the oldest.

    Shapes: states (layers, n, d) on the device; on the host instances (n,) i64, -1 where a slot is empty, and
            seen_at (n,) i64: the step of the weights that gave a slot's states
    """

    def __init__(self, n_layers: int, n_slots: int, d_model: int, n_instances: int, device: torch.device) -> None:
        self.states = torch.zeros(n_layers, n_slots, d_model, device=device)
        self.instances = torch.full((n_slots,), -1)
        self.seen_at = torch.full((n_slots,), -1)
        self._slot_of = torch.full((n_instances,), -1)
        # where an instance stands last in a batch; of others it holds what an earlier one left
        self._last = np.zeros(n_instances, dtype=np.int64)
        self._filled = 0

    @property
    def full(self) -> bool:
        """Whether every slot has an instance."""
        return self._filled == len(self.instances)

    def push(self, batch: Int[Tensor, " B"], states: Float[Tensor, "B layers d"], step: int) -> None:
        """Take a batch's states: instances that have a slot renew it, the others take the oldest slots.

        Shapes: batch (B,) numbers of instances, on the host; states (B, layers, d) of weights as they were after
                `step` steps
        """
        # views of the host's tensors
        instances, seen_at, slot_of = self.instances.numpy(), self.seen_at.numpy(), self._slot_of.numpy()
        asked, n_slots = batch.numpy(), len(instances)
        # of an instance that comes twice the last one counts, and of too many the last ones
        order = np.arange(len(asked))
        self._last[asked] = order
        rows = order[self._last[asked] == order][-n_slots:]
        if len(rows) < len(asked):
            asked, states = asked[rows], states[to_device(rows, states.device)]
        slots = slot_of[asked]
        known = slots >= 0
        age = seen_at.copy()
        age[slots[known]] = step
        fresh = int((~known).sum())
        taken = age.argsort(stable=True)[:fresh]
        slot_of[instances[taken][instances[taken] >= 0]] = -1
        slots[~known] = taken
        slot_of[asked] = slots
        instances[slots] = asked
        seen_at[slots] = step
        self.states.index_copy_(1, to_device(slots, states.device), states.transpose(0, 1))
        self._filled = min(n_slots, self._filled + fresh)

    def mean_age(self, step: int) -> float:
        """Average over slots the steps that the weights have taken since."""
        return float((step - self.seen_at.numpy()).mean())

    def state(self) -> dict[str, Tensor]:
        """Give all that it holds."""
        return {
            "states": self.states,
            "instances": self.instances,
            "seen_at": self.seen_at,
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over a saved state."""
        self.states.copy_(state["states"])
        self.instances.copy_(state["instances"])
        self.seen_at.copy_(state["seen_at"])
        held = self.instances >= 0
        self._slot_of.fill_(-1)
        self._slot_of[self.instances[held]] = held.nonzero()[:, 0]
        self._filled = int(held.sum())


class RingSource(StateRing):
    """The newest training instances as points, where the training forward put them; its weights are a little old.

    Shapes: shape is (layers, d) of a state; n_shown of the n_slots points are on the map
    """

    def __init__(self, train: Instances, n_inputs: int, shape: tuple[int, int], n_slots: int, n_shown: int) -> None:
        layers, d = shape
        super().__init__(layers, n_slots, d, len(train), train.tokens.device)
        every = torch.arange(len(train))
        self._known = points_of(train, "train", n_inputs, every, every)
        # slots are as good as drawn at random, so the first of them are the map's
        self._on_map = torch.arange(n_shown)

    def capture(self, *, shown: bool) -> Points:
        """Give the points that the ring holds now, or those on the map alone.

        Shapes: -> X (layers, n_slots or n_shown, d)
        """
        count = len(self._on_map) if shown else len(self.instances)
        # copies, since the ring goes on while a probe is under way
        known = replace(self._known.select(self.instances[:count].clone()), on_map=self._on_map)
        return known.at(self.states[:, :count].contiguous())
