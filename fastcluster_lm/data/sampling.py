"""Batches drawn on the host from a generator of their own, resumable from its state; it moves no data."""

import torch
from jaxtyping import Int
from torch import Tensor

from fastcluster_lm.device import generator


class BatchSampler:
    """Go through the instances in a new random order each epoch; a batch may span two epochs."""

    def __init__(self, n_instances: int, batch_size: int, seed: int) -> None:
        self.n_instances = n_instances
        self.batch_size = batch_size
        # on the host, where the probe's bookkeeping needs the numbers too, and the same on every device
        self._generator = generator(seed, torch.device("cpu"))
        # one epoch's order and how far it is used up; none is drawn yet
        self._order = torch.arange(n_instances)
        self._position = n_instances

    def draw(self) -> Int[Tensor, " batch"]:
        """Draw the next batch of instance numbers."""
        parts, missing = [], self.batch_size
        while missing:
            if self._position == self.n_instances:
                self._order = torch.randperm(self.n_instances, generator=self._generator)
                self._position = 0
            part = self._order[self._position : self._position + missing]
            self._position += len(part)
            missing -= len(part)
            parts.append(part)
        return torch.cat(parts)

    def state(self) -> dict[str, Tensor]:
        """Give all that the next draws depend on."""
        return {
            "generator": self._generator.get_state(),
            "order": self._order,
            "position": torch.tensor(self._position),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state: the draws that follow are those of the sampler that was saved."""
        self._generator.set_state(state["generator"].cpu())
        self._order = state["order"].cpu()
        self._position = int(state["position"])
