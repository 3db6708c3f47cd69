"""The reference engine: faiss-cpu, scikit-learn and openTSNE, one layer at a time on the CPU; right before quick."""

import warnings

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import coo_matrix
from torch import Tensor

from fastcluster_lm.device import generators_kept
from fastcluster_lm.errors import EngineError
from fastcluster_lm.scores.batches import power_of_two, scaling
from fastcluster_lm.scores.engines.checks import check_kmeans, check_neighbors, check_tsne, forbidden
from fastcluster_lm.scores.engines.params import (
    CHECK_EVERY,
    Clustering,
    Engine,
    KMeansParams,
    Map,
    Neighbors,
    NeighborsParams,
    TsneParams,
)

# numpy's RandomState takes no larger one
LARGEST_SEED = 2**32 - 1


class ReferenceEngine(Engine):
    """The libraries behind our parameters; a field that they cannot honour is refused.

    The caller's generators are kept: libraries draw from Python's even while they are imported
    """

    name = "reference"
    warm_maps = True
    notes: tuple[str, ...] = ()

    @torch.no_grad()
    @generators_kept()
    def neighbors(
        self, queries: Float[Tensor, "layers nq d"], bank: Float[Tensor, "layers nb d"], params: NeighborsParams
    ) -> Neighbors:
        """Search faiss's exact index, for more neighbours than asked where ids forbid some, and drop those.

        Errors: ShapeError, DataError as in check_neighbors
        Source: faiss IndexFlatL2; the order of ties is faiss's own
        """
        import faiss

        check_neighbors(queries, bank, params)
        n_layers, n_queries, _ = queries.shape
        k, n_bank = params.n_neighbors, bank.shape[1]
        mask = forbidden(params, 0, n_queries)
        spare = 0 if mask is None or not n_queries else int(mask.sum(-1).max())
        if n_queries == 0:
            empty = queries.new_empty(n_layers, 0, k, dtype=torch.float32)
            return Neighbors(empty, empty.long())
        distances, indices = [], []
        # faiss squares without centring first, so it gets centred points
        offset, _ = scaling(bank)
        scale = power_of_two(torch.cat([bank - offset, queries - offset], 1))
        queries, centred = ((queries - offset) / scale).float(), ((bank - offset) / scale).float()
        for layer in range(n_layers):
            index = faiss.IndexFlatL2(bank.shape[2])
            index.add(np.ascontiguousarray(centred[layer].numpy()))
            found = index.search(np.ascontiguousarray(queries[layer].numpy()), min(k + spare, n_bank))
            sq_dist, rank = torch.from_numpy(found[0]), torch.from_numpy(found[1])
            if mask is not None:
                layer_mask = mask if mask.ndim == 2 else mask[layer]
                # forbidden ones to the end, the rest in the order found
                order = layer_mask.gather(1, rank).to(torch.uint8).argsort(dim=1, stable=True)[:, :k]
                sq_dist, rank = sq_dist.gather(1, order), rank.gather(1, order)
            distances.append(sq_dist.clamp(min=0).sqrt() * scale[layer, 0].float())
            indices.append(rank)
        return Neighbors(torch.stack(distances), torch.stack(indices))

    @torch.no_grad()
    @generators_kept()
    def kmeans(self, X: Float[Tensor, "layers n d"], params: KMeansParams) -> Clustering:
        """Run scikit-learn's KMeans on each layer, and once more from init if given; the lower inertia wins.

        Errors: ShapeError, DataError as in check_kmeans
        """
        check_kmeans(X, params)
        _check_seed(params.seed)
        fits = [_cluster(x, init, params) for x, init in zip(X, _per_layer(params.init, X), strict=True)]
        return Clustering(*(torch.stack(part) for part in zip(*fits, strict=True)))

    @torch.no_grad()
    @generators_kept()
    def tsne(self, X: Float[Tensor, "layers n d"], params: TsneParams) -> Map:
        """Fit openTSNE to each layer, its neighbours exact, its forces by Barnes-Hut or, from 10,000 points, by FFT.

        Errors: ShapeError, DataError as in check_tsne; EngineError below 5 points, which openTSNE cannot map
        """
        check_tsne(X, params)
        _check_seed(params.seed)
        if X.shape[1] < 5:
            raise EngineError(f"engine 'reference' maps 5 points or more, X has {X.shape[1]} a layer; use 'fused'")
        near = params.neighbors
        if near is None:
            order = torch.arange(X.shape[1])
            near = self.neighbors(X, X, NeighborsParams(params.affinity_neighbors(X.shape[1]), order, order))
        layers = zip(X, _per_layer(params.init, X), *near, strict=True)
        maps = [_map(x, init, params, distances, indices) for x, init, distances, indices in layers]
        kl = torch.tensor([kl for _, kl in maps], dtype=torch.float64)
        return Map(torch.stack([points for points, _ in maps]), kl)


def _check_seed(seed: int) -> None:
    if seed > LARGEST_SEED:
        raise EngineError(f"seed is {seed}, engine 'reference' takes 0 to {LARGEST_SEED}; or use 'fused'")


def _per_layer(init: Tensor | None, X: Tensor) -> list[Tensor | None]:
    return [None] * len(X) if init is None else list(init.expand(len(X), -1, -1))


