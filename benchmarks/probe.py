"""`fclm bench probe`: a cold and a warm probe of seven layers against the best library at each stage."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcluster_lm.benchmarks import peers
from fastcluster_lm.benchmarks.data import make_points
from fastcluster_lm.benchmarks.harness import Line, Timing, judged, peak_mib, resident_mib, time_side_by_side
from fastcluster_lm.config import ScoresConfig
from fastcluster_lm.kernels import native
from fastcluster_lm.kernels.label_agreement.reference import AGREEMENTS
from fastcluster_lm.kernels.tsne_forces.grid import grid_repulsion
from fastcluster_lm.scores.contingency import contingency_tables
from fastcluster_lm.scores.engines import choose_engine
from fastcluster_lm.scores.engines.params import Clustering, KMeansParams, Map, Neighbors, NeighborsParams, TsneParams

LAYERS, K, MOVED = 7, 5, 0.1
# (n, d, classes): times faster than the libraries that a cold probe must be
TARGETS = {(1000, 32, 10): 10.0, (2000, 768, 20): 10.0, (5000, 768, 50): 5.0, (10000, 2048, 100): 4.0}
WARM_TARGET = 60.0
# TorchDR took 28 s for one layer of 1000 points on two cores: it is timed on one layer, and not beyond
TORCHDR_POINTS = 1000
# as a run's maps by default
DEFAULTS = ScoresConfig()
COLD = TsneParams(perplexity=DEFAULTS.perplexity, n_iter=DEFAULTS.n_iter, min_gradient_norm=DEFAULTS.min_gradient_norm)
# openTSNE 1.0.4's own defaults
LIBRARY = TsneParams(n_iter=750, exaggeration_iter=250, initial_momentum=0.8)
WARM = replace(COLD, n_iter=DEFAULTS.warm_iter)


class OurProbe:
    """One probe by the fused engine; each stage's seconds are kept."""

    def __init__(self, X: Tensor, labels: Tensor, k: int) -> None:
        self.X, self.labels, self.k = X, labels.numpy(), k
        # a warm probe never sees the very points of the one before: they moved by a tenth of their spread
        noise = torch.randn(X.shape, generator=torch.Generator().manual_seed(1))
        self.variants = [X, X + noise * (MOVED * X.std(1, keepdim=True))]
        self.engine = choose_engine("fused", "cpu")
        self.ids = torch.arange(X.shape[1])
        self.stages: dict[str, list[float]] = {}
        self.map: Map | None = None
        self.clusters: Clustering | None = None

    def cold(self) -> None:
        self.X = self.variants[0]
        self._run(COLD, KMeansParams(self.k, n_init=10))

    def warm(self) -> None:
        assert self.map is not None and self.clusters is not None
        self.X = self.variants[1] if self.X is self.variants[0] else self.variants[0]
        kmeans = KMeansParams(self.k, n_init=0, init=self.clusters.centroids)
        self._run(replace(WARM, init=self.map.points), kmeans)

    def _run(self, tsne: TsneParams, kmeans: KMeansParams) -> None:
        n = self.X.shape[1]
        used = tsne.affinity_neighbors(n)
        near = self._timed(
            "knn", lambda: self.engine.neighbors(self.X, self.X, NeighborsParams(used, self.ids, self.ids))
        )
        known = replace(tsne, neighbors=Neighbors(near.distances, near.indices))
        self.map = self._timed("tsne", lambda: self.engine.tsne(self.X, known))
        self.clusters = self._timed("kmeans", lambda: self.engine.kmeans(self.X, kmeans))
        pred = self.clusters.labels
        self._timed("scores", lambda: self._scores(near.indices[..., :K], pred))

    def _scores(self, near: Tensor, pred: Tensor) -> None:
        true = np.broadcast_to(self.labels, pred.shape)
        tables = contingency_tables(true, pred.numpy(), n_true=self.k, n_pred=self.k)
        for name in ("ari", "ami"):
            AGREEMENTS[name](np.asarray(tables))
        (torch.from_numpy(self.labels)[near] == torch.from_numpy(self.labels)[:, None]).double().mean((1, 2))

    def _timed(self, stage: str, thing: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        found = thing()
        self.stages.setdefault(stage, []).append(time.perf_counter() - started)
        return found


def bench_probe(shapes: list[tuple[int, int, int]], repeats: int, peer_layers: int, source: str) -> Iterator[Line]:
    """Measure every shape: ours on all seven layers, the libraries on peer_layers of them, scaled to seven.

    Units:  seconds; the libraries take one layer a call, so that seven cost seven times one
    """
    for shape in shapes:
        X, labels = make_points(source, LAYERS, *shape)
        probe = OurProbe(X, labels, int(labels.max()) + 1)
        before = resident_mib()
        probe.cold()
        probe.warm()
        probe.stages.clear()
        head = {
            "bench": "probe",
            "data": source,
            "layers": LAYERS,
            "n": X.shape[1],
            "d": X.shape[2],
            "classes": probe.k,
            "peak_mib_above_input": peak_mib() - before,
        }
        ours: dict[str, list[float]] = {"cold": [], "warm": []}
        stages: dict[str, dict[str, list[float]]] = {"cold": {}, "warm": {}}
        library: dict[str, list[float]] = {}
        for _ in range(repeats):
            # ours and theirs in turn, so that a slow minute falls on both
            for kind, thing in (("cold", probe.cold), ("warm", probe.warm)):
                started = time.perf_counter()
                thing()
                ours[kind].append(time.perf_counter() - started)
                for stage, taken in probe.stages.items():
                    stages[kind].setdefault(stage, []).extend(taken)
                probe.stages.clear()
            for name, seconds in _time_peers(X[:peer_layers], labels, probe.k).items():
                library.setdefault(name, []).append(seconds)
        by_name = {name: Timing(tuple(seconds)) for name, seconds in library.items()}
        best = {
            stage: min((t.median, name) for name, t in by_name.items() if name.startswith(stage))
            for stage in ("tsne", "kmeans", "knn", "scores")
        }
        pipeline = sum(seconds for seconds, _ in best.values())
        head |= {
            "library_s": pipeline,
            "library_best_by_stage": {stage: {"name": name, "median_s": s} for stage, (s, name) in best.items()},
            "library": {name: t.as_dict() for name, t in by_name.items()},
            "library_layers_measured": min(peer_layers, LAYERS),
        }
        for kind, timing in ((kind, Timing(tuple(seconds))) for kind, seconds in ours.items()):
            by_stage = {stage: float(np.median(seconds)) for stage, seconds in stages[kind].items()}
            line = {**head, "kind": kind, "ours": timing.as_dict(), "ours_by_stage_s": by_stage}
            target = TARGETS.get(shape, 10.0) if kind == "cold" else WARM_TARGET
            yield judged(line, target, pipeline / timing.median, at_least=True)


def _time_peers(X: Tensor, labels: Tensor, k: int) -> dict[str, float]:
    """Time every library once on these layers, scaled to all of ours."""
    true = labels.numpy()
    calls: dict[str, Callable[[np.ndarray], object]] = {
        **{f"tsne {name}": call for name, call in peers.tsne_peers(native.thread_count()).items()},
        **{f"kmeans {name}": call for name, call in peers.kmeans_peers(k).items()},
        "knn faiss": lambda x: peers.knn(x, K),
        "scores scikit-learn": lambda x: peers.agreement(true, true[::-1]),
    }
    layers = [np.ascontiguousarray(x.numpy()) for x in X]
    taken = {}
    for name, call in calls.items():
        if "TorchDR" in name and X.shape[1] > TORCHDR_POINTS:
            continue
        chosen = layers[:1] if "TorchDR" in name else layers
        started = time.perf_counter()
        for x in chosen:
            call(x)
        taken[name] = (time.perf_counter() - started) * LAYERS / len(chosen)
    return taken


def bench_quality(shape: tuple[int, int, int], seeds: int, source: str) -> Iterator[Line]:
    """Compare the quality of results: KL from the same neighbours, inertia, recall; medians over seeds and layers."""
    n, width, k = shape
    fused, reference = choose_engine("fused", "cpu"), choose_engine("reference", "cpu")
    ratios: dict[str, list[float]] = {"kl": [], "inertia": []}
    recall: list[float] = []
    for seed in range(seeds):
        X, labels = make_points(source, LAYERS, n, width, k, seed)
        ids = torch.arange(X.shape[1])
        known = fused.neighbors(X, X, NeighborsParams(COLD.affinity_neighbors(X.shape[1]), ids, ids))
        params = replace(COLD, seed=seed, neighbors=known)
        # layer 0 of a real run has a few distinct points and a KL near 0
        used = slice(1 if source == "states" else 0, None)
        part = replace(params, neighbors=Neighbors(known.distances[used], known.indices[used]))
        ours = fused.tsne(X[used], part).kl_divergence
        theirs = reference.tsne(X[used], replace(LIBRARY, seed=seed, neighbors=part.neighbors)).kl_divergence
        ratios["kl"] += (ours / theirs).tolist()
        kmeans = KMeansParams(int(labels.max()) + 1, n_init=10, seed=seed)
        ratios["inertia"] += (fused.kmeans(X, kmeans).inertia / reference.kmeans(X, kmeans).inertia).tolist()
        exact = torch.cdist(X.double(), X.double(), compute_mode="donot_use_mm_for_euclid_dist")
        exact.diagonal(dim1=1, dim2=2).fill_(torch.inf)
        kth = exact.kthvalue(K, dim=-1).values[..., None]
        recall.append(float((exact.gather(2, known.indices[..., :K]) <= kth * (1 + 1e-5)).double().mean()))
    n, width, k = X.shape[1], X.shape[2], int(labels.max()) + 1
    head = {"bench": "quality", "data": source, "layers": LAYERS, "n": n, "d": width, "classes": k, "seeds": seeds}
    for name, target in (("kl", 1.02), ("inertia", 1.005)):
        spread = {"low": min(ratios[name]), "high": max(ratios[name])}
        found = float(np.median(ratios[name]))
        yield judged({**head, "kind": f"{name} over the library's", **spread}, target, found, at_least=False)
    yield judged({**head, "kind": "recall of neighbours"}, 1.0, min(recall), at_least=True)


def bench_forces(n: int, repeats: int) -> Iterator[Line]:
    """Time a pass of exact repulsion against a plain loop of the same sum, built here; by a tree and on a grid too."""
    from fastcluster_lm.benchmarks.plain import plain_repulsion, repulsion

    # as wide as a map of that many points; the grid's cost depends on it, the sums' does not
    side = 0.8 * n**0.5
    points = (torch.rand(LAYERS, 2, n, generator=torch.Generator().manual_seed(0)) - 0.5) * side
    ours, plain, tree = repulsion(points), plain_repulsion(points), repulsion(points, "tree")
    exact = plain()
    error = float((ours() - exact).abs().max() / exact.abs().max())
    off = {"tree": tree() - exact, "grid": grid_repulsion(points)[0] - exact}
    ways = {"ours": ours, "plain": plain, "tree": tree, "grid": lambda: grid_repulsion(points)}
    found = time_side_by_side(ways, repeats)
    line = {
        "bench": "forces",
        "kind": "exact repulsion over a plain loop's",
        "layers": LAYERS,
        "n": n,
        "largest_relative_difference": error,
        "ours": found["ours"].as_dict(),
        "plain": found["plain"].as_dict(),
        **{way: found[way].as_dict() for way in off},
        **{
            f"{way}_rms_error": float(apart.square().mean().sqrt() / exact.square().mean().sqrt())
            for way, apart in off.items()
        },
        "ours_ns_a_pair": found["ours"].median / (LAYERS * n * n) * 1e9,
    }
    line = judged(line, 1.0, found["ours"].median / found["plain"].median, at_least=False)
    # a quick sum that is another sum passes nothing
    yield {**line, "pass": line["pass"] and error < 1e-4}
