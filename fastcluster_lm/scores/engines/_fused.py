"""The fused engine: our own three verbs in torch, batched over layers, on the device of the points."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from fastcluster_lm.scores.engines._fused_kmeans import find_clusters, find_clusters_each
from fastcluster_lm.scores.engines._fused_neighbors import find_neighbors, find_neighbors_under_each
from fastcluster_lm.scores.engines._fused_tsne import draw_maps
from fastcluster_lm.scores.engines.params import (
    Clustering,
    Engine,
    KMeansParams,
    Map,
    Neighbors,
    NeighborsParams,
    TsneParams,
)


class FusedEngine(Engine):
    """Exact neighbours, batched KMeans, t-SNE; honours every parameter.

    memory_mib: most MiB of one block of distances between queries and bank
    """

    name = "fused"
    warm_maps = True
    notes: tuple[str, ...] = ()

    def __init__(self, memory_mib: int = 256) -> None:
        self.memory_budget = memory_mib * 2**20

    def neighbors(
        self, queries: Float[Tensor, "layers nq d"], bank: Float[Tensor, "layers nb d"], params: NeighborsParams
    ) -> Neighbors:
        return find_neighbors(queries, bank, params, self.memory_budget)

    def neighbors_under_each(
        self,
        queries: Float[Tensor, "layers nq d"],
        bank: Float[Tensor, "layers nb d"],
        params: Sequence[NeighborsParams],
    ) -> list[Neighbors]:
        return find_neighbors_under_each(queries, bank, params, self.memory_budget)

    def kmeans(self, X: Float[Tensor, "layers n d"], params: KMeansParams) -> Clustering:
        return find_clusters(X, params)

    def kmeans_each(self, X: Float[Tensor, "layers n d"], params: Sequence[KMeansParams]) -> list[Clustering]:
        return find_clusters_each(X, params)

    def tsne(self, X: Float[Tensor, "layers n d"], params: TsneParams) -> Map:
        return draw_maps(X, params, self.memory_budget)
