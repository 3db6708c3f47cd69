"""Score how far points gather by their labels, layer by layer, beside a null; the batched work is in spaces.py."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from fastcluster_lm.errors import DataError, ShapeError, UsageError, nearest_name
from fastcluster_lm.scores.arguments import (
    Array,
    alike,
    as_labels,
    as_points,
    joined_labels,
)
from fastcluster_lm.scores.batches import check_finite
from fastcluster_lm.scores.contingency import factorize
from fastcluster_lm.scores.engines import choose_engine
from fastcluster_lm.scores.engines.params import Engine, TsneParams
from fastcluster_lm.scores.parts import SPACES, Scoring
from fastcluster_lm.scores.points import Points
from fastcluster_lm.scores.spaces import score_space

_Labels = ArrayLike | Tensor
_NEEDED = ("labels_true", "bank_labels")
_BANK_NAMES = ("bank_labels", "bank_blocks", "bank_groups", "bank_instances")
# the columns that a row without scores still fills
_HEAD = ("layer", "split", "space", "group", "labels", "n_points", "n_clusters", "engine")


def score_clusters(
    X: Float[Array, "*layers n d"],
    labels_true: _Labels,
    *,
    bank: Float[Array, "*layers m d"] | None = None,
    bank_labels: _Labels | None = None,
    blocks: _Labels | None = None,
    groups: _Labels | None = None,
    n_clusters: int | None = None,
    n_neighbors: int = 5,
    spaces: Sequence[str] = SPACES,
    seed: int = 0,
    engine: str = "auto",
    bank_blocks: _Labels | None = None,
    bank_groups: _Labels | None = None,
    instances: _Labels | None = None,
    bank_instances: _Labels | None = None,
    n_nulls: int = 20,
    n_init: int = 10,
    perplexity: float = 30.0,
) -> list[dict[str, Any]]:
    """Score the clusters of labels in the points themselves and in their t-SNE map, a row for each space and layer.

    Shapes: X (n, d) or (layers, n, d), labels_true, blocks, groups, instances (n,); bank_* likewise with m points.
            Without a bank X is its own, and no point is its own neighbour, nor one of its instance; with one, instances
            are left out only if both sides name them. groups adds rows group="groups": unweighted means over groups
            with >= 2 labels and >= 5 points a label. blocks (instruction distributions) give nulls and knn_share_across
    Notes:  None where a score is undefined: no blocks, too few neighbours, no such group, a map of one point.
            n_clusters holds for group="all" (None: number of labels); too large a perplexity is lowered with a warning;
            queries and bank share one joint map; points are arrays, tensors or nested lists;
            labels whole numbers, text, booleans or finite numbers
    Errors: DataError for NaN, no points, more clusters than points, what is no such argument; ShapeError; UsageError
            for an unknown space
    """
    spaces = _known_spaces(spaces)
    points = as_points(X, "X")
    own = {"labels_true": labels_true, "blocks": blocks, "groups": groups, "instances": instances}
    theirs = dict(zip(_BANK_NAMES, (bank_labels, bank_blocks, bank_groups, bank_instances), strict=True))
    if bank is None:
        if extra := [name for name, value in theirs.items() if value is not None]:
            raise DataError(f"{extra[0]} was given without a bank; give bank too, or leave it out")
        banked = queries = _points("queries", _checked(points.batch, "X"), own)
    else:
        others = as_points(bank, "bank")
        batches = alike(points, others, "X")
        if points.batch.shape[::2] != others.batch.shape[::2]:
            raise ShapeError(f"X has shape {points.shape}, bank {others.shape}; layers and d must match")
        queries, banked = _beside_bank(_checked(batches[0], "X"), _checked(batches[1], "bank"), own, theirs)
    states = queries.X
    scoring = Scoring(n_neighbors=n_neighbors, n_init=n_init, n_nulls=n_nulls, seed=seed, n_clusters=n_clusters)
    plan = [("all", "task")] + ([("groups", "task")] if groups is not None else [])
    chosen = choose_engine(engine, states.device)
    rows = []
    for space in spaces:
        kl, used = None, None
        placed, placed_bank = queries, banked
        if space == "map":
            placed, placed_bank, kl, used = _map(queries, banked, chosen, TsneParams(perplexity=perplexity, seed=seed))
        scored = score_space({placed.name: placed}, placed_bank, space=space, plan=plan, scoring=scoring, engine=chosen)
        for row in scored:
            if space == "map" and kl is None:
                row = {name: value if name in _HEAD else None for name, value in row.items()}
            row |= {"kl": None if kl is None else kl[row["layer"]], "perplexity": used}
            rows.append({name: value for name, value in row.items() if name not in ("split", "labels")})
    return rows


def _known_spaces(spaces: Sequence[str]) -> list[str]:
    if isinstance(spaces, str) or not isinstance(spaces, Iterable):
        raise UsageError(f"spaces is {spaces!r:.60}; expected a sequence of {' or '.join(SPACES)}, such as {SPACES}")
    known = list(spaces)
    for name in known:
        if not isinstance(name, str) or name not in SPACES:
            near = nearest_name(name, SPACES) if isinstance(name, str) else ""
            raise UsageError(f"spaces has {name!r:.60}; expected {' or '.join(SPACES)}{near}")
    return known


def _checked(states: Tensor, name: str) -> Tensor:
    if states.shape[1] == 0:
        raise DataError(f"{name} has no points; give at least one")
    check_finite(states, name)
    return states


def _points(name: str, X: Tensor, given: Mapping[str, _Labels | None]) -> Points:
    """Put labels, blocks, groups and instances, in this order, beside their points."""
    n = X.shape[1]
    arrays = [as_labels(value, key, n) if value is not None or key in _NEEDED else None for key, value in given.items()]
    named = zip(("task", "distribution", "groups"), arrays, strict=False)
    labels = {label: values for label, values in named if values is not None}
    return Points(name, X, labels, None if arrays[3] is None else factorize(arrays[3])[0])


def _beside_bank(
    own_X: Tensor, X: Tensor, own: Mapping[str, _Labels | None], given: Mapping[str, _Labels | None]
) -> tuple[Points, Points]:
    queries = _points("queries", own_X, own)
    for (name, value), (bank_name, bank_value) in zip(own.items(), given.items(), strict=True):
        if (value is None) != (bank_value is None):
            raise DataError(f"{name} and {bank_name} go together where there is a bank; give both or neither")
    bank = _points("bank", X, given)
    for kind, (name, bank_name) in zip(("task", "distribution", "groups"), zip(own, given, strict=True), strict=False):
        if kind in queries.labels:
            # what they are in common is worked out with the parts; here they are refused by the parameters' names
            joined_labels(own[name], name, given[bank_name], bank_name)  # type: ignore[arg-type]
    if bank.instructions is None:
        return queries, bank
    # instances are numbered together; under the queries' own name the bank withholds a query's instance from it
    labels, n = joined_labels(own["instances"], "instances", given["bank_instances"], "bank_instances")  # type: ignore[arg-type]
    codes, _ = factorize(labels)
    return replace(queries, instructions=codes[:n]), replace(bank, name=queries.name, instructions=codes[n:])


def _map(
    queries: Points, bank: Points, engine: Engine, params: TsneParams
) -> tuple[Points, Points, list[float] | None, float | None]:
    """Map queries and bank jointly; one point alone has no map."""
    joint = queries.X if bank is queries else torch.cat([queries.X, bank.X], 1)
    n = queries.X.shape[1]
    if joint.shape[1] < 2:
        return queries, bank, None, None
    used = params.effective_perplexity(joint.shape[1])
    if lowered := params.lowered(joint.shape[1]):
        warnings.warn(lowered, stacklevel=3)
    points, kl = engine.tsne(joint, params)
    placed = replace(queries, X=points[:, :n])
    return placed, placed if bank is queries else replace(bank, X=points[:, n:]), kl.tolist(), used
