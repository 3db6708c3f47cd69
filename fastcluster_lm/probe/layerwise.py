"""Score states that lie in files some layers at a time, every map cold; it runs no model and writes nothing."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from fastcluster_lm.probe.pending import Captured, ProbeResult
from fastcluster_lm.probe.positions import Scorers, joined
from fastcluster_lm.probe.sources.file import FileSource
from fastcluster_lm.scores.parts import SPACES


def score_layerwise(source: FileSource, scorer: Scorers, step: int, spaces: Collection[str] = SPACES) -> ProbeResult:
    """Score all layers of a source, as one probe would that had them all at once and cold maps.

    Notes:  in memory are as many layers as scores.memory_mib holds, one at least, with what scoring makes of them
    Source: measured with 1024 points of width 1024 on a CPU: 70 MiB over the start with 4 MiB of states at a time,
            however many layers; 590 MiB with 128
    Errors: RunFolderError if the disk refuses
    """
    return joined({name: _score_one(source, scorer, name, step, spaces) for name in scorer.names})


def _score_one(source: FileSource, scorers: Scorers, position: str, step: int, spaces: Collection[str]) -> ProbeResult:
    """Score all layers of one position."""
    scorer, at = scorers.of(position), scorers.names.index(position)
    rows: list[dict[str, Any]] = []
    maps: list[dict[str, np.ndarray]] = []
    n_at_once = max(1, scorer.memory_mib * 2**20 // source.layer_bytes)
    for first in range(0, len(source.layers), n_at_once):
        layers = source.layers[first : first + n_at_once]
        # the layers before are others: nothing goes on from their map
        scorer.begin_anew()
        points = source.capture(at, first, first + len(layers), scorer.device)
        found = scorer.score(Captured(step, points, position=position), spaces)
        rows += [{**row, "layer": layers[row["layer"]]} for row in found.rows]
        maps.append(found.maps)
    return ProbeResult(_ordered(rows), _joined(maps), False, 0.0)


def _ordered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the rows of all layers of one place together, as those of a probe that had them all at once."""
    place = ("space", "split", "group", "labels")
    first = {key: at for at, key in reversed(list(enumerate(tuple(row[name] for name in place) for row in rows)))}
    return sorted(rows, key=lambda row: first[tuple(row[name] for name in place)])


def _joined(maps: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    whole = dict(maps[0])
    if whole:
        whole["points"] = np.concatenate([part["points"] for part in maps])  # (layers, n, 2)
    return whole
