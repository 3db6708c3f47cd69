"""What the probes of a run took, and how it trained: two figures and the words beside them; it measures nothing."""

from collections.abc import Mapping
from html import escape
from typing import Any

from bokeh.layouts import column, row
from bokeh.models import Div, HoverTool, Range1d, UIElement
from bokeh.plotting import figure

from fastcluster_lm.views.report.history import RunHistory
from fastcluster_lm.views.report.look import parts_style
from fastcluster_lm.views.report.sources import RunSources
from fastcluster_lm.views.summary import number

PLOT_PX = (400, 220)


def build_cost(data: RunSources, steps: Range1d) -> tuple[UIElement, list[figure], Div]:
    """Build the figures of loss and of times, and a text that `cost_words` fills."""
    loss = _figure(steps, "Training loss", "loss")
    loss.line("step", "loss", source=data.models.training, line_color="#4477aa")
    cost = _figure(steps, "Cost in milliseconds", "cost")
    for name, label, tint, sign in (
        ("probe_ms", "a probe", "#ee6677", "circle"),
        ("step_ms", "a training step", "#4477aa", "square"),
        ("probe_wait_ms", "training waits for probes", "#ccbb44", "triangle"),
    ):
        cost.scatter("step", name, source=data.models.training, marker=sign, size=4, color=tint, legend_label=label)
    cost.legend.label_text_font_size = "10px"
    cost.legend.padding = 2
    cost.legend.background_fill_alpha = 0.6
    cost.add_tools(
        HoverTool(
            tooltips=[
                ("step", "@step{0}"),
                ("probe", "@probe_ms{0} ms"),
                ("training step", "@step_ms{0.0} ms"),
                ("wait", "@probe_wait_ms{0.0} ms"),
            ]
        )
    )
    words = Div(text=cost_words(data.history), stylesheets=[parts_style()], sizing_mode="stretch_width")
    figures = row(loss, cost, styles={"flex-wrap": "wrap", "gap": "6px 14px"}, sizing_mode="stretch_width")
    return column(words, figures, sizing_mode="stretch_width"), [loss, cost], words


def cost_words(history: RunHistory) -> str:
    """Say in a sentence what the probes took beside training."""
    rows = history.step_rows
    probes = [value for row in rows if (value := number(row, "probe_ms")) is not None]
    if not probes:
        return "<p>Nothing was probed yet.</p>"
    waited = sum(number(row, "probe_wait_ms") or 0.0 for row in rows)
    steps = sum(number(row, "step_ms") or 0.0 for row in rows)
    resolved = history.config["resolved"]
    where = "beside training" if resolved.get("probe_worker") else "within training"
    return (
        f"<p>{len(probes)} probes took {sum(probes) / 1e3:.1f} s {where}, {sorted(probes)[len(probes) // 2]:.0f} ms in "
        f"the median; training took {steps / 1e3:.1f} s and waited {waited / 1e3:.1f} s for them, "
        f"{waited / max(waited + steps, 1e-9):.1%} of the run's time.</p>"
    )


def heading(history: RunHistory) -> str:
    """Say what the run is, for the top of its page."""
    config, resolved = history.config, history.config["resolved"]
    last = history.step_rows[-1] if history.step_rows else {}
    facts = [
        f"preset {config.get('name')}, seed {config.get('seed')}",
        f"{history.n_layers - 1} layers of width {config['model']['d_model']}",
        f"step {last.get('step', 0)} of {history.last_step}",
        f"engine {resolved.get('engine')} on {resolved.get('device')}",
        *_accuracy(history),
    ]
    return f"<h1>{escape(history.name)}</h1><p class=quiet>{escape('; '.join(facts))}</p>"


def _accuracy(history: RunHistory) -> list[str]:
    known: list[Mapping[str, Any]] = [row for row in history.step_rows if row.get("val_accuracy") is not None]
    facts = [f"validation accuracy {known[-1]['val_accuracy']:.3f}"] if known else []
    return facts + ([f"early-stopping mark {history.mark_step}"] if history.mark_step is not None else [])


def _figure(steps: Range1d, title: str, name: str) -> figure:
    drawn = figure(
        width=PLOT_PX[0],
        height=PLOT_PX[1],
        title=title,
        tools="",
        toolbar_location=None,
        name=name,
        x_axis_label="step",
        y_axis_type="log",
        x_range=steps,
    )
    drawn.title.text_font_size = "13px"
    return drawn
