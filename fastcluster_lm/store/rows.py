"""The columns of a run's two tables and the check of one row; it reads and writes no file."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fastcluster_lm.errors import DataError, nearest_name

Value = str | int | float | bool | None
Row = dict[str, Value]

# one row of scores.jsonl is one (step, position, layer, split, space, group, labels)
SCORE_COLUMNS: tuple[str, ...] = (
    "step", "layer", "split", "space", "group", "labels", "tier", "source", "age_steps", "n_points", "n_clusters",
    "ari", "ami", "f1", "f1_pairwise", "f1_bcubed", "knn_share", "knn_accuracy", "knn_share_across",
    "null_ari", "null_ami", "null_f1", "null_knn_share", "null_knn_share_across", "ceiling_output",
    "cdnv", "intrinsic_dimension", "neighbor_overlap", "engine", "warm", "kl", "trustworthiness",
    "null_kind", "base_rate", "position",
)  # fmt: skip
STEP_COLUMNS: tuple[str, ...] = (
    "step", "loss", "lr", "grad_norm", "val_accuracy", "step_ms", "probe_ms", "probe_wait_ms",
    "tokens_per_s", "skipped",
)  # fmt: skip


_PLAIN = frozenset((str, int, bool, float, type(None)))


def score_row(values: Mapping[str, object]) -> Row:
    """Make one whole row of scores.jsonl; absent columns are None.

    Notes:  null_kind says what the nulls reassigned to tasks: whole "distributions", or, where those are not known,
            single points: a "permutation"; base_rate is the share of points that have the commonest label, which a
            vote that always names it reaches in knn_accuracy; position is the token whose states these are; numpy
            scalars become plain numbers
    Errors: DataError if a column is unknown, a value is not a plain one, or a number is not finite
    """
    return _row(values, SCORE_COLUMNS, "score")


def step_row(values: Mapping[str, object]) -> Row:
    """Make one whole row of steps.jsonl; absent columns are None.

    Units:  milliseconds: step_ms without the probe, probe_ms that the probe of this step took wherever it ran,
            probe_wait_ms that training stood still for probes after this step; tokens_per_s in tokens a second;
            skipped says why the probe that was due gave no scores, or which layers it gave none, and why
    Errors: as for score_row
    """
    return _row(values, STEP_COLUMNS, "step")


def _row(values: Mapping[str, object], columns: Sequence[str], kind: str) -> Row:
    row: dict[str, Value] = dict.fromkeys(columns)
    if unknown := [name for name in values if name not in row]:
        raise DataError(
            f"a {kind} row has no column {unknown[0]!r}{nearest_name(str(unknown[0]), columns)}; "
            f"known are {', '.join(columns)}"
        )
    # thousands of rows a run hold little but these
    plain = _PLAIN.issuperset(map(type, values.values()))
    if not plain or not all(math.isfinite(value) for value in values.values() if type(value) is float):
        values = {name: _plain(value, name, kind) for name, value in values.items()}
    row.update(values)  # type: ignore[arg-type]
    return row


def _plain(value: object, name: str, kind: str) -> Value:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"column {name!r} of a {kind} row is {value}; expected a finite number or None")
    if value is None or isinstance(value, str | int | float):
        return value
    raise DataError(
        f"column {name!r} of a {kind} row is a {type(value).__name__}; expected text, a number, a truth value or None"
    )
