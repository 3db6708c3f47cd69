"""How do quality, onset and stability of task clusters go with the width and the depth of the model?"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastcluster_lm.studies.cells import preset_config
from fastcluster_lm.studies.reading import mean, open_run, over_layers, task_rows
from fastcluster_lm.studies.statistics import change_point, power_law, slope, smoothed
from fastcluster_lm.studies.study import BASE, Arm, Lines, Measured, Study

WIDTHS = {"nano": (16, 32, 64, 128), "paper": (32, 64, 128, 256, 512, 768, 1024, 2048)}
DEPTHS = {"nano": (2, 4, 6, 8), "paper": (2, 4, 6, 8, 12, 16, 24)}


@dataclass(frozen=True)
class Curve:
    """A run of one size: task ARI, its null and the smoothed training loss, by step."""

    ari: Mapping[int, float | None]
    null: Mapping[int, float | None]
    loss: Mapping[int, float]


def _width_arms(preset: str) -> Mapping[str, Arm]:
    own = preset_config(preset, 0).model.d_model
    # time grows slower than the square, since most of a small step is overhead
    return {
        str(width): BASE if width == own else Arm((f"model.d_model={width}",), cost=max(1.0, width / own / 2))
        for width in WIDTHS[preset]
    }


def _depth_arms(preset: str) -> Mapping[str, Arm]:
    own = preset_config(preset, 0).model.n_layers
    return {
        str(depth): BASE if depth == own else Arm((f"model.n_layers={depth}", "report.layer=-1"), cost=depth / own)
        for depth in DEPTHS[preset]
    }


def _measure(cells: Mapping[str, Path]) -> Measured:
    curves = {}
    for size, cell in cells.items():
        folder = open_run(cell)
        rows = task_rows(folder.scores())
        loss = smoothed({row["step"]: row["loss"] for row in folder.steps() if row["loss"] is not None})
        curves[int(size)] = Curve(over_layers(rows, "ari"), over_layers(rows, "null_ari"), loss)
    value, control = per_doubling(curves, last), per_doubling(curves, last, null=True)
    level = max(min(curve.loss.values()) for curve in curves.values())
    beside = {
        "gain per doubling at equal loss": per_doubling(curves, lambda curve: at_loss(curve, level)),
        "onset in steps per doubling": per_doubling(curves, onset),
        "unrest after half of training per doubling": per_doubling(curves, unrest),
        "exponent of a power law": exponent(curves),
    }
    shown = [
        {"size": size, "step": step, "ari": value, "null_ari": curve.null[step], "loss": curve.loss.get(step)}
        for size, curve in curves.items()
        for step, value in curve.ari.items()
    ]
    return Measured(value, control, shown, beside)


def per_doubling(
    curves: Mapping[int, Curve], value_of: Callable[[Curve], float | None], *, null: bool = False
) -> float | None:
    """Fit a line to a value against the logarithm of the size, base 2; of the block null's curve if asked for."""
    found = {
        size: value_of(Curve(curve.null, curve.null, curve.loss) if null else curve) for size, curve in curves.items()
    }
    known = {size: value for size, value in found.items() if value is not None}
    return slope([math.log2(size) for size in known], list(known.values())) if len(known) > 2 else None


def last(curve: Curve) -> float | None:
    """Give the ARI at the end: all sizes have then seen the same tokens."""
    return curve.ari[max(curve.ari)]


def at_loss(curve: Curve, level: float) -> float | None:
    """Give the ARI of the first probe at which the training loss is down to a level."""
    steps = [step for step in sorted(curve.ari) if step in curve.loss and curve.loss[step] <= level]
    return curve.ari[steps[0]] if steps else None


def onset(curve: Curve) -> float | None:
    """Give the step at which the ARI changes its level."""
    known = {step: value for step, value in curve.ari.items() if value is not None}
    return float(list(known)[change_point(list(known.values())).at]) if len(known) > 3 else None


def unrest(curve: Curve) -> float | None:
    """Average how far the ARI moves from probe to probe in the second half: 0 is stable."""
    values = [value for value in curve.ari.values() if value is not None]
    late = values[len(values) // 2 :]
    return mean(abs(b - a) for a, b in zip(late, late[1:], strict=False))


def exponent(curves: Mapping[int, Curve]) -> float | None:
    """Fit ARI at the end = scale * size ** exponent."""
    values = {size: last(curve) for size, curve in curves.items()}
    known = {size: value for size, value in values.items() if value is not None}
    fitted = power_law(list(known), list(known.values())) if len(known) > 2 else None
    return fitted[1] if fitted else None


WIDTH = Study(
    name="width",
    question="How do task clusters go with the hidden width?",
    claim="Wider models have better task clusters after the same number of tokens.",
    statistic="gain of task ARI within input and output per doubling of the width, at the end, validation, mean over "
    "layers 1 and up",
    control="the same of its block null",
    margin=0.0,
    arms=_width_arms,
    measure=_measure,
    figure=Lines("step", "ari", "size", "null_ari"),
)
DEPTH = Study(
    name="depth",
    question="How do task clusters go with the number of layers?",
    claim="Deeper models have better task clusters after the same number of tokens.",
    statistic="gain of task ARI within input and output per doubling of the depth, at the end, validation, mean over "
    "layers 1 and up",
    control="the same of its block null",
    margin=0.0,
    arms=_depth_arms,
    measure=_measure,
    figure=Lines("step", "ari", "size", "null_ari"),
)
