"""Cluster all splits and groups of a space and let neighbours vote, in few batched calls; rows.py makes the scores."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcluster_lm.errors import DataError, ShapeError
from fastcluster_lm.kernels.neighbor_votes import first_others, most_shared, neighbor_votes
from fastcluster_lm.kernels.transfer import Fetch, to_device
from fastcluster_lm.scores.batches import check_finite
from fastcluster_lm.scores.engines.params import Engine, KMeansParams, Neighbors, NeighborsParams
from fastcluster_lm.scores.nulls import derive_seed
from fastcluster_lm.scores.parts import PLANS, Divisions, Part, Place, Scoring
from fastcluster_lm.scores.points import Points
from fastcluster_lm.scores.rows import ClusterSet, PendingSpace, Votes, buckets

# neighbour labels held at once, in a few int64 arrays: 32 MB each
_CHUNK = 4_000_000


@dataclass(frozen=True, eq=False)
class Space:
    """The points of one space, and the rows that are wanted of them.

    name:    "hidden" | "map"
    queries: by split the points that are clustered, and whose neighbours vote
    bank:    the points among which neighbours are sought
    plan:    (group, labels) of the rows
    init:    centroids (groups, layers, k, d) for KMeans to go on from, as an earlier call gave them
    near:    the bank's own neighbours, nearest first and without the point itself: they spare a search where enough of
             them may vote
    """

    name: str
    queries: Mapping[str, Points]
    bank: Points
    plan: Sequence[tuple[str, str]]
    init: Mapping[ClusterSet, Tensor] = field(default_factory=dict)
    near: Neighbors | None = None

    def check(self) -> None:
        """Refuse points that cannot be scored.

        Errors: DataError for NaN, no points, an unlike name; ShapeError for layers or widths that differ
        """
        bank = self.bank.X
        for name, points in self.queries.items():
            if name != points.name:
                raise DataError(f"queries[{name!r}] is a split named {points.name!r}; key and name must be the same")
            layers, n, d = points.X.shape
            if (layers, d) != (bank.shape[0], bank.shape[2]):
                raise ShapeError(
                    f"split {name!r} has shape {tuple(points.X.shape)}, the bank {tuple(bank.shape)}; layers and d "
                    "must match"
                )
            if n == 0:
                raise DataError(f"split {name!r} has no points; give at least one")
            check_finite(points.X, f"split {name!r}", sq_norms=points.sq_norms)
        if self.near is not None and self.near.indices.shape[:2] != bank.shape[:2]:
            raise ShapeError(
                f"near has shape {tuple(self.near.indices.shape)}; expected {tuple(bank.shape[:2])} and neighbours"
            )


def score_space(
    queries: Mapping[str, Points],
    bank: Points,
    *,
    space: str,
    plan: Sequence[tuple[str, str]] | None = None,
    scoring: Scoring | None = None,
    engine: Engine,
) -> list[dict[str, Any]]:
    """Score every (group, labels) of a plan, for all splits and layers together.

    Shapes: X of a split (layers, n, d), of the bank (layers, m, d) -> a row for each split, (group, labels) and layer
    Errors: DataError for NaN, an unknown group or label, no points; ShapeError for layers or widths that differ
    Notes:  a row's scores are unweighted means over its groups; None where undefined for one of them;
            queries of the bank's own split leave out all points of their instruction; points keep their order, so equal
            inputs give equal rows
    """
    wanted = Space(space, queries, bank, PLANS[space] if plan is None else plan)
    pending = start_space(wanted, engine=engine, scoring=scoring or Scoring())
    return pending.finish(Fetch(pending.tensors()).wait())


def start_space(space: Space, *, engine: Engine, scoring: Scoring, divisions: Divisions | None = None) -> PendingSpace:
    """Give a GPU all that the rows of a space need of it, and wait for nothing.

    divisions, kept by the caller, spare the next call work where labels are the same
    Errors: ShapeError, DataError as score_space; those that values decide once they are settled, where checks are put
            off
    """
    space.check()
    divisions = divisions or Divisions()
    # 1. labels alone decide which points are scored together: a part is one group of one split under one kind of labels
    divided = {name: divisions.of(own, space.bank, space.plan, scoring) for name, own in space.queries.items()}
    parts = [part for one in divided.values() for part in one.parts]
    # 2. KMeans once for each set of points and number of clusters, whatever kinds of labels are compared with it
    clusters, centroids = _cluster(parts, space, scoring, engine)
    # 3. neighbours once for each set of points and what is withheld; they vote under every kind of labels and its nulls
    votes: list[Votes] = []
    for name, one in divided.items():
        own = [(i, part) for i, part in enumerate(parts) if part.place.split == name]
        votes += _vote(own, one.withheld, space.queries[name], space, scoring.n_neighbors, engine)
    n_layers = len(space.bank.X)
    return PendingSpace(
        parts, space.plan, list(space.queries), space.name, engine.name, n_layers, clusters, centroids, votes
    )


def _cluster(
    parts: Sequence[Part], space: Space, scoring: Scoring, engine: Engine
) -> tuple[dict[tuple[Place, int], Tensor], dict[ClusterSet, Tensor]]:
    """Run KMeans once for each set of points and k, in one call for all sets of one size.

    Shapes: -> labels (layers, n) by set and k, centroids (groups, layers, k, d) by name
    """
    # 1. one job for each set of points and k; the groups of one kind share a name, and each has its place under it
    jobs = {(part.place, part.n_clusters): part for part in parts}
    position: dict[tuple[Place, int], tuple[ClusterSet, int]] = {}
    counts: dict[ClusterSet, int] = defaultdict(int)
    for key, part in jobs.items():
        name = ClusterSet(space.name, part.place.split, part.place.group, part.n_clusters)
        position[key] = (name, counts[name])
        counts[name] += 1
    for name in counts.keys() & space.init.keys():
        if len(space.init[name]) != counts[name]:
            raise ShapeError(f"init[{str(name)!r}] holds {len(space.init[name])} groups, the data {counts[name]}")
    # 2. jobs of one size and k are one batch; batches of the same sets are rounds, which share the points made ready
    warm = {key: position[key][0] in space.init for key in jobs}
    alike = buckets(jobs, lambda key: (key[0].group, len(jobs[key].points), key[1], warm[key]))
    labels: dict[tuple[Place, int], Tensor] = {}
    centroids: dict[ClusterSet, list[tuple[list[int], Tensor]]] = defaultdict(list)
    for _, rounds in buckets(alike, lambda one: tuple(place for place, _ in one[1])):
        keys = rounds[0][1]
        X = _gather(space.queries, [(key[0].split, jobs[key].points) for key in keys])  # (L, J, n, d)
        n_layers, n_jobs, n, width = X.shape
        # 3. how each round is clustered: its k, its own seed, and the centroids to go on from
        params = []
        for (group, _, k, is_warm), keys in rounds:
            init = None
            if is_warm:
                at = [position[key] for key in keys]
                init = torch.stack([space.init[name][index] for name, index in at], 1).reshape(-1, k, width)
            seed = derive_seed(scoring.seed, "kmeans", space.name, group, k)
            params.append(KMeansParams(k, n_init=scoring.n_init, max_iter=scoring.max_iter, seed=seed, init=init))
        results = engine.kmeans_each(X.reshape(n_layers * n_jobs, n, width), params)  # (L * J, n, d)
        # 4. back from (L * J, n) to (L, n) for each job, and to (J, L, k, d) for the centroids of each name
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
    withheld: Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]],
    split: Points,
    space: Space,
    k: int,
    engine: Engine,
) -> Iterator[Votes]:
    """Find the k neighbours of each set of points once, in one call for all sets of one size, and let them vote."""
    bank, near = space.bank, space.near if split.name == space.bank.name else None
    # 1. parts of one set of points differ in their labels alone, and share its neighbours
    members: dict[Place, list[tuple[int, Part]]] = defaultdict(list)
    for i, part in parts:
        members[part.place].append((i, part))
    places = {place: same[0][1] for place, same in members.items()}
    for (group, _, n_bank), keys in buckets(
        places, lambda key: (key.group, len(places[key].points), len(places[key].bank_points))
    ):
        # 2. J sets of one size: which of them are asked for what, under which identities
        asked: list[tuple[tuple[int, ...], str, NeighborsParams]] = []
        for column, (query_ids, bank_ids) in withheld.items():
            if near is not None and group == "all":
                # the neighbours that the map's own descent began with are enough, unless too many are withheld
                known = first_others(near.indices, torch.from_numpy(query_ids), torch.from_numpy(bank_ids), k)
                if known is not None:
                    yield from _count_votes(column, known[:, None], [members[key] for key in keys])  # (L, 1, nq, k)
                    continue
            if column == "knn_share" and split.name != bank.name:
                # the splits share no instruction
                if n_bank >= k:
                    asked.append((tuple(range(len(keys))), column, NeighborsParams(k)))
                continue
            own = torch.from_numpy(_stacked([query_ids[places[key].points] for key in keys]))  # (J, nq)
            others = torch.from_numpy(_stacked([bank_ids[places[key].bank_points] for key in keys]))  # (J, nb)
            # where every query has k that may vote
            rows = (n_bank - most_shared(own, others) >= k).nonzero()[:, 0]
            if len(rows):
                # the layers of a single set share its identities; those of several stand layer by layer
                one = rows.numel() == 1
                in_layers = [x[rows[0]] if one else x[rows].repeat(split.X.shape[0], 1) for x in (own, others)]
                asked.append((tuple(rows.tolist()), column, NeighborsParams(k, *in_layers)))
        # 3. one search for each choice of sets, under all identities that it is asked for
        for chosen, same in buckets(asked, lambda item: item[0]):
            some = [keys[j] for j in chosen]
            asking = [(split.name, places[key].points) for key in some]
            X = _gather(space.queries, asking).flatten(0, 1)  # (L * J, nq, d)
            same_points = split.X is bank.X and all(
                np.array_equal(places[key].points, places[key].bank_points) for key in some
            )
            banked = [(bank.name, places[key].bank_points) for key in some]
            Y = X if same_points else _gather({bank.name: bank}, banked).flatten(0, 1)
            found = engine.neighbors_under_each(X, Y, [params for _, _, params in same])  # (L * J, nq, k) each
            for (_, column, _), neighbors in zip(same, found, strict=True):
                indices = neighbors.indices.reshape(split.X.shape[0], len(some), -1, k)  # (L, J, nq, k)
                yield from _count_votes(column, indices, [members[key] for key in some])


def _count_votes(column: str, indices: Tensor, members: Sequence[Sequence[tuple[int, Part]]]) -> Iterator[Votes]:
    """Score the same neighbours (L, J, nq, k) under every kind of labels and their nulls, in one call for all."""
    device = indices.device
    # 1. by kind of labels, the parts that have it: most often all J sets, and each set once
    flat = [(j, i, part) for j, same in enumerate(members) for i, part in same]
    kinds = [
        chosen
        for (labels, _), chosen in buckets(flat, lambda item: (item[2].labels, item[2].nulls is not None))
        # no neighbour of another distribution has the query's
        if column != "knn_share_across" or labels != "distribution"
    ]
    for at, together in buckets(kinds, lambda chosen: tuple(j for j, _, _ in chosen)):
        some = indices if len(at) == indices.shape[1] else indices[:, to_device(np.array(at), device)]  # (L, J, nq, k)
        parts = [[part for _, _, part in chosen] for chosen in together]
        ids = [[i for _, i, _ in chosen] for chosen in together]
        # 2. labels of queries and bank: (kinds, J, nq) and (kinds, J, nb)
        own = _stacked([_stacked([part.true for part in same]) for same in parts])
        banked = _stacked([_stacked([part.bank_true for part in same]) for same in parts])
        if column == "knn_share":
            won = neighbor_votes(some, to_device(own, device), to_device(banked, device), winners=True)  # (kinds, L, J)
            yield from (Votes("knn_accuracy", won[n : n + 1], of) for n, of in enumerate(ids))
        # 3. their nulls, where they have any: (S, J, nq) and (S, J, nb) for each kind
        drawn = [n for n, same in enumerate(parts) if same[0].nulls is not None]
        nulls = [np.stack([part.nulls for part in parts[n] if part.nulls is not None], 1) for n in drawn]
        bank_nulls = [np.stack([part.bank_nulls for part in parts[n] if part.bank_nulls is not None], 1) for n in drawn]
        # 4. all labelings one after the other, some at a time: (kinds + S * kinds with nulls, L, J)
        step = max(1, _CHUNK // some.numel())
        all_own, all_banked = np.concatenate([own, *nulls]), np.concatenate([banked, *bank_nulls])
        found = [
            neighbor_votes(some, to_device(a, device), to_device(b, device), winners=False)
            for a, b in zip(_slices(all_own, step), _slices(all_banked, step), strict=True)
        ]
        shares = found[0] if len(found) == 1 else torch.cat(found)
        of_kinds, *of_nulls = shares.split([len(own), *map(len, nulls)]) if nulls else [shares]
        yield from (Votes(column, of_kinds[n : n + 1], of) for n, of in enumerate(ids))
        yield from (Votes(f"null_{column}", of_null, ids[n]) for n, of_null in zip(drawn, of_nulls, strict=True))


def _gather(splits: Mapping[str, Points], sets: Sequence[tuple[str, NDArray[np.int64]]]) -> Tensor:
    """Pick equal-sized sets of points of some splits, without a copy where it is all of one.

    Shapes: X (L, n, d) by split, J sets (n_set,) -> (L, J, n_set, d)
    """
    picked = []
    for name, same in groupby(sets, lambda one: one[0]):
        X, points = splits[name].X, [own for _, own in same]
        if len(points) == 1 and len(points[0]) == X.shape[1]:
            picked.append(X[:, None])
        else:
            chosen = X.index_select(1, to_device(np.concatenate(points), X.device))
            picked.append(chosen.view(X.shape[0], len(points), -1, X.shape[2]))
    return picked[0] if len(picked) == 1 else torch.cat(picked, 1)


def _stacked(arrays: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Stack arrays, of which there is most often one: then without a copy."""
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


def _slices(array: NDArray[np.int64], step: int) -> list[NDArray[np.int64]]:
    return [array[start : start + step] for start in range(0, len(array), step)]
