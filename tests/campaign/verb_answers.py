"""Judges what the verbs answer, by plain float64 arithmetic on the same numbers; it calls no verb."""

import json
import math
from typing import Any

import numpy as np
import torch

from tests.campaign.verb_calls import Call

EPS = float(np.finfo(np.float32).eps)
# the least that float32 tells apart: distances are given in it
LEAST = 2.0**-149


def fault_of(call: Call, answer: Any) -> str:
    """Say what is wrong with an answer, or nothing."""
    needed = ("queries", "bank") if call.verb == "nearest_neighbors" else ("X",)
    if any(call.exact.get(name) is None for name in needed):
        return "answered, though the points are no numbers that float64 holds"
    if call.verb == "score_clusters":
        return _fault_of_rows(call, answer)
    given = call.args["queries" if call.verb == "nearest_neighbors" else "X"]
    for name, part in zip(answer._fields, answer, strict=True):
        if isinstance(part, torch.Tensor) != isinstance(given, torch.Tensor):
            return f"{name} is {type(part).__name__} for points that are {type(given).__name__}"
    exact = call.exact["queries" if call.verb == "nearest_neighbors" else "X"]
    layers = exact.ndim == 3
    parts = [np.asarray(part) if layers else np.asarray(part)[None] for part in answer]
    for name, part in zip(answer._fields, parts, strict=True):
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            return f"{name} holds NaN or infinity"
    exact = exact if layers else exact[None]
    judge = {"nearest_neighbors": _fault_of_neighbors, "kmeans": _fault_of_clusters, "tsne": _fault_of_maps}
    return judge[call.verb](call, exact, *parts)


def _kinds(*expected: tuple[np.ndarray, tuple[int, ...], str]) -> str:
    for part, shape, kind in expected:
        if part.shape != shape or part.dtype != kind:
            return f"{part.dtype} {part.shape} came where {kind} {shape} was expected"
    return ""


def _fault_of_neighbors(call: Call, queries: np.ndarray, distances: np.ndarray, indices: np.ndarray) -> str:
    bank = call.exact["bank"]
    bank = bank if bank.ndim == 3 else bank[None]
    k, (n_layers, n, d), m = int(call.args["n_neighbors"]), queries.shape, bank.shape[1]
    if wrong := _kinds((distances, (n_layers, n, k), "f4"), (indices, (n_layers, n, k), "i8")):
        return wrong
    if n == 0:
        return ""
    if indices.min() < 0 or indices.max() >= m:
        return f"indices run from {indices.min()} to {indices.max()}, the bank has {m} points"
    if (np.diff(np.sort(indices, -1), axis=-1) == 0).any():
        return "a neighbour is named twice"
    if (np.diff(distances, axis=-1) < 0).any():
        return "distances do not ascend"
    own = bool(call.args["exclude_self"])
    if own and (indices == np.arange(n)[:, None]).any():
        return "a point is its own neighbour"
    true = np.sqrt(np.square(queries[:, :, None] - bank[:, None]).sum(-1))  # (layers, n, m)
    if own:
        true[:, np.arange(n), np.arange(n)] = math.inf
    chosen = np.take_along_axis(true, indices, -1)
    best = np.sort(true, -1)[..., :k]
    # the reference multiplies centred float32 points; ours compares differences
    slack = np.zeros((n_layers, 1, 1))
    if call.args.get("engine") == "reference":
        middle = bank.mean(1, keepdims=True)
        reach = sum(np.square(X - middle).sum(-1).max(-1) for X in (queries, bank))
        slack = np.sqrt(8 * EPS * (8 + 2 * math.sqrt(d)) * reach)[:, None, None]
    if (chosen > best * (1 + 1e-5) + slack + LEAST).any():
        worst = np.unravel_index((chosen - best * (1 + 1e-5) - slack).argmax(), chosen.shape)
        return f"neighbour {worst} lies at {chosen[worst]:.6g}, the true one at {best[worst]:.6g}"
    if (abs(distances - chosen) > 1e-5 * chosen + slack + LEAST).any():
        return "a distance is not that of its neighbour"
    # of points in float64 those that are equal only once rounded are no ties
    ties = (np.diff(distances, axis=-1) == 0) & (np.diff(chosen, axis=-1) == 0)
    if not slack.any() and call.tame and (np.diff(indices, axis=-1)[ties] < 0).any():
        return "equal distances do not stand by index"
    return ""


def _fault_of_clusters(
    call: Call, X: np.ndarray, labels: np.ndarray, centroids: np.ndarray, inertia: np.ndarray
) -> str:
    k, (n_layers, n, d) = int(call.args["n_clusters"]), X.shape
    expected = (labels, (n_layers, n), "i8"), (centroids, (n_layers, k, d), "f4"), (inertia, (n_layers,), "f8")
    if wrong := _kinds(*expected):
        return wrong
    if labels.min() < 0 or labels.max() >= k:
        return f"labels run from {labels.min()} to {labels.max()} of {k} clusters"
    middle = X.mean(1, keepdims=True)
    apart = np.square(X - middle).sum(-1)  # (layers, n)
    # distances are compared in float32 of a layer's extent, and centroids are given in float32 wherever they lie
    extent = np.sqrt(apart.max(-1))
    start = call.exact.get("init")
    if start is not None:
        start = start if start.ndim == 3 else start[None]
        extent = np.maximum(extent, np.sqrt(np.square(start - middle).sum(-1)).max(-1))
    given = EPS * math.sqrt(d) * (np.abs(X).max((1, 2)) + LEAST)
    slack = 8 * EPS * (8 + 2 * math.sqrt(d)) * extent**2 + 8 * extent * given + 4 * given**2 + LEAST
    to_all = np.square(X[:, :, None] - centroids[:, None].astype(np.float64)).sum(-1)  # (layers, n, k)
    to_own = np.take_along_axis(to_all, labels[..., None], -1)[..., 0]
    if (to_own > to_all.min(-1) * (1 + 1e-5) + slack[:, None]).any():
        return "a point has another centroid nearer than its own"
    if (abs(to_own.sum(-1) - inertia) > 1e-5 * inertia + n * slack).any():
        return f"inertia is {inertia}, labels and centroids give {to_own.sum(-1)}"
    if (inertia > apart.sum(-1) * (1 + 1e-5) + n * slack).any():
        return f"inertia is {inertia}, above the {apart.sum(-1)} of one cluster"
    return ""


