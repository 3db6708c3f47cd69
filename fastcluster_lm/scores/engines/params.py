"""The three verbs of every engine, their parameters and results; nothing is computed here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.errors import DataError
from fastcluster_lm.scores.arguments import LARGEST_EFFORT, real_number, seed_number, whole_number


@dataclass(frozen=True, eq=False)
class NeighborsParams:
    """How neighbours are sought.

    n_neighbors: neighbours a query gets, at least 1
    query_ids, bank_ids: int, (n,) for all layers or (layers, n); a bank point whose id equals the query's is never
        its neighbour. Both or neither.
    """

    n_neighbors: int
    query_ids: Int[Tensor, "*layers nq"] | None = None
    bank_ids: Int[Tensor, "*layers nb"] | None = None

    def __post_init__(self) -> None:
        _settle(self, n_neighbors=whole_number(self.n_neighbors, "n_neighbors"))
        if self.n_neighbors < 1:
            raise DataError(f"n_neighbors is {self.n_neighbors}; it must be at least 1")
        if (self.query_ids is None) != (self.bank_ids is None):
            raise DataError("query_ids and bank_ids go together; give both or neither")


class Neighbors(NamedTuple):
    """Neighbours of each query, nearest first."""

    distances: Float[Tensor, "layers nq k"]
    indices: Int[Tensor, "layers nq k"]


@dataclass(frozen=True, eq=False)
class KMeansParams:
    """How clusters are sought.

    n_clusters: at least 1, at most the number of points
    n_init: fresh restarts; 0 only where init is given
    max_iter: most Lloyd iterations of a run
    tol: a run ends once the squared shift of all its centroids is at most tol x the mean variance of the coordinates
    seed: of the runs' own generator
    init: centroids (k, d) or (layers, k, d), in the units of X, of one further run beside the fresh ones; as near the
        points as float32 can square: within 2^40 times their spread
    """

    n_clusters: int
    n_init: int = 10
    max_iter: int = 300
    tol: float = 1e-4
    seed: int = 0
    init: Float[Tensor, "*layers k d"] | None = None

    def __post_init__(self) -> None:
        _settle(
            self,
            n_clusters=whole_number(self.n_clusters, "n_clusters"),
            n_init=whole_number(self.n_init, "n_init", most=LARGEST_EFFORT),
            max_iter=whole_number(self.max_iter, "max_iter", most=LARGEST_EFFORT),
            tol=real_number(self.tol, "tol"),
            seed=seed_number(self.seed),
        )
        if self.n_clusters < 1:
            raise DataError(f"n_clusters is {self.n_clusters}; it must be at least 1")
        if self.n_init < (self.init is None) or self.max_iter < 1 or not self.tol >= 0:
            raise DataError(
                f"n_init={self.n_init}, max_iter={self.max_iter}, tol={self.tol}; expected n_init >= 1 (0 with init), "
                "max_iter >= 1, tol >= 0"
            )


# iterations of t-SNE between two looks at the gradient's norm
CHECK_EVERY = 50


@dataclass(frozen=True, eq=False)
class TsneParams:
    """How a map is drawn.

    perplexity: above 0; lowered to (n - 1) / 3 where there are too few points
    n_iter: iterations in all, the exaggerated ones included
    seed: of the small noise that starts coinciding points apart
    init: starting points (n, 2) or (layers, n, 2), which are centred; a warm start, without exaggeration, at the final
        momentum
    early_exaggeration: factor on the attraction in the first exaggeration_iter iterations (at most a third of n_iter).
        By default fewer than openTSNE's 250 of 750, for no higher KL: `fclm bench quality`
    learning_rate: a number, or "auto": n / exaggeration, as openTSNE 1.0.4 (tsne.py, lines 92-97)
    min_gradient_norm: a layer ends early, but for its exaggerated iterations, once n times the root mean square of a
        point's quarter gradient is below this; looked at every CHECK_EVERY iterations; 0: never
    neighbors: of X in itself, affinity_neighbors(n) of them, where they are known already
    """

    perplexity: float = 30.0
    n_iter: int = 500
    seed: int = 0
    init: Float[Tensor, "*layers n 2"] | None = None
    early_exaggeration: float = 12.0
    exaggeration_iter: int = 100
    learning_rate: float | str = "auto"
    initial_momentum: float = 0.8
    final_momentum: float = 0.8
    max_step_norm: float = 5.0
    min_gradient_norm: float = 0.0
    neighbors: Neighbors | None = None

    def __post_init__(self) -> None:
        _settle(
            self,
            perplexity=real_number(self.perplexity, "perplexity"),
            n_iter=whole_number(self.n_iter, "n_iter", most=LARGEST_EFFORT),
            exaggeration_iter=whole_number(self.exaggeration_iter, "exaggeration_iter", most=LARGEST_EFFORT),
            min_gradient_norm=real_number(self.min_gradient_norm, "min_gradient_norm"),
            seed=seed_number(self.seed),
        )
        if not 0 < self.perplexity < float("inf"):
            raise DataError(f"perplexity is {self.perplexity}; it must be a finite number above 0")
        if self.n_iter < 0 or self.exaggeration_iter < 0:
            raise DataError(f"n_iter={self.n_iter}, exaggeration_iter={self.exaggeration_iter}; expected 0 or more")
        if not 0 <= self.min_gradient_norm < float("inf"):
            raise DataError(f"min_gradient_norm is {self.min_gradient_norm}; it must be a finite number, 0 or more")
        if isinstance(self.learning_rate, str) and self.learning_rate != "auto":
            raise DataError(f"learning_rate is {self.learning_rate!r}; expected a number or 'auto'")

    def schedule(self) -> tuple[int, int]:
        """Split n_iter into exaggerated and plain iterations; a warm start has no exaggerated ones."""
        exaggerated = 0 if self.init is not None else min(self.exaggeration_iter, self.n_iter // 3)
        return exaggerated, self.n_iter - exaggerated

    def effective_perplexity(self, n: int) -> float:
        """Lower the perplexity to what n points allow: a third of a point's neighbours, 1 at least."""
        return min(self.perplexity, max((n - 1) / 3, 1.0))

    def lowered(self, n: int, of: str = "points") -> str | None:
        """Say that n points lower the perplexity, in the one wording for all who warn of it; None where they do not."""
        used = self.effective_perplexity(n)
        return None if used == self.perplexity else f"perplexity {self.perplexity:g} lowered to {used:.3g} for {n} {of}"

    def affinity_neighbors(self, n: int) -> int:
        """Count the neighbours whose affinities are above 0: three perplexities, as all libraries take."""
        return min(n - 1, max(1, math.floor(3 * self.effective_perplexity(n))))

    def step_size(self, n: int, exaggeration: float) -> float:
        """Give the learning rate of a phase; with n / exaggeration a step is free of n and of the data's units."""
        return n / exaggeration if isinstance(self.learning_rate, str) else self.learning_rate


