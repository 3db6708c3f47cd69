"""The rapids engine: cuML's t-SNE and KMeans and FAISS's neighbours on a GPU, one layer a call, behind our parameters.

What they propose is ranked, or measured, by our own exact arithmetic; tensors are handed over without a copy by DLPack.
"""

import logging
import math
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fastcluster_lm.errors import DataError, EngineError
from fastcluster_lm.kernels.deferred import deferred
from fastcluster_lm.kernels.tsne_affinities import tsne_affinities
from fastcluster_lm.kernels.tsne_forces import start_descent
from fastcluster_lm.scores.batches import power_of_two, scaled, scaling
from fastcluster_lm.scores.engines._isolation import left_alone
from fastcluster_lm.scores.engines._rapids_neighbors import search_layers
from fastcluster_lm.scores.engines._rapids_packages import Libraries, load
from fastcluster_lm.scores.engines.checks import (
    check_kmeans,
    check_neighbors,
    check_tsne,
)
from fastcluster_lm.scores.engines.params import (
    Clustering,
    Engine,
    KMeansParams,
    Map,
    Neighbors,
    NeighborsParams,
    TsneParams,
)
from fastcluster_lm.scores.precision import full_precision

log = logging.getLogger(__name__)

# checks are not put off here: the libraries wait for the device anyway, and fail in ways of their own where one would
AT_ONCE = torch.device("cpu")
# most neighbours that cuML's t-SNE takes, the point itself among them: t_sne.pyx of cuML 26.10
TSNE_MOST = 1023
# seeds are 32 bits; cuML once read 0 as "none", so ours are moved up by 1
LARGEST_SEED = 2**32 - 2
# cuML refuses a tol of 0; a squared shift below this is one of 0
LEAST_TOL = 1e-30
# learning rate of exaggerated iterations as a share of n; cuML doubles it afterwards, to the n/3 of its adaptive rule.
# of five pairs of rates tried in our own descent on a CPU, from random starts (digits, blobs, noise; 600 points), this
# one was never more than 2 % above the KL of our own rates
RATE = 1 / 6
# what cuML cannot do as asked, by parameter; recorded with each run
NOTES = {
    "learning_rate": "auto is n/6 in exaggerated iterations and n/3 after them, as cuML doubles it",
    "max_step_norm": "steps have no longest length in cuML",
    "min_gradient_norm": "maps take all their iterations: cuML measures its step, not the gradient",
    "perplexity": "cuML counts a point among its own neighbours",
    "tol": "cuML's KMeans also ends once its cost falls by less than the share tol",
}


