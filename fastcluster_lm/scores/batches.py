"""Turns a caller's arrays into one batch (layers, n, d) and results back into the caller's kind; it scores nothing."""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fastcluster_lm.errors import DataError, ShapeError
from fastcluster_lm.kernels.deferred import check, deferring
from fastcluster_lm.kernels.point_frames import point_frames

Array = Tensor | np.ndarray
# points whose deviations lie between its inverse and this need no other unit; so many points tell
MODEST, FEW_POINTS = 2.0**20, 16
# inputs beyond this many bytes are taken in parts on a CPU, so that their copies stay small
WHOLE_BYTES = 64 * 2**20


def as_batch(X: Array, name: str) -> Float[Tensor, "layers n d"]:
    """View the caller's points as one floating-point batch over layers.

    Shapes: X (n, d) or (layers, n, d) -> (layers, n, d)
    Errors: ShapeError for any other number of axes, no layers, or an axis d of length 0
    """
    tensor = X.detach() if isinstance(X, Tensor) else torch.from_numpy(np.ascontiguousarray(X))
    if tensor.ndim not in (2, 3):
        raise ShapeError(f"{name} has shape {tuple(tensor.shape)}; expected (n, d) or (layers, n, d)")
    if tensor.shape[-1] == 0:
        raise ShapeError(f"{name} has shape {tuple(tensor.shape)}; d must be at least 1")
    if tensor.ndim == 3 and tensor.shape[0] == 0:
        raise ShapeError(f"{name} has shape {tuple(tensor.shape)}; expected at least one layer")
    if not tensor.is_floating_point():
        tensor = tensor.float()
    return tensor if tensor.ndim == 3 else tensor[None]


def as_caller(result: Tensor, like: Array) -> Array:
    """Give a batched result the kind (numpy or torch) and the batch shape of the points it came from."""
    result = result if like.ndim == 3 else result[0]
    return result if isinstance(like, Tensor) else result.cpu().numpy()


def check_finite(
    X: Float[Tensor, "layers n d"], name: str, *, sq_norms: Float[Tensor, "layers n"] | None = None
) -> None:
    """Refuse NaN and infinity by the layers that hold them; on a GPU one wait, or none where checks are put off.

    Shapes: X (layers, n, d); sq_norms (layers, n) of the points spare the pass over them
    Errors: DataError naming the layers; where checks are put off, also for a norm whose square is beyond float32
    """
    put_off = deferring(X)
    # a sum reads the points once and writes nothing; it is finite unless a value is not, or all of them are huge
    if not put_off and math.isfinite(float((X if sq_norms is None else sq_norms).sum())):
        return
    values = sq_norms[..., None] if put_off and sq_norms is not None else X

    def judge(broken: Tensor) -> DataError | None:
        layers = [str(layer) for layer, is_broken in enumerate(broken.tolist()) if is_broken]
        if not layers:
            return None
        return DataError(f"{name} holds NaN or infinity in layer {', '.join(layers)}; expected finite values")

    check((~values.isfinite()).flatten(1).any(1), judge)


def scaling(X: Float[Tensor, "layers n d"]) -> tuple[Float[Tensor, "layers 1 d"], Float[Tensor, "layers 1 1"]]:
    """Find each layer's mean and a power of two near its largest deviation: the frame in which float32 is safe.

    Shapes: X (layers, n, d) -> offset (layers, 1, d), scale (layers, 1, 1), in the dtype of X, float32 at least
    """
    X = X if X.dtype == torch.float64 else X.float()
    if X.shape[1] == 0:
        return X.sum(1, keepdim=True), X.new_ones(X.shape[0], 1, 1)
    # where a sum of huge values overflows, the middle of the extremes is as good an offset as the mean
    # two passes, since torch's aminmax along points takes four times as long as both
    low, high = X.amin(1, keepdim=True), X.amax(1, keepdim=True)
    offset = X.mean(1, keepdim=True)
    offset = torch.where(offset.isfinite(), offset, low / 2 + high / 2)
    return offset, _power_of_two(torch.maximum(high - offset, offset - low))


def power_of_two(deviations: Float[Tensor, "layers n d"]) -> Float[Tensor, "layers 1 1"]:
    """Round each layer's largest deviation down to a power of two, 1 where all are 0; dividing by it rounds nothing."""
    if deviations.shape[1] == 0:
        return deviations.new_ones(deviations.shape[0], 1, 1)
    return _power_of_two(deviations.abs())


def _power_of_two(sizes: Tensor) -> Tensor:
    largest = sizes.amax((1, 2), keepdim=True)
    powers = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1)
    return torch.where(largest > 0, powers, torch.ones_like(largest))


class Frame(NamedTuple):
    """Where float32 is safe for a layer's points: (X - offset) / scale; plain: scale is known to be 1 everywhere.

    Shapes: offset (layers, 1, d), scale (layers, 1, 1)
    """

    offset: Float[Tensor, "layers 1 d"]
    scale: Float[Tensor, "layers 1 1"]
    plain: bool

    def bring(self, X: Float[Tensor, "layers n d"], out: Tensor | None = None) -> Float[Tensor, "layers n d"]:
        """Bring points into the frame as float32, with one copy: into `out` where it is as large, to save its pages."""
        if not self.plain:
            return scaled(X, self.offset, self.scale, out)
        fits = out is not None and out.shape == X.shape and out.dtype == X.dtype
        return torch.sub(X, self.offset, out=out) if fits else (X - self.offset).float()

    def of_layers(self, layers: slice) -> "Frame":
        """Give the frame of some layers."""
        return Frame(self.offset[layers], self.scale[layers], self.plain)


def spared_scaling(X: Float[Tensor, "layers n d"], others: Float[Tensor, "layers m d"] | None = None) -> Frame:
    """Find a frame as `scaling` does, for other points too; on a CPU of scale 1 where float32 needs no other.

    That saves passes over the points: their norms bound the largest deviation, and a few points the least it can be
    """
    if X.device.type == "cpu" and X.numel():
        every = max(1, X.shape[1] // FEW_POINTS)
        offset, reach, apart = point_frames(X, every)
        if others is not None:
            reach = max(reach, float(torch.linalg.vector_norm(others)))
        if reach < MODEST / 4 and apart > 1 / MODEST:
            return Frame(offset, offset.new_ones(len(X), 1, 1), True)
    offset, scale = scaling(X)
    if others is not None:
        scale = torch.maximum(scale, power_of_two(others - offset))
    # points that hardly differ may lie so far off that dividing them by their differences would overflow
    return Frame(offset, torch.maximum(scale, power_of_two(offset) * 2.0**-60), False)


def scaled(
    X: Float[Tensor, "layers n d"], offset: Tensor, scale: Tensor, out: Tensor | None = None
) -> Float[Tensor, "layers n d"]:
    """Bring points into a frame, as float32, with one copy: into `out` where it is as large, which saves its pages."""
    if out is not None and out.shape == X.shape and out.dtype == X.dtype:
        moved = torch.sub(X, offset, out=out)
    else:
        moved = X - offset
    # on a GPU, to ask whether there is anything to divide by would be a wait
    if scale.device.type != "cpu" or bool((scale != 1).any()):
        moved.div_(scale)
    return moved.float()
