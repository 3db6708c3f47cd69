"""The maps of every layer, their slider and their legend, and the table of clusters and tasks; scripts fill them."""

from dataclasses import dataclass

from bokeh.layouts import column, row
from bokeh.models import (
    ColumnDataSource,
    CustomJSTickFormatter,
    Div,
    HoverTool,
    Label,
    LinearColorMapper,
    Range1d,
    Select,
    Slider,
    Toggle,
    UIElement,
)
from bokeh.plotting import figure

from fastcluster_lm.views.report.frames import label_names
from fastcluster_lm.views.report.history import RunHistory
from fastcluster_lm.views.report.look import HEAT, parts_style, text_file
from fastcluster_lm.views.report.sources import RunSources

# toolbar and border taken off, a square: x and y have one scale
MAP_PX = (268, 240)
TABLE_PX = 420
# beyond this many points on the page WebGL draws; below, a canvas is as quick and needs no graphics card
WEBGL_POINTS = 10_000

NOT_METRIC = (
    "<b>A map's distances are not metric.</b> t-SNE keeps who is near whom; gaps between groups, their sizes and their "
    "densities mean nothing, and two groups far apart may be close in the states. Judge by the scores, most of which "
    "are of the states themselves, and by their nulls. A map goes on from the one before unless it started cold."
)


@dataclass
class MapsPart:
    """What the scripts need of this part, and the part itself."""

    slider: Slider
    play: Toggle
    colour: Select
    part: Select
    legend: Div
    figures: list[figure]
    headings: list[Label]
    sources: list[ColumnDataSource]
    table: ColumnDataSource | None
    table_figure: figure | None
    whole: UIElement


def build_maps(data: RunSources, kinds: list[str], n_points: int, position: Select) -> MapsPart:
    """Build a figure for each layer, of one scale in x and y, all without axes: coordinates have no meaning.

    position: the token whose points are shown, where there are several
    """
    history = data.history
    slider = Slider(
        start=0,
        end=1,
        value=0,
        step=1,
        title="Step",
        tooltips=False,
        # the slider writes these words itself; a text of its own beside it would lay out the page at each step
        format=CustomJSTickFormatter(
            args={"frames": data.models.frames, "position": position}, code=text_file("callbacks/step.js")
        ),
        disabled=True,
        sizing_mode="stretch_width",
        stylesheets=[parts_style()],
        styles={"min-width": "260px"},
    )
    play = Toggle(label="▶ Play", width=90, disabled=True, stylesheets=[parts_style()])
    colour = Select(title="Colour", value="task", options=kinds, width=130, stylesheets=[parts_style()])
    part = Select(
        title="Points", value="both", options=["both", "training", "validation"], width=120, stylesheets=[parts_style()]
    )
    legend = Div(text="", stylesheets=[parts_style()], sizing_mode="stretch_width")
    backend = "webgl" if n_points * history.n_layers > WEBGL_POINTS else "canvas"
    sources = [
        ColumnDataSource({"x": [], "y": [], "fill": [], "mark": [], "text": []}) for _ in range(history.n_layers)
    ]
    headings = [_label(layer) for layer in range(history.n_layers)]
    figures = [
        _map_figure(layer, source, label, backend)
        for layer, (source, label) in enumerate(zip(sources, headings, strict=True))
    ]
    table, table_figure = _confusion(history) if data.has_tables else (None, None)
    drawn = [*figures, *([table_figure] if table_figure is not None else [])]
    whole = column(
        row(
            play,
            slider,
            colour,
            part,
            sizing_mode="stretch_width",
            styles={"flex-wrap": "wrap", "gap": "4px 14px", "align-items": "center"},
        ),
        legend,
        row(
            *drawn, styles={"flex-wrap": "wrap", "gap": "6px", "align-items": "flex-start"}, sizing_mode="stretch_width"
        ),
        Div(text=f"<p class=quiet>{NOT_METRIC}</p>", stylesheets=[parts_style()], sizing_mode="stretch_width"),
        sizing_mode="stretch_width",
    )
    return MapsPart(slider, play, colour, part, legend, figures, headings, sources, table, table_figure, whole)


def _label(layer: int) -> Label:
    """Build a map's heading; within the frame and above all else, since a new title would lay out the whole figure."""
    return Label(
        x=4,
        y=MAP_PX[1] - 6,
        x_units="screen",
        y_units="screen",
        text=f"Layer {layer}",
        text_baseline="top",
        text_font_size="12px",
        level="overlay",
        name=f"label-{layer}",
    )


def _map_figure(layer: int, source: ColumnDataSource, label: Label, backend: str) -> figure:
    drawn = figure(
        width=MAP_PX[0],
        height=MAP_PX[1],
        # the table beside it has axes below, for which no room is left here
        frame_align=False,
        x_axis_type=None,
        y_axis_type=None,
        tools="pan,wheel_zoom,box_zoom,reset",
        active_scroll=None,
        toolbar_location="right",
        output_backend=backend,
        min_border=2,
        x_range=Range1d(-1, 1),
        y_range=Range1d(-1, 1),
        name=f"map-{layer}",
    )
    drawn.toolbar.autohide = True
    drawn.toolbar.logo = None
    drawn.scatter("x", "y", source=source, size=5, marker="mark", fill_color="fill", line_color=None, fill_alpha=0.85)
    drawn.add_tools(HoverTool(tooltips='<div style="white-space: pre-line">@text</div>', limit=4))
    drawn.add_layout(label)
    return drawn


def _confusion(history: RunHistory) -> tuple[ColumnDataSource, figure]:
    """Build the table of clusters by task; a cluster's row is put where its task is, so the diagonal is what fits."""
    n_tasks = len(label_names(history.config, ["task"])["task"])
    source = ColumnDataSource({"cluster": [], "task": [], "name": [], "count": [], "share": []})
    drawn = figure(
        width=TABLE_PX,
        height=MAP_PX[1] + 20,
        title="Clusters and tasks",
        tools="",
        toolbar_location=None,
        x_range=Range1d(-0.5, n_tasks - 0.5),
        y_range=Range1d(n_tasks - 0.5, -0.5),
        name="clusters",
        x_axis_label="task",
        y_axis_label="cluster of the map (KMeans)",
    )
    mapper = LinearColorMapper(palette=HEAT, low=0, high=1)
    drawn.rect(
        "task",
        "cluster",
        width=1,
        height=1,
        source=source,
        line_color=None,
        fill_color={"field": "share", "transform": mapper},
    )
    drawn.add_tools(
        HoverTool(
            tooltips=[
                ("task", "@name"),
                ("cluster", "@cluster"),
                ("points", "@count"),
                ("share of the cluster", "@share{0%}"),
            ]
        )
    )
    drawn.grid.visible = False
    drawn.title.text_font_size = "12px"
    return source, drawn
