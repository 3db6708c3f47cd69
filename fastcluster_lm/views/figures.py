"""A run as PNG figures, for a paper, a README or a mail; it reads a run folder, and no figure is interactive."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fastcluster_lm.errors import DataError
from fastcluster_lm.store import RunFolder, replace_file
from fastcluster_lm.views.positions import points_name
from fastcluster_lm.views.report.frames import bounds_of
from fastcluster_lm.views.report.history import RunHistory, read_history
from fastcluster_lm.views.report.look import PALETTE
from fastcluster_lm.views.report.series import NULLS, SCORES, ScoreBlocks, score_blocks
from fastcluster_lm.views.summary import accuracy_at

# one for each mark of the page's, as matplotlib names them
MARKS = ("o", "^", "s", "D", "v", "*", "H", "P", "X", "d")
GROUPS = {"all": "all points", "input": "points of one input", "input_output": "points of one input and output"}
SPACES = {"hidden": "hidden states", "map": "t-SNE map"}
NOT_METRIC = "a map's distances are not metric: only who is near whom has meaning"
DPI = 110
# share of the run at which its maps are shown, for a run that learns early and settles late
MOMENTS = (0.0, 0.07, 0.2, 1.0)


def write_figures(folder: RunFolder, out: Path, position: str | None = None) -> list[Path]:
    """Write run.png (both of the following in short), scores.png and maps.png of one token, the first by default.

    Errors: DataError if the run has no scores; RunFolderError if the run cannot be read or the folder not written;
            UsageError if there is no such token
    """
    history = read_history(folder, position)
    if not history.score_rows:
        raise DataError(f"{folder.path} has no scores, so there is nothing to draw; train with --probe-every 50, say")
    out.mkdir(parents=True, exist_ok=True)
    blocks = score_blocks(history.score_rows, history.n_layers)
    drawn = {"run": _short(history, blocks), "scores": _scores(history, blocks)}
    if history.map_steps:
        drawn["maps"] = _maps(history)
    written = []
    for name, figure in drawn.items():
        path = out / f"{name}.png"
        data = BytesIO()
        # without a software line, the same run gives the same bytes
        figure.savefig(data, format="png", dpi=DPI, metadata={"Software": None})
        replace_file(path, data.getvalue())
        written.append(path)
    return written


def _short(history: RunHistory, blocks: ScoreBlocks) -> Figure:
    """Draw heat map and null above, and the headline layer's map at some steps below."""
    figure = _figure(9.6, 5.9 if history.map_steps else 2.9)
    rows: Sequence[Any] = [figure]
    if history.map_steps:
        rows = figure.subfigures(2, 1, height_ratios=[1, 1.05])  # type: ignore[assignment]
    upper = rows[0].subplots(1, 2, sharey=True)
    image: Any = None
    for axes, column, title in zip(
        upper, ("ari", "null_ari"), ("task ARI", "its null: tasks reassigned at random"), strict=True
    ):
        image = _heat_map(axes, history, blocks, column)
        axes.set_title(title, fontsize=10)
    upper[0].set_ylabel("layer")
    rows[0].colorbar(image, ax=list(upper), fraction=0.03, pad=0.015)
    report = history.config["report"]
    rows[0].suptitle(
        f"{history.config['name']}, seed {history.config['seed']}: task clusters in each layer "
        f"({SPACES[report['space']]}, {GROUPS[report['group']]}, validation{_token(history)})",
        fontsize=11,
    )
    if history.map_steps:
        steps = _moments(history.map_steps)
        layer = history.headline_layer
        for axes, step in zip(rows[1].subplots(1, len(steps), squeeze=False)[0], steps, strict=True):
            _map(axes, history, step, layer, steps)
            axes.set_title(f"step {step}, accuracy {_accuracy(history, step)}", fontsize=9)
        rows[1].suptitle(f"t-SNE of layer {layer}, coloured by task ({NOT_METRIC})", fontsize=9)
    return figure


