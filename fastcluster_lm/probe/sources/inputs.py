"""What a model's forward takes, a row an instance: made tensors, counted, cut into batches; it runs no model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from fastcluster_lm.errors import ShapeError, UsageError

# one argument, some by keyword, or some in turn
Inputs = Tensor | Mapping[str, Any] | Sequence[Any]


def as_inputs(given: Any) -> Inputs:
    """Make tensors of arrays and nested lists: all of one, those among keywords, or those of a tuple.

    A list that holds tensors or arrays is arguments in turn, as a tuple is; any other is rows. Fractions of double
    precision become torch's default, which models are made of; what holds no numbers stays as it is among arguments
    Errors: ShapeError for rows of unlike lengths; UsageError if what is alone holds no numbers
    """
    if isinstance(given, Mapping):
        return {key: _as_tensor(value, f"inputs[{key!r}]") for key, value in given.items()}
    if isinstance(given, tuple) or (isinstance(given, list) and any(isinstance(one, _ARRAYS) for one in given)):
        return tuple(_as_tensor(value, f"inputs[{at}]") for at, value in enumerate(given))
    made = _as_tensor(given, "inputs")
    if not isinstance(made, Tensor):
        raise UsageError(f"inputs: expected a tensor, an array, rows of numbers, a dict or a tuple, got {made!r:.60}")
    return made


def count_instances(inputs: Inputs) -> int:
    """Count the instances of a model's inputs.

    Errors: ShapeError if its tensors differ in their first axis, or there is none
    """
    if isinstance(inputs, Tensor):
        return len(inputs)
    entries = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
    sizes = {str(key): value.shape[0] for key, value in entries if isinstance(value, Tensor) and value.ndim}
    if len(set(sizes.values())) != 1:
        raise ShapeError(f"inputs: expected tensors with one row an instance, got rows {sizes or 'of no tensor'}")
    return next(iter(sizes.values()))


def rows_of(inputs: Inputs, rows: Int[Tensor, " B"], device: torch.device) -> Any:
    """Pick the rows of all tensors, on a device; what else there is goes along."""

    def pick(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return (value[rows.to(value.device)] if value.ndim else value).to(device)

    if isinstance(inputs, Tensor):
        return pick(inputs)
    if isinstance(inputs, Mapping):
        return {key: pick(value) for key, value in inputs.items()}
    return tuple(pick(value) for value in inputs)


_ARRAYS = (Tensor, np.ndarray)


def _as_tensor(value: Any, name: str) -> Any:
    if isinstance(value, list):
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise ShapeError(f"{name}: expected rows of one length, got rows of unlike ones; pad them") from error
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        return value
    made = torch.from_numpy(np.ascontiguousarray(value, value.dtype.newbyteorder("=")))
    return made.to(torch.get_default_dtype()) if made.dtype == torch.float64 else made
