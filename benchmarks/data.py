"""The points that benchmarks run on: Gaussian blobs, digits, hidden states of a real run."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.config import apply_settings, load_preset
from fastcluster_lm.errors import UsageError

SOURCES = ("blobs", "digits", "states")


def make_points(
    source: str, n_layers: int, n: int, width: int, n_classes: int, seed: int = 0
) -> tuple[Float[Tensor, "layers n d"], Int[Tensor, " n"]]:
    """Make points with true labels.

    Shapes: -> X (layers, n, d) f32, labels (n,). blobs as asked; digits: (layers, 1797, 64), each layer turned at
            random; states: (7, n, 32), the preset tiny-constant's after 700 steps, train and validation together
    Errors: UsageError for an unknown source
    """
    if source == "blobs":
        return _blobs(n_layers, n, width, n_classes, seed)
    if source == "digits":
        return _digits(n_layers, seed)
    if source == "states":
        return hidden_states(steps=700, n=n)
    raise UsageError(f"data: expected one of {', '.join(SOURCES)}, got {source!r}")


def hidden_states(steps: int, n: int) -> tuple[Float[Tensor, "7 n d"], Int[Tensor, " n"]]:
    """Train the preset tiny-constant for some steps and give the first n states of its probe sets, with their tasks."""
    from fastcluster_lm.engine import Rooms
    from fastcluster_lm.tasks import taskset_of

    config = apply_settings(load_preset("tiny-constant"), [f"training.threads={torch.get_num_threads()}"])
    run = Rooms(config, taskset_of(config.tasks, config.seed))
    for _ in range(steps):
        run.trainer.advance()
    assert run.probe is not None
    parts, labels = [], []
    for chosen in run.probe.sources.values():
        states = torch.empty(config.model.n_layers + 1, len(chosen.instances), config.model.d_model)
        run.trainer.evaluator.states_into(chosen.instances, states)
        parts.append(states)
        labels.append(chosen.instances.task)
    X, task = torch.cat(parts, 1), torch.cat(labels)
    order = torch.randperm(X.shape[1], generator=torch.Generator().manual_seed(0))[:n]
    return X[:, order].contiguous(), task[order]


def _blobs(n_layers: int, n: int, width: int, n_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(n_classes, (n,), generator=generator)
    # centres as far apart as points of a class spread, whatever the width
    centres = torch.randn(n_layers, n_classes, width, generator=generator)
    return centres[:, labels] + torch.randn(n_layers, n, width, generator=generator), labels


def _digits(n_layers: int, seed: int) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    found = load_digits()
    X = torch.from_numpy(found.data).float()
    generator = torch.Generator().manual_seed(seed)
    turns = torch.linalg.qr(torch.randn(n_layers, 64, 64, generator=generator)).Q
    return X @ turns, torch.from_numpy(found.target).long()
