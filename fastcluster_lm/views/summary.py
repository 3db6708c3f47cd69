"""What a run's rows say, as plain numbers: by layer, settled when, and whether the phenomenon failed; draws nothing."""

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

Row = Mapping[str, object]
LayerRow = dict[str, float | int | None]

# a score has settled once it stays within 5 % of its final value
SETTLED_TOLERANCE = 0.05
LAYER_SCORES: tuple[str, ...] = (
    "ari", "ami", "f1", "knn_share", "knn_share_across",
    "null_ari", "null_knn_share", "null_knn_share_across", "ceiling_output",
)  # fmt: skip
# the three limits are ours: 0.1 of ARI is above the scatter of a probe of 960 points, 0.5 is half of a perfect order
LEAST_RISE = 0.1
LEAST_RANK_CORRELATION = 0.5
LARGEST_TRAIN_GAP = 0.1
LEAST_PROBES = 4


class Signature(TypedDict):
    """One way to fail: present is None while the rows cannot decide it, and figure is then None too."""

    name: str
    present: bool | None
    figure: float | None
    rule: str


def settled_step(
    steps: Sequence[int], values: Sequence[float | None], tolerance: float = SETTLED_TOLERANCE
) -> int | None:
    """Find the first probe from which on a score stays near its final value; None without values.

    Units:  tolerance as a share of the final value's size
    """
    known = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
    if not known:
        return None
    final = known[-1][1]
    settled = known[-1][0]
    for step, value in reversed(known):
        if abs(value - final) > tolerance * abs(final):
            break
        settled = step
    return settled


def layer_table(
    score_rows: Sequence[Row],
    step_rows: Sequence[Row],
    *,
    space: str,
    group: str,
    labels: str = "task",
    split: str = "val",
    mark_step: int | None = None,
) -> list[LayerRow]:
    """Make a row a layer: each score at step 0, at the early-stopping mark, at the end, and when it settled.

    Names:  layer; step_start, step_mark, step_end and val_accuracy_start ...; ari_start, ari_mark, ari_end,
            ari_settled and so on for every name in LAYER_SCORES
    Notes:  the mark's values are those of the last probe at or before mark_step; None where there is no probe
    """
    table = []
    layers = {row["layer"] for row in score_rows if isinstance(row["layer"], int)}
    for layer in sorted(layer for layer in layers if isinstance(layer, int)):
        series = _series(score_rows, space=space, group=group, labels=labels, split=split, layer=layer)
        if not series:
            continue
        moments = {
            "start": series[0] if _step(series[0]) == 0 else None,
            "mark": next((row for row in reversed(series) if mark_step is not None and _step(row) <= mark_step), None),
            "end": series[-1],
        }
        found: LayerRow = {"layer": layer}
        for moment, row in moments.items():
            found[f"step_{moment}"] = _step(row) if row else None
            found[f"val_accuracy_{moment}"] = accuracy_at(step_rows, _step(row)) if row else None
        for name in LAYER_SCORES:
            for moment, row in moments.items():
                found[f"{name}_{moment}"] = number(row, name) if row else None
            found[f"{name}_settled"] = settled_step(
                [_step(row) for row in series], [number(row, name) for row in series]
            )
        table.append(found)
    return table


def best_layer(rows_of_one_probe: Sequence[Row], space: str, group: str) -> Row | None:
    """Pick the validation row with the highest task ARI, the lower layer of equals; None if none has one."""
    rows = _pick(rows_of_one_probe, space=space, group=group, labels="task", split="val")
    scored = [(ari, row) for row in rows if (ari := number(row, "ari")) is not None]
    return max(scored, key=lambda pair: (pair[0], -(number(pair[1], "layer") or 0)))[1] if scored else None


def accuracy_at(step_rows: Sequence[Row], step: int) -> float | None:
    """Find the last validation accuracy measured at or before a step; None if there is none yet."""
    known = [(_step(row), value) for row in step_rows if (value := number(row, "val_accuracy")) is not None]
    before = [pair for pair in known if pair[0] <= step]
    return max(before)[1] if before else None


