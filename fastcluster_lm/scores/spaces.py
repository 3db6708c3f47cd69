"""Cluster all splits and groups of a space and let neighbours vote, in few batched calls; rows.py makes the scores."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcluster_lm.errors import DataError, ShapeError
from fastcluster_lm.kernels.neighbor_votes import first_others
from fastcluster_lm.kernels.transfer import Fetch, to_device
from fastcluster_lm.scores.batches import check_finite
from fastcluster_lm.scores.contingency import host_array
from fastcluster_lm.scores.engines.params import Engine, KMeansParams, Neighbors, NeighborsParams
from fastcluster_lm.scores.nulls import derive_seed
from fastcluster_lm.scores.parts import PLANS, Divisions, Part, Scoring, Split, joint_codes
from fastcluster_lm.scores.rows import PendingSpace, SpaceScores, Votes, buckets
from fastcluster_lm.scores.votes import enough_neighbors, knn_accuracy, knn_share

# neighbour labels held at once, in a few int64 arrays: 32 MB each
_CHUNK = 4_000_000


def score_space(
    queries: Mapping[str, Split],
    bank: Split,
    *,
    space: str,
    plan: Sequence[tuple[str, str]] | None = None,
    scoring: Scoring | None = None,
    engine: Engine,
    kmeans_init: Mapping[str, Tensor] | None = None,
    divisions: Divisions | None = None,
    near: Neighbors | None = None,
) -> SpaceScores:
    """Score every (group, labels) of a plan, for all splits and layers together.

    Shapes: X of a split (layers, n, d), of the bank (layers, m, d) -> a row for each split, (group, labels) and layer
    Units:  a row's scores are unweighted means over its groups; None where undefined for one of them
    Errors: DataError for NaN, an unknown group or label, no points; ShapeError for layers or widths that differ
    Source: design.md, "Scores and their names". Queries of the bank's own split leave out all points of their
            instruction; points keep their order, so equal inputs give equal rows. divisions, kept by the caller,
            spares the next call work where labels are the same; near, the bank's own neighbours, nearest first and
            without the point itself, spares a search where enough of them may vote
    """
    pending = start_space(
        queries,
        bank,
        space=space,
        plan=plan,
        scoring=scoring,
        engine=engine,
        kmeans_init=kmeans_init,
        divisions=divisions,
        near=near,
    )
    return pending.finish(Fetch(pending.tensors()).wait())


def start_space(
    queries: Mapping[str, Split],
    bank: Split,
    *,
    space: str,
    plan: Sequence[tuple[str, str]] | None = None,
    scoring: Scoring | None = None,
    engine: Engine,
    kmeans_init: Mapping[str, Tensor] | None = None,
    divisions: Divisions | None = None,
    near: Neighbors | None = None,
) -> PendingSpace:
    """Give a GPU all that score_space needs of it, and wait for nothing; the arguments are score_space's.

    Errors: ShapeError, DataError as there; those that values decide once they are settled, where checks are put off
    """
    plan, scoring = PLANS[space] if plan is None else plan, scoring or Scoring()
    for name, split in queries.items():
        _check_split(name, split, bank)
    if near is not None and near.indices.shape[:2] != bank.X.shape[:2]:
        raise ShapeError(
            f"near has shape {tuple(near.indices.shape)}; expected {tuple(bank.X.shape[:2])} and neighbours"
        )
    divisions = divisions or Divisions()
    parts = [part for split in queries.values() for part in divisions.of(split, bank, plan, scoring)]
    clusters, centroids = _cluster(parts, queries, space, scoring, engine, kmeans_init or {})
    votes: list[Votes] = []
    for split in queries.values():
        own = [(i, part) for i, part in enumerate(parts) if part.split == split.name]
        votes += _vote(own, split, bank, scoring, engine, near if split.name == bank.name else None)
    return PendingSpace(parts, plan, list(queries), space, engine.name, len(bank.X), clusters, centroids, votes)


def _check_split(name: str, split: Split, bank: Split) -> None:
    if name != split.name:
        raise DataError(f"queries[{name!r}] is a split named {split.name!r}; key and name must be the same")
    layers, n, d = split.X.shape
    if (layers, d) != (bank.X.shape[0], bank.X.shape[2]):
        raise ShapeError(
            f"split {name!r} has shape {tuple(split.X.shape)}, the bank {tuple(bank.X.shape)}; layers and d must match"
        )
    if n == 0:
        raise DataError(f"split {name!r} has no points; give at least one")
    check_finite(split.X, f"split {name!r}", sq_norms=split.sq_norms)


def _cluster(
    parts: Sequence[Part],
    queries: Mapping[str, Split],
    space: str,
    scoring: Scoring,
    engine: Engine,
    kmeans_init: Mapping[str, Tensor],
) -> tuple[dict[tuple[tuple[str, str, int], int], Tensor], dict[str, Tensor]]:
    """Run KMeans once for each set of points and k, in one call for all sets of one size; labels are (layers, n).

    Shapes: -> labels (layers, n) by set and k, centroids (sets, layers, k, d) by name
    """
    jobs = {(part.place, part.n_clusters): part for part in parts}
    position: dict[tuple[tuple[str, str, int], int], tuple[str, int]] = {}
    counts: dict[str, int] = defaultdict(int)
    for key, part in jobs.items():
        name = f"{space}/{part.split}/{part.group}/{part.n_clusters}"
        position[key] = (name, counts[name])
        counts[name] += 1
    for name in counts.keys() & kmeans_init.keys():
        if len(kmeans_init[name]) != counts[name]:
            raise ShapeError(f"kmeans_init[{name!r}] holds {len(kmeans_init[name])} groups, the data {counts[name]}")
    labels: dict[tuple[tuple[str, str, int], int], Tensor] = {}
    centroids: dict[str, list[tuple[list[int], Tensor]]] = defaultdict(list)
    warm = {key: position[key][0] in kmeans_init for key in jobs}
    alike = buckets(jobs, lambda key: (jobs[key].group, len(jobs[key].points), key[1], warm[key]))
    # the same sets of points are made ready once for all numbers of clusters
    for _, rounds in buckets(alike, lambda one: tuple(place for place, _ in one[1])):
        keys = rounds[0][1]
        X = _of_sets(queries, [(jobs[key].split, jobs[key].points) for key in keys])  # (L, J, n, d)
        n_layers, n_jobs, n, width = X.shape
        params = []
        for (group, _, k, is_warm), keys in rounds:
            init = None
            if is_warm:
                at = [position[key] for key in keys]
                init = torch.stack([kmeans_init[name][index] for name, index in at], 1).reshape(-1, k, width)
            seed = derive_seed(scoring.seed, "kmeans", space, group, k)
            params.append(KMeansParams(k, n_init=scoring.n_init, max_iter=scoring.max_iter, seed=seed, init=init))
        results = engine.kmeans_each(X.reshape(n_layers * n_jobs, n, width), params)
        for ((_, _, k, _), keys), result in zip(rounds, results, strict=True):
            labels.update(zip(keys, result.labels.reshape(n_layers, n_jobs, n).unbind(1), strict=True))
            found = result.centroids.reshape(n_layers, n_jobs, k, width).transpose(0, 1)
            first = 0
            for name, same in groupby([position[key] for key in keys], lambda at: at[0]):
                indices = [index for _, index in same]
                centroids[name].append((indices, found[first : first + len(indices)]))
                first += len(indices)
    return labels, {name: _ordered(found) for name, found in centroids.items()}


def _ordered(found: Sequence[tuple[list[int], Tensor]]) -> Tensor:
    """Put parts of an axis together, each with the places of its entries."""
    if len(found) == 1:
        return found[0][1]
    order = np.argsort([index for indices, _ in found for index in indices])
    together = torch.cat([part for _, part in found])
    return together[to_device(order, together.device)]


def _vote(
    parts: Sequence[tuple[int, Part]],
    split: Split,
    bank: Split,
    scoring: Scoring,
    engine: Engine,
    near: Neighbors | None,
) -> Iterator[Votes]:
    """Find the neighbours of each set of points once, in one call for all sets of one size, and let them vote."""
    ids = {"knn_share": (np.arange(split.X.shape[1]), np.arange(bank.X.shape[1]))}
    if split.instances is not None and bank.instances is not None:
        ids["knn_share"] = (host_array(split.instances), host_array(bank.instances))
    if "distribution" in split.labels:
        ids["knn_share_across"] = joint_codes("distribution", split, bank)
    members: dict[tuple[str, str, int], list[tuple[int, Part]]] = defaultdict(list)
    for i, part in parts:
        members[part.place].append((i, part))
    places = {place: same[0][1] for place, same in members.items()}
    k = scoring.n_neighbors
    for (group, _, n_bank), keys in buckets(
        places, lambda key: (key[1], len(places[key].points), len(places[key].bank_points))
    ):
        # which of the sets are asked for what, under which identities
        asked: list[tuple[tuple[int, ...], str, NeighborsParams]] = []
        for column, (query_ids, bank_ids) in ids.items():
            if near is not None and group == "all":
                whole = first_others(near.indices, torch.from_numpy(query_ids), torch.from_numpy(bank_ids), k)
                if whole is not None:
                    yield from _count_votes(column, whole[:, None], [members[key] for key in keys])
                    continue
            if column == "knn_share" and split.name != bank.name:
                if n_bank >= k:
                    asked.append((tuple(range(len(keys))), column, NeighborsParams(k)))
                continue
            own = torch.from_numpy(_stacked([query_ids[places[key].points] for key in keys]))  # (J, nq)
            others = torch.from_numpy(_stacked([bank_ids[places[key].bank_points] for key in keys]))  # (J, nb)
            rows = enough_neighbors(own, others, k).nonzero()[:, 0]
            if len(rows):
                # the layers of a single set share its identities; those of several stand layer by layer
                one = rows.numel() == 1
                in_layers = [x[rows[0]] if one else x[rows].repeat(split.X.shape[0], 1) for x in (own, others)]
                asked.append((tuple(rows.tolist()), column, NeighborsParams(k, *in_layers)))
        for chosen, same in buckets(asked, lambda item: item[0]):
            some = [keys[j] for j in chosen]
            X = _gather(split.X, [places[key].points for key in some]).flatten(0, 1)  # (L * J, nq, d)
            same_points = split.X is bank.X and all(
                np.array_equal(places[key].points, places[key].bank_points) for key in some
            )
            Y = X if same_points else _gather(bank.X, [places[key].bank_points for key in some]).flatten(0, 1)
            found = engine.neighbors_under_each(X, Y, [params for _, _, params in same])
            for (_, column, _), neighbors in zip(same, found, strict=True):
                indices = neighbors.indices.reshape(split.X.shape[0], len(some), -1, k)
                yield from _count_votes(column, indices, [members[key] for key in some])


def _count_votes(column: str, indices: Tensor, members: Sequence[Sequence[tuple[int, Part]]]) -> Iterator[Votes]:
    """Score the same neighbours (L, J, nq, k) under every kind of labels and their nulls, in one call for all."""
    device = indices.device
    flat = [(j, i, part) for j, same in enumerate(members) for i, part in same]
    kinds = [
        chosen
        for (labels, _), chosen in buckets(flat, lambda item: (item[2].labels, item[2].nulls is not None))
        if column != "knn_share_across" or labels != "distribution"
    ]
    for at, together in buckets(kinds, lambda chosen: tuple(j for j, _, _ in chosen)):
        some = indices if len(at) == indices.shape[1] else indices[:, to_device(np.array(at), device)]
        parts = [[part for _, _, part in chosen] for chosen in together]
        ids = [[i for _, i, _ in chosen] for chosen in together]
        own = _stacked([_stacked([part.true for part in same]) for same in parts])  # (kinds, J, nq)
        banked = _stacked([_stacked([part.bank_true for part in same]) for same in parts])
        if column == "knn_share":
            won = knn_accuracy(some, to_device(own, device), to_device(banked, device))
            yield from (Votes("knn_accuracy", won[n : n + 1], of) for n, of in enumerate(ids))
        drawn = [n for n, same in enumerate(parts) if same[0].nulls is not None]
        nulls = [np.stack([part.nulls for part in parts[n] if part.nulls is not None], 1) for n in drawn]  # (S, J, nq)
        bank_nulls = [np.stack([part.bank_nulls for part in parts[n] if part.bank_nulls is not None], 1) for n in drawn]
        step = max(1, _CHUNK // some.numel())
        all_own, all_banked = np.concatenate([own, *nulls]), np.concatenate([banked, *bank_nulls])
        found = [
            knn_share(some, to_device(a, device), to_device(b, device))
            for a, b in zip(_slices(all_own, step), _slices(all_banked, step), strict=True)
        ]
        shares = found[0] if len(found) == 1 else torch.cat(found)
        of_kinds, *of_nulls = shares.split([len(own), *map(len, nulls)]) if nulls else [shares]
        yield from (Votes(column, of_kinds[n : n + 1], of) for n, of in enumerate(ids))
        yield from (Votes(f"null_{column}", of_null, ids[n]) for n, of_null in zip(drawn, of_nulls, strict=True))


def _of_sets(queries: Mapping[str, Split], sets: Sequence[tuple[str, NDArray[np.int64]]]) -> Tensor:
    """Pick equal-sized sets of points of several splits: (L, J, n_set, d)."""
    parts = [
        _gather(queries[split].X, [points for _, points in same]) for split, same in groupby(sets, lambda one: one[0])
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _gather(X: Tensor, points: Sequence[NDArray[np.int64]]) -> Tensor:
    """Pick equal-sized sets of points: (L, n, d) -> (L, J, n_set, d), without a copy where it is all of them."""
    if len(points) == 1 and len(points[0]) == X.shape[1]:
        return X[:, None]
    chosen = X.index_select(1, to_device(np.concatenate(points), X.device))
    return chosen.view(X.shape[0], len(points), -1, X.shape[2])


def _stacked(arrays: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Stack arrays, of which there is most often one: then without a copy."""
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


def _slices(array: NDArray[np.int64], step: int) -> list[NDArray[np.int64]]:
    return [array[start : start + step] for start in range(0, len(array), step)]
