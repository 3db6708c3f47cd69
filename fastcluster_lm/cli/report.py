"""`fclm report` and `fclm watch`: parse, read the runs, call the views; it draws nothing."""

import sys
from pathlib import Path

import click

from fastcluster_lm.cli.base import verbose
from fastcluster_lm.errors import UsageError


@click.command()
@click.argument("run", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="File to write; RUN/report.html for one run.")
@click.option("--png", type=click.Path(path_type=Path), metavar="FOLDER", help="Write figures as PNG here instead.")
@click.option("--position", metavar="NAME", help="Token to show, of runs that probe several; the first by default.")
@verbose
def report(run: tuple[Path, ...], out: Path | None, png: Path | None, position: str | None) -> None:
    """Show RUN, or several, as one HTML file that opens without a network.

    It has the scores of every layer at every probe beside their nulls, the maps of all layers with a slider over
    steps, the cost, and a comparison where there are several runs. The figures of --png are of one run. The page of a
    run that probes several tokens shows each, the one that is named first.

    \b
    Example:
      fclm report RUN -o report.html
    """
    from fastcluster_lm.store import RunFolder, replace_file
    from fastcluster_lm.views.extras import require

    folders = [RunFolder.open(path) for path in run]
    if png is not None:
        if out is not None or len(run) > 1:
            raise UsageError("--png: expected one run and no --out, got more; figures are of one run")
        require("matplotlib", extra="report", purpose="fclm report --png")
        from fastcluster_lm.views.figures import write_figures

        for written in write_figures(folders[0], png, position):
            click.echo(written)
        return
    require("bokeh", extra="report", purpose="fclm report")
    from fastcluster_lm.engine.reading import clusters_by_task, instruction_texts
    from fastcluster_lm.views.report.history import read_history
    from fastcluster_lm.views.report.sources import RunSources
    from fastcluster_lm.views.report.write import report_html

    if out is None:
        out = run[0] / "report.html" if len(run) == 1 else Path("report.html")
    sources = [
        RunSources(read_history(folder, position), texts=instruction_texts(folder), tabulate=clusters_by_task)
        for folder in folders
    ]
    page = report_html(sources).encode()
    replace_file(out, page)
    click.echo(f"{out} ({len(page) / 1e6:.1f} MB)")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--port", type=click.IntRange(0, 65535), default=5006, help="Port on this machine; 0 takes a free one.")
@click.option(
    "--idle-exit",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="End once the run is over and no page has been open for so long.",
)
@click.option("--position", metavar="NAME", help="Token to show first, of a run that probes several.")
@verbose
def watch(run: Path, port: int, idle_exit: float | None, position: str | None) -> None:
    """Show RUN while it runs, in a browser on this machine; the page stays when training ends.

    Only the address that is printed opens it, or the same with localhost: a link on another page does not. From another
    machine, give a tunnel the same port at both ends: ssh -L 5006:127.0.0.1:5006 HOST. Eight pages can be open at once.

    \b
    Example:
      fclm watch RUN --port 0 --idle-exit 0
    """
    from fastcluster_lm.store import RunFolder
    from fastcluster_lm.views.extras import require

    folder = RunFolder.open(run)
    require("bokeh", extra="report", purpose="fclm watch")
    from fastcluster_lm.engine.reading import clusters_by_task, instruction_texts
    from fastcluster_lm.views.report.live import LivePages

    pages = LivePages(folder, port=port, texts=instruction_texts(folder), tabulate=clusters_by_task, position=position)

    def say(url: str) -> None:
        click.echo(f"{url} shows {run}; Ctrl-C ends it")
        sys.stdout.flush()

    pages.serve(say, idle_exit_s=idle_exit)