def _fault_of_maps(call: Call, X: np.ndarray, points: np.ndarray, kl: np.ndarray) -> str:
    n_layers, n, _ = X.shape
    if wrong := _kinds((points, (n_layers, n, 2), "f4"), (kl, (n_layers,), "f8")):
        return wrong
    if (kl < -1e-4).any():
        return f"KL is {kl}, below 0"
    start = call.exact.get("init")
    if start is not None and int(call.args["n_iter"]) == 0 and call.args.get("engine") != "reference":
        start = start if start.ndim == 3 else start[None]
        off = abs(points - (start - start.mean(1, keepdims=True))).max()
        if off > 1e-5 * abs(start).max() + LEAST:
            return f"no iteration moved a start by {off:.3g}"
    if not call.tame or start is not None:
        return ""
    perplexity = min(float(call.args["perplexity"]), max((n - 1) / 3, 1.0))
    for x, y, found in zip(X, points.astype(np.float64), kl, strict=True):
        expected = _kl(x, y, perplexity)
        if expected is not None and abs(found - expected) > 1e-2 * max(1.0, abs(expected)):
            return f"KL is {found:.6g}, in float64 {expected:.6g}"
    return ""


def _kl(X: np.ndarray, Y: np.ndarray, perplexity: float) -> float | None:
    """Measure a map by float64; None where the perplexity is so low that rounding decides."""
    n = len(X)
    k = min(n - 1, max(1, math.floor(3 * perplexity)))
    if perplexity <= 1 or k < 3:
        return None
    sq_dist = np.square(X[:, None] - X).sum(-1)
    np.fill_diagonal(sq_dist, math.inf)
    near = np.argsort(sq_dist, -1)[:, :k]
    P = np.zeros((n, n))
    for i, own in enumerate(near):
        away = sq_dist[i, own] - sq_dist[i, own].min()
        away = away / max(away.mean(), 1e-300)
        low, high = -20.0, 60.0
        for _ in range(60):
            beta = 2 ** ((low + high) / 2)
            weights = np.exp(-beta * away)
            weights /= weights.sum()
            entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum()
            low, high = ((low + high) / 2, high) if entropy > math.log(perplexity) else (low, (low + high) / 2)
        P[i, own] = weights
    P = (P + P.T) / (2 * n)
    kernel = 1 / (1 + np.square(Y[:, None] - Y).sum(-1))
    np.fill_diagonal(kernel, 0)
    used = P > 0
    return float((P[used] * np.log(P[used] * kernel.sum() / kernel[used])).sum())


def _fault_of_rows(call: Call, rows: Any) -> str:
    exact = call.exact["X"]
    n_layers, n = (1, exact.shape[0]) if exact.ndim == 2 else exact.shape[:2]
    spaces = list(call.args["spaces"])
    groups = 1 + (call.args.get("groups") is not None)
    if len(rows) != n_layers * groups * len(spaces):
        return f"{len(rows)} rows came for {n_layers} layers, {groups} groups and {len(spaces)} spaces"
    try:
        json.dumps(rows, allow_nan=False)
    except (TypeError, ValueError) as error:
        return f"a row is no JSON: {error}"
    for row in rows:
        for name, value in row.items():
            shared = name.startswith(("knn", "null_knn", "f1"))
            if value is not None and shared and not -1e-9 <= value <= 1 + 1e-9:
                return f"{name} is {value}"
            if value is not None and name in ("ari", "ami") and not -1 - 1e-9 <= value <= 1 + 1e-9:
                return f"{name} is {value}"
    if not call.tame or "bank" in call.args or "instances" in call.args or "hidden" not in spaces:
        return ""
    labels, k = call.args["labels_true"], int(call.args.get("n_neighbors", 5))
    labels = np.asarray(labels.float() if isinstance(labels, torch.Tensor) else labels)
    for layer, X in enumerate(exact if exact.ndim == 3 else exact[None]):
        row = next(r for r in rows if (r["space"], r["group"], r["layer"]) == ("hidden", "all", layer))
        if (row["knn_share"] is None) != (k > n - 1):
            return f"knn_share is {row['knn_share']} of {n} points and {k} neighbours"
        if k <= n - 1:
            sq_dist = np.square(X[:, None] - X).sum(-1)
            np.fill_diagonal(sq_dist, math.inf)
            share = float((labels[np.argsort(sq_dist, -1)[:, :k]] == labels[:, None]).mean())
            # one pair of neighbours may change places
            if abs(row["knn_share"] - share) > 2 / (n * k) + 1e-6:
                return f"knn_share is {row['knn_share']}, in float64 {share}"
    return ""
