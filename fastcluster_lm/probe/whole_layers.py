"""Which layers' states are finite, and what stands in for the others while those are scored; it scores nothing."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fastcluster_lm.kernels.deferred import deferring
from fastcluster_lm.scores.points import Points


class Whole(NamedTuple):
    """Whether each layer can be scored, and the layer that stands in for it: itself, or the first one that can be.

    Shapes: ok (layers,), source (layers,)
    """

    ok: Bool[Tensor, " layers"]
    source: Int[Tensor, " layers"]

    @classmethod
    def of(cls, ok: Bool[Tensor, " layers"]) -> "Whole":
        """Choose who stands in; where no layer can be scored that is the first, and only numbers come of it."""
        layers = torch.arange(len(ok), device=ok.device)
        return cls(ok, torch.where(ok, layers, ok.int().argmax()))

    def stand_in(self, values: Float[Tensor, "layers ..."]) -> Float[Tensor, "layers ..."]:
        """Put the values of the layer that stands in in each one's place, and 0 where there is none."""
        chosen = values.index_select(0, self.source)
        return torch.where(self.spread(self.ok[self.source], chosen), chosen, 0.0)

    def keep(
        self, new: Float[Tensor, "layers ..."], old: Float[Tensor, "layers ..."] | None
    ) -> Float[Tensor, "layers ..."]:
        """Take what is new of the layers that can be scored; of the others keep what was, NaN where nothing was."""
        nothing = torch.full_like(new, torch.nan) if old is None or old.shape != new.shape else old
        return torch.where(self.spread(self.ok, new), new, nothing)

    @staticmethod
    def spread(per_layer: Tensor, like: Tensor) -> Tensor:
        """Give values (layers,) as many axes as others have."""
        return per_layer.view(-1, *[1] * (like.ndim - 1))


def whole_layers(
    points: Mapping[str, Points],
) -> tuple[dict[str, Points], Whole | None, dict[str, Bool[Tensor, " layers"]]]:
    """Let layers that are finite in all splits stand in for those that are not.

    Gives the points as they can be scored, None where all is finite as it came, and what was finite by split. A layer
    that stands in adds nothing to how the others are scored: it is one of them. On a GPU nothing here waits
    """
    # 1. a look at all values at once; on a GPU that would be a wait, so that each layer is looked at instead
    sums = (own.X if own.sq_norms is None else own.sq_norms for own in points.values())
    if all(not deferring(values) and math.isfinite(float(values.sum())) for values in sums):
        return dict(points), None, {}
    # 2. layer by layer, by split and in all: (layers,)
    by_split = {}
    for name, own in points.items():
        # on a GPU norms spare the pass over the states; a square beyond float32 then counts as not finite
        values = own.sq_norms if deferring(own.X) and own.sq_norms is not None else own.X
        by_split[name] = values.isfinite().flatten(1).all(1)
    whole = Whole.of(torch.stack(list(by_split.values())).all(0))
    if not deferring(whole.ok) and bool(whole.ok.all()):
        # large values whose sum alone overflows
        return dict(points), None, {}
    # 3. a layer that is whole in the place of each that is not: (layers, n, d), and their norms (layers, n)
    put = {
        name: own.at(whole.stand_in(own.X), None if own.sq_norms is None else whole.stand_in(own.sq_norms))
        for name, own in points.items()
    }
    return put, whole, by_split


def describe_broken(finite: Mapping[str, Sequence[bool]]) -> str | None:
    """Say which layers were not scored, and for which splits' states; None if all were."""
    layers = range(len(next(iter(finite.values()), ())))
    told = []
    for layer in layers:
        broken = [split for split, own in finite.items() if not own[layer]]
        if broken:
            told.append(f"layer {layer}: states of {' and '.join(broken)} are not finite")
    return "; ".join(told) or None
