"""What a caller may give to the verbs: points, labels, counts, seeds; each refusal names the parameter; no scores."""

from collections.abc import Sequence
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
_FLOAT_NAMES = ("float16", "float32", "float64", str(np.dtype(np.longdouble)))
_PLAIN = "expected a dense array or tensor of real numbers"


class GivenPoints(NamedTuple):
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


def as_points(X: Any, name: str) -> GivenPoints:
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
    return GivenPoints(tensor if len(shape) == 3 else tensor[None], len(shape) == 3, isinstance(X, Tensor))


def as_start(init: Any, device: torch.device) -> Tensor | None:
    """Take the caller's starting points, in the shape given, on the device of the points; None where there are none."""
    return None if init is None else as_numbers(init, "init").to(device)


def alike(queries: GivenPoints, bank: GivenPoints, name: str = "queries") -> tuple[Tensor, Tensor]:
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


def _as_array(values: Any, name: str, dtype: type | None = None) -> NDArray[Any]:
    if values is None:
        raise DataError(f"{name} is None; {_PLAIN}")
    if isinstance(values, np.ma.MaskedArray):
        raise DataError(f"{name} is masked; {_PLAIN}, so leave out what is masked")
    try:
        return np.asarray(values, dtype)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise DataError(f"{name} is no array ({error}); {_PLAIN}") from error


def _kind(array: NDArray[Any]) -> str:
    if array.dtype.kind == "O" and array.size:
        return f"objects such as {type(array.flat[0]).__name__}"
    return str(array.dtype)


