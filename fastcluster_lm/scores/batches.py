"""Frames in which float32 is safe for a batch (layers, n, d), and what no frame can save; it scores nothing."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fastcluster_lm.errors import DataError
from fastcluster_lm.kernels.deferred import check, deferring
from fastcluster_lm.kernels.point_frames import point_frames

# points whose deviations lie between its inverse and this need no other unit; so many points tell
MODEST, FEW_POINTS = 2.0**20, 16
# inputs beyond this many bytes are taken in parts on a CPU, so that their copies stay small
WHOLE_BYTES = 64 * 2**20


def farthest(width: int) -> float:
    """Give the largest coordinate between whose points float32 holds every distance."""
    return torch.finfo(torch.float32).max / (2 * math.sqrt(width))


def check_finite(
    X: Float[Tensor, "layers n d"], name: str, *, sq_norms: Float[Tensor, "layers n"] | None = None
) -> None:
    """Refuse NaN, infinity and points too far for float32, by layer; on a GPU one wait, none where checks are put off.

    Shapes: X (layers, n, d); sq_norms (layers, n) of the points spare the pass over them
    Errors: DataError naming the layers; where checks are put off, also for a norm whose square is beyond float32
    """
    if X.numel() == 0:
        return
    put_off, most = deferring(X), farthest(X.shape[-1])
    # no coordinate is larger than a norm, which reads the points once and writes nothing
    if not put_off and sq_norms is not None and math.isfinite(float(sq_norms.sum())):
        return
    if not put_off and float(torch.linalg.vector_norm(X)) <= most:
        return
    if put_off and sq_norms is not None:
        sizes, known = sq_norms.amax(1), math.inf
    else:
        # a GPU makes no copy for it, and a CPU needs it only to say what is wrong
        sizes, known = torch.linalg.vector_norm(X, ord=math.inf, dim=(1, 2)), most

    def judge(sizes: Tensor) -> DataError | None:
        found = sizes.tolist()
        broken = [layer for layer, size in enumerate(found) if not math.isfinite(size)]
        if broken:
            expected = f"expected finite values{'' if put_off else _first_broken(X)}"
            return DataError(f"{name} holds NaN or infinity in layer {_listed(broken)}; {expected}")
        far = [layer for layer, size in enumerate(found) if size > known]
        if far:
            expected = f"expected at most {most:.3g}, beyond which float32 holds no distances"
            return DataError(f"{name} reaches {found[far[0]]:.3g} in layer {_listed(far)}; {expected}")
        return None

    check(sizes, judge)


def _listed(layers: list[int]) -> str:
    return ", ".join(map(str, layers))


def _first_broken(X: Tensor) -> str:
    layer, point = (~X.isfinite()).any(-1).nonzero()[0].tolist()
    return f" (the first that is not: layer {layer}, point {point})"


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
    return powers_of_two(sizes.amax((1, 2), keepdim=True))


def powers_of_two(largest: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Round each number down to a power of two, 1 for 0."""
    # in two halves: torch takes powers of two in float32, which holds none below 2^-149
    exponent = torch.frexp(largest).exponent - 1
    half = exponent // 2
    powers = torch.ldexp(torch.ldexp(torch.ones_like(largest), half), exponent - half)
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
