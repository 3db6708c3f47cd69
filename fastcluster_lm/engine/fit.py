"""Whether a checkpoint is of the run that run.toml describes, before anything of it is used; it loads nothing.

Digests say that a file is what was written; here is seen that it was written for this model, training and probe.
"""

from collections.abc import Mapping
from typing import Any, Required, TypedDict

import numpy as np
import torch

from fastcluster_lm.config import ModelConfig
from fastcluster_lm.engine.rooms import Rooms
from fastcluster_lm.model.gpt2 import weight_shapes
from fastcluster_lm.probe.positions import FURTHER, state_prefix
from fastcluster_lm.store.schemas import Finite, Positive, Whole, check

Arrays = Mapping[str, np.ndarray]
Shape = tuple[int, ...]
MODEL = "model"


class Mark(TypedDict, total=False):
    patience: Required[Positive]
    delta: Required[Finite]
    best: Required[Finite]
    best_step: Required[int]
    looks_since: Required[Whole]
    step: Required[Whole | None]


class State(TypedDict, total=False):
    """The plain values of a trainer's state."""

    step: Required[Whole]
    early_stopping: Required[Mark]


def check_weights(config: ModelConfig, n_tokens: int, shapes: Mapping[str, Shape]) -> None:
    """Refuse weights that are not of a model trained here by this config, before one is built by it.

    Errors: ValueError naming the weight, what was expected and what came
    """
    positions = shapes.get("wpe.weight", (0, 0))
    _check_shapes(weight_shapes(config, n_tokens, positions[0] if positions else 0), shapes)


def check_saved(run: Rooms, tensors: Mapping[str, Arrays], values: Mapping[str, Any], step: int) -> None:
    """Refuse a checkpoint that the rooms of a run cannot go on from bit for bit.

    Errors: ValueError naming the tensor or the value, what was expected and what came
    """
    check(values, State)
    if values["step"] != step:
        raise ValueError(f"its state is of step {values['step']}")
    weights, moments, _ = run.trainer.state()
    needed = {MODEL, "optimizer", *(("probe",) if run.probe is not None else ())}
    if missing := sorted(needed - tensors.keys()):
        raise ValueError(f"expected {', '.join(sorted(needed))}, found no {missing[0]}")
    check_like(weights, tensors[MODEL])
    expected = {name: _like(value) for name, value in moments.items() if name.startswith("sampler/")}
    for name, weight in run.trainer.model.named_parameters():
        # every weight has been stepped by now
        moment = _like(weight)
        expected |= {f"{name}/exp_avg": moment, f"{name}/exp_avg_sq": moment, f"{name}/step": ((), np.dtype("float32"))}
    _check_like(expected, tensors["optimizer"])
    _check_sampler(tensors["optimizer"], len(run.trainer.train))
    if run.probe is not None:
        _check_probe(run, tensors["probe"])


def check_like(expected: Mapping[str, Any], found: Arrays) -> None:
    """Refuse arrays that differ from tensors in names, shapes or dtypes.

    Errors: ValueError naming the first that does, what was expected and what came
    """
    _check_like({name: _like(tensor) for name, tensor in expected.items()}, found)


