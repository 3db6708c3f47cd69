"""What a finished run prints last: scores by layer, the headline, the ways to fail, the probe's cost; no arithmetic."""

import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastcluster_lm.views.positions import rows_at
from fastcluster_lm.views.summary import LayerRow, Signature, accuracy_at, failure_signatures, layer_table, number
from fastcluster_lm.views.tables import cell, console_for

Row = Mapping[str, object]
Layers = Sequence[LayerRow]

PIPED_WIDTH = 100
COMFORTABLE_WIDTH = 92

GROUPS = {
    "all": "over all points",
    "input": "among points of one input",
    "input_output": "among points of one input and one output",
}
SPACES = {"hidden": "hidden states", "map": "t-SNE map"}


def print_closing(
    score_rows: Sequence[Row],
    step_rows: Sequence[Row],
    summary: Mapping[str, object],
    *,
    space: str,
    group: str,
    layer: int,
    positions: Sequence[str] = ("input",),
    stream: TextIO | None = None,
    width: int | None = None,
) -> None:
    """Print a run's result for reading: two tables by layer, the headline, three signatures, the probe's cost.

    All are of the first of several probed positions; of each further one there is a headline

    Units:  scores with two decimals; width in characters, None for the terminal's
    Names:  summary holds steps, early_stopping_step, val_accuracy, probes, probe_seconds, probe_wait_seconds,
            probe_share, wall_seconds;
            what is absent is left out
    """
    console = console_for(stream or sys.stdout, width)
    if width is None and not console.is_terminal:
        console = console_for(stream or sys.stdout, PIPED_WIDTH)
    mark = number(summary, "early_stopping_step")
    mark_step = None if mark is None else int(mark)

    def tables(position: str) -> tuple[Layers, Layers]:
        """Give the headline's group and, since either alone misleads, all points beside it."""
        own = rows_at(score_rows, position)
        groups = (group,) if group == "all" else (group, "all")
        found = [layer_table(own, step_rows, space=space, group=one, mark_step=mark_step) for one in groups]
        return found[0], found[1] if len(found) > 1 else []

    first, *further = positions
    table, beside = tables(first)
    padding = 2 if console.width >= COMFORTABLE_WIDTH else 1
    if not table:
        _say(console, f"No scores of the {SPACES.get(space, space)} {GROUPS.get(group, group)}: nothing was probed.")
    else:
        if further:
            _say(console, f"Token: {first}", "bold")
        _say(
            console, f"Task clusters in the {SPACES.get(space, space)}, {GROUPS.get(group, group)} (validation)", "bold"
        )
        _say(console)
        console.print(_agreement_table(table, beside, headline=layer, padding=padding))
        _say(console)
        console.print(_neighbor_table(table, beside, headline=layer, padding=padding))
        _print_headline(console, table, beside, layer)
        for position in further:
            _print_headline(console, *tables(position), layer, f", {position} token")
    _print_training(console, step_rows, summary)
    if table:
        own = rows_at(score_rows, first)
        _print_signatures(console, failure_signatures(own, step_rows, space=space, group=group, layer=layer))
    _print_cost(console, summary)
    _print_skipped(console, step_rows)


def _agreement_table(table: Layers, beside: Layers, *, headline: int, padding: int) -> Table:
    columns = [
        *_moments("ARI", "ari", table[0]),
        ("null", "null_ari_end"),
        ("by output\nalone", "ceiling_output_end"),
        ("AMI\nend", "ami_end"),
        ("F1\nend", "f1_end"),
    ]
    return _layer_table(table, columns, beside, ("ARI, all\npoints", "ari_end"), headline, padding)


def _neighbor_table(table: Layers, beside: Layers, *, headline: int, padding: int) -> Table:
    columns = [
        *_moments("KNN", "knn_share", table[0]),
        ("null", "null_knn_share_end"),
        ("of other\ndistrib.", "knn_share_across_end"),
        ("its\nnull", "null_knn_share_across_end"),
    ]
    return _layer_table(table, columns, beside, ("KNN, all\npoints", "knn_share_end"), headline, padding)


def _moments(title: str, name: str, first: LayerRow) -> list[tuple[str, str]]:
    steps = {moment: first[f"step_{moment}"] for moment in ("start", "mark", "end")}
    columns = [(f"{title}\nstep {steps['start']}", f"{name}_start")] if steps["start"] is not None else []
    if steps["mark"] is not None and steps["mark"] != steps["end"]:
        columns.append((f"mark\n{steps['mark']}", f"{name}_mark"))
    if steps["end"] != steps["start"]:
        columns.append((f"end\n{steps['end']}", f"{name}_end"))
        columns.append(("settled\nat step", f"{name}_settled"))
    return columns


