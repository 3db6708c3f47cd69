"""`fclm bench maps`: scores on warm maps against scores on cold ones, at the same steps of a real run."""

from collections.abc import Iterator

import numpy as np

from fastcluster_lm.benchmarks.harness import Line, judged
from fastcluster_lm.config import apply_settings, load_preset
from fastcluster_lm.engine import Rooms
from fastcluster_lm.probe import Cadence
from fastcluster_lm.tasks import taskset_of

SCORES = ("ari", "ami", "f1")
FLOOR = 0.02


def bench_maps(preset: str, steps: int, least_probes: int = 12) -> Iterator[Line]:
    """Train once, and at each probe score a warm map, a cold one, and a cold one of another seed.

    Units:  the median over probes, layers and splits of |warm - cold|, task labels; the target is the larger of 0.02
            and the median of |cold - cold of another seed|
    """
    config = apply_settings(load_preset(preset), [f"training.steps={steps}"])
    run = Rooms(config, taskset_of(config.tasks, config.seed))
    assert run.probe is not None
    # at the preset's own cadence, unless the run is too short for it
    every, seed = max(1, min(config.probe.every, steps // least_probes)), config.probe.seed
    warm_cadence, cold_cadence = (Cadence(every, steps + 1, key_frames) for key_frames in (0, 1))
    scored = {
        "warm": run.probe.again(cadence=warm_cadence, seed=seed),
        "cold": run.probe.again(cadence=cold_cadence, seed=seed),
        "other": run.probe.again(cadence=cold_cadence, seed=seed + 1),
    }
    rows: dict[str, list[dict]] = {name: [] for name in scored}
    for step in range(steps + 1):
        if step:
            run.trainer.advance()
        if step % every == 0:
            found = {name: probe.score(step) for name, probe in scored.items()}
            if found["warm"].warm:
                for name, result in found.items():
                    # layer 0 cannot tell tasks, so that all its maps score alike
                    rows[name] += [
                        row
                        for row in result.rows
                        if row["space"] == "map" and row["labels"] == "task" and row["layer"] > 0
                    ]
    for score in SCORES:
        warm, cold, other = (np.array([row[score] for row in rows[name]]) for name in scored)
        between, found_apart = float(np.median(np.abs(cold - other))), float(np.median(np.abs(warm - cold)))
        line = {
            "bench": "maps",
            "kind": f"{score} on warm maps less on cold ones",
            "preset": preset,
            "steps": steps,
            "warm_probes": len(warm) // (2 * len({row["layer"] for row in rows["warm"]})),
            "between_cold_seeds": between,
            "warm_mean": float(warm.mean()),
            "cold_mean": float(cold.mean()),
        }
        yield judged(line, max(FLOOR, between), found_apart, at_least=False)
        # differences that all have one sign are small in the median and still a bias
        bias = {**line, "kind": f"mean {score} on warm maps less on cold ones"}
        yield judged(bias, max(FLOOR, between), abs(float((warm - cold).mean())), at_least=False)