def failure_signatures(
    score_rows: Sequence[Row], step_rows: Sequence[Row], *, space: str, group: str, layer: int
) -> list[Signature]:
    """Judge the three ways in which the phenomenon would not be there, each by one figure and one rule.

    Source: the paper's three claims (scores rise, neighbours go with accuracy, validation clusters as training does);
            the limits are ours, see the constants above
    """
    val, train = (
        _series(score_rows, space=space, group=group, labels="task", split=split, layer=layer)
        for split in ("val", "train")
    )
    return [
        _judge(
            "scores do not rise",
            _rise(val),
            below=LEAST_RISE,
            rule=f"yes if task ARI at the end is less than {LEAST_RISE} above the larger of step 0's and the null's",
        ),
        _judge(
            "KNN does not go with accuracy",
            _rank_correlation(val, step_rows),
            below=LEAST_RANK_CORRELATION,
            rule=f"yes if Spearman's rank correlation of KNN share and accuracy over {LEAST_PROBES} or more probes "
            f"is below {LEAST_RANK_CORRELATION}",
        ),
        _judge(
            "clusters on train only",
            _train_gap(train, val),
            above=LARGEST_TRAIN_GAP,
            rule=f"yes if task ARI of train is more than {LARGEST_TRAIN_GAP} above that of val at the end",
        ),
    ]


def number(row: Row, name: str) -> float | None:
    """Read a column as a number; None if it is absent or holds none."""
    value = row.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _step(row: Row) -> int:
    step = row["step"]
    assert isinstance(step, int)
    return step


def _pick(rows: Sequence[Row], **wanted: object) -> list[Row]:
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def _series(rows: Sequence[Row], *, space: str, group: str, labels: str, split: str, layer: int) -> list[Row]:
    # a step probe's are of fewer points, and without nulls
    full = [row for row in rows if row.get("tier") != "step"]
    return sorted(_pick(full, space=space, group=group, labels=labels, split=split, layer=layer), key=_step)


def _judge(
    name: str, figure: float | None, *, rule: str, below: float = -math.inf, above: float = math.inf
) -> Signature:
    present = None if figure is None else not below <= figure <= above
    return {"name": name, "present": present, "figure": figure, "rule": rule}


def _rise(val: Sequence[Row]) -> float | None:
    if len(val) < 2:
        return None
    start, end, null = number(val[0], "ari"), number(val[-1], "ari"), number(val[-1], "null_ari")
    if start is None or end is None:
        return None
    return end - (start if null is None else max(start, null))


def _rank_correlation(val: Sequence[Row], step_rows: Sequence[Row]) -> float | None:
    pairs = [(number(row, "knn_share"), accuracy_at(step_rows, _step(row))) for row in val]
    known = [(share, accuracy) for share, accuracy in pairs if share is not None and accuracy is not None]
    shares, accuracies = [pair[0] for pair in known], [pair[1] for pair in known]
    # an accuracy that never moves can go with nothing, so it decides nothing
    if len(known) < LEAST_PROBES or len(set(accuracies)) == 1:
        return None
    # a share that never moves while accuracy does has no order in common with it
    if len(set(shares)) == 1:
        return 0.0
    return float(np.corrcoef(_ranks(shares), _ranks(accuracies))[0, 1])


def _ranks(values: Sequence[float]) -> list[float]:
    # equal values share the mean of their ranks; scipy.stats would cost a second of every start of the command line
    return [(sum(one < value for one in values) + sum(one <= value for one in values)) / 2 for value in values]


def _train_gap(train: Sequence[Row], val: Sequence[Row]) -> float | None:
    if not train or not val:
        return None
    of_train, of_val = number(train[-1], "ari"), number(val[-1], "ari")
    return None if of_train is None or of_val is None else of_train - of_val
