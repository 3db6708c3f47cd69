"""Run folders written by hand for the views: rows, maps and a task set, without any training."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastcluster_lm.config import RunConfig, config_to_dict
from fastcluster_lm.store import RunFolder

# rows of a full probe, as docs/architecture.md lists them
NAMES = ("split", "space", "group", "labels")
SPLITS = ("train", "val")
KINDS = ("task", "distribution", "input", "output", "task_input")
PLACES = [
    *[(split, space, "all", labels) for split in SPLITS for space in ("hidden", "map") for labels in KINDS],
    *[(split, "hidden", "input", labels) for split in SPLITS for labels in ("task", "distribution", "output")],
    *[(split, "hidden", "input_output", "task") for split in SPLITS],
]
SCORES = ("ari", "ami", "f1", "f1_pairwise", "f1_bcubed", "knn_share", "knn_accuracy", "knn_share_across")
NULLS = ("null_ari", "null_ami", "null_f1", "null_knn_share", "null_knn_share_across")
HOSTILE = "</script><img src=x onerror=\"window.broken='yes'\">"


@dataclass
class MadeRun:
    """A run folder of a few tasks, to which probes are added one at a time."""

    folder: RunFolder
    n_layers: int
    n_points: int
    n_tasks: int
    positions: tuple[str, ...] = ("input",)

    def add(self, step: int, *, warm: bool = True, places: list[tuple[str, str, str, str]] = PLACES) -> np.ndarray:
        """Add a probe's map and rows, and give the map's points (layers, n, 2)."""
        rng = np.random.default_rng(step)
        n = self.n_points
        points = rng.normal(size=(self.n_layers, n, 2)).astype(np.float32) * 20
        task = np.arange(n) % self.n_tasks
        arrays = {
            "points": points,
            "task": task,
            "distribution": task * 2 + np.arange(n) // self.n_tasks % 2,
            "input": np.arange(n) % 2,
            "output": np.arange(n) % 3 % 2,
            "is_val": np.repeat([0, 1], [n - n // 2, n // 2]),
        }
        notes = {"warm": str(warm).lower()}
        for at, position in enumerate(self.positions[1:], start=1):
            # the points of a further token are the first's, each in the place of the next
            arrays[f"points/{position}"] = np.roll(points, at, axis=1)
            notes[f"warm/{position}"] = "true"
        self.folder.write_map(step, arrays, notes)
        common = {"step": step, "tier": "full", "engine": "fused", "warm": warm}
        rows = [
            {
                **common,
                "position": position,
                "layer": layer,
                **dict(zip(NAMES, place, strict=True)),
                **values(step, layer + at, place[-1]),
            }
            for at, position in enumerate(self.positions)
            for place in places
            for layer in range(self.n_layers)
        ]
        self.folder.append_scores(rows)
        row = {"step": step, "loss": 1.0 / (step + 1), "val_accuracy": ari_of(step, 1), "probe_ms": 300.0 + step,
               "probe_wait_ms": 2.0, "step_ms": 11.0}  # fmt: skip
        self.folder.append_steps([row])
        return points


def ari_of(step: int, layer: int) -> float:
    """Give the task ARI that a made run has at a step: rising, and higher in deeper layers."""
    return (layer + 1) / 10 * (1 - 1 / (1 + step / 50))


def values(step: int, layer: int, labels: str) -> dict[str, float]:
    """Give the scores of one row."""
    found = dict.fromkeys(SCORES, 0.5)
    found["ari"] = ari_of(step, layer)
    if labels in ("task", "task_input"):
        found |= dict.fromkeys(NULLS, 0.1)
    return found


def make_run(
    path: Path,
    *,
    n_layers: int = 3,
    n_points: int = 48,
    n_tasks: int = 3,
    name: str = "t",
    positions: tuple[str, ...] = ("input",),
) -> MadeRun:
    """Make a run folder without probes; task i is called name + i."""
    config = config_to_dict(RunConfig())
    config["probe"] |= {"position": positions[0]} | ({"positions": list(positions)} if len(positions) > 1 else {})
    config["model"]["n_layers"] = n_layers - 1
    config["training"]["steps"] = 1000
    config["resolved"] = {"engine": "fused", "device": "cpu", "threads": 1, "probe_worker": True}
    config["data"] = {"n_train_instructions": 6, "n_val_instructions": 3}
    # four letters of its own for each task, behind them a tag
    letters = ["".join(chr(0x4E00 + 4 * i + j) for j in range(4)) for i in range(n_tasks)]
    tasks = [
        {
            "name": f"{name}{i}",
            "expressions": [f"[{own[:2]}]{{4}}<b>", f"[{own[2:]}]{{4}}<b>"],
            "table": {"x": "0", "y": "1"},
        }
        for i, own in enumerate(letters)
    ]
    config["taskset"] = {"inputs": ["x", "y"], "outputs": ["0", "1"], "lengths": [7], "tasks": tasks}
    return MadeRun(RunFolder.create(path, config, {}), n_layers, n_points, n_tasks, positions)
