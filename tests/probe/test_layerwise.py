"""States that come in chunks: the same rows however few layers are scored at once, and never all of them in memory."""

import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from fastcluster_lm.config import ScoresConfig
from fastcluster_lm.errors import DataError, ProbeError
from fastcluster_lm.probe.layerwise import score_layerwise
from fastcluster_lm.probe.pending import Captured
from fastcluster_lm.probe.points import labelled_points
from fastcluster_lm.probe.positions import Scorers
from fastcluster_lm.probe.sources.file import FileSource, StateFile
from fastcluster_lm.scores.engines import choose_engine

N_LAYERS, N, WIDTH = 5, 240, 96
CPU = torch.device("cpu")
# MiB of a layer of both splits: 0.18; of all five: 0.9
CONFIG = ScoresConfig(n_init=2, n_nulls=3, n_iter=30, perplexity=5.0)


@pytest.fixture(scope="module")
def states() -> dict[str, torch.Tensor]:
    """Give points that gather by task, the more the later the layer, of two splits."""
    generator = torch.Generator().manual_seed(0)
    strength = torch.arange(N_LAYERS)[:, None, None] * 0.3
    centres = torch.randn(4, WIDTH, generator=generator)
    return {
        name: torch.randn(N_LAYERS, N, WIDTH, generator=generator) + strength * centres[torch.arange(N) % 4]
        for name in ("train", "val")
    }


@pytest.fixture(scope="module")
def points():
    """Label the points of both splits."""
    at = np.arange(N)
    labels = {"task": at % 4, "distribution": at % 8, "input": at // 8 % 3, "output": at // 16 % 2}
    return labelled_points({"train": labels, "val": labels}, map_points=60, n_neighbors=5, seed=0)[0]


def a_scorer(config: ScoresConfig = CONFIG, positions: tuple[str, ...] = ("end",)) -> Scorers:
    return Scorers(positions, config, choose_engine("fused", CPU, config.memory_mib), CPU, 0)


def stream(states, points, folder: Path, *, chunk: int = 70, config: ScoresConfig = CONFIG, **options):
    layers = options.pop("layers", range(N_LAYERS))
    chunks = {name: (part for part in X.split(chunk, 1)) for name, X in states.items()}
    source = FileSource(folder, points, layers)
    source.write(chunks)
    return score_layerwise(source, a_scorer(config), 7, **options)


@pytest.fixture(scope="module")
def whole(states, points):
    """Score all layers at once, as a probe within training does."""
    captured = Captured(7, {name: own.at(states[name]) for name, own in points.items()})
    found = a_scorer().score(captured)
    return found.rows, found.maps, found.warm


@pytest.mark.parametrize("chunk", [1, 70, 1000])
def test_rows_and_maps_are_those_of_a_probe_that_has_all_states_at_once(states, points, whole, tmp_path, chunk):
    found = stream(states, points, tmp_path, chunk=chunk)
    assert found.rows == whole[0]
    assert found.maps.keys() == whole[1].keys()
    assert all((found.maps[name] == whole[1][name]).all() for name in whole[1])


def test_a_layer_at_a_time_gives_the_same_rows(states, points, tmp_path, monkeypatch):
    # 1 MiB holds six layers of these; of points ten times as wide it holds none, and one is taken
    wide = {name: X.repeat(1, 1, 10) for name, X in states.items()}
    reads = []
    read = StateFile.read
    monkeypatch.setattr(StateFile, "read", lambda self, *at: reads.append(at) or read(self, *at))
    apart = stream(wide, points, tmp_path, config=ScoresConfig(**{**vars(CONFIG), "memory_mib": 1}))
    assert reads == [(layer, layer + 1) for layer in range(N_LAYERS) for _ in points]
    reads.clear()
    together = stream(wide, points, tmp_path)
    assert reads == [(0, N_LAYERS), (0, N_LAYERS)]
    assert apart.rows == together.rows
    assert (apart.maps["points"] == together.maps["points"]).all()


@pytest.mark.parametrize("layers", [range(N_LAYERS), [1, 4]])
def test_of_several_positions_each_has_the_rows_it_has_alone(states, points, whole, tmp_path, layers):
    both = {name: torch.cat([X, X.square()]) for name, X in states.items()}
    chunks = {name: iter(X.split(70, 1)) for name, X in both.items()}
    source = FileSource(tmp_path, points, layers, 2)
    source.write(chunks)
    found = score_layerwise(source, a_scorer(positions=("end", "begin")), 7)
    apart = {"end": stream(states, points, tmp_path, layers=layers)}
    apart["begin"] = stream({name: X.square() for name, X in states.items()}, points, tmp_path, layers=layers)
    rows = [{**row, "position": name} for name, own in apart.items() for row in own.rows]
    assert found.rows == rows and len({row["ari"] for row in rows}) > 2
    assert (found.maps["points"] == apart["end"].maps["points"]).all()
    assert (found.maps["points/begin"] == apart["begin"].maps["points"]).all()
    assert (
        found.maps.keys() == apart["end"].maps.keys() | {"points/begin"} and found.map_notes()["warm/begin"] == "false"
    )


def test_chosen_layers_have_the_rows_that_they_have_among_all(states, points, whole, tmp_path):
    found = stream(states, points, tmp_path, layers=[1, 4])
    assert found.rows == [row for row in whole[0] if row["layer"] in (1, 4)]
    assert (found.maps["points"] == whole[1]["points"][[1, 4]]).all()


@pytest.mark.parametrize("space", ["hidden", "map"])
def test_one_space_has_the_rows_that_it_has_beside_the_other(states, points, whole, tmp_path, space):
    found = stream(states, points, tmp_path, spaces=(space,))
    assert found.rows == [row for row in whole[0] if row["space"] == space]
    assert bool(found.maps) == (space == "map")


def test_a_chunk_is_forgotten_before_the_next_is_asked_for(states, points, tmp_path):
    alive: list[weakref.ref] = []

    def chunks(X):
        for start in range(0, N, 40):
            # the one that was given last may still be bound to the name of the loop that takes them
            assert sum(chunk() is not None for chunk in alive[:-1]) == 0
            chunk = X[:, start : start + 40].clone()
            alive.append(weakref.ref(chunk))
            yield chunk
            del chunk

    FileSource(tmp_path, points, range(N_LAYERS)).write({name: chunks(X) for name, X in states.items()})
    assert len(alive) == 12


def test_nan_is_refused_with_the_layers_own_number(states, points, tmp_path):
    broken = {name: X.clone() for name, X in states.items()}
    broken["val"][3, 100, 5] = torch.nan
    with pytest.raises(DataError, match="NaN or infinity in layer 3;"):
        stream(broken, points, tmp_path, layers=[0, 3])
    # a layer that is not scored may hold anything
    assert stream(broken, points, tmp_path, layers=[0, 4]).rows


def test_a_file_gives_back_what_was_written_and_only_once_it_is_whole(tmp_path):
    X = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))
    file = StateFile(tmp_path / "x", 7)
    file.write(X[:, :4])
    with pytest.raises(ProbeError, match="holds 4 of 7 instances"):
        file.read(0, 1)
    with pytest.raises(ProbeError, match=r"expected \(3, 3 or fewer, 5\)"):
        file.write(X[:, :4])
    with pytest.raises(ProbeError, match=r"expected \(3, 3 or fewer, 5\)"):
        file.write(X[:2, 4:])
    file.write(X[:, 4:].double())
    assert (file.read(0, 3) == X).all() and (file.read(1, 2) == X[1:2]).all()
    assert (tmp_path / "x").stat().st_size == 3 * 7 * 5 * 4


