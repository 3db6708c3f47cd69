"""Batches drawn on the device from a generator of their own, resumable from its state; it moves no data."""

import torch
from jaxtyping import Int
from torch import Tensor

from fastcluster_lm.device import generator


class BatchSampler:
    """Go through the instances in a new random order each epoch; a batch may span two epochs."""

    def __init__(self, n_instances: int, batch_size: int, seed: int, device: torch.device) -> None:
        self.n_instances = n_instances
        self.batch_size = batch_size
        self._generator = generator(seed, device)
        self._device = device
        self._order = torch.empty(0, dtype=torch.int64, device=device)

    def draw(self) -> Int[Tensor, " batch"]:
        """Draw the next batch of instance numbers."""
        while len(self._order) < self.batch_size:
            epoch = torch.randperm(self.n_instances, generator=self._generator, device=self._device)
            self._order = torch.cat((self._order, epoch))
        batch, self._order = self._order[: self.batch_size], self._order[self.batch_size :]
        return batch

    def state(self) -> dict[str, Tensor]:
        """Give all that the next draws depend on."""
        return {"generator": self._generator.get_state(), "order": self._order.cpu()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state: the draws that follow are those of the sampler that was saved."""
        self._generator.set_state(state["generator"].cpu())
        self._order = state["order"].to(self._device)
