"""KMeans over all layers and restarts at once, in a frame in which float32 is safe; the op kmeans_runs runs it."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fastcluster_lm.errors import DataError
from fastcluster_lm.kernels.deferred import check
from fastcluster_lm.kernels.kmeans_runs import Best, Starts, kmeans_runs
from fastcluster_lm.kernels.native import compiled, thread_count
from fastcluster_lm.kernels.pages import room
from fastcluster_lm.kernels.transfer import to_device
from fastcluster_lm.scores.batches import WHOLE_BYTES, Frame, spared_scaling
from fastcluster_lm.scores.engines.checks import check_kmeans
from fastcluster_lm.scores.engines.params import Clustering, KMeansParams
from fastcluster_lm.scores.precision import full_precision

# most bytes of one block of point-to-centroid distances: a CPU's stays in its cache, a GPU wants few large ones
CPU_BUDGET, GPU_BUDGET = 16 * 2**20, 256 * 2**20
# starts farther than this in the points' frame have squares that lose the points, or that float32 cannot hold
FARTHEST_START = 2.0**40


def find_clusters(X: Float[Tensor, "layers n d"], params: KMeansParams, memory_budget: int | None = None) -> Clustering:
    """Cluster each layer n_init times, once more from init if given, and keep the run of lowest inertia.

    Shapes: X (layers, n, d) -> labels (layers, n), centroids (layers, k, d), inertia (layers,), n_iter (layers,)
    Units:  inertia in squared input units, float64
    Notes:  inertia is summed by direct differences; of equal inertia the earlier run wins
    Errors: ShapeError, DataError as in check_kmeans
    Source: Lloyd 1982; greedy k-means++ with 2 + log k trials, as scikit-learn. A layer's random draws do not depend
            on the layers beside it. Clusters left empty get the points farthest from their centroids; clusters beyond
            the number of distinct points stay empty.
    """
    return find_clusters_each(X, [params], memory_budget, checked=False)[0]


@torch.no_grad()
def find_clusters_each(
    X: Float[Tensor, "layers n d"],
    params: Sequence[KMeansParams],
    memory_budget: int | None = None,
    *,
    checked: bool = True,
) -> list[Clustering]:
    """Give what find_clusters gives for each of the parameters; the points are made ready once for all.

    Errors: as there
    """
    check_kmeans(X, *params, checked=checked)
    # 1. a frame for each layer, centred and of modest size, in which squares are safe; starts are brought into it
    # the mean of half-precision points is no half-precision number
    X = X if X.dtype == torch.float64 else X.float()
    frame = spared_scaling(X)
    starts = []
    for one in params:
        init = None
        if one.init is not None:
            init = to_device(one.init, X.device).expand(len(X), -1, -1).to(frame.offset.dtype)
            init = frame.bring(init)
            check(init.abs().amax(), _startable)
        # 2. all random draws, whatever device they will be used on
        starts.append(Starts(one.n_clusters, _draw(X.shape[1], one, X.device), init, one.max_iter, one.tol))
    if memory_budget is None:
        memory_budget = CPU_BUDGET if X.device.type == "cpu" else GPU_BUDGET
    # 3. all runs of all layers, and the best of each layer in the points' own units
    return [_in_units(frame, best) for best in _run(X, frame, starts, memory_budget)]


def _startable(reach: Tensor) -> DataError | None:
    if float(reach) <= FARTHEST_START:
        return None
    return DataError("init lies farther from X than 2^40 times its spread, which float32 cannot compare; start nearer")


def _run(X: Tensor, frame: Frame, starts: Sequence[Starts], memory_budget: int) -> list[Best]:
    """Run KMeans from each of the starts, on a CPU on as many layers of large points at a time as keep threads busy."""
    # 1. how many layers are taken together
    layers, buffer = len(X), None
    if X.device.type == "cpu":
        # torch's own bits depend on how many layers a batch of matmuls has
        if compiled() and X.numel() * X.element_size() > WHOLE_BYTES:
            layers = min(layers, -(-thread_count() // min(one.runs for one in starts)))
        buffer = room(layers, *X.shape[1:], dtype=torch.float32)
    # 2. those layers' points in their frame, clustered from each of the starts
    found: list[list[Best]] = [[] for _ in starts]
    for start in range(0, len(X), layers):
        part = slice(start, start + layers)
        own_frame = frame if layers == len(X) else frame.of_layers(part)
        points = own_frame.bring(X[part], out=buffer)
        with full_precision():
            for place, one in enumerate(starts):
                found[place].append(kmeans_runs(points, one.of_layers(part), memory_budget))
    # 3. the layers of each start one after the other
    if layers == len(X):
        return [parts[0] for parts in found]
    return [Best(*(torch.cat(column) for column in zip(*parts, strict=True))) for parts in found]


def _in_units(frame: Frame, best: Best) -> Clustering:
    """Bring what was found in a frame back to the points' own units."""
    labels, centroids, inertia, n_iter = best
    if not frame.plain:
        centroids, inertia = centroids * frame.scale, inertia * frame.scale.double().flatten().square()
    return Clustering(labels, (centroids + frame.offset).float(), inertia, n_iter)


def _draw(n: int, params: KMeansParams, device: torch.device) -> Float[Tensor, "k runs trials"]:
    """Draw every random number of the seeding, on the host, so that devices and batches agree."""
    trials = 2 + int(math.log(params.n_clusters))
    shape = (params.n_clusters, params.n_init, trials)
    if params.n_init == 0:
        return torch.empty(shape, dtype=torch.float64, device=device)
    generator = torch.Generator().manual_seed(params.seed)
    return to_device(torch.rand(shape, generator=generator, dtype=torch.float64), device)
