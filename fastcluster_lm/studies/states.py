"""States of a trained model: taken, scored, exchanged at a layer; it trains nothing and reads no file."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fastcluster_lm.data import Instances
from fastcluster_lm.engine import Row
from fastcluster_lm.errors import DataError
from fastcluster_lm.model import GPT2, Evaluator
from fastcluster_lm.probe.points import label_kinds
from fastcluster_lm.scores.engines.params import Engine
from fastcluster_lm.scores.parts import Scoring
from fastcluster_lm.scores.points import Points
from fastcluster_lm.scores.spaces import score_space

# states (B, D) of one layer at the output position, changed
Change = Callable[[Float[Tensor, "B D"]], Float[Tensor, "B D"]]


def states_of(
    evaluator: Evaluator, instances: Instances, *, n_layers: int, d_model: int
) -> Float[Tensor, "layers n D"]:
    """Run instances and give every layer's states at the probed positions.

    Shapes: n instances -> (P * (n_layers + 1), n, d_model), P = 1 where nothing but the input token is probed
    """
    positions = 1 if instances.probe_positions is None else instances.probe_positions.shape[1]
    states = torch.empty(positions * (n_layers + 1), len(instances), d_model, device=instances.tokens.device)
    evaluator.states_into(instances, states)
    return states


def score_states(
    states: Mapping[str, Float[Tensor, "layers n D"]],
    instances: Mapping[str, Instances],
    engine: Engine,
    *,
    n_inputs: int,
    plan: Sequence[tuple[str, str]] = (("input_output", "task"),),
    scoring: Scoring | None = None,
) -> list[Row]:
    """Score states of splits as a probe does, against the split `train`.

    Shapes: states (layers, n, D) and n instances, by split -> a row for each split, (group, labels) and layer
    """
    splits = {
        name: Points(name, states[name], label_kinds(own, n_inputs), own.instruction) for name, own in instances.items()
    }
    return score_space(splits, splits["train"], space="hidden", plan=plan, scoring=scoring, engine=engine)


def group_means(X: Float[Tensor, "n D"], codes: Int[Tensor, " n"], n_groups: int) -> Float[Tensor, "k D"]:
    """Average the points of each group; a group without points is NaN.

    Shapes: X (n, D), codes (n,) below n_groups -> (n_groups, D)
    """
    sums = torch.zeros(n_groups, X.shape[1], dtype=X.dtype, device=X.device).index_add_(0, codes, X)
    return sums / torch.bincount(codes, minlength=n_groups)[:, None]


@contextmanager
def changed_states(model: GPT2, layer: int, change: Change) -> Iterator[None]:
    """Put other states in the place of one layer's, at the last position of every sequence, within a `with` block.

    Layer 0 is the embedding, the last one what the final norm takes; sequences must be of one length, the model eager
    """

    def at_end(x: Tensor) -> Tensor:
        if x.ndim == 2:
            return change(x)
        return torch.cat((x[:, :-1], change(x[:, -1])[:, None]), 1)

    def after(module: nn.Module, given: Any, x: Tensor) -> Tensor:
        return at_end(x)

    def before(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (at_end(given[0]), *given[1:])

    n_layers = len(model.blocks)
    if not 0 <= layer <= n_layers:
        raise DataError(f"layer: expected 0 to {n_layers}, got {layer}")
    if layer == n_layers:
        # the last block is computed for single positions, by a method that no hook sees
        handle = model.ln_f.register_forward_pre_hook(before)
    else:
        handle = (model.drop if layer == 0 else model.blocks[layer - 1]).register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def kept_states(model: GPT2, layer: int) -> Iterator[list[Tensor]]:
    """Keep the newest states of a layer at the last position, with their gradient, within a `with` block.

    Shapes: one tensor (B, D) in the list after a forward pass
    """
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept[:] = [x]
        return x

    with changed_states(model, layer, keep):
        yield kept
