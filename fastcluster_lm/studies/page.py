"""The page of all verdicts, in Markdown; it judges nothing and draws nothing."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fastcluster_lm.device import describe_environment
from fastcluster_lm.errors import UsageError
from fastcluster_lm.studies.study import ALPHA, FEWEST_SEEDS, Verdict

# below this a difference of equal numbers is rounding
ROUNDING = 1e-15

HEAD = (
    "study", "claim", "verdict", "n", "statistic", "control", "d [95 %]", "margin", "p", "p, Holm", "repeat with",
)  # fmt: skip


def command_for(name: str, preset: str, n_seeds: int, *, model: Path | None = None) -> str:
    """Give the command that repeats a study."""
    return f"fclm study {name} --preset {preset} --seeds {n_seeds}{f' --model {model.name}' if model else ''}"


def findings_page(
    verdicts: Iterable[Verdict], *, preset: str, n_seeds: int, n_studies: int, code: Mapping[str, int], measured_by: str
) -> str:
    """Write the page of all verdicts; `code` counts the runs by what made them, measured_by is the code at hand.

    Errors: UsageError where studies or seeds are missing: a page is of a complete run
    """
    rows = list(verdicts)
    fewest = min((len(verdict.seeds) for verdict in rows), default=0)
    if len(rows) < n_studies or fewest < FEWEST_SEEDS:
        raise UsageError(
            f"the page of findings: expected all {n_studies} studies at {FEWEST_SEEDS} seeds or more, got {len(rows)} "
            f"at {fewest}; run `fclm study all` first"
        )
    lines = ["# Findings", "", *_how_to_read(preset, n_seeds, n_studies), "", *_made_by(code, measured_by), ""]
    lines += verdict_table([(verdict, command_for(verdict.study, preset, n_seeds)) for verdict in rows])
    lines += ["", "## What was compared, and what stood beside it", ""]
    for verdict in rows:
        lines += [f"### {verdict.study}", "", *what_was_compared(verdict), "", *_beside(verdict.beside)]
    return "\n".join(lines).rstrip() + "\n"


def verdict_table(verdicts: Iterable[tuple[Verdict, str]], *, alone: bool = False) -> list[str]:
    """Write verdicts as a table, each with the command that repeats it; one alone is corrected for no other."""
    return markdown_table(HEAD, [_verdict_cells(verdict, command, alone) for verdict, command in verdicts])


def what_was_compared(verdict: Verdict) -> list[str]:
    """Say what a verdict is about and why it fell as it did."""
    lines = [verdict.question, "", f"- Statistic: {verdict.statistic}.", f"- Control: {verdict.control}."]
    return [*lines, f"- {verdict.verdict.capitalize()}: {verdict.reason}.", *(f"- {note}" for note in verdict.notes)]


def markdown_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Write a table in Markdown."""
    head = list(head)
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def number_text(value: float | None) -> str:
    """Write a figure, a dash where there is none."""
    if value is None:
        return "-"
    return "0" if abs(value) < ROUNDING else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def with_interval(mean: float | None, low: float | None, high: float | None) -> str:
    """Write a mean with its interval, or without where all seeds agree."""
    if low is None or high is None or low == high:
        return number_text(mean)
    return f"{number_text(mean)} [{number_text(low)}, {number_text(high)}]"


def _how_to_read(preset: str, n_seeds: int, n_studies: int) -> list[str]:
    return [
        f"Written by `{command_for('all', preset, n_seeds)}`; figures as they came out. These are small models on made",
        "tasks, and a verdict is about them. How to read it:",
        "",
        "- The seed is the unit: n seeds give n statistics and n controls, shown as mean (least to greatest), and n",
        "  differences d = statistic less control, shown as mean with Student's 95 % interval.",
        f"- p is that of a two-sided t-test of d against the margin; beside it adjusted over {n_studies} studies by",
        f"  Holm. Supported: adjusted p below {ALPHA} and mean d above the margin; not supported: the same and mean d",
        "  below it. Else undecided, which is no evidence that there is nothing: few seeds find large effects only.",
        "- All studies take the same seeds, and many the same runs, so their verdicts do not confirm each other.",
        "- A study that is run alone counts the others as p = 1, so it can be undecided where all together are not.",
        "- What stands beside a verdict describes and tests nothing: its 95 % intervals are not adjusted for their",
        "  number, know no bounds (one of an accuracy may pass 1), and are left out where all seeds agree.",
        "- ARI and AMI are 0 at chance and 1 at best, F1, accuracies and shares are between 0 and 1, steps are",
        "  optimiser steps. The block null is the mean score under random reassignments of whole instruction",
        "  distributions to tasks.",
    ]


def _made_by(code: Mapping[str, int], measured_by: str) -> list[str]:
    found = describe_environment()
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items() if version)
    written = "Code is named by a digest of its sources. Written on "
    written += f"{found['system']} with Python {found['python']}, {packages}."
    total, measured = (
        sum(code.values()),
        f"measured by {'the same' if [*code] == [measured_by] else f'`{measured_by}`'}",
    )
    if len(code) == 1:
        return [f"All {total} runs were made by one state of the code, `{next(iter(code))}`, and {measured}.", written]
    parts = ", ".join(f"{count} by `{name}`" for name, count in code.items())
    return [f"**The {total} runs were made by {len(code)} states of the code: {parts}; all are {measured}.**", written]


def _verdict_cells(verdict: Verdict, command: str, alone: bool) -> list[str]:
    return [
        # one alone has its details right below
        verdict.study if alone else f"[{verdict.study}](#{verdict.study})",
        verdict.claim,
        f"**{verdict.verdict}**",
        str(len(verdict.differences)),
        _spread(verdict.values),
        _spread(verdict.controls),
        with_interval(verdict.mean, verdict.low, verdict.high),
        f"{verdict.margin:g}",
        number_text(verdict.p),
        number_text(None if alone else verdict.p_adjusted),
        f"`{command}`",
    ]


def _beside(beside: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """List single figures; put those named "figure, case" into tables, a row for each case.

    Figures that follow each other and share a case share a table
    """
    single: list[str] = []
    tables: list[dict[str, dict[str, str]]] = []
    for name, entry in beside.items():
        figure, _, case = name.partition(", ")
        known = sum(value is not None for value in entry["values"])
        text = with_interval(entry["mean"], entry["low"], entry["high"])
        text += f" ({known} of {len(entry['values'])} seeds)" if known < len(entry["values"]) else ""
        if not case:
            single.append(f"- {name}: {text}")
            continue
        table = next((one for one in tables if figure in one or any(case in cases for cases in one.values())), None)
        if table is None:
            tables.append(table := {})
        table.setdefault(figure, {})[case] = text
    lines = [*single, ""] if single else []
    for table in tables:
        cases = dict.fromkeys(case for column in table.values() for case in column)
        lines += [
            *markdown_table(("", *table), [[case, *(col.get(case, "-") for col in table.values())] for case in cases]),
            "",
        ]
    return lines


def _spread(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return (
        f"{number_text(sum(known) / len(known))} ({number_text(min(known))} to {number_text(max(known))})"
        if known
        else "-"
    )
