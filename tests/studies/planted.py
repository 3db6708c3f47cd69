"""Rows as runs write them, with an answer that is known; no run, no model."""

from collections.abc import Callable

import numpy as np

from fastcluster_lm.studies.study import Measured, Study, Verdict, judge

STEPS = tuple(range(0, 525, 25))
LAYERS = (0, 1, 2)


def score_rows(ari: Callable[[int, int], float], **columns: Callable[[int, int], float]) -> list[dict]:
    """Make the rows of a run's full probes: ari and further columns as functions of (step, layer)."""
    rows = []
    for step in STEPS:
        for layer in LAYERS:
            fixed = {"split": "val", "space": "hidden", "group": "input_output", "labels": "task", "tier": "full"}
            given = {name: value(step, layer) for name, value in columns.items()}
            rows.append({"step": step, "layer": layer, **fixed, "source": "fresh", "ari": ari(step, layer), **given})
    return rows


def judged(study: Study, pairs: list[tuple[float | None, float | None]]) -> Verdict:
    """Judge a study on (statistic, control) of each seed."""
    return judge(study, {seed: Measured(*pair, []) for seed, pair in enumerate(pairs)})


def plus(*parts: Callable[[int, int], float]) -> Callable[[int, int], float]:
    """Add functions of (step, layer)."""
    return lambda step, layer: sum(part(step, layer) for part in parts)


def noise(seed: int, scale: float = 0.02) -> Callable[[int, int], float]:
    """Draw a value for each (step, layer), always the same one."""
    table = np.random.default_rng(seed).normal(0, scale, (1000, 10))
    return lambda step, layer: float(table[step, layer])
