"""What one optimiser step computes: operation by operation, or on a GPU as one captured graph; it draws no batch."""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fastcluster_lm.errors import TrainingError
from fastcluster_lm.kernels.transfer import Fetch, to_device
from fastcluster_lm.training.update import Update

Loss = Callable[[Int[Tensor, " B"]], tuple[Float[Tensor, ""], Float[Tensor, "B layers D"]]]
# a function that can be called again and again, made of one that is run once to be recorded
Record = Callable[[Callable[[], None]], Callable[[], None]]
# runs before a graph is captured: memory is then at hand, and what is compiled is compiled
WARM_UPS = 3


class Computed(NamedTuple):
    """Loss and gradient norm before clipping, and the states that the forward gave."""

    loss: float
    grad_norm: float
    states: Float[Tensor, "B layers D"]


@runtime_checkable
class Step(Protocol):
    """Compute one step of a model."""

    def take(self, batch: Int[Tensor, " B"], rate: float, step: int) -> Computed:
        """Move the weights by one step of this learning rate.

        Shapes: batch (B,) numbers of instances, on the host
        Errors: TrainingError if the loss or the gradient is not finite; the weights are then those before the step
        """


class EagerStep:
    """One operation after the other."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, limit: float, device: torch.device
    ) -> None:
        self._optimizer, self._loss, self._device = optimizer, loss, device
        self._update = Update(model, optimizer, limit)

    def take(self, batch: Int[Tensor, " B"], rate: float, step: int) -> Computed:
        loss, states = self._loss(to_device(batch, self._device))
        value = loss.item()
        _check_loss(value, step)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = self._update.take(rate)
        _check_norm(grad_norm, value, step)
        return Computed(value, grad_norm, states)


class GraphedStep:
    """The whole step recorded once, on buffers that stay where they are, and played again; one wait a step.

    The optimiser must be fused AdamW, capturable where the record is a CUDA graph. It leaves weights and moments alone
    where its found_inf is 1, which the graph itself decides. Not run on a GPU so far
    Source: torch's notes on CUDA graphs, "whole-network capture"; found_inf as torch's gradient scaler uses it
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.AdamW,
        loss: Loss,
        limit: float,
        device: torch.device,
        batch_size: int,
        record: Record | None = None,
    ) -> None:
        self._model, self._optimizer, self._loss, self._limit = model, optimizer, loss, limit
        self._device, self._record = device, record or record_graph
        self._batch = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self._rate = torch.zeros((), dtype=torch.float32, device=device)
        self._failed = torch.ones((), dtype=torch.float32, device=device)
        self._outcome = torch.zeros(2, dtype=torch.float32, device=device)
        self._states: Tensor | None = None
        self._play: Callable[[], None] | None = None

    def take(self, batch: Int[Tensor, " B"], rate: float, step: int) -> Computed:
        self._batch.copy_(to_device(batch, self._device))
        self._rate.fill_(rate)
        if self._play is None:
            self._play = self._prepare()
        self._play()
        assert self._states is not None
        # the next replay writes into the same buffer
        states = self._states.clone()
        value, grad_norm = Fetch([self._outcome]).wait()[0].tolist()
        _check_loss(value, step)
        _check_norm(grad_norm, value, step)
        return Computed(value, grad_norm, states)

    def _prepare(self) -> Callable[[], None]:
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate
        # the scaler's own way to say that a step is not to be taken
        self._optimizer.found_inf = self._failed  # type: ignore[attr-defined]
        for _ in range(WARM_UPS):
            self._differentiate()
            self._failed.fill_(1)
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return self._record(self._work)

    def _differentiate(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        loss, states = self._loss(self._batch)
        loss.backward()
        self._states = states
        grad_norm = nn.utils.clip_grad_norm_(self._model.parameters(), self._limit)
        self._outcome.copy_(torch.stack((loss.detach(), grad_norm)))

    def _work(self) -> None:
        self._differentiate()
        self._failed.copy_((~self._outcome.isfinite()).any())
        self._optimizer.step()


def record_graph(work: Callable[[], None]) -> Callable[[], None]:
    """Capture work as a CUDA graph, and give what plays it again."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def _check_loss(value: float, step: int) -> None:
    if not math.isfinite(value):
        raise TrainingError(
            f"step {step}: expected a finite loss, got {value}; "
            "go on from the last checkpoint with a lower training.learning_rate"
        )


def _check_norm(grad_norm: float, value: float, step: int) -> None:
    if not math.isfinite(grad_norm):
        raise TrainingError(
            f"step {step}: expected a finite gradient, got norm {grad_norm} at loss {value:.4g}; "
            "go on from the last checkpoint with a lower training.learning_rate"
        )
