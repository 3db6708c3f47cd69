"""`fclm bench`: parse, call a benchmark, print its lines; it measures nothing itself."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from fastcluster_lm.cli.base import verbose
from fastcluster_lm.errors import UsageError

KINDS = ("probe", "quality", "forces", "maps", "overhead", "scale", "train", "attached", "roofline")


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.option(
    "--shape", "shapes", metavar="N,D,K", multiple=True, help="Points, width, classes; each kind has its own."
)
@click.option(
    "--data", "source", type=click.Choice(["blobs", "digits", "states"]), default="blobs", help="Points used."
)
@click.option("--repeats", type=click.IntRange(min=1), default=3, help="Rounds, one after the other over all things.")
@click.option("--peer-layers", type=click.IntRange(1, 7), default=7, help="Layers that the libraries are timed on.")
@click.option("--preset", default="tiny", help="Run that overhead, maps and train measure.")
@click.option("--steps", type=click.IntRange(min=1), default=120, help="Training steps of overhead, maps and train.")
@click.option(
    "--every", "cadences", type=click.IntRange(min=1), multiple=True, help="Cadences of overhead; 50, 10 and 1."
)
@click.option(
    "--worker",
    "workers",
    type=click.Choice(["auto", "on", "off"]),
    multiple=True,
    help="Where probes of overhead and attached run; beside training and within.",
)
@click.option("--whole", is_flag=True, help="With overhead: whole commands from launch to end, at steps of its own.")
@click.option(
    "--threads", type=click.IntRange(min=0), default=0, help="CPU threads for both sides; 0 as torch chooses."
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON for each measurement.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="File that gets the lines of JSON too; roofline's gets its page.",
)
@verbose
def bench(kind: str, shapes: tuple[str, ...], as_json: bool, out: Path | None, **settings: Any) -> None:
    """Measure KIND, ours beside the libraries in one run, with the target beside each figure.

    probe: a cold and a warm probe of seven layers; quality: KL, inertia, recall; forces: exact repulsion against a
    plain C++ loop; maps: warm maps against cold ones at equal steps of a run; overhead: what probes cost; scale:
    growth with points and width; train: a training step against transformers; attached: what a probe takes of
    somebody's own loop. roofline measures nothing: it computes
    the least time that kernels, probes and training steps need on two GPUs, and prints a page.

    \b
    Example:
      fclm bench forces --shape 300,2,1 --repeats 3
    """
    if kind == "roofline" and not as_json:
        from fastcluster_lm.benchmarks.roofline_page import page

        # no torch is needed for it
        if out is None:
            click.echo(page(), nl=False)
        else:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(page(), encoding="utf-8")
        return
    from fastcluster_lm.benchmarks.harness import surroundings, write_lines
    from fastcluster_lm.benchmarks.run import run_benchmark, verdict

    lines = []
    found = run_benchmark(kind, shapes=[_shape(text) for text in shapes], **settings)
    where = None
    for line in found:
        where = where or surroundings()
        lines.append({**line, **where})
        click.echo(json.dumps(lines[-1]) if as_json else verdict(line))
        sys.stdout.flush()
    if out is not None:
        write_lines(out, lines)


def _shape(text: str) -> tuple[int, int, int]:
    try:
        n, width, k = (int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--shape: expected N,D,K such as 1000,32,10, got {text!r}") from None
    return n, width, k
