"""Heat maps of layer by step, a score beside its null, and the curves of all scores; scripts fill them."""

from dataclasses import dataclass, field

from bokeh.layouts import column, row
from bokeh.models import (
    ColorBar,
    ColumnDataSource,
    Div,
    HoverTool,
    LinearColorMapper,
    Range1d,
    Select,
    Span,
    Title,
    UIElement,
)
from bokeh.plotting import figure

from fastcluster_lm.views.report.history import RunHistory
from fastcluster_lm.views.report.look import HEAT, parts_style
from fastcluster_lm.views.report.series import NULLS, SCORES
from fastcluster_lm.views.report.sources import RunSources

HEAT_PX = (560, 250)
CURVE_PX = (400, 230)
CAPTION = (
    "Lines are layers, from dark blue for the first to yellow for the last. The thick one is the chosen layer, dashed "
    "its <b>null</b>: the mean score when whole distributions are reassigned to tasks at random, or single points "
    "where no distributions are known (<code>null_kind</code>); the band holds the nulls of all layers. Dotted in the "
    "ARI: what a perfect clustering by output alone would score. ◆ is the probe from which on a score stays within 5 % "
    "of its last value, the dash-dotted line the early-stopping mark, the solid one the step of the maps."
)


@dataclass
class OverviewPart:
    """What the scripts need of this part, and the part itself."""

    selects: dict[str, Select]
    layer: Select
    # what all axes of steps show
    steps: Range1d
    heat: ColumnDataSource
    mapper: LinearColorMapper
    here: ColumnDataSource
    heat_figures: list[figure] = field(default_factory=list)
    curves: dict[str, dict[str, ColumnDataSource]] = field(default_factory=dict)
    curve_figures: list[figure] = field(default_factory=list)
    cursors: list[Span] = field(default_factory=list)
    marks: list[Span] = field(default_factory=list)
    # lines in the colour of the text, light or dark
    inked: list[object] = field(default_factory=list)

    def heat_maps(self) -> UIElement:
        """Lay out what is chosen and the heat maps of it."""
        hint = Div(
            text="<p class=quiet>A click shows that layer, and the maps of that step.</p>", stylesheets=[parts_style()]
        )
        return column(
            _wrapped(*self.selects.values(), self.layer),
            _wrapped(*self.heat_figures),
            hint,
            sizing_mode="stretch_width",
        )

    def all_curves(self) -> UIElement:
        """Lay out the curves and what their lines mean."""
        words = Div(text=f"<p class=quiet>{CAPTION}</p>", stylesheets=[parts_style()], sizing_mode="stretch_width")
        return column(_wrapped(*self.curve_figures), words, sizing_mode="stretch_width")


def build_overview(data: RunSources, steps: Range1d) -> OverviewPart:
    """Build two heat maps on one scale, and a figure of curves for each score that has a null, and for accuracy."""
    history = data.history
    report = history.config["report"]
    selects = {
        "position": _select("Token", history.position, history.positions, 120),
        "score": _select("Score", "ari", list(SCORES.items()), 210),
        "split": _select("Split", "val", [("val", "validation"), ("train", "training")], 110),
        "space": _select("Space", report["space"], [("hidden", "hidden states"), ("map", "t-SNE map")], 130),
        "group": _select(
            "Among points of",
            report["group"],
            [("all", "all inputs"), ("input", "one input"), ("input_output", "one input and output")],
            180,
        ),
        "labels": _select("Labels", "task", ["task", "distribution", "input", "output", "task_input"], 120),
    }
    # a run of one token has nothing to choose from
    selects["position"].visible = len(history.positions) > 1
    layer = _select("Layer", str(history.headline_layer), [str(i) for i in range(history.n_layers)], 70)
    heat = ColumnDataSource(
        {name: [] for name in ("left", "right", "bottom", "top", "step", "layer", "value", "chance")}
    )
    here = ColumnDataSource({name: [] for name in ("left", "right", "bottom", "top")})
    mapper = LinearColorMapper(palette=HEAT, low=0, high=1, nan_color="rgba(0,0,0,0)")
    part = OverviewPart(selects, layer, steps, heat, mapper, here)
    part.heat_figures = [_heat_map(part, history, name) for name in ("value", "chance")]
    part.curve_figures = [_accuracy(part, data), *(_curve(part, history, name) for name in NULLS)]
    return part


def _wrapped(*parts: UIElement) -> UIElement:
    return row(*parts, styles={"flex-wrap": "wrap", "gap": "6px 14px"}, sizing_mode="stretch_width")


def _select(title: str, value: str, options: list, width: int) -> Select:
    return Select(title=title, value=value, options=options, width=width, stylesheets=[parts_style()])