class RapidsEngine(Engine):
    """cuML and FAISS behind our parameters; a value that they cannot honour is refused, or named in notes.

    memory_mib: MiB of FAISS's scratch memory, and most MiB of one block of candidates
    """

    name = "rapids"
    # cuML's maps start at random or at principal components only
    warm_maps = False
    notes = tuple(f"{name}: {note}" for name, note in NOTES.items())

    def __init__(self, memory_mib: int = 256) -> None:
        self.memory_budget = memory_mib * 2**20
        self.libraries: Libraries = load()
        _tell(self.notes)

    @torch.no_grad()
    def neighbors(
        self, queries: Float[Tensor, "layers nq d"], bank: Float[Tensor, "layers nb d"], params: NeighborsParams
    ) -> Neighbors:
        """Let FAISS propose more neighbours than asked, drop forbidden ones, rank the rest by direct differences.

        Shapes: as find_neighbors, whose answer this is: of equal distances the lower index comes first
        Errors: ShapeError, DataError as in check_neighbors; EngineError for more neighbours than FAISS gives
        """
        with deferred(AT_ONCE):
            check_neighbors(queries, bank, params)
        with left_alone(queries.device), full_precision():
            return search_layers(self.libraries.faiss, queries, bank, params, self.memory_budget)

    @torch.no_grad()
    def kmeans(self, X: Float[Tensor, "layers n d"], params: KMeansParams) -> Clustering:
        """Run cuML's KMeans on each layer, and once more from init if given; the lower inertia wins.

        Units:  inertia as find_clusters gives it
        Notes:  tol is ours, since cuML gets points of mean variance 1
        Errors: ShapeError, DataError as in check_kmeans; EngineError for a seed that cuML does not take
        """
        with deferred(AT_ONCE):
            check_kmeans(X, params)
        _check_seed(params.seed)
        offset, scale = scaling(X)
        points = scaled(X, offset, scale)
        spread = points.square().mean((1, 2), keepdim=True).sqrt()
        spread = torch.where(spread > 0, spread, torch.ones_like(spread))
        points /= spread
        starts: list[Tensor | None] = [None] * len(X)
        if params.init is not None:
            init = params.init.expand(len(X), -1, -1).to(X.device, offset.dtype)
            starts = list(((init - offset) / scale / spread).float())
        with left_alone(X.device):
            fits = [self._cluster(x, start, params) for x, start in zip(points, starts, strict=True)]
        labels, centroids, inertia, n_iter = (torch.stack(column) for column in zip(*fits, strict=True))
        unit = (scale * spread).double().flatten().square()
        return Clustering(labels, (centroids * spread * scale + offset).float(), inertia * unit, n_iter)

    @torch.no_grad()
    def tsne(self, X: Float[Tensor, "layers n d"], params: TsneParams) -> Map:
        """Fit cuML's FFT t-SNE to each layer from a random start, its neighbours found once.

        Notes:  KL measured by our own exact sum: cuML's is of its last iteration and normalised over the edges alone
        Errors: ShapeError, DataError as in check_tsne; EngineError for what NOTES does not cover
        """
        with deferred(AT_ONCE):
            check_tsne(X, params)
        n_layers, n, _ = X.shape
        _check_map(params, n)
        perplexity, k = params.effective_perplexity(n), params.affinity_neighbors(n)
        near = params.neighbors
        if near is None:
            order = torch.arange(n, device=X.device)
            near = self.neighbors(X, X, NeighborsParams(k, order, order))
        # the unit of the distances does not matter to the affinities, but float32 must hold their squares
        distances = near.distances / power_of_two(near.distances)
        points = scaled(X, *scaling(X))
        with left_alone(X.device):
            maps = [
                self._map(x, found, away, params, perplexity)
                for x, found, away in zip(points, near.indices, distances, strict=True)
            ]
        drawn = torch.stack(maps)
        if not bool(drawn.isfinite().all()):
            raise DataError("cuML gave a map that is not finite; lower early_exaggeration, or use engine 'fused'")
        drawn -= drawn.mean(1, keepdim=True)
        with full_precision():
            edges = tsne_affinities(distances, near.indices, perplexity)
            kl = start_descent(drawn.mT.contiguous(), edges, repulsion="pairs").kl_divergence()
        return Map(drawn, kl)

    def _cluster(self, x: Tensor, start: Tensor | None, params: KMeansParams) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Cluster one layer of points that are centred and of mean variance 1."""
        runs: list[tuple[Any, int]] = [] if start is None else [(self._handed(start), 1)]
        runs += [("k-means++", params.n_init)] if params.n_init else []
        best: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        for init, n_init in runs:
            model = self.libraries.cuml.cluster.KMeans(
                n_clusters=params.n_clusters,
                init=init,
                n_init=n_init,
                max_iter=params.max_iter,
                tol=max(params.tol, LEAST_TOL),
                random_state=params.seed + 1,
                output_type="cupy",
            )
            model.fit(self._handed(x))
            labels = _copied(model.labels_, torch.int64)
            centroids = _copied(model.cluster_centers_, torch.float32)
            inertia = (x.double() - centroids[labels]).square().sum()
            if not math.isfinite(float(inertia)):
                raise DataError("cuML gave clusters that are not finite; use engine 'fused'")
            if best is None or float(inertia) < float(best[2]):
                # its count is one too high where no criterion ended the run
                n_iter = min(int(model.n_iter_), params.max_iter)
                best = labels, centroids, inertia, torch.tensor(n_iter, device=x.device)
        assert best is not None
        return best

    def _map(self, x: Tensor, found: Tensor, away: Tensor, params: TsneParams, perplexity: float) -> Tensor:
        """Draw one layer; cuML wants each point before its neighbours, and squares the distances where they lie."""
        n = len(x)
        own = torch.arange(n, device=x.device)[:, None]
        indices = torch.cat([own, found], 1)
        # a new tensor, so that the caller's distances stay as they are
        distances = torch.cat([away.new_zeros(n, 1), away], 1).float()
        if x.shape[1] == 1:
            # cuML maps points of two coordinates or more
            x = torch.cat([x, torch.zeros_like(x)], 1)
        exaggerated, _ = params.schedule()
        model = self.libraries.cuml.manifold.TSNE(
            n_components=2,
            perplexity=perplexity,
            early_exaggeration=params.early_exaggeration,
            late_exaggeration=1.0,
            learning_rate=n * RATE,
            max_iter=params.n_iter,
            min_grad_norm=0.0,
            init="random",
            random_state=params.seed + 1,
            method="fft",
            n_neighbors=indices.shape[1],
            exaggeration_iter=exaggerated,
            pre_momentum=params.initial_momentum,
            post_momentum=params.final_momentum,
            learning_rate_method=None,
            square_distances=True,
            precomputed_knn=(self._handed(indices), self._handed(distances)),
            output_type="cupy",
        )
        return _copied(model.fit_transform(self._handed(x)), torch.float32)

    def _handed(self, tensor: Tensor) -> Any:
        """Show cupy a tensor; its writer has finished, since cuML computes on a stream of its own."""
        if tensor.is_cuda:
            torch.cuda.current_stream(tensor.device).synchronize()
        return self.libraries.cupy.from_dlpack(tensor.contiguous())


def _copied(array: Any, dtype: torch.dtype) -> Tensor:
    """Copy a result out of cupy's memory, to the end: cupy gives it to the next caller, on a stream other than ours."""
    shown = torch.from_dlpack(array)
    copy = torch.empty(shown.shape, dtype=dtype, device=shown.device).copy_(shown)
    if copy.is_cuda:
        torch.cuda.current_stream(copy.device).synchronize()
    return copy


