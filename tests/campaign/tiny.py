"""A whole run in half a second, and what two folders of it must agree in; it stops, kills and fails nothing."""

import copy
import json
import os
import signal
from pathlib import Path
from typing import Any

from fastcluster_lm.config import RunConfig, config_from_dict
from fastcluster_lm.engine import Hooks, RunOutcome, resume_run, start_run
from fastcluster_lm.store import RunFolder
from tests.laws.conftest import SMALL

STEPS = 60
# what the clock alone decides
TIMINGS = ("step_ms", "probe_ms", "probe_wait_ms", "tokens_per_s")
SECONDS = ("probe_seconds", "probe_wait_seconds", "step_seconds", "probe_share")


def tiny(source: str = "fresh", *, steps: int = STEPS, worker: str = "off") -> RunConfig:
    """Give the config: `fresh` has a full probe now and then, `batch` a step probe at every step."""
    values = copy.deepcopy(SMALL)
    values["name"] = "tiny"
    values["training"] |= {"steps": steps, "eval_every": 6, "checkpoint_every": 7}
    values["probe"] |= {"every": 15, "n_points": 48, "map_points": 24, "source": source, "worker": worker}
    values["scores"] |= {"n_init": 1, "n_iter": 10, "warm_iter": 4, "n_nulls": 2, "n_neighbors": 1}
    if source == "batch":
        values["probe"] |= {"every": 1, "full_every": 20}
        values["scores"] |= {"step_iter": 2}
    return config_from_dict(values)


def trained(config: RunConfig, path: Path) -> None:
    """Train it from start to end."""
    assert start_run(config, path).finished


def stopped_at(config: RunConfig, path: Path, step: int) -> bool:
    """Train it until a stop is asked for after this step; say whether it finished."""
    return start_run(config, path, _stop_hooks(step)).finished


def killed_after(config: RunConfig, path: Path, step: int) -> None:
    """Train it until this step's row was shown, and end this process by SIGKILL."""

    def end_at(row: dict[str, Any], scores: object) -> None:
        if row["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    start_run(config, path, Hooks(on_step=end_at))


def resumed(path: Path, stop: int | None = None) -> RunOutcome:
    """Go on with it to its end, or to another stop."""
    return resume_run(path, Hooks() if stop is None else _stop_hooks(stop))


def _stop_hooks(step: int) -> Hooks:
    seen: list[int] = []
    return Hooks(
        on_start=lambda folder, began: seen.append(began),
        on_step=lambda row, scores: seen.append(row["step"]),
        should_stop=lambda: seen[-1] >= step,
    )


def read_all(path: Path) -> list[int]:
    """Read each table, map and checkpoint of a run as its readers do; give the steps that have a checkpoint.

    Errors: RunFolderError if one cannot be read, or a folder with a checkpoint's name holds none
    """
    folder = RunFolder.open(path)
    folder.config(), folder.environment(), folder.scores(), folder.steps(), folder.summary()
    for step in folder.map_steps():
        folder.read_map(step)
    steps = sorted(int(entry.name.removeprefix("step-")) for entry in (path / "checkpoints").glob("step-*"))
    for step in steps:
        folder.read_checkpoint(step)
    assert steps == folder.checkpoint_steps()
    return steps


def contents(path: Path) -> dict[str, Any]:
    """Read all that a finished run leaves, by file, but what the clock alone decides.

    Errors: as read_all
    """
    read_all(path)
    found: dict[str, Any] = {}
    for file in sorted(entry for entry in path.rglob("*") if entry.is_file() and entry.name != "lock"):
        name, data = str(file.relative_to(path)), file.read_bytes()
        if name == "steps.jsonl":
            rows = [json.loads(line) for line in data.splitlines()]
            found[name] = [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]
        elif name == "summary.json":
            found[name] = {key: value for key, value in json.loads(data).items() if key not in SECONDS}
        else:
            found[name] = data
    return found


def difference(path: Path, whole: dict[str, Any], *, extra_checkpoints: bool = False, kept_aside: bool = False) -> str:
    """Say in a line in what a finished run differs from the one that never stopped; "" if in nothing.

    A stop leaves a checkpoint of its own: those that the whole run lacks are passed over where that is said, and so is
    what was set aside and stays there
    """
    found = contents(path)
    for name in sorted(found.keys() | whole.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in whole:
            checkpoint, aside = name.startswith("checkpoints/step-"), name.startswith("set-aside/")
            if not (extra_checkpoints and checkpoint) and not (kept_aside and aside):
                return f"{name} is left over"
        elif found[name] != whole[name]:
            return f"{name} differs"
    return ""