def _heat_map(part: OverviewPart, history: RunHistory, column_name: str) -> figure:
    drawn = figure(
        sizing_mode="stretch_width",
        max_width=HEAT_PX[0],
        height=HEAT_PX[1],
        # on a telephone one stands above the other
        styles={"flex": "1 1 340px"},
        tools="",
        toolbar_location=None,
        x_axis_label="step",
        x_range=part.steps,
        y_axis_label="layer",
        y_range=Range1d(-0.5, history.n_layers - 0.5),
        name=f"heat-{column_name}",
    )
    drawn.title = Title(text="", text_font_size="13px")
    # the line closes the gaps that smoothing leaves between cells
    tint = {"field": column_name, "transform": part.mapper}
    cells = drawn.quad("left", "right", "bottom", "top", source=part.heat, fill_color=tint, line_color=tint)
    drawn.quad(
        "left",
        "right",
        "bottom",
        "top",
        source=part.here,
        fill_color=None,
        line_color="#ee6677",
        line_width=2,
        level="overlay",
    )
    drawn.add_layout(ColorBar(color_mapper=part.mapper, width=10, padding=4), "right")
    drawn.add_tools(
        HoverTool(
            tooltips=[("step", "@step"), ("layer", "@layer"), ("score", "@value{0.000}"), ("null", "@chance{0.000}")],
            renderers=[cells],
        )
    )
    drawn.grid.visible = False
    drawn.yaxis.ticker.desired_num_ticks = min(history.n_layers, 12)
    drawn.yaxis.ticker.mantissas = [1, 2, 5]
    drawn.yaxis.ticker.min_interval = 1
    drawn.yaxis.minor_tick_line_color = None
    return drawn


def _curve(part: OverviewPart, history: RunHistory, name: str) -> figure:
    drawn = _curve_figure(part.steps, SCORES[name], f"curve-{name}")
    own = {
        "lines": ColumnDataSource({key: [] for key in ("xs", "ys", "tint", "width", "layer")}),
        "marks": ColumnDataSource({key: [] for key in ("x", "y", "tint", "layer")}),
        "band": ColumnDataSource({key: [] for key in ("x", "low", "high")}),
        "own_null": ColumnDataSource({"x": [], "y": []}),
        "ceiling": ColumnDataSource({"x": [], "y": []}),
    }
    drawn.varea("x", "low", "high", source=own["band"], fill_color="#8c959f", fill_alpha=0.3)
    lines = drawn.multi_line("xs", "ys", source=own["lines"], line_color="tint", line_width="width")
    drawn.scatter("x", "y", source=own["marks"], marker="diamond", size=9, fill_color="tint", line_color="tint")
    for key, dash in (("own_null", "dashed"), ("ceiling", "dotted")):
        line = drawn.line("x", "y", source=own[key], line_dash=dash, line_width=1.6)
        part.inked.append(line.glyph)
    drawn.add_tools(
        HoverTool(
            tooltips=[("layer", "@layer"), ("step", "$snap_x{0}"), ("score", "$snap_y{0.000}")],
            renderers=[lines],
            line_policy="nearest",
        )
    )
    part.curves[name] = own
    _add_cursor(part, history, drawn)
    return drawn


def _accuracy(part: OverviewPart, data: RunSources) -> figure:
    drawn = _curve_figure(part.steps, "Validation accuracy", "curve-accuracy")
    # a validation every few steps: what lies between has none
    line = drawn.scatter(
        "step", "val_accuracy", source=data.models.training, size=5, fill_color="#4477aa", line_color="#4477aa"
    )
    drawn.add_tools(HoverTool(tooltips=[("step", "@step{0}"), ("accuracy", "@val_accuracy{0.000}")], renderers=[line]))
    _add_cursor(part, data.history, drawn)
    return drawn


def _curve_figure(steps: Range1d, title: str, name: str) -> figure:
    drawn = figure(
        width=CURVE_PX[0],
        height=CURVE_PX[1],
        title=title,
        tools="xpan,xwheel_zoom,reset",
        name=name,
        active_scroll=None,
        active_drag=None,
        toolbar_location="right",
        x_axis_label="step",
        x_range=steps,
    )
    drawn.toolbar.autohide = True
    drawn.toolbar.logo = None
    drawn.title.text_font_size = "13px"
    drawn.y_range = Range1d(-0.05, 1.05)
    return drawn


def _add_cursor(part: OverviewPart, history: RunHistory, drawn: figure) -> None:
    """Add the line at the map's step and the one at the early-stopping mark."""
    # above all else, where a move leaves the rest of the figure as it is drawn
    cursor = Span(location=-1, dimension="height", line_width=1, level="overlay")
    mark = Span(location=history.mark_step, dimension="height", line_dash="dashdot", line_width=1.4)
    mark.visible = history.mark_step is not None
    drawn.add_layout(cursor)
    drawn.add_layout(mark)
    part.cursors.append(cursor)
    part.marks.append(mark)
    part.inked += [cursor, mark]
