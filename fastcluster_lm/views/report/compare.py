"""Several runs side by side: a table of where they ended and curves of one layer each; it ranks nothing."""

from collections.abc import Sequence
from html import escape

import numpy as np
from bokeh.layouts import column, row
from bokeh.models import Div, HoverTool, Range1d, UIElement
from bokeh.plotting import figure

from fastcluster_lm.views.positions import rows_at
from fastcluster_lm.views.report.history import RunHistory
from fastcluster_lm.views.report.look import PALETTE, parts_style
from fastcluster_lm.views.report.series import NULLS, SCORES
from fastcluster_lm.views.summary import layer_table, number
from fastcluster_lm.views.tables import cell

DASHES = ("solid", "dashed", "dotted", "dotdash", "dashdot")
NOTE = (
    "Each run's headline: the layer, space and group that its own configuration names, on validation points. Scores of "
    "different engines are different lines, and differ by the engine too. Thin lines are nulls."
)


def build_comparison(histories: Sequence[RunHistory]) -> tuple[UIElement, list[figure]]:
    """Build the table and a figure for each score that has a null."""
    table = Div(text=_table(histories), stylesheets=[parts_style()], sizing_mode="stretch_width")
    last = max((row["step"] for history in histories for row in history.step_rows), default=1)
    figures = [_curves(histories, name, last) for name in NULLS]
    note = Div(text=f"<p class=quiet>{NOTE}</p>", stylesheets=[parts_style()], sizing_mode="stretch_width")
    plots = row(*figures, styles={"flex-wrap": "wrap", "gap": "6px 14px"}, sizing_mode="stretch_width")
    return column(table, plots, note, sizing_mode="stretch_width"), figures


def _table(histories: Sequence[RunHistory]) -> str:
    titles = (
        "run",
        "seed",
        "engine",
        "layer",
        "group",
        "accuracy",
        "ARI",
        "null",
        "settled at",
        "AMI",
        "F1",
        "KNN",
        "null",
        "probes took",
    )
    rows = []
    for history in histories:
        report, resolved = history.config["report"], history.config["resolved"]
        found = layer_table(
            rows_at(history.score_rows, history.position),
            history.step_rows,
            space=report["space"],
            group=report["group"],
            mark_step=history.mark_step,
        )
        own = next((one for one in found if one["layer"] == history.headline_layer), {})
        seconds = sum(number(one, "probe_ms") or 0.0 for one in history.step_rows) / 1e3
        names = (
            "val_accuracy_end",
            "ari_end",
            "null_ari_end",
            "ari_settled",
            "ami_end",
            "f1_end",
            "knn_share_end",
            "null_knn_share_end",
        )
        rows.append(
            [
                history.name,
                cell(history.config.get("seed"), 0),
                str(resolved.get("engine")),
                str(history.headline_layer),
                report["group"],
                *(cell(own.get(name), 2) for name in names),
                f"{seconds:.1f} s",
            ]
        )
    head = "".join(f"<th>{title}</th>" for title in titles)
    body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in cells)}</tr>" for cells in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _curves(histories: Sequence[RunHistory], name: str, last: int) -> figure:
    drawn = figure(
        width=460,
        height=260,
        title=SCORES[name],
        tools="",
        toolbar_location=None,
        x_axis_label="step",
        x_range=Range1d(0, max(last, 1)),
        y_range=Range1d(-0.05, 1.05),
        name=f"compare-{name}",
    )
    drawn.title.text_font_size = "13px"
    lines = []
    for i, history in enumerate(histories):
        report = history.config["report"]
        wanted = {
            "position": history.position,
            "labels": "task",
            "split": "val",
            "space": report["space"],
            "group": report["group"],
            "layer": history.headline_layer,
        }
        rows = [one for one in history.score_rows if all(one[key] == value for key, value in wanted.items())]
        steps = [one["step"] for one in rows]
        look = {"line_color": PALETTE[i % len(PALETTE)], "line_dash": DASHES[i // len(PALETTE) % len(DASHES)]}
        for column_name, width in ((name, 2.2), (NULLS[name], 0.8)):
            values = [np.nan if (value := number(one, column_name)) is None else value for one in rows]
            label = {"legend_label": history.name} if column_name == name else {}
            lines.append(drawn.line(steps, values, line_width=width, name=history.name, **look, **label))
    drawn.add_tools(HoverTool(tooltips=[("run", "$name"), ("step", "@x"), ("score", "@y{0.000}")], renderers=lines))
    drawn.legend.label_text_font_size = "10px"
    drawn.legend.background_fill_alpha = 0.6
    drawn.legend.location = "bottom_right"
    return drawn
