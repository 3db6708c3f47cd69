"""Points of one split: where each layer puts them, and what is known of each; it scores nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from fastcluster_lm.kernels.transfer import to_device

Labels: TypeAlias = Shaped[Tensor, " n"] | Shaped[np.ndarray, " n"]


@dataclass(frozen=True, eq=False)
class Points:
    """The points of one split, in one space or before their states are known, with all that is known of them.

    name:         "train" | "val"; the split with the bank's name is the bank itself
    X:            (layers, n, d) states or (layers, n, 2) maps; (0, n, 0) where there are none yet
    labels:       name -> (n,) integers, text or numbers, best on the host; `distribution` are the blocks of nulls and
                  knn_share_across, `input` and `output` make the groups and ceilings; what is absent leaves its scores
                  None, but that without `distribution` nulls are permutations
    instructions: (n,) identity of the instruction; None: every point is its own
    sq_norms:     (layers, n) squared norms of X, if whoever made it knows them; they tell whether all is finite
    ids:          (n,) numbers on the host, by which a later probe knows a point again, distinct over all splits
    on_map:       (m,) which points the map shows, on the host
    """

    name: str
    X: Float[Tensor, "layers n d"]
    labels: Mapping[str, Labels]
    instructions: Labels | None = None
    sq_norms: Float[Tensor, "layers n"] | None = None
    ids: Int[Tensor, " n"] | None = None
    on_map: Int[Tensor, " m"] | None = None

    def __len__(self) -> int:
        return self.X.shape[-2]

    def at(self, X: Float[Tensor, "layers n d"], sq_norms: Float[Tensor, "layers n"] | None = None) -> "Points":
        """Give the same points at other places."""
        return replace(self, X=X, sq_norms=sq_norms)

    def apart(self, n_positions: int) -> list["Points"]:
        """Part points of several tokens, whose layers stand side by side: one after the other those of each.

        Shapes: X (P * layers, n, d) -> P times (layers, n, d), views
        """
        if n_positions == 1:
            return [self]
        norms = [None] * n_positions if self.sq_norms is None else self.sq_norms.chunk(n_positions)
        return [self.at(*both) for both in zip(self.X.chunk(n_positions), norms, strict=True)]

    def select(self, index: Int[Tensor, " m"]) -> "Points":
        """Keep the chosen points, numbered on the host, in that order; all of them may be on a map."""
        at = index.numpy()
        return Points(
            self.name,
            self.X[:, to_device(index, self.X.device)],
            {kind: values[at] for kind, values in self.labels.items()},
            None if self.instructions is None else self.instructions[at],
            ids=None if self.ids is None else self.ids[index],
            on_map=torch.arange(len(at)),
        )

    def shown(self) -> "Points":
        """Keep the points on the map alone."""
        return self if self.on_map is None else self.select(self.on_map)


def nowhere(n: int) -> Float[Tensor, "0 n 0"]:
    """Give the places of n points before there are any: no layers, no axes.

    Shapes: -> (0, n, 0)
    """
    return torch.empty(0, n, 0)