def _check_seed(seed: int) -> None:
    if not 0 <= seed <= LARGEST_SEED:
        raise EngineError(f"seed is {seed}; engine 'rapids' takes 0 to {LARGEST_SEED}")


def _check_map(params: TsneParams, n: int) -> None:
    """Refuse what cuML's t-SNE cannot do as asked, each with the reason."""
    _check_seed(params.seed)
    most = (TSNE_MOST - 1) // 3
    refusals = {
        "init is given, but cuML starts maps at random or at principal components only": params.init is not None,
        f"learning_rate is {params.learning_rate}, but cuML doubles a number after exaggeration; leave it at 'auto'": (
            params.learning_rate != "auto"
        ),
        f"max_step_norm is {params.max_step_norm}, but cuML knows no longest step; leave it, or set it to infinity": (
            params.max_step_norm not in (TsneParams.max_step_norm, math.inf)
        ),
        "n_iter is 0, but cuML takes 1 iteration or more": params.n_iter < 1,
        f"early_exaggeration is {params.early_exaggeration}, but cuML takes 1 or more": params.early_exaggeration < 1,
        f"momenta are {params.initial_momentum} and {params.final_momentum}, but cuML takes them between 0 and 1": (
            not (0 < params.initial_momentum < 1 and 0 < params.final_momentum < 1)
        ),
        f"perplexity is {params.perplexity}, but cuML takes {most} at most, with its neighbours": (
            params.affinity_neighbors(n) + 1 > TSNE_MOST
        ),
    }
    for reason, refused in refusals.items():
        if refused:
            raise EngineError(f"{reason}; or use engine 'fused'")


@cache
def _tell(notes: tuple[str, ...]) -> None:
    for note in notes:
        log.info("engine 'rapids': %s", note)
