"""What runs of KMeans are given beside their points, and what they come to; it runs none."""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor


class Starts(NamedTuple):
    """How the runs of each layer begin, and when they end.

    draws: numbers in [0, 1), float64, of the seeding of fresh runs, of which there may be none
    init:  centroids of one run more, the first; None: there is none
    tol:   a run ends once the summed squared shift of its centroids is at most this share of the mean variance of a
           layer's coordinates, as scikit-learn has it
    """

    n_clusters: int
    draws: Float[Tensor, "k fresh trials"]
    init: Float[Tensor, "layers k d"] | None
    max_iter: int
    tol: float

    @property
    def fresh(self) -> int:
        """Count the runs that begin from a seeding."""
        return self.draws.shape[1]

    @property
    def runs(self) -> int:
        """Count all runs of a layer."""
        return self.fresh + (self.init is not None)

    def of_layers(self, layers: slice) -> "Starts":
        """Give the starts of some layers."""
        return self if self.init is None else self._replace(init=self.init[layers])


class Best(NamedTuple):
    """Each layer's run of lowest inertia, the first of equal ones; centroids and inertia are float64."""

    labels: Int[Tensor, "layers n"]
    centroids: Float[Tensor, "layers k d"]
    inertia: Float[Tensor, " layers"]
    n_iter: Int[Tensor, " layers"]