# a process of its own, whose highest mark of resident memory is not the tests'
MEMORY = """
import tempfile
from pathlib import Path
import numpy as np, torch
from fastcluster_lm.config import ScoresConfig
from fastcluster_lm.probe.points import labelled_points
from fastcluster_lm.probe.positions import Scorers
from fastcluster_lm.probe.layerwise import score_layerwise
from fastcluster_lm.probe.sources.file import FileSource
from fastcluster_lm.scores.engines import choose_engine
torch.set_num_threads(1)
n, cpu, at = 512, torch.device("cpu"), np.arange(512)
points, _ = labelled_points({"val": {"task": at % 4, "distribution": at % 8}}, map_points=64, n_neighbors=5, seed=0)
for n_layers, memory_mib in ((4, 1), (48, 1), (48, 1000)):
    generator = torch.Generator().manual_seed(0)
    chunks = (torch.randn(n_layers, 8, 512, generator=generator) for _ in range(n // 8))
    config = ScoresConfig(memory_mib=memory_mib, n_init=1, n_nulls=1)
    scorer = Scorers(("end",), config, choose_engine("fused", cpu, memory_mib), cpu, 0)
    with tempfile.TemporaryDirectory() as folder:
        source = FileSource(Path(folder), points, range(n_layers))
        source.write({"val": chunks})
        score_layerwise(source, scorer, 0, ("hidden",))
    [highest] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    print(int(highest.split()[1]) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the highest resident memory from Linux")
def test_memory_does_not_grow_with_the_number_of_layers():
    # a layer is 1 MiB, as much as may be held: of 48 there are never more than a few in memory, with their copies
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    few, many, held = map(float, done.stdout.split())
    assert many - few < 24
    # where all may be held they are, which shows that the mark can see them
    assert held - many > 80
