"""What a caller may give to the verbs: points, labels, counts, seeds; each refusal names the parameter; no scores."""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fastcluster_lm.errors import DataError, ShapeError

Array = Tensor | np.ndarray
# whole numbers up to these are kept exactly by float32 and by float64
EXACT_IN_32, EXACT_IN_64 = 2**24, 2**53
LARGEST_COUNT = 2**63 - 1
# starts, iterations and nulls beyond this are a slip, and would end in a failed allocation or never
LARGEST_EFFORT = 10**6
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_WHOLE = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64),
)
_PLAIN = "expected a dense array or tensor of real numbers"


class Points(NamedTuple):
    """A caller's points as one batch over layers, and how to give results back in the caller's kind of array.

    batch: float32, or float64 where the caller's numbers need it; every number is exactly the caller's
    """

    batch: Float[Tensor, "layers n d"]
    has_layers: bool
    is_tensor: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Give the shape that the caller knows."""
        return tuple(self.batch.shape if self.has_layers else self.batch.shape[1:])

    def as_given(self, result: Tensor) -> Array:
        """Give a batched result the kind (numpy or torch) and the batch shape of the points."""
        result = result if self.has_layers else result[0]
        return result if self.is_tensor else result.cpu().numpy()


def as_points(X: Any, name: str) -> Points:
    """Take the caller's points: a tensor, a numpy array or nested lists.

    Shapes: X (n, d) or (layers, n, d) -> batch (layers, n, d)
    Errors: ShapeError for any other number of axes, no layers, or an axis d of length 0; DataError for what is not
            dense, real and there (sparse, masked, complex, meta, 8-bit floats, text), and for whole numbers that
            float64 cannot hold
    """
    tensor = as_numbers(X, name)
    shape = tuple(tensor.shape)
    if len(shape) not in (2, 3):
        raise ShapeError(f"{name} has shape {shape}; expected (n, d) or (layers, n, d)")
    if shape[-1] == 0:
        raise ShapeError(f"{name} has shape {shape}; d must be at least 1")
    if len(shape) == 3 and shape[0] == 0:
        raise ShapeError(f"{name} has shape {shape}; expected at least one layer")
    return Points(tensor if len(shape) == 3 else tensor[None], len(shape) == 3, isinstance(X, Tensor))


def as_start(init: Any, device: torch.device) -> Tensor | None:
    """Take the caller's starting points, in the shape given, on the device of the points; None where there are none."""
    return None if init is None else as_numbers(init, "init").to(device)


def alike(queries: Points, bank: Points, name: str = "queries") -> tuple[Tensor, Tensor]:
    """Give both batches in one dtype: float64 where either has it.

    Errors: ShapeError if only one has layers; DataError if they lie on different devices
    """
    if queries.has_layers != bank.has_layers:
        raise ShapeError(f"{name} has shape {queries.shape}, bank {bank.shape}; layers must match")
    if queries.batch.device != bank.batch.device:
        raise DataError(f"{name} lies on {queries.batch.device}, bank on {bank.batch.device}; bring both to one device")
    dtype = torch.promote_types(queries.batch.dtype, bank.batch.dtype)
    return queries.batch.to(dtype), bank.batch.to(dtype)


def as_numbers(X: Any, name: str) -> Tensor:
    """Take an array-like of real numbers of any shape as a tensor of float32 or float64 that holds each exactly.

    Notes: of long doubles float64 is kept
    Errors: DataError as in as_points
    """
    tensor = _dense(X, name) if isinstance(X, Tensor) else _from_array(X, name)
    if tensor.dtype in (torch.float32, torch.float64):
        return tensor
    if tensor.dtype in _FLOATS or tensor.dtype.itemsize < 4 or tensor.numel() == 0:
        return tensor.float()
    whole = tensor.to(torch.int64)
    low, high = (int(value) for value in whole.aminmax())
    # beyond the largest of int64 a uint64 comes out negative
    largest = 2**64 if tensor.dtype == torch.uint64 and low < 0 else max(-low, high)
    if largest > EXACT_IN_64:
        raise DataError(f"{name} holds whole numbers beyond 2^53, which float64 cannot tell apart; subtract an offset")
    return whole.float() if largest <= EXACT_IN_32 else whole.double()


def _dense(X: Tensor, name: str) -> Tensor:
    """Refuse tensors whose numbers do not lie in memory one by one."""
    kind = None
    if isinstance(X, torch.masked.MaskedTensor):
        kind = "masked"
    elif hasattr(X, "full_tensor"):
        kind = "spread over processes"
    elif X.is_nested:
        kind = "nested"
    elif X.layout != torch.strided:
        kind = f"laid out as {X.layout}"
    elif X.is_meta:
        kind = "on the device meta, which holds no numbers"
    if kind is not None:
        raise DataError(f"{name} is {kind}; {_PLAIN}")
    if X.dtype not in (*_FLOATS, *_WHOLE):
        raise DataError(f"{name} holds {X.dtype}; {_PLAIN}")
    # a view of an imaginary part may only say that it is to be negated
    return X.detach().resolve_neg()


