"""kmeans_runs in torch, all runs of all layers side by side: what runs where no C++ compiler is, and on CUDA."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.kernels.cluster_sums import cluster_sums
from fastcluster_lm.kernels.kmeans_assign import kmeans_assign
from fastcluster_lm.kernels.kmeans_runs.starts import Best, Starts
from fastcluster_lm.kernels.rounding import matmul_rounding
from fastcluster_lm.kernels.transfer import Glance

# iterations on a GPU between two looks at whether any run still moves
LOOK_EVERY = 8


def kmeans_runs(X: Float[Tensor, "layers n d"], starts: Starts, memory_budget: int) -> Best:
    """Run KMeans from every start to its end, as many layers at a time as the budget allows; keep each layer's best.

    Shapes: as op.py's
    """
    layers = max(1, memory_budget // (4 * X.shape[1] * starts.runs * starts.n_clusters))
    parts = []
    for start in range(0, len(X), layers):
        part, own = X[start : start + layers], starts.of_layers(slice(start, start + layers))
        # warm starts first: (layers, runs, k, d)
        begun = [] if own.init is None else [own.init[:, None]]
        if own.fresh:
            begun.append(seed(part, own.draws))
        parts.append(_Lloyd(part, torch.cat(begun, 1), own, memory_budget).best())
    return Best(*(torch.cat(column) for column in zip(*parts, strict=True)))


def seed(X: Float[Tensor, "layers n d"], draws: Tensor) -> Float[Tensor, "layers runs k d"]:
    """Choose starting centroids among the points: each next one with odds by squared distance, best of the trials."""
    n_layers, n, width = X.shape
    n_clusters, runs, trials = draws.shape
    x_sq = X.square().sum(-1)  # (layers, n)
    flat = X.reshape(-1, width)
    start = torch.arange(n_layers, device=X.device)[:, None, None] * n
    chosen = torch.empty(n_clusters, n_layers, runs, dtype=torch.int64, device=X.device)
    chosen[0] = (draws[0, :, 0] * n).long()
    closest = _sq_dist(X, x_sq, flat[chosen[0] + start[..., 0]])  # (layers, runs, n)
    for cluster in range(1, n_clusters):
        mass = closest.cumsum(-1, dtype=torch.float64)
        # the first point whose cumulated distance exceeds the draw: a point at distance 0 is never it
        candidates = torch.searchsorted(mass, draws[cluster] * mass[..., -1:], right=True).clamp_(max=n - 1)
        points = flat[candidates + start].view(n_layers, runs * trials, width)
        reached = _sq_dist(X, x_sq, points).view(n_layers, runs, trials, n)
        torch.minimum(reached, closest[:, :, None], out=reached)
        best = reached.sum(-1).argmin(-1, keepdim=True)  # (layers, runs, 1)
        chosen[cluster] = candidates.gather(-1, best)[..., 0]
        closest = reached.gather(2, best[..., None].expand(-1, -1, -1, n))[:, :, 0]
    return flat[chosen.permute(1, 2, 0) + start]


def _sq_dist(X: Tensor, x_sq: Tensor, points: Tensor) -> Float[Tensor, "layers m n"]:
    # all three terms in one matmul: [-2 p, |p|^2, 1] . [x, 1, |x|^2]
    left = torch.cat([points * -2, points.square().sum(-1, keepdim=True), torch.ones_like(points[..., :1])], -1)
    right = torch.cat([X, torch.ones_like(x_sq[..., None]), x_sq[..., None]], -1)
    return torch.bmm(left, right.mT).clamp_(min=0)


class _Lloyd:
    """All runs of all layers, side by side; runs that converged are frozen, and on a CPU leave the batch."""

    def __init__(self, X: Tensor, centroids: Tensor, starts: Starts, memory_budget: int) -> None:
        self.X, self.max_iter, self.memory_budget = X, starts.max_iter, memory_budget
        self.x_sq = X.square().sum(-1)
        self.centroids = centroids  # (layers, runs, k, d)
        n_layers, runs = centroids.shape[:2]
        self.labels = X.new_full((n_layers, runs, X.shape[1]), -1, dtype=torch.int64)
        self.n_iter = X.new_zeros((n_layers, runs), dtype=torch.int64)
        self.active = X.new_ones((n_layers, runs), dtype=torch.bool)
        # scikit-learn's rule: tol is relative to the mean variance of the coordinates
        self.tol = starts.tol * X.var(1, correction=0).mean(-1)  # (layers,)

    def best(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        on_cpu, glance = self.X.device.type == "cpu", Glance()
        for iteration in range(self.max_iter):
            if (on_cpu or iteration % LOOK_EVERY == 0) and not glance.sees(self.active.any()):
                break
            # a GPU would have to wait to learn which runs are active, and moves them all
            self._iterate(*self._busy() if on_cpu else (slice(None), (slice(None), slice(None))))
        return self._finish()

    def _busy(self) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Choose the layers with active runs, and their runs: as many of each as the busiest layer has.

        The others fill up with frozen runs, which are left as they are
        """
        counts = self.active.sum(1)
        layers = counts.nonzero().flatten()
        order = self.active[layers].to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        return layers, (layers[:, None], order[:, : int(counts.max())])

    def _iterate(self, layers: Tensor | slice, pick: tuple[Tensor, Tensor] | tuple[slice, slice]) -> None:
        """Move the active ones among the runs picked by one iteration."""
        active, old, old_labels = self.active[pick], self.centroids[pick], self.labels[pick]
        X = self.X[layers]
        labels, sq_dist = self._assign(X, self.x_sq[layers], old)
        new, sizes = _means(X, labels, old)
        moved = _refill(X, self.x_sq[layers], sq_dist, sizes, old, new)
        settled = (labels == old_labels).all(-1) & ~moved
        shift = (new - old).square().sum((-2, -1))
        still = active & ~settled & (shift > self.tol[layers, None])
        self.centroids[pick] = torch.where(active[..., None, None], new, old)
        self.labels[pick] = torch.where(active[..., None], labels, old_labels)
        self.n_iter[pick] += active
        self.active[pick] = still

    def _assign(self, X: Tensor, x_sq: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
        """Give each point its nearest centroid in every run: labels and sq_dist, both (layers, runs, n)."""
        if X.is_cuda:
            return kmeans_assign(X, centroids)
        n_layers, n, width = X.shape
        runs, k = centroids.shape[1:3]
        side_by_side = centroids.reshape(n_layers, runs * k, width)
        # |x|^2 is left out until the nearest is known: [x, 1] . [-2 c, |c|^2]
        left = torch.cat([X, torch.ones_like(X[..., :1])], -1)
        right = torch.cat([side_by_side * -2, side_by_side.square().sum(-1, keepdim=True)], -1).mT
        labels = torch.empty(n_layers, n, runs, dtype=torch.int64, device=X.device)
        sq_dist = X.new_empty(n_layers, n, runs)
        rows = max(1, self.memory_budget // (4 * n_layers * runs * k))
        for start in range(0, n, rows):
            tile = slice(start, start + rows)
            block = torch.bmm(left[:, tile], right)  # (layers, rows, runs * k)
            nearest = block.view(n_layers, -1, runs, k).min(-1)
            labels[:, tile], sq_dist[:, tile] = nearest.indices, nearest.values
        sq_dist += x_sq[..., None]
        return labels.mT.contiguous(), sq_dist.clamp_(min=0).mT.contiguous()

    def _finish(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Label the points by the final centroids, take each layer's best run and measure it in float64."""
        labels, _ = self._assign(self.X, self.x_sq, self.centroids)
        runs = self.centroids.shape[1]
        exact = self.X.double()
        inertia = torch.stack(
            [_inertia(exact, self.centroids[:, run].double(), labels[:, run]) for run in range(runs)], 1
        )
        layer = torch.arange(len(self.X), device=self.X.device)
        # argmin may return any of equal minima, so the lower run is chosen by hand
        best = (inertia == inertia.amin(1, keepdim=True)).to(torch.uint8).argmax(1)
        labels, centroids, inertia = labels[layer, best], self.centroids[layer, best].double(), inertia[layer, best]
        # a settled run's centroids are its clusters' means; in float64 they lose the rounding of float32 sums
        settled = (labels == self.labels[layer, best]).all(1)
        means, _ = _means(exact, labels[:, None], centroids[:, None])
        centroids = torch.where(settled[:, None, None], means[:, 0], centroids)
        inertia = torch.where(settled, _inertia(exact, centroids, labels), inertia)
        return labels, centroids, inertia, self.n_iter[layer, best]


def _inertia(X: Tensor, centroids: Tensor, labels: Tensor) -> Float[Tensor, " layers"]:
    own = centroids.gather(1, labels[..., None].expand(-1, -1, X.shape[-1]))
    return own.sub_(X).square_().sum((1, 2))


def _means(X: Tensor, labels: Int[Tensor, "layers runs n"], old: Tensor) -> tuple[Tensor, Tensor]:
    """Average each cluster's points, sums in a fixed order; an empty cluster keeps its centroid."""
    sums, sizes = cluster_sums(X, labels, old.shape[2])
    means = sums / sizes.clamp(min=1)[..., None]
    return torch.where(sizes[..., None] > 0, means, old), sizes


def _refill(X: Tensor, x_sq: Tensor, sq_dist: Tensor, sizes: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Put empty clusters, in place in `new`, on the points farthest from their centroids; say which runs changed."""
    empty = sizes == 0  # (layers, runs, k)
    # a GPU would have to wait for the answer
    if empty.device.type == "cpu" and not bool(empty.any()):
        return torch.zeros_like(empty[..., 0])
    width = X.shape[-1]
    # what rounding alone can make of a distance of 0 counts as 0: no cluster is put where one is already
    largest_sq = x_sq[:, None] + old.square().sum(-1).amax(-1)[..., None]  # (layers, runs, n)
    rounding = matmul_rounding(width, X.dtype) * largest_sq
    away = torch.where(sq_dist > 4 * rounding, sq_dist, 0)
    farthest = away.sort(dim=-1, descending=True, stable=True)
    rank = (empty.cumsum(-1) - 1).clamp_(min=0)
    movable = empty & (farthest.values.gather(-1, rank) > 0)
    source = farthest.indices.gather(-1, rank)  # (layers, runs, k)
    layer = torch.arange(len(X), device=X.device)[:, None, None]
    new.copy_(torch.where(movable[..., None], X[layer, source], new))
    return movable.any(-1)
