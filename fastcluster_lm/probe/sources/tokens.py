"""Which token of each instance a layer's state is taken at, one or several by name; it reads no state itself."""

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from fastcluster_lm.errors import ShapeError, UsageError
from fastcluster_lm.probe.sources.inputs import Inputs
from fastcluster_lm.probe.sources.layer_names import matches

# an index, the key of an input that marks tokens, such marks themselves, or a function of (output, rows)
Position = int | str | Tensor | Callable[[Tensor, Tensor], Tensor]
# the same for all layers, or by patterns of their names: an encoder's layers and a decoder's read other tokens
ByLayer = Position | Mapping[str, Position]


def named_positions(position: Any, positions: Mapping[str, Any] | None, *, several_splits: bool) -> dict[str, ByLayer]:
    """Name each position: those of a mapping as it does, one alone after what it is. Arrays and lists become tensors.

    Errors: UsageError for both, or none, names that cannot stand in a file, or a tensor where splits differ
    """
    if positions is None:
        named = {_name_of(position): position}
    elif not (isinstance(position, int) and position == -1):
        raise UsageError("positions: expected without position, got both; name that one among positions")
    elif not isinstance(positions, Mapping) or not positions:
        raise UsageError(
            f'positions: expected names and what they stand for, {{"answer": -1}} say, got {positions!r:.60}'
        )
    else:
        named = dict(positions)
    found: dict[str, ByLayer] = {}
    for name, given in named.items():
        if not isinstance(name, str) or not re.fullmatch(r"[^\x00-\x1f/|]{1,100}", name):
            raise UsageError(f"positions: expected names of 100 characters at most, without / and |, got {name!r:.120}")
        parts = given if isinstance(given, Mapping) else {"": given}
        parts = {
            pattern: torch.as_tensor(one, device="cpu") if isinstance(one, np.ndarray | list) else one
            for pattern, one in parts.items()
        }
        if several_splits and any(isinstance(one, Tensor) for one in parts.values()):
            raise UsageError("position: expected an index, a name or a function where there is val too, got a tensor")
        found[name] = parts if isinstance(given, Mapping) else parts[""]
    return found


def describe_position(position: ByLayer) -> str:
    """Say for run.toml which token it is, so that no other's curves go on from there."""
    if isinstance(position, Mapping):
        return "; ".join(f"{pattern}: {describe_position(one)}" for pattern, one in position.items())
    if isinstance(position, Tensor):
        return f"tensor {hashlib.sha256(position.cpu().numpy().tobytes()).hexdigest()[:16]}"
    return str(position) if isinstance(position, int | str) else getattr(position, "__qualname__", "a function")


def position_of(position: ByLayer, layer: str) -> Position:
    """Give what a position is in one layer.

    Errors: UsageError if it is said by patterns, and none matches
    """
    if not isinstance(position, Mapping):
        return position
    for pattern, one in position.items():
        if matches(layer, pattern):
            return one
    raise UsageError(f"position: expected a pattern for each layer, none of {', '.join(position)} matches {layer!r}")


def _name_of(position: Any) -> str:
    if isinstance(position, int):
        return "last" if position == -1 else str(position)
    return position if isinstance(position, str) else "by layer" if isinstance(position, Mapping) else "given"


def tokens_at(position: Any, inputs: Inputs, rows: Int[Tensor, " B"], n_tokens: int, name: str) -> Int[Tensor, " B"]:
    """Give each row's token: the index itself, or the last that is marked."""
    if isinstance(position, str):
        if not isinstance(inputs, Mapping) or not isinstance(inputs.get(position), Tensor):
            raise UsageError(f"position: expected the name of an input tensor, got {position!r}")
        position = inputs[position]
    at = _last_marked(position, rows, n_tokens, name)
    mask = _mask_of(inputs, n_tokens, name)
    # all instances with the first of them, which a probe's construction tries
    if mask is not None and not int(rows[0]):
        everyone = torch.arange(len(mask), device="cpu")
        _refuse_padding(mask, _last_marked(position, everyone, n_tokens, name), name)
    return at


def _last_marked(position: int | Tensor, rows: Int[Tensor, " B"], n_tokens: int, name: str) -> Int[Tensor, " B"]:
    if isinstance(position, int):
        at = torch.full((len(rows),), position, device="cpu")
    else:
        marks = position.cpu()[rows]
        if marks.ndim == 2:
            if marks.shape[1] != n_tokens or not bool((marks != 0).any(1).all()):
                raise ShapeError(
                    f"position: expected marks (n, {n_tokens}) with one or more in each row, as layer {name!r} has "
                    f"{n_tokens} tokens; got shape {tuple(position.shape)}"
                )
            marks = n_tokens - 1 - (marks != 0).flip(1).int().argmax(1)
        at = marks.long()
    if bool(((at < -n_tokens) | (at >= n_tokens)).any()):
        raise ShapeError(f"position: expected tokens 0 to {n_tokens - 1} of layer {name!r}, got {int(at.max())}")
    return at % n_tokens


def _mask_of(inputs: Inputs, n_tokens: int, name: str) -> Int[Tensor, "n T"] | None:
    """Give the inputs' marks of tokens that are no padding, where there are such for this layer's tokens."""
    if not isinstance(inputs, Mapping):
        return None
    # of a model with both, a decoder's layers read other tokens than its encoder's
    two = any(str(key).startswith("decoder_") for key in inputs) or "labels" in inputs
    mask = inputs.get("decoder_attention_mask" if two and "decoder" in name.split(".") else "attention_mask")
    return mask.cpu() if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] == n_tokens else None


def _refuse_padding(mask: Int[Tensor, "n T"], at: Int[Tensor, " n"], name: str) -> None:
    """Refuse tokens that the model was told to leave out: their states say nothing of an instance.

    Errors: UsageError
    """
    padded = (mask[torch.arange(len(at), device="cpu"), at] == 0).nonzero()[:, 0].tolist()
    if padded:
        raise UsageError(
            f"position: token {int(at[padded[0]])} of instance {padded[0]} is padding in layer {name!r} (its attention "
            f"mask is 0 there; so it is in {len(padded)} of {len(at)} instances); give position='attention_mask' for "
            "the last token that counts, or pad on the other side"
        )
