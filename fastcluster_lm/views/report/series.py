"""A run's scores as one block of numbers a probe, and its training curves, ready for a page; it computes no score."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fastcluster_lm.views.summary import number, settled_step

Row = dict[str, Any]

# what a heat map can show, by column of scores.jsonl
SCORES = {
    "ari": "ARI",
    "ami": "AMI",
    "f1": "F1",
    "f1_pairwise": "F1, pairwise",
    "f1_bcubed": "F1, B-cubed",
    "knn_share": "KNN share",
    "knn_accuracy": "KNN accuracy",
    "knn_share_across": "KNN share, other distributions",
    "neighbor_overlap": "neighbour overlap with the probe before",
    "intrinsic_dimension": "intrinsic dimension",
    "cdnv": "class distance variance (CDNV)",
    "kl": "t-SNE divergence (KL)",
    "trustworthiness": "trustworthiness of the map",
}
NULLS = {name: f"null_{name}" for name in ("ari", "ami", "f1", "knn_share", "knn_share_across")}
# those whose axis does not run from 0 to 1
UNBOUNDED = ("intrinsic_dimension", "cdnv", "kl")
COLUMNS = (*SCORES, *NULLS.values(), "ceiling_output")
PLACES = ("position", "split", "space", "group", "labels")
# steps of training that a curve shows at most
CURVE_POINTS = 1500


@dataclass
class ScoreBlocks:
    """Scores by probe.

    Shapes: values (probes, series, layers) float32, NaN where there is none; settled (series, layers), NaN likewise
    Names:  a series is position|split|space|group|labels|column
    """

    steps: list[int]
    series: list[str]
    values: Float[np.ndarray, "probes series layers"]
    settled: Float[np.ndarray, "series layers"]


def score_blocks(rows: Sequence[Row], n_layers: int) -> ScoreBlocks:
    """Arrange score rows; rows of layers that the model does not have are left out."""
    places = sorted({"|".join(str(row[name]) for name in PLACES) for row in rows})
    steps = sorted({row["step"] for row in rows})
    place_of, probe_of = {name: i for i, name in enumerate(places)}, {step: i for i, step in enumerate(steps)}
    values = np.full((len(steps), len(places), len(COLUMNS), n_layers), np.nan, np.float32)
    for row in rows:
        if 0 <= row["layer"] < n_layers:
            cell = values[probe_of[row["step"]], place_of["|".join(str(row[name]) for name in PLACES)], :, row["layer"]]
            cell[:] = [np.nan if (value := number(row, name)) is None else value for name in COLUMNS]
    block = values.reshape(len(steps), len(places) * len(COLUMNS), n_layers)
    series = [f"{place}|{column}" for place in places for column in COLUMNS]
    return ScoreBlocks(steps, series, block, _settled(steps, series, block))


def training_curves(rows: Sequence[Row], most: int = CURVE_POINTS) -> dict[str, Float[np.ndarray, " n"]]:
    """Take step, loss, accuracy and times of a run, thinned evenly; all validations and probes are kept."""
    names = ("step", "loss", "val_accuracy", "step_ms", "probe_ms", "probe_wait_ms")
    every = max(1, -(-len(rows) // most))
    kept = [
        row
        for i, row in enumerate(rows)
        if not i % every or i == len(rows) - 1 or row.get("val_accuracy") is not None or row.get("probe_ms") is not None
    ]
    return {
        name: np.array([np.nan if (value := number(row, name)) is None else value for row in kept], np.float32)
        for name in names
    }


def _settled(steps: Sequence[int], series: Sequence[str], block: np.ndarray) -> Int[np.ndarray, "series layers"]:
    """Find when each task score settled; NaN for all else, since nobody asks for the settling of a null."""
    found = np.full(block.shape[1:], np.nan, np.float32)
    for i, name in enumerate(series):
        labels, column = name.split("|")[-2:]
        if labels != "task" or column not in NULLS:
            continue
        for layer in range(block.shape[2]):
            known = [None if np.isnan(value) else float(value) for value in block[:, i, layer]]
            step = settled_step(steps, known)
            found[i, layer] = np.nan if step is None else step
    return found
