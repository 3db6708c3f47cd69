"""The page of one run: its parts laid out and tied to the scripts; it reads no file and writes none."""

from html import escape

from bokeh.layouts import column
from bokeh.models import ColumnDataSource, CustomJS, Div, Range1d, Toggle, UIElement
from bokeh.plotting import figure

from fastcluster_lm.views.report import look
from fastcluster_lm.views.report.cost import build_cost, cost_words, heading
from fastcluster_lm.views.report.maps import build_maps
from fastcluster_lm.views.report.overview import build_overview
from fastcluster_lm.views.report.series import SCORES, UNBOUNDED
from fastcluster_lm.views.report.sources import RunSources


class RunPage:
    """A run's page, as a file's (packed) or as a live one, over the same models and scripts."""

    def __init__(self, data: RunSources, *, packed: bool, dark: Toggle) -> None:
        self.data, self._packed, self._dark = data, packed, dark
        data.fill(packed=packed)
        history, models = data.history, data.models
        self._heading = Div(text=heading(history), stylesheets=[look.parts_style()], sizing_mode="stretch_width")
        self._notes = Div(text=self._note(), stylesheets=[look.parts_style()], sizing_mode="stretch_width")
        kinds = [str(kind) for kind in models.sets.data] or ["task", "distribution", "input", "output", "split"]
        first = models.sets.data.get("split", [])
        self._steps = Range1d(-1, max(history.last_step, 1))
        self._overview = build_overview(data, self._steps)
        position = self._overview.selects["position"]
        self._maps = build_maps(data, kinds, len(first[0]) if len(first) else 0, position)
        cost, cost_figures, self._cost_words = build_cost(data, self._steps)
        maps, overview = self._maps, self._overview
        self.figures: list[figure] = [
            *maps.figures,
            *overview.heat_figures,
            *overview.curve_figures,
            *cost_figures,
            *([maps.table_figure] if maps.table_figure is not None else []),
        ]
        self.drawing = self._tie()
        self.root: UIElement = column(
            self._heading,
            overview.heat_maps(),
            _title("Maps of the states"),
            maps.whole,
            self._notes,
            _title("Scores, step by step"),
            overview.all_curves(),
            _title("What it cost"),
            cost,
            sizing_mode="stretch_width",
        )

    def refresh(self) -> None:
        """Take over what the run's history holds by now; the scripts draw it."""
        history = self.data.history
        self.data.fill(packed=self._packed)
        self._place_maps()
        self._heading.text, self._cost_words.text = heading(history), cost_words(history)
        self._notes.text = self._note()
        for mark in self._overview.marks:
            mark.location, mark.visible = history.mark_step, history.mark_step is not None

    def dress(self, figures: list[figure]) -> None:
        """Give more figures the colours of this page, light or dark."""
        self._theme.args["plots"] = [*self._theme.args["plots"], *figures]

    def say(self, text: str) -> None:
        """Put a message where the run's facts stand."""
        self._heading.text = f"<h1>{escape(self.data.history.name)}</h1><p>{escape(text)}</p>"

    def _note(self) -> str:
        shown, there = self.data.n_shown, len(self.data.history.map_steps)
        notes = [] if shown == there else [f"{shown} of {there} maps are shown, evenly, to keep this page small."]
        if self.data.has_tables:
            notes.append(
                "Clusters and tasks: KMeans on the map's validation points, computed for this page, since a run keeps "
                "no cluster labels; the scores' own KMeans ran on the states and on the whole map."
            )
        return f"<p class=quiet>{' '.join(notes)}</p>"

    def _place_maps(self) -> None:
        """Give each map's figure the square that holds its layer in all frames."""
        bounds = self.data.models.bounds.data
        for drawn, x, y, half in zip(self._maps.figures, bounds["x"], bounds["y"], bounds["half"], strict=False):
            drawn.x_range.update(
                start=float(x - half), end=float(x + half), reset_start=float(x - half), reset_end=float(x + half)
            )
            drawn.y_range.update(
                start=float(y - half), end=float(y + half), reset_start=float(y - half), reset_end=float(y + half)
            )

    def _tie(self) -> CustomJS:
        """Tie widgets and sources to the scripts; give the script that draws the page for the first time."""
        models, maps, overview = self.data.models, self._maps, self._overview
        self._place_maps()
        n_layers = self.data.history.n_layers
        scores = {"probes": models.probes, "scores": models.scores, "series": models.series}
        chosen = {**overview.selects, "layer": overview.layer, "dark": self._dark}
        maps_drawing = look.script(
            "maps",
            **scores,
            **chosen,
            frames=models.frames,
            maps=models.maps,
            sets=models.sets,
            bounds=models.bounds,
            names=self.data.names(),
            slider=maps.slider,
            play=maps.play,
            colour=maps.colour,
            part=maps.part,
            sources=maps.sources,
            headings=maps.headings,
            legend=maps.legend,
            memory=ColumnDataSource(),
            table=maps.table,
            cursors=overview.cursors,
            here=overview.here,
            table_title=maps.table_figure.title if maps.table_figure is not None else None,
            palette=list(look.PALETTE),
            markers=list(look.MARKERS),
            signs=list(look.SIGNS),
        )
        overview_drawing = look.script(
            "overview",
            **scores,
            **chosen,
            layers=n_layers,
            heat=overview.heat,
            axis=self._steps,
            mapper=overview.mapper,
            heat_titles=[drawn.title for drawn in overview.heat_figures],
            curves=overview.curves,
            tints_dark=look.layer_tints(n_layers, dark=True),
            tints_light=look.layer_tints(n_layers, dark=False),
            score_names=SCORES,
            unbounded=list(UNBOUNDED),
        )
        self._theme = theme = look.script(
            "theme",
            dark=self._dark,
            plots=self.figures,
            headings=maps.headings,
            inked=overview.inked,
            dark_look=look.DARK,
            light_look=look.LIGHT,
        )
        draw_all = look.script("all", theme=theme, overview=overview_drawing, maps_drawing=maps_drawing)
        play = look.script("play", play=maps.play, slider=maps.slider, frames=models.frames)
        goto = look.script("goto", layers=n_layers, layer=overview.layer, frames=models.frames, slider=maps.slider)
        for select in overview.selects.values():
            select.js_on_change("value", overview_drawing, maps_drawing)
        overview.layer.js_on_change("value", overview_drawing, maps_drawing)
        for widget in (maps.slider, maps.colour, maps.part):
            widget.js_on_change("value", maps_drawing)
        maps.play.js_on_change("active", play)
        self._dark.js_on_change("active", draw_all)
        for drawn in overview.heat_figures:
            drawn.js_on_event("tap", goto)
        if not self._packed:
            models.frames.js_on_change("data", draw_all)
            return draw_all
        return look.script("unpack", packed=models.packed, maps=models.maps, scores=models.scores, draw_all=draw_all)


def dark_toggle() -> Toggle:
    """Build the button that all pages of a document share; at first it is as the reader's system has it."""
    return Toggle(label="Dark", width=80, align="end", stylesheets=[look.parts_style()], name="dark")


def _title(text: str) -> Div:
    return Div(text=f"<h2>{text}</h2>", stylesheets=[look.parts_style()])
