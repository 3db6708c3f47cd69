"""One optimiser step at a time, and all that the next one depends on; it scores, prints and writes nothing."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.config import TrainingConfig
from fastcluster_lm.data import BatchSampler, Instances
from fastcluster_lm.device import Device, compile_policy, graph_policy, head_policy, precision_policy
from fastcluster_lm.kernels import linear_cross_entropy
from fastcluster_lm.model import GPT2, Evaluator, TrainableModel, block_policy
from fastcluster_lm.training.early_stopping import EarlyStoppingMark
from fastcluster_lm.training.optimizer import build_optimizer, learning_rate
from fastcluster_lm.training.step import EagerStep, GraphedStep, Step

# instances a chunk of the evaluation graph; its cost a step hardly grows up to here on a CPU
EVALUATION_BATCH = 512


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step gave."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    step_ms: float
    tokens_per_s: float
    batch: Int[Tensor, " B"]  # numbers of the training instances
    states: Float[Tensor, "B layers D"]  # theirs at the probed positions, detached, before the update


class Trainer:
    """A model in training: `advance` takes one step, `validate` looks, `state` is enough to go on bit for bit."""

    def __init__(
        self, model: TrainableModel, train: Instances, val: Instances, config: TrainingConfig, device: Device, seed: int
    ) -> None:
        self.model = model
        self.train = train
        self.val = val
        self.config = config
        self.step = 0
        self._seed, self._device = seed, device.torch_device
        self.mark = EarlyStoppingMark.of(config)
        self.compiled, self.compile_reason = compile_policy(config.compile, device)
        rows = config.batch_size * (train.tokens.shape[1] if config.loss == "all" else 1)
        self.precision, self.precision_reason = precision_policy(config.precision, device)
        self.fused_block, self.block_reason = False, "a model from elsewhere has its own blocks"
        self.fused_head, self.head_reason = False, "a model from elsewhere has its own head"
        self._forward: Any = torch.compile(model, fullgraph=True, dynamic=False) if self.compiled else model
        self._hidden: Any = model
        if isinstance(model, GPT2):
            chosen = block_policy(config.block, device, self.precision, model.config)
            self.fused_block, self.block_reason = chosen
            model.fuse_blocks(self.fused_block)
            logits_mib = 4 * rows * model.wte.num_embeddings / 2**20
            self.fused_head, self.head_reason = head_policy(config.head, device, logits_mib)
            hidden = model.hidden
            self._hidden = torch.compile(hidden, fullgraph=True, dynamic=False) if self.compiled else hidden
        self._forward, self._hidden = (self._in_precision(forward) for forward in (self._forward, self._hidden))
        self.evaluator = Evaluator(model, self._forward, EVALUATION_BATCH, fixed_shape=self.compiled)
        self.graphed, self.graph_reason = graph_policy(config.graph, device, model.config.dropout)
        self.optimizer = build_optimizer(model, config, capturable=self.graphed)
        self.sampler = BatchSampler(len(train), config.batch_size, seed)
        # a term added to the loss of every step, from the numbers of its training instances; it is called right after
        # their forward pass, so that a hook on the model can have kept what it needs (eager models only)
        self.extra_loss: Callable[[Tensor], Tensor] | None = None
        self._step = self._build_step()

    def advance(self) -> StepResult:
        """Take one optimiser step.

        Errors: TrainingError if the loss or the gradient is not finite; the weights are then those before the step
        """
        started = time.perf_counter()
        step = self.step + 1
        rate = learning_rate(step, self.config)
        batch = self.sampler.draw()
        loss, grad_norm, states = self._step.take(batch, rate, step)
        self.step = step
        seconds = time.perf_counter() - started
        n_tokens = len(batch) * self.train.tokens.shape[1]
        return StepResult(step, loss, rate, grad_norm, seconds * 1e3, n_tokens / seconds, batch, states)

    def validate(self) -> float:
        """Give the accuracy on all validation instances, and let the early-stopping mark see it."""
        accuracy = self.evaluator.accuracy(self.val)
        self.mark.look(self.step, accuracy)
        return accuracy

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
        """Give all that the next step depends on: weights, optimiser tensors, and plain values."""
        weights = {name: weight.detach() for name, weight in self.model.state_dict().items()}
        names = {id(weight): name for name, weight in self.model.named_parameters()}
        moments: dict[str, Tensor] = {}
        for weight, entries in self.optimizer.state.items():
            moments.update({f"{names[id(weight)]}/{key}": value for key, value in entries.items()})
        moments.update({f"sampler/{key}": value for key, value in self.sampler.state().items()})
        return weights, moments, {"step": self.step, "early_stopping": asdict(self.mark)}

    def load_state(self, weights: dict[str, Tensor], moments: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on from a saved state, bit for bit."""
        self.model.load_state_dict(weights)
        own = {name: weight for name, weight in self.model.named_parameters()}
        for name, weight in own.items():
            keys = {key: value for key, value in moments.items() if key.rpartition("/")[0] == name}
            if keys:
                self.optimizer.state[weight] = {
                    # the step count stays where AdamW keeps it, the moments go beside their weight
                    key.rpartition("/")[2]: value.to(weight.device)
                    for key, value in keys.items()
                }
        self.sampler.load_state({key: moments[f"sampler/{key}"] for key in self.sampler.state()})
        self.step = values["step"]
        self.mark = EarlyStoppingMark(**values["early_stopping"])
        # a captured graph would go on with the tensors that were there before
        self._step = self._build_step()

    def _build_step(self) -> Step:
        limit = self.config.grad_clip or math.inf
        if self.graphed:
            size = self.config.batch_size
            return GraphedStep(self.model, self.optimizer, self._loss, limit, self._device, size)
        return EagerStep(self.model, self.optimizer, self._loss, limit, self._device)

    def _in_precision(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Let a forward multiply in the precision chosen; weights, sums, norms and states stay in float32."""
        if self.precision == torch.float32:
            return forward

        def cast(*inputs: Any, **options: Any) -> Any:
            # a cache of cast weights would be recorded in a graph and go stale
            with torch.autocast(self._device.type, self.precision, cache_enabled=False):
                return forward(*inputs, **options)

        return cast

    def _loss(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        with _dropout_seed(self._seed, self.step + 1, enabled=self.model.config.dropout > 0):
            loss, states = self._loss_of(batch)
            return loss if self.extra_loss is None else loss + self.extra_loss(batch), states

    def _loss_of(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        all_tokens = self.config.loss == "all"
        targets = self.train.next_tokens(batch).flatten() if all_tokens else self.train.targets[batch]
        if self.fused_head and isinstance(self.model, GPT2):
            output = self._hidden(*self.train.inputs(batch), all_tokens=all_tokens)
            loss = linear_cross_entropy(output.hidden.flatten(0, -2), self.model.wte.weight, targets)
        else:
            output = self._forward(*self.train.inputs(batch), all_tokens=all_tokens)
            # logits may have come in bfloat16
            loss = F.cross_entropy(output.logits.float().flatten(0, -2), targets)
        return loss, output.states


@contextmanager
def _dropout_seed(seed: int, step: int, enabled: bool) -> Iterator[None]:
    """Seed torch's global generators for one step's dropout and put them back as they were.

    Source: dropout is the one part of training that cannot take a generator; a seed by step needs no saved state
    """
    with torch.random.fork_rng(enabled=enabled):
        if enabled:
            torch.manual_seed((seed * 1_000_003 + step) % 2**63)
        yield
