"""What a full probe adds to its rows from geometry, and what it keeps of its map; it scores no clusters."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcluster_lm.probe.samples import Sample
from fastcluster_lm.scores.geometry import class_distance_normalized_variance

# labels that are stored beside a map's points, where there are such
MAP_LABELS = ("task", "distribution", "input", "output")


def add_geometry(
    rows: list[dict[str, Any]], spaces: Mapping[str, Mapping[str, Sample]], columns: dict[str, Tensor]
) -> None:
    """Fill the columns of group "all" that come from neighbours and class means; None where they are undefined."""
    values = {name: tensor.tolist() for name, tensor in columns.items()}
    spread: dict[tuple[str, str, str], list[float]] = {}
    for space, samples in spaces.items():
        for name, sample in samples.items():
            for kind, codes in sample.labels.items():
                own = torch.as_tensor(codes, device=sample.states.device)
                spread[name, kind, space] = class_distance_normalized_variance(sample.states, own).tolist()
    by_space = {"hidden": ("intrinsic_dimension", "neighbor_overlap"), "map": ("kl", "trustworthiness")}
    for row in rows:
        if row["group"] != "all":
            continue
        found = {name: values[name][row["layer"]] for name in by_space[row["space"]] if name in values}
        found["cdnv"] = spread[row["split"], row["labels"], row["space"]][row["layer"]]
        row.update({name: value if math.isfinite(value) else None for name, value in found.items()})


def stored_map(points: Tensor, shown: Sequence[Sample]) -> dict[str, np.ndarray]:
    """Give the arrays of a map: its points, which of them are validation, the instances' numbers and labels.

    Shapes: points (layers, n, 2), n over all samples in order -> points float32, is_val, ids, labels (n,) int64
    """
    kinds = [kind for kind in MAP_LABELS if kind in shown[0].labels]
    kept = {kind: np.concatenate([sample.labels[kind] for sample in shown]) for kind in kinds}
    is_val = np.repeat([int(sample.name == "val") for sample in shown], [len(sample.ids) for sample in shown])
    ids = torch.cat([sample.ids for sample in shown]).cpu().numpy()
    return {"points": points.cpu().numpy(), "is_val": is_val, "ids": ids, **kept}
