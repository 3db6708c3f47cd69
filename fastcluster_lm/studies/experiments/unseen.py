"""Do validation states lie among training states of their task, and does that go with accuracy and clustering?"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fastcluster_lm.studies.reading import accuracies, layers_of, mean, open_run, over_layers, series, task_rows
from fastcluster_lm.studies.statistics import correlation_of_changes, partial_rank_correlation, rank_correlation
from fastcluster_lm.studies.study import BASE, Arm, Lines, Measured, Row, Study

# of two series, None where it is undefined
_Statistic = Callable[[Sequence[float], Sequence[float]], float | None]


def _arms(preset: str) -> Mapping[str, Arm]:
    return {"base": BASE}


def _measure(cells: Mapping[str, Path]) -> Measured:
    folder = open_run(cells["base"])
    rows, accuracy = task_rows(folder.scores()), accuracies(folder.steps())
    value, control = goes_with_accuracy(rows, accuracy)
    beside = dict(shares_at_the_end(rows))
    for name, other in (("accuracy", None), ("ARI", "ari")):
        beside |= {f"with {name}, {kind}": found for kind, found in correlations(rows, accuracy, other).items()}
    names = ("step", "layer", "knn_share", "null_knn_share", "knn_share_across", "null_knn_share_across", "ari")
    shown = [{**{name: row[name] for name in names}, "val_accuracy": accuracy.get(row["step"])} for row in rows]
    return Measured(value, control, shown, beside)


def goes_with_accuracy(rows: Sequence[Row], accuracy: Mapping[int, float]) -> tuple[float | None, float | None]:
    """Correlate the changes of accuracy with those of the neighbour share, and of its block null, mean over layers."""
    found = [
        mean(
            _over_steps(series(rows, column, layer=layer), accuracy, correlation_of_changes)
            for layer in layers_of(rows)
        )
        for column in ("knn_share", "null_knn_share")
    ]
    return found[0], found[1]


def correlations(rows: Sequence[Row], accuracy: Mapping[int, float], other: str | None) -> dict[str, float | None]:
    """Correlate the neighbour share with accuracy, or with another column, in three ways, mean over layers."""
    kinds = ("correlation of changes", "rank correlation", "rank correlation given the step")
    found: dict[str, list[float | None]] = {kind: [] for kind in kinds}
    for layer in layers_of(rows):
        share = series(rows, "knn_share", layer=layer)
        against = accuracy if other is None else series(rows, other, layer=layer)
        found["correlation of changes"].append(_over_steps(share, against, correlation_of_changes))
        found["rank correlation"].append(_over_steps(share, against, rank_correlation))
        steps = [step for step in share if step in against]
        pair = [share[step] for step in steps], [against[step] for step in steps]
        found["rank correlation given the step"].append(partial_rank_correlation(*pair, steps))
    return {name: mean(values) for name, values in found.items()}


def shares_at_the_end(rows: Sequence[Row]) -> dict[str, float | None]:
    """Give the neighbour shares of the last probe with their nulls, mean over layers."""
    found = {}
    for column in ("knn_share", "null_knn_share", "knn_share_across", "null_knn_share_across"):
        by_step = over_layers(rows, column)
        found[f"{column} at the end"] = by_step[max(by_step)]
    return found


def _over_steps(x: Mapping[int, float], y: Mapping[int, float], statistic: _Statistic) -> float | None:
    steps = [step for step in x if step in y]
    return statistic([x[step] for step in steps], [y[step] for step in steps])


STUDY = Study(
    name="unseen",
    question="Do validation states lie among training states of their task, and does that go with accuracy?",
    claim="The share of same-task training neighbours of validation states changes when validation accuracy changes.",
    statistic="rank correlation over probes of the changes of the neighbour share with those of validation accuracy, "
    "mean over layers 1 and up",
    control="the same with the neighbour share under reassigned distributions",
    margin=0.0,
    arms=_arms,
    measure=_measure,
    figure=Lines("step", "knn_share", "layer", "null_knn_share"),
)
