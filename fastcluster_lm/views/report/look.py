"""Colours, marks and script files of the page; it knows no data."""

from importlib import resources
from typing import Any

from bokeh.models import CustomJS, InlineStyleSheet
from bokeh.palettes import Bright7, Cividis256

# Paul Tol's bright scheme, told apart with every common colour blindness, on light and on dark
PALETTE: tuple[str, ...] = tuple(Bright7)
# a class beyond the seventh takes the next mark, so 70 classes differ in colour or mark
MARKERS = (
    "circle",
    "triangle",
    "square",
    "diamond",
    "inverted_triangle",
    "star",
    "hex",
    "plus",
    "square_pin",
    "circle_x",
)
SIGNS = ("●", "▲", "■", "◆", "▼", "★", "⬢", "✚", "✦", "⊗")
HEAT = tuple(Cividis256)

LIGHT = {"page": "#ffffff", "plot": "#ffffff", "text": "#1c2128", "line": "#8c959f", "grid": "#e7ebef"}
DARK = {"page": "#14181d", "plot": "#1a1f26", "text": "#e6edf3", "line": "#57606a", "grid": "#2a313a"}


def layer_tints(n_layers: int, *, dark: bool) -> list[str]:
    """Give each layer its colour, ordered by depth, without the end of the scale that the background swallows."""
    low, high = (90, 255) if dark else (0, 200)
    return [HEAT[round(low + (high - low) * layer / max(n_layers - 1, 1))] for layer in range(n_layers)]


def script(name: str, **args: Any) -> CustomJS:
    """Read a script of the page and give it the models it works on."""
    return CustomJS(args=args, code=text_file(f"callbacks/{name}.js"))


def text_file(name: str) -> str:
    """Read a file that lies beside this one."""
    return (resources.files("fastcluster_lm.views.report") / name).read_text(encoding="utf-8")


def parts_style() -> InlineStyleSheet:
    """Give the style of everything that is not a figure; it follows the page's own light or dark."""
    return InlineStyleSheet(css=text_file("parts.css"))