def _scores(history: RunHistory, blocks: ScoreBlocks) -> Figure:
    """Draw a panel for accuracy and for each score that has a null: layers as lines, the nulls' range as a band."""
    figure = _figure(11, 6)
    panels = figure.subplots(2, 3, sharex=True).ravel()
    known = [(row["step"], row["val_accuracy"]) for row in history.step_rows if row.get("val_accuracy") is not None]
    panels[0].plot(*zip(*known, strict=True), color="black", linewidth=1.4)
    panels[0].set_title("validation accuracy", fontsize=10)
    colours = _layer_colours(history.n_layers)
    for axes, (name, null) in zip(panels[1:], NULLS.items(), strict=True):
        values, nulls = (_block(history, blocks, column) for column in (name, null))
        if not np.isnan(nulls).all():
            # NaN at a step where no layer has a null
            low, high = np.fmin.reduce(nulls, 1), np.fmax.reduce(nulls, 1)
            axes.fill_between(blocks.steps, low, high, color="#bbbbbb", alpha=0.6, lw=0)
        for layer in range(history.n_layers):
            axes.plot(blocks.steps, values[:, layer], color=colours[layer], linewidth=1.2, label=f"layer {layer}")
        axes.set_title(SCORES[name], fontsize=10)
    for axes in panels:
        axes.set_ylim(-0.05, 1.05)
        if history.mark_step is not None:
            axes.axvline(history.mark_step, color="black", linestyle="-.", linewidth=0.8)
    for axes in panels[3:]:
        axes.set_xlabel("step")
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    report = history.config["report"]
    figure.suptitle(
        f"{history.name}: {SPACES[report['space']]}, {GROUPS[report['group']]}, validation{_token(history)}; "
        "grey: nulls; dash-dotted: early-stopping mark",
        fontsize=10,
    )
    return figure


def _maps(history: RunHistory) -> Figure:
    """Draw all layers, one a column, at some steps, one a row."""
    steps = _moments(history.map_steps)
    figure = _figure(1.7 * history.n_layers, 1.75 * len(steps) + 0.4)
    panels = figure.subplots(len(steps), history.n_layers, squeeze=False)
    for line, step in zip(panels, steps, strict=True):
        for layer, axes in enumerate(line):
            _map(axes, history, step, layer, steps)
            if not layer:
                axes.set_ylabel(f"step {step}", fontsize=9)
            if step == steps[0]:
                axes.set_title(f"layer {layer}", fontsize=9)
    figure.suptitle(f"{history.name}: t-SNE coloured by task{_token(history)}; {NOT_METRIC}", fontsize=9)
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _heat_map(axes: Axes, history: RunHistory, blocks: ScoreBlocks, column: str) -> Any:
    steps = np.array(blocks.steps, float)
    inner = (steps[1:] + steps[:-1]) / 2
    first, last = (steps[1] - steps[0], steps[-1] - steps[-2]) if len(steps) > 1 else (1.0, 1.0)
    edges = np.concatenate([[steps[0] - first / 2], inner, [steps[-1] + last / 2]])
    layers = np.arange(history.n_layers + 1) - 0.5
    drawn = axes.pcolormesh(edges, layers, _block(history, blocks, column).T, cmap="cividis", vmin=0, vmax=1)
    axes.set_xlabel("step")
    axes.set_yticks(range(history.n_layers))
    if history.mark_step is not None:
        axes.axvline(history.mark_step, color="white", linestyle="-.", linewidth=0.9)
    return drawn


def _map(axes: Axes, history: RunHistory, step: int, layer: int, steps: Sequence[int]) -> None:
    arrays, _ = history.read_map(step)
    name = points_name(history.config, history.position)
    points, task = arrays[name][layer], arrays["task"]
    for value in np.unique(task):
        own = points[task == value]
        axes.scatter(
            own[:, 0],
            own[:, 1],
            s=9,
            lw=0,
            color=PALETTE[value % len(PALETTE)],
            marker=MARKS[value // len(PALETTE) % len(MARKS)],
        )
    # one scale for all steps, as on the page
    shown = [np.moveaxis(history.read_map(one)[0][name], 2, 0) for one in steps]
    x, y, half = bounds_of(shown)[:, layer]
    axes.set(xlim=(x - half, x + half), ylim=(y - half, y + half), xticks=[], yticks=[], aspect="equal")


def _block(history: RunHistory, blocks: ScoreBlocks, column: str) -> np.ndarray:
    """Take a column of the headline's place: (probes, layers), NaN where there is none."""
    report = history.config["report"]
    name = f"{history.position}|val|{report['space']}|{report['group']}|task|{column}"
    if name not in blocks.series:
        return np.full((len(blocks.steps), history.n_layers), np.nan)
    return blocks.values[:, blocks.series.index(name)]


def _token(history: RunHistory) -> str:
    """Say which token is shown, where the run has several."""
    return f", {history.position} token" if len(history.positions) > 1 else ""


def _moments(steps: Sequence[int]) -> list[int]:
    """Choose the steps nearest to some shares of the run, each once."""
    wanted = [share * steps[-1] for share in MOMENTS]
    return sorted({min(steps, key=lambda step: abs(step - one)) for one in wanted})


def _accuracy(history: RunHistory, step: int) -> str:
    found = accuracy_at(history.step_rows, step)
    return "unknown" if found is None else f"{found:.2f}"


def _layer_colours(n_layers: int) -> list[tuple[float, float, float, float]]:
    return [colormaps["cividis"](layer / max(n_layers - 1, 1) * 0.85) for layer in range(n_layers)]