def _check_shapes(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
    if missing := [name for name in expected if name not in found]:
        raise ValueError(f"expected {len(expected)} tensors, found none for {missing[0]}")
    if more := [name for name in found if name not in expected]:
        raise ValueError(f"expected {len(expected)} tensors, found {more[0]!r} too")
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            raise ValueError(f"{name}: expected the shape {shape}, found {tuple(found[name])}")


def _check_like(expected: Mapping[str, tuple[Shape, np.dtype]], found: Arrays) -> None:
    _check_shapes({name: shape for name, (shape, _) in expected.items()}, {name: a.shape for name, a in found.items()})
    for name, (_, dtype) in expected.items():
        if found[name].dtype != dtype:
            raise ValueError(f"{name}: expected {dtype}, found {found[name].dtype}")


def _like(tensor: Any) -> tuple[Shape, np.dtype]:
    return tuple(tensor.shape), np.dtype(str(tensor.dtype).removeprefix("torch."))


def _check_sampler(found: Arrays, n_instances: int) -> None:
    order, position = found["sampler/order"], int(found["sampler/position"])
    if not np.array_equal(np.sort(order), np.arange(n_instances)):
        raise ValueError(f"sampler/order: expected each of {n_instances} instances once")
    if not 0 <= position <= n_instances:
        raise ValueError(f"sampler/position: expected 0 to {n_instances}, found {position}")
    try:
        torch.Generator().set_state(torch.from_numpy(found["sampler/generator"]))
    except RuntimeError as error:
        raise ValueError(f"sampler/generator: expected the state of torch's generator, found none: {error}") from error


def _check_probe(run: Rooms, found: Arrays) -> None:
    """Hold the probe's tensors against each other and against the model."""
    positions, shared = run.config.probe.all_positions, ("ring/", FURTHER)
    first = {name: own for name, own in found.items() if not name.startswith(shared)}
    _check_scorer(run, first)
    known = [*first]
    for prefix in (state_prefix(positions, position) for position in positions[1:]):
        own = {name.removeprefix(prefix): array for name, array in found.items() if name.startswith(prefix)}
        if own.keys() != first.keys():
            raise ValueError(
                f"expected {prefix}NAME beside each of {', '.join(first)}, found {', '.join(own) or 'none'}"
            )
        _check_scorer(run, own)
        known += [f"{prefix}{name}" for name in own]
    if more := [name for name in found if name not in known and name.startswith(FURTHER)]:
        raise ValueError(f"expected the positions {', '.join(positions)}, found {more[0]!r} too")
    _check_ring(run, found)


def _check_scorer(run: Rooms, found: Arrays) -> None:
    """Hold against each other and against the model what one position's scores go on from."""
    n_layers, width = run.config.model.n_layers + 1, run.config.model.d_model
    if "map" in found:
        for name in ("ids", "neighbors", "neighbor_ids", "preserved", "restart"):
            if name not in found:
                raise ValueError(f"expected {name} beside map, found none")
        n, near = found["ids"].shape[:1], found["neighbors"]
        _check_array("map", found["map"], "f", (n_layers, *n, 2))
        _check_array("ids", found["ids"], "i", (*n,))
        _check_array("neighbor_ids", found["neighbor_ids"], "i", found["neighbor_ids"].shape[:1])
        _check_array("neighbors", near, "i", (n_layers, *found["neighbor_ids"].shape, *near.shape[2:3]))
        _check_array("preserved", found["preserved"], "f", (n_layers,))
        _check_array("restart", found["restart"], "u", (1,))
        # -1 in a layer that could not be scored
        if near.size and not -1 <= int(near.min()) <= int(near.max()) < near.shape[1]:
            raise ValueError(f"neighbors: expected -1 to {near.shape[1] - 1}, found {near.min()} to {near.max()}")
    for name, array in found.items():
        if name.startswith("centroids/"):
            space, classes = name.split("/")[1], name.rpartition("/")[2]
            k = int(classes) if classes.isdecimal() and len(classes) < 10 else 0
            _check_array(name, array, "f", (1, n_layers, k, 2 if space == "map" else width))


def _check_ring(run: Rooms, found: Arrays) -> None:
    assert run.probe is not None
    if ring := {name: _like(value) for name, value in run.probe.state().items() if name.startswith("ring/")}:
        own = {name: array for name, array in found.items() if name.startswith("ring/")}
        _check_like(ring, own)
        instances = own["ring/instances"]
        held = instances[instances >= 0]
        if int(instances.min()) < -1 or int(instances.max()) >= len(run.trainer.train) or len(set(held)) < len(held):
            raise ValueError(
                f"ring/instances: expected numbers of {len(run.trainer.train)} instances, each once, or -1"
            )


def _check_array(name: str, array: np.ndarray, kind: str, shape: Shape) -> None:
    if array.dtype.kind != kind or array.shape != shape:
        words = {"f": "floats", "i": "whole numbers", "u": "bytes"}[kind]
        raise ValueError(f"{name}: expected {words} of shape {shape}, found {array.dtype} of shape {array.shape}")
