"""Score states that come a few instances at a time and never lie in memory all at once; it runs no model itself."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fastcluster_lm.errors import DataError
from fastcluster_lm.probe.pending import Captured, ProbeResult
from fastcluster_lm.probe.scorer import Scorer
from fastcluster_lm.probe.state_file import StateFile
from fastcluster_lm.scores.clusters import SPACES
from fastcluster_lm.scores.points import Points

Row = dict[str, Any]
Chunks = Iterable[Float[Tensor, "layers chunk d"]]


def score_streamed(
    chunks: Mapping[str, Chunks],
    points: Mapping[str, Points],
    scorer: Scorer,
    *,
    layers: Sequence[int],
    step: int,
    device: torch.device,
    spaces: Collection[str] = SPACES,
    folder: Path,
) -> ProbeResult:
    """Write all states into files in `folder`, then score them some layers at a time, every map cold.

    chunks: by split the states of its instances in order, all layers; layers: the scored ones, by number
    Units:  in memory are one chunk, and then as many layers as scores.memory_mib holds, one at least, with what scoring
            makes of them; on disk 4 bytes a number of the scored layers
    Source: measured with 1024 points of width 1024 on a CPU: 70 MiB over the start with 4 MiB of states at a time,
            however many layers; 590 MiB with 128
    Errors: DataError naming the layers that hold NaN; RunFolderError if the disk refuses
    """
    wanted = list(layers)
    files = {name: StateFile(folder / f"{name}.states", len(own)) for name, own in points.items()}
    for name, file in files.items():
        for states in chunks[name]:
            # chosen by number, a copy is made of the wanted layers alone
            chosen = states if len(wanted) == len(states) else states[wanted]
            _check_finite(chosen, wanted)
            file.write(chosen)
    rows: list[Row] = []
    maps: list[dict[str, np.ndarray]] = []
    for first in range(0, len(wanted), n_at_once(files, scorer)):
        last = min(first + n_at_once(files, scorer), len(wanted))
        part = {name: own.at(files[name].read(first, last).to(device)) for name, own in points.items()}
        scorer.begin_anew()
        found = scorer.score(Captured(step, part), key_frame=True, spaces=spaces)
        rows += [{**row, "layer": wanted[first + row["layer"]]} for row in found.rows]
        maps.append(found.maps)
    return ProbeResult(_ordered(rows), _joined(maps), False, 0.0)


def n_at_once(files: Mapping[str, StateFile], scorer: Scorer) -> int:
    """Count the layers whose states fit scores.memory_mib, one at least."""
    layer_bytes = sum(4 * file.n * file.width for file in files.values())
    return max(1, scorer.memory_mib * 2**20 // layer_bytes)


def _check_finite(states: Float[Tensor, "layers chunk d"], layers: Sequence[int]) -> None:
    finite = states.isfinite().flatten(1).all(1).tolist()
    broken = [str(layer) for layer, is_finite in zip(layers, finite, strict=True) if not is_finite]
    if broken:
        raise DataError(f"the states hold NaN or infinity in layer {', '.join(broken)}; expected finite values")


def _ordered(rows: list[Row]) -> list[Row]:
    """Put the rows of all layers of one place together, as those of a probe that had them all at once."""
    place = ("space", "split", "group", "labels")
    first = {key: at for at, key in reversed(list(enumerate(tuple(row[name] for name in place) for row in rows)))}
    return sorted(rows, key=lambda row: first[tuple(row[name] for name in place)])


def _joined(maps: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    whole = dict(maps[0])
    if whole:
        whole["points"] = np.concatenate([part["points"] for part in maps])
    return whole