def _cluster(X: Tensor, init: Tensor | None, params: KMeansParams) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    points = X.double().numpy()
    runs: list[tuple[np.ndarray | str, int]] = [] if init is None else [(init.double().numpy(), 1)]
    runs += [("k-means++", params.n_init)] if params.n_init else []
    fits = []
    for start, n_init in runs:
        model = KMeans(
            params.n_clusters,
            init=start,
            n_init=n_init,
            max_iter=params.max_iter,
            tol=params.tol,
            random_state=np.random.RandomState(params.seed),
        )
        with warnings.catch_warnings():
            # fewer distinct points than clusters is a defined case here
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(points)
        # where a fit ends with empty clusters, its own labels and inertia are of the centroids one move before
        labels = model.predict(points)
        fits.append((np.square(points - model.cluster_centers_[labels]).sum(), labels, model))
    inertia, labels, best = min(fits, key=lambda fit: fit[0])
    return (
        torch.from_numpy(labels.astype(np.int64)),
        torch.from_numpy(best.cluster_centers_).float(),
        torch.tensor(inertia, dtype=torch.float64),
        torch.tensor(best.n_iter_, dtype=torch.int64),
    )


def _map(
    X: Tensor, init: Tensor | None, params: TsneParams, distances: Tensor, indices: Tensor
) -> tuple[Tensor, float]:
    from openTSNE import TSNEEmbedding
    from openTSNE.affinity import PerplexityBasedNN
    from openTSNE.initialization import jitter, pca, rescale
    from openTSNE.nearest_neighbors import PrecomputedNeighbors

    points = X.double().numpy()
    n = len(points)
    # a row's weights stay the same where one number is taken from its squared distances and all are scaled; without it
    # openTSNE's search underflows at large distances: perplexity 37 for 30, with points of 768 coordinates
    sq_dist = distances.double().square()
    sq_dist = sq_dist - sq_dist[:, :1]
    typical = sq_dist.mean(1, keepdim=True)
    shifted = (sq_dist / torch.where(typical > 0, typical, 1.0)).clamp(min=0).sqrt()
    affinities = PerplexityBasedNN(
        perplexity=params.effective_perplexity(n),
        method="exact",
        n_jobs=1,
        random_state=params.seed,
        knn_index=PrecomputedNeighbors(indices.numpy(), shifted.numpy()),
    )
    random = np.random.RandomState(params.seed)
    if init is not None:
        start = init.double().numpy()
        # openTSNE's tree ends the process at points that are all one and lie far off
        start = start - start.mean(0)
    elif np.ptp(points, axis=0).max() == 0:
        start = random.normal(scale=1e-4, size=(n, 2))
    elif points.shape[1] == 1:
        start = rescale(np.hstack([points - points.mean(0), np.zeros((n, 1))]))
        jitter(start, inplace=True, random_state=random)
    else:
        # scikit-learn subtracts the mean's square from the mean square, which leaves nothing of points far from 0
        start = pca(points - points.mean(0), random_state=random)
    embedding = TSNEEmbedding(start, affinities, n_jobs=1, random_state=params.seed)
    exaggerated, plain = params.schedule()
    phases = ((exaggerated, params.early_exaggeration, params.initial_momentum), (plain, 1.0, params.final_momentum))
    P = affinities.P.tocoo()

    def gradient_has_gone(iteration: int, error: float, points: np.ndarray) -> bool:
        return n * np.sqrt(np.square(_quarter_gradient(P, points)).sum(1).mean()) < params.min_gradient_norm

    for n_iter, exaggeration, momentum in phases:
        if n_iter:
            watched = exaggeration == 1.0 and params.min_gradient_norm > 0
            embedding.optimize(
                n_iter,
                exaggeration=exaggeration,
                momentum=momentum,
                learning_rate=params.step_size(n, exaggeration),
                max_step_norm=params.max_step_norm,
                inplace=True,
                callbacks=gradient_has_gone if watched else None,
                callbacks_every_iters=CHECK_EVERY,
            )
    final = np.asarray(embedding)
    return torch.from_numpy(final.astype(np.float32)), _kl_divergence(P, final)


def _quarter_gradient(P: coo_matrix, points: np.ndarray) -> np.ndarray:
    """A quarter of the gradient of KL, exactly, whatever the approximation that openTSNE descends by."""
    apart = points[:, None] - points[None]
    kernel = 1 / (1 + np.square(apart).sum(-1))
    np.fill_diagonal(kernel, 0)
    dense = P.toarray()
    return (((dense - kernel / kernel.sum()) * kernel)[..., None] * apart).sum(1)


def _kl_divergence(P: coo_matrix, points: np.ndarray) -> float:
    """Measure the map exactly: openTSNE's own figure rests on Barnes-Hut's approximate normaliser."""
    from scipy.spatial.distance import pdist

    kernel = 1 / (1 + np.square(points[P.row] - points[P.col]).sum(1))
    normaliser = 2 * (1 / (1 + pdist(points, "sqeuclidean"))).sum()
    used = P.data > 0
    return float((P.data[used] * np.log(P.data[used] / kernel[used])).sum() + P.data.sum() * np.log(normaliser))