def as_labels(labels: ArrayLike | Tensor | None, name: str, n: int) -> NDArray[Any]:
    """Take one label a point, as an array on the host: whole numbers, finite numbers, booleans or text.

    Notes: lists, and arrays of objects, are judged by every one of their labels; whole numbers beside fractions are
           numbers, booleans beside either are mixed
    Errors: DataError for None, other kinds, mixed kinds, NaN and infinity; ShapeError for another number of labels
    """
    expected = f"expected {n} labels, one a point: whole numbers, text, booleans or finite numbers"
    if labels is None:
        raise DataError(f"{name} is None; {expected}")
    if isinstance(labels, (list, tuple)) and labels and all(isinstance(label, Tensor) for label in labels):
        labels = _stacked(labels, name)
    if isinstance(labels, Tensor):
        dense = _dense(labels, name).cpu()
        values = (dense.float() if dense.dtype in (torch.float16, torch.bfloat16) else dense).numpy()
    else:
        # left to itself numpy makes text of a list that holds any
        values = _as_array(labels, name, object if isinstance(labels, (list, tuple)) else None)
    if values.dtype.kind == "T":
        values = values.astype(object)
    if values.dtype.kind == "O" and values.ndim == 1:
        values = _of_one_kind(values, name, expected)
    if values.shape != (n,):
        raise ShapeError(f"{name} has shape {values.shape}; expected ({n},), one label a point")
    if values.dtype.kind not in "biufSU":
        raise DataError(f"{name} holds {values.dtype}; {expected}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(f"{name} holds NaN or infinity; {expected}")
    return values


def joined_labels(
    own: ArrayLike | Tensor, name: str, banked: ArrayLike | Tensor, bank_name: str
) -> tuple[NDArray[Any], int]:
    """Put labels of queries and of a bank behind one another, so that those and only those that are equal stay so.

    Gives how many are the queries' beside them
    Notes: an array of objects where no dtype holds both sides exactly
    Errors: DataError as in as_labels; where text meets numbers; where fractions are of unlike precision, as 0.1 in
            float32 and in float64, of which none would be the same
    """
    sides = [as_labels(own, name, len(own)), as_labels(banked, bank_name, len(banked))]  # type: ignore[arg-type]
    dtypes = [side.dtype for side in sides]
    if len({dtype.kind if dtype.kind in "SU" else "number" for dtype in dtypes}) > 1:
        raise DataError(f"{name} holds {dtypes[0]}, {bank_name} {dtypes[1]}; labels of both must be of one kind")
    if dtypes[0].kind == dtypes[1].kind == "f":
        first, second = _Fractions(own, name, sides[0]), _Fractions(banked, bank_name, sides[1])
        first.check_held_by(second)
        second.check_held_by(first)
    elif dtypes[0] != dtypes[1] and max(_largest_whole(side) for side in sides) > EXACT_IN_64:
        # numpy would bring int64 and uint64 to float64; Python's numbers are compared exactly
        sides = [side.astype(object) for side in sides]
    return np.concatenate(sides), len(sides[0])


class _Fractions:
    """Labels that are floats, and how precise the caller's were: of bfloat16 numpy knows nothing."""

    def __init__(self, given: ArrayLike | Tensor, name: str, values: NDArray[Any]) -> None:
        self.name, self.values = name, values
        self.dtype = given.dtype if isinstance(given, Tensor) and given.dtype.itemsize == 2 else None
        self.kind = str(self.dtype or values.dtype.newbyteorder("=")).removeprefix("torch.")

    def check_held_by(self, other: "_Fractions") -> None:
        """Refuse numbers between those that the other side's kind can hold."""
        with np.errstate(over="ignore"):
            if other.dtype is None:
                held = self.values.astype(other.values.dtype)
            else:
                held = torch.from_numpy(self.values.astype(np.float64)).to(other.dtype).double().numpy()
        if (held != self.values).any():
            raise DataError(
                f"{self.name} holds {self.kind}, {other.name} {other.kind}, which cannot hold all of them, so that few "
                "or none would be the same; give both in one kind, best as whole numbers or text"
            )


def _stacked(labels: Sequence[Tensor], name: str) -> Tensor:
    try:
        return torch.stack(list(labels))
    except (RuntimeError, NotImplementedError) as error:
        raise DataError(f"{name} is a list of tensors that make no array ({error}); {_PLAIN}") from error


def _of_one_kind(values: NDArray[Any], name: str, expected: str) -> NDArray[Any]:
    """Take objects that are all text, bytes, booleans, floats of one precision, or whole numbers; also 1 beside 0.5."""
    labels = [value.item() if isinstance(value, (np.integer, np.bool_)) else value for value in values]
    kinds = {_kind_of_label(label) for label in labels}
    whole_too = kinds == {"int", "float64"}
    if len(kinds) > 1 and not whole_too or not kinds <= {"text", "bytes", "bool", "int", *_FLOAT_NAMES}:
        raise DataError(f"{name} holds {', '.join(sorted(kinds))}; {expected}")
    if kinds == {"text"}:
        return np.array([str(label) for label in labels])
    if whole_too and max(abs(label) for label in labels if isinstance(label, int)) > EXACT_IN_64:
        raise DataError(f"{name} holds fractions, and whole numbers beyond 2^53 that float64 cannot hold; {expected}")
    if kinds == {"int"}:
        low, high = int(min(labels)), int(max(labels))
        kind = np.int64 if low >= -(2**63) and high < 2**63 else np.uint64
        # still larger ones are told apart as text
        beyond = low < -(2**63) or high >= 2**64 or (low < 0 and kind is np.uint64)
        return np.array([str(int(label)) for label in labels]) if beyond else np.array(labels, dtype=kind)
    return np.array(labels) if labels else np.array([], dtype=np.int64)


def _kind_of_label(label: Any) -> str:
    for kind, name in ((str, "text"), (bytes, "bytes"), (bool, "bool"), (int, "int"), (float, "float64")):
        if isinstance(label, kind):
            return name
    return str(label.dtype) if isinstance(label, np.floating) else type(label).__name__


def _largest_whole(values: NDArray[Any]) -> int:
    """Give the largest absolute value of whole numbers, 0 for any other labels."""
    return max(-int(values.min()), int(values.max())) if values.dtype.kind in "iu" and values.size else 0


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
