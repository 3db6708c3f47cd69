"""What a study leaves behind: rows, a figure and verdict.json; it decides nothing."""

import importlib.util
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastcluster_lm.device import describe_environment
from fastcluster_lm.errors import UsageError
from fastcluster_lm.store.files import encode_json, explaining, replace_file
from fastcluster_lm.studies.page import with_interval
from fastcluster_lm.studies.study import Lines, Measured, Row, Study, Verdict

# names on an axis that have room side by side, slanted
MOST_SLANTED = 8


def check_packages() -> None:
    """Refuse to begin where something is missing that would end a run of hours.

    Errors: UsageError naming what is missing
    """
    absent = [name for name in ("matplotlib", "transformers") if importlib.util.find_spec(name) is None]
    if absent:
        raise UsageError(f"studies need {', '.join(absent)}; pip install 'fastcluster-lm[studies]'")


def write_results(
    path: Path,
    study: Study,
    found: Mapping[int, Measured],
    verdict: Verdict,
    *,
    beside: Mapping[str, Any],
) -> None:
    """Write rows.jsonl, figure.png and verdict.json of one study; `beside` the verdict stands how it was made.

    Errors: RunFolderError if the disk refuses; DataError for a value that JSON has no place for
    """
    with explaining("make", path):
        path.mkdir(parents=True, exist_ok=True)
    rows = [{"seed": seed, **row} for seed in sorted(found) for row in found[seed].rows]
    for index, row in enumerate(rows):
        encode_json(row, f"row {index} of {study.name}")
    replace_file(path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    whole = {**verdict.to_dict(), **beside, "environment": describe_environment()}
    replace_file(path / "verdict.json", encode_json(whole, f"verdict of {study.name}"))
    _draw(path / "figure.png", study, rows, verdict)


def _draw(path: Path, study: Study, rows: list[Row], verdict: Verdict) -> None:
    # loaded at the first figure, so that a list or a plan needs no matplotlib; a Figure of its own opens no window
    from matplotlib.figure import Figure

    names = {row[study.figure.x] for row in rows if isinstance(row.get(study.figure.x), str)}
    figure = Figure(figsize=(9, 6 if len(names) > MOST_SLANTED else 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    draw_lines(left, rows, study.figure)
    _draw_pairs(right, verdict)
    figure.suptitle(f"{study.name}: {verdict.verdict}", fontsize=10)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120, metadata={"Software": None})
    replace_file(path, drawn.getvalue())


def draw_lines(axes: Any, rows: list[Row], lines: Lines) -> None:
    """Draw a line for each value of `by`: the mean over seeds, and the control's mean dotted."""
    chosen_rows = [row for row in rows if all(row.get(name) == value for name, value in lines.only)]
    known = [row for row in chosen_rows if row.get(lines.x) is not None and row.get(lines.y) is not None]
    named = any(isinstance(row[lines.x], str) for row in known)
    for index, group in enumerate(dict.fromkeys(row.get(lines.by) for row in known)):
        chosen, color = [row for row in known if row.get(lines.by) == group], f"C{index % 10}"
        places = list(dict.fromkeys(row[lines.x] for row in chosen))
        places = places if named else sorted(places)
        # nothing lies between two names
        for column, style in ((lines.y, "o" if named else "o-"), (lines.control, ":")):
            if column is None or any(row.get(column) is None for row in chosen):
                continue
            means = [float(np.mean([row[column] for row in chosen if row[lines.x] == place])) for place in places]
            label = f"{lines.by} {group}" if column == lines.y else None
            axes.plot(places, means, style, color=color, markersize=2.5, linewidth=1, label=label)
    if named:
        many = len({row[lines.x] for row in known}) > MOST_SLANTED
        axes.tick_params(axis="x", labelrotation=90 if many else 20, labelsize=6)
    axes.set_xlabel(lines.x)
    axes.set_ylabel(lines.y + (f" (dotted: {lines.control})" if lines.control else ""), fontsize=8)
    if known:
        axes.legend(fontsize=6)


def _draw_pairs(axes: Any, verdict: Verdict) -> None:
    for value, control in zip(verdict.values, verdict.controls, strict=True):
        if value is not None and control is not None:
            axes.plot([0, 1], [control, value], "o-", color="C7", markersize=3, linewidth=0.8)
    axes.set_xticks([0, 1], ["control", "statistic"])
    axes.set_xlim(-0.4, 1.4)
    if verdict.mean is not None:
        axes.set_title(
            f"d = {with_interval(verdict.mean, verdict.low, verdict.high)}\nmargin {verdict.margin:g}",
            fontsize=8,
        )