def _settle(params: object, **values: float) -> None:
    """Put checked numbers, which are plain ones, into a frozen dataclass."""
    for name, value in values.items():
        object.__setattr__(params, name, value)


class Clustering(NamedTuple):
    """The best run of each layer: int64 labels, float32 centroids, float64 inertia, iterations of that run."""

    labels: Int[Tensor, "layers n"]
    centroids: Float[Tensor, "layers k d"]
    inertia: Float[Tensor, " layers"]
    n_iter: Int[Tensor, " layers"]


class Map(NamedTuple):
    """A 2-D map of each layer and its KL divergence in float64 over the affinities used."""

    points: Float[Tensor, "layers n 2"]
    kl_divergence: Float[Tensor, " layers"]


@runtime_checkable
class Engine(Protocol):
    """Whatever computes the three verbs over all layers at once.

    warm_maps: whether a map can go on from init; where it cannot, every map starts cold
    notes: what its libraries do otherwise than the parameters ask, for the record of a run
    neighbors_under_each: what neighbors gives under each of the parameters, whose ids may differ
    kmeans_each: what kmeans gives for each of the parameters
    The caller of these two has seen the points to be finite, and an engine need not look again
    """

    name: str
    warm_maps: bool
    notes: tuple[str, ...]

    def neighbors(
        self, queries: Float[Tensor, "layers nq d"], bank: Float[Tensor, "layers nb d"], params: NeighborsParams
    ) -> Neighbors: ...

    def neighbors_under_each(
        self,
        queries: Float[Tensor, "layers nq d"],
        bank: Float[Tensor, "layers nb d"],
        params: Sequence[NeighborsParams],
    ) -> list[Neighbors]:
        return [self.neighbors(queries, bank, one) for one in params]

    def kmeans(self, X: Float[Tensor, "layers n d"], params: KMeansParams) -> Clustering: ...

    def kmeans_each(self, X: Float[Tensor, "layers n d"], params: Sequence[KMeansParams]) -> list[Clustering]:
        return [self.kmeans(X, one) for one in params]

    def tsne(self, X: Float[Tensor, "layers n d"], params: TsneParams) -> Map: ...
