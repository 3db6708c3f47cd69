"""The evaluation graph: fixed batch shapes, no gradients, the mode restored; accuracy is all it scores."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fastcluster_lm.data import Instances
from fastcluster_lm.model.gpt2 import ModelOutput


class Evaluator:
    """Run a model over instances in chunks; where the graph is compiled for one shape the last chunk is filled up."""

    def __init__(
        self, model: nn.Module, forward: Callable[..., ModelOutput], batch_size: int, *, fixed_shape: bool
    ) -> None:
        self.model = model
        self.forward = forward
        self.batch_size = batch_size
        self.fixed_shape = fixed_shape

    @torch.no_grad()
    def accuracy(self, instances: Instances) -> float:
        """Give the share of instances whose output token is predicted."""
        right = torch.zeros((), dtype=torch.int64, device=instances.tokens.device)
        for chunk, output in self._chunks(instances):
            guesses = output.logits[: len(chunk)].argmax(-1)
            right += (guesses == instances.targets[chunk]).sum()
        return right.item() / len(instances)

    @torch.no_grad()
    def states_into(
        self, instances: Instances, buffer: Float[Tensor, "layers n D"]
    ) -> Float[Tensor, "layers n"] | None:
        """Write every layer's state at the probed positions into a buffer that exists already.

        Shapes: buffer (P * (n_layers + 1), len(instances), D), written in place -> the states' squared norms, where
                the forward gave them on the way
        """
        start = 0
        norms = []
        for chunk, output in self._chunks(instances):
            rows = output.states[: len(chunk)].transpose(0, 1)  # (layers, chunk, D)
            buffer[:, start : start + len(chunk)].copy_(rows)
            start += len(chunk)
            if output.sq_norms is not None:
                # a copy, since the next run of a CUDA graph overwrites what this one gave
                norms.append(output.sq_norms[: len(chunk)].T.clone())
        return torch.cat(norms, 1) if norms else None

    @torch.no_grad()
    def states_in_chunks(self, instances: Instances) -> Iterator[Float[Tensor, "layers chunk D"]]:
        """Give every layer's state at the probed positions, `batch_size` instances at a time, in their order.

        Shapes: (P * (n_layers + 1), chunk, D), good until the next is asked for
        """
        for chunk, output in self._chunks(instances):
            yield output.states[: len(chunk)].transpose(0, 1)

    def _chunks(self, instances: Instances) -> Iterator[tuple[Int[Tensor, " chunk"], ModelOutput]]:
        was_training = self.model.training
        self.model.eval()
        try:
            everything = torch.arange(len(instances), device=instances.tokens.device)
            for chunk in everything.split(self.batch_size):
                rows = chunk
                if self.fixed_shape and len(chunk) < self.batch_size:
                    rows = torch.zeros(self.batch_size, dtype=torch.int64, device=chunk.device)
                    rows[: len(chunk)] = chunk
                yield chunk, self.forward(*instances.inputs(rows))
        finally:
            self.model.train(was_training)