def _layer_table(
    table: Layers,
    columns: Sequence[tuple[str, str]],
    beside: Layers,
    beside_column: tuple[str, str],
    headline: int,
    padding: int,
) -> Table:
    drawn = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, padding, 0, 0))
    titles = ["\nlayer", *(title for title, _ in columns), *([beside_column[0]] if beside else [])]
    for title in titles:
        drawn.add_column(title, justify="right", no_wrap=True)
    for row in table:
        cells = [cell(row[name], 2) for _, name in columns]
        if beside:
            cells.append(cell(_of_layer(beside, row["layer"]).get(beside_column[1]), 2))
        drawn.add_row(cell(row["layer"], 0), *cells, style="bold" if row["layer"] == headline else "")
    return drawn


def _of_layer(table: Layers, layer: float | None) -> LayerRow:
    return next((row for row in table if row["layer"] == layer), {})


def _print_headline(console: Console, table: Layers, beside: Layers, layer: int, where: str = "") -> None:
    row, row_beside = _of_layer(table, layer), _of_layer(beside, layer)
    _say(console)
    if not row:
        _say(console, f"Layer {layer}{where}, which the headline names, was not scored.")
        return
    text = f"Layer {layer}{where}: task ARI {cell(row['ari_end'], 2)}"
    known = [
        f"{name} {cell(row[column], 2)}"
        for name, column in (
            ("step 0", "ari_start"),
            ("null", "null_ari_end"),
            ("by output alone", "ceiling_output_end"),
        )
        if row[column] is not None
    ]
    text += f" ({', '.join(known)})" if known else ""
    text += f", KNN share {cell(row['knn_share_end'], 2)}"
    if row["null_knn_share_end"] is not None:
        text += f" (null {cell(row['null_knn_share_end'], 2)})"
    if row_beside:
        ari, share = cell(row_beside["ari_end"], 2), cell(row_beside["knn_share_end"], 2)
        text += f"; over all points ARI {ari}, KNN share {share}"
    _say(console, text + ".", "bold")


def _print_training(console: Console, step_rows: Sequence[Row], summary: Mapping[str, object]) -> None:
    steps, mark = number(summary, "steps"), number(summary, "early_stopping_step")
    accuracy = number(summary, "val_accuracy")
    if accuracy is None or steps is None:
        return
    text = f"Validation accuracy {accuracy:.3f} after {steps:.0f} steps"
    if mark is not None:
        text += f"; early-stopping mark at step {mark:.0f}"
        at_mark = accuracy_at(step_rows, int(mark))
        text += "" if at_mark is None else f" ({at_mark:.3f})"
    _say(console, text + ".")


def _print_signatures(console: Console, signatures: Sequence[Signature]) -> None:
    drawn = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for _ in range(4):
        drawn.add_column()
    drawn.columns[2].justify = "right"
    words = {True: "YES", False: "no", None: "undecided"}
    for one in signatures:
        style = "bold red" if one["present"] else ""
        drawn.add_row(one["name"], words[one["present"]], cell(one["figure"], 2), one["rule"], style=style)
    _say(console)
    _say(console, "Signs of failure")
    console.print(drawn)


def _print_cost(console: Console, summary: Mapping[str, object]) -> None:
    probes, seconds = number(summary, "probes"), number(summary, "probe_seconds")
    share, wall = number(summary, "probe_share"), number(summary, "wall_seconds")
    if probes is None or seconds is None:
        return
    text = f"{probes:.0f} probes took {seconds:.1f} s"
    waited = number(summary, "probe_wait_seconds")
    if waited is not None and waited < seconds:
        text += f" beside training, which waited {waited:.1f} s for them"
    if share is not None:
        text += f", {share:.1%} of the run's time"
    if wall is not None:
        text += f" ({wall:.1f} s)"
    _say(console)
    _say(console, text + ".")


def _print_skipped(console: Console, step_rows: Sequence[Row]) -> None:
    skipped = [row for row in step_rows if row.get("skipped") is not None]
    if skipped:
        probes = "1 probe" if len(skipped) == 1 else f"{len(skipped)} probes"
        _say(console, f"{probes} did not score all; that of step {skipped[-1]['step']}: {skipped[-1]['skipped']}.")


def _say(console: Console, text: str = "", style: str = "") -> None:
    console.print(Text(text, style=style))
