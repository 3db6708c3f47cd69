"""What a study leaves behind: rows, a figure, verdict.json, and the page of all verdicts; it decides nothing."""

import importlib.util
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastcluster_lm.device import describe_environment
from fastcluster_lm.errors import UsageError
from fastcluster_lm.store.files import encode_json, explaining, replace_file
from fastcluster_lm.studies.study import FEWEST_SEEDS, Lines, Measured, Row, Study, Verdict

# the head of a table of verdicts
VERDICT_HEAD = (
    "| study | claim | verdict | statistic | control | d [95 %] | margin | p | repeat with |",
    "|---|---|---|---|---|---|---|---|---|",
)


def command_for(name: str, preset: str, n_seeds: int, *, model: Path | None = None) -> str:
    """Give the command that repeats a study."""
    return f"fclm study {name} --preset {preset} --seeds {n_seeds}{f' --model {model.name}' if model else ''}"


def check_packages() -> None:
    """Refuse to begin where something is missing that would end a run of hours.

    Errors: UsageError naming what is missing
    """
    absent = [name for name in ("matplotlib", "transformers") if importlib.util.find_spec(name) is None]
    if absent:
        raise UsageError(f"studies need {', '.join(absent)}; pip install 'fastcluster-lm[studies]'")


def write_results(
    path: Path, study: Study, found: Mapping[int, Measured], verdict: Verdict, *, preset: str, command: str
) -> None:
    """Write rows.jsonl, figure.png and verdict.json of one study.

    Errors: RunFolderError if the disk refuses; DataError for a value that JSON has no place for
    """
    with explaining("make", path):
        path.mkdir(parents=True, exist_ok=True)
    rows = [{"seed": seed, **row} for seed in sorted(found) for row in found[seed].rows]
    for index, row in enumerate(rows):
        encode_json(row, f"row {index} of {study.name}")
    replace_file(path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    beside = {"preset": preset, "command": command, "environment": describe_environment()}
    replace_file(path / "verdict.json", encode_json({**verdict.to_dict(), **beside}, f"verdict of {study.name}"))
    _draw(path / "figure.png", study, rows, verdict)


def findings_page(verdicts: Iterable[Verdict], *, preset: str, n_seeds: int, n_studies: int) -> str:
    """Write the page of all verdicts, in Markdown.

    Errors: UsageError where studies or seeds are missing: a page is of a complete run
    """
    rows = list(verdicts)
    fewest = min((len(verdict.seeds) for verdict in rows), default=0)
    if len(rows) < n_studies or fewest < FEWEST_SEEDS:
        raise UsageError(
            f"the page of findings: expected all {n_studies} studies at {FEWEST_SEEDS} seeds or more, got {len(rows)} "
            f"at {fewest}; run `fclm study all` first"
        )
    lines = [
        "# Findings",
        "",
        f"Written by `{command_for('all', preset, n_seeds)}`; figures as they came out. The seed is the unit: d is",
        "the statistic less its control, with its 95 % t-interval over seeds; p is adjusted over all studies by Holm.",
        "A study that is run alone counts the others as p = 1, so it can be undecided where all together are not.",
        "These are small models on made tasks, and a verdict is about them; the rule stands in each verdict.json.",
        "",
        *VERDICT_HEAD,
    ]
    lines += [verdict_row(verdict, command_for(verdict.study, preset, n_seeds)) for verdict in rows]
    lines += ["", "## What was compared, and what stood beside it", ""]
    for verdict in rows:
        lines += [*verdict_details(verdict), ""]
    return "\n".join(lines).rstrip() + "\n"


def verdict_row(verdict: Verdict, command: str) -> str:
    """Write a verdict as a row of a table in Markdown."""
    return (
        f"| {verdict.study} | {verdict.claim} | **{verdict.verdict}** | {_spread(verdict.values)} | "
        f"{_spread(verdict.controls)} | {_with_interval(verdict.mean, verdict.low, verdict.high)} | "
        f"{verdict.margin:g} | {number_text(verdict.p_adjusted)} | `{command}` |"
    )


def verdict_details(verdict: Verdict) -> list[str]:
    """Write what a verdict compares, why it fell as it did, and what stood beside it."""
    return [
        f"**{verdict.study}**: {verdict.question} Statistic: {verdict.statistic}; control: {verdict.control}.",
        f"{verdict.verdict.capitalize()}: {verdict.reason}.",
        *(
            f"- {name}: {_with_interval(entry['mean'], entry['low'], entry['high'])}"
            for name, entry in verdict.beside.items()
        ),
    ]


def _draw(path: Path, study: Study, rows: list[Row], verdict: Verdict) -> None:
    # loaded at the first figure, so that a list or a plan needs no matplotlib; a Figure of its own opens no window
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    draw_lines(left, rows, study.figure)
    _draw_pairs(right, verdict)
    figure.suptitle(f"{study.name}: {verdict.verdict}", fontsize=10)
    with explaining("draw", path):
        figure.savefig(path, dpi=120, metadata={"Software": None})


def draw_lines(axes: Any, rows: list[Row], lines: Lines) -> None:
    """Draw a line for each value of `by`: the mean over seeds, and the control's mean dotted."""
    chosen_rows = [row for row in rows if all(row.get(name) == value for name, value in lines.only)]
    known = [row for row in chosen_rows if row.get(lines.x) is not None and row.get(lines.y) is not None]
    for index, group in enumerate(dict.fromkeys(row.get(lines.by) for row in known)):
        chosen, color = [row for row in known if row.get(lines.by) == group], f"C{index % 10}"
        places = list(dict.fromkeys(row[lines.x] for row in chosen))
        places = places if any(isinstance(place, str) for place in places) else sorted(places)
        for column, style in ((lines.y, "o-"), (lines.control, ":")):
            if column is None or any(row.get(column) is None for row in chosen):
                continue
            means = [float(np.mean([row[column] for row in chosen if row[lines.x] == place])) for place in places]
            label = f"{lines.by} {group}" if column == lines.y else None
            axes.plot(places, means, style, color=color, markersize=2.5, linewidth=1, label=label)
    if any(isinstance(row[lines.x], str) for row in known):
        axes.tick_params(axis="x", labelrotation=20, labelsize=6)
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
            f"d = {_with_interval(verdict.mean, verdict.low, verdict.high)}\nmargin {verdict.margin:g}",
            fontsize=8,
        )


def _spread(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return (
        f"{number_text(float(np.mean(known)))} ({number_text(min(known))} to {number_text(max(known))})"
        if known
        else "-"
    )


def _with_interval(mean: float | None, low: float | None, high: float | None) -> str:
    return f"{number_text(mean)} [{number_text(low)}, {number_text(high)}]"


def number_text(value: float | None) -> str:
    """Write a figure, a dash where there is none."""
    return "-" if value is None else f"{value:.3g}"