def _from_array(X: Any, name: str) -> Tensor:
    array = _as_array(X, name)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name} holds {_kind(array)}; {_PLAIN}")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        with np.errstate(over="ignore"):
            array = array.astype(np.float64)
    # torch takes neither another byte order, nor strides below 0 (of an axis of length 1, say), nor what is read-only
    array = np.require(array, array.dtype.newbyteorder("="), ["C", "A", "W"])
    return torch.from_numpy(array.copy() if min(array.strides, default=0) < 0 else array)


def _as_array(values: Any, name: str) -> NDArray[Any]:
    if values is None:
        raise DataError(f"{name} is None; {_PLAIN}")
    if isinstance(values, np.ma.MaskedArray):
        raise DataError(f"{name} is masked; {_PLAIN}, so leave out what is masked")
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise DataError(f"{name} is no array ({error}); {_PLAIN}") from error


def _kind(array: NDArray[Any]) -> str:
    if array.dtype.kind == "O" and array.size:
        return f"objects such as {type(array.flat[0]).__name__}"
    return str(array.dtype)


def as_labels(labels: ArrayLike | Tensor | None, name: str, n: int) -> NDArray[Any]:
    """Take one label a point, as an array on the host: whole numbers, finite numbers, booleans or text.

    Errors: DataError for None, other kinds, mixed kinds, NaN and infinity; ShapeError for another number of labels
    """
    expected = f"expected {n} labels, one a point: whole numbers, text, booleans or finite numbers"
    if labels is None:
        raise DataError(f"{name} is None; {expected}")
    if isinstance(labels, Tensor):
        dense = _dense(labels, name).cpu()
        values = (dense.float() if dense.dtype in (torch.float16, torch.bfloat16) else dense).numpy()
    else:
        values = _as_array(labels, name)
    if values.shape != (n,):
        raise ShapeError(f"{name} has shape {values.shape}; expected ({n},), one label a point")
    if values.dtype.kind == "O":
        kinds = {type(value) for value in values}
        if len(kinds) > 1 or not kinds <= {str, bool, int}:
            raise DataError(f"{name} holds {', '.join(sorted(kind.__name__ for kind in kinds))}; {expected}")
        values = np.array([str(value) if kinds != {str} else value for value in values])
    if values.dtype.kind not in "biufSU":
        raise DataError(f"{name} holds {values.dtype}; {expected}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(f"{name} holds NaN or infinity; {expected}")
    return values


def check_same_labels(own: ArrayLike | Tensor, name: str, banked: ArrayLike | Tensor, bank_name: str) -> None:
    """Refuse labels of queries and bank of which one side is text and the other numbers: none would be the same."""
    dtypes = [np.asarray(values).dtype for values in (own, banked)]
    if len({dtype.kind if dtype.kind in "SU" else "number" for dtype in dtypes}) > 1:
        raise DataError(f"{name} holds {dtypes[0]}, {bank_name} {dtypes[1]}; labels of both must be of one kind")


def whole_number(value: Any, name: str, *, most: int = LARGEST_COUNT) -> int:
    """Take a whole number, Python's or numpy's, as Python's.

    Errors: DataError for any other kind (None, booleans, floats, text), and for numbers beyond `most` either way
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise DataError(f"{name} is {value!r:.60}; expected a whole number")
    if abs(int(value)) > most:
        raise DataError(f"{name} is {value}; expected a whole number of at most {most}")
    return int(value)


def seed_number(value: Any, name: str = "seed") -> int:
    """Take a seed: a whole number from 0 on.

    Errors: DataError for anything else
    """
    seed = whole_number(value, name)
    if seed < 0:
        raise DataError(f"{name} is {seed}; expected 0 to {LARGEST_COUNT}")
    return seed


def real_number(value: Any, name: str) -> float:
    """Take a real number, Python's or numpy's, as Python's.

    Errors: DataError for any other kind (None, booleans, text), and for one beyond float64
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise DataError(f"{name} is {value!r:.60}; expected a number")
    try:
        return float(value)
    except OverflowError as error:
        raise DataError(f"{name} is a number of {len(str(value))} digits; float64 holds none so large") from error


def yes_or_no(value: Any, name: str) -> bool:
    """Take True or False, Python's or numpy's.

    Errors: DataError for anything else
    """
    if not isinstance(value, (bool, np.bool_)):
        raise DataError(f"{name} is {value!r:.60}; expected True or False")
    return bool(value)
