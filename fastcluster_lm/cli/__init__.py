"""The command line: parse, call the engine, print; it computes nothing."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from fastcluster_lm import __version__
from fastcluster_lm.cli.base import CommandGroup, listing, verbose
from fastcluster_lm.cli.bench import bench
from fastcluster_lm.cli.beside import Beside
from fastcluster_lm.cli.doctor import doctor
from fastcluster_lm.cli.export import export
from fastcluster_lm.cli.probe import probe
from fastcluster_lm.cli.report import report, watch
from fastcluster_lm.cli.signals import Signals, stoppable
from fastcluster_lm.cli.streams import lasting_streams
from fastcluster_lm.cli.study import study
from fastcluster_lm.config import ENGINES
from fastcluster_lm.errors import ConfigError


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fclm")
def main() -> None:
    """Train a language model and score, inside the loop, how its hidden states gather into task clusters.

    \b
    Example:
      fclm --version
    """


@main.command()
@click.option("--preset", metavar="NAME", help="Whole run by name; tiny if neither this nor --config is given.")
@click.option("-c", "--config", "config_file", type=click.Path(path_type=Path), help="TOML file laid over the preset.")
@click.option("-s", "--set", "assignments", metavar="KEY=VALUE", multiple=True, help="One value, laid over all else.")
@click.option("--probe-every", type=click.IntRange(min=0), metavar="N", help="Steps between probes; 0 is off.")
@click.option("--engine", type=click.Choice(("auto", *ENGINES)), help="Scoring engine.")
@click.option("--probe-points", type=click.IntRange(min=2), metavar="N", help="Instances a split that are scored.")
@click.option(
    "--probe-source", type=click.Choice(["fresh", "batch"]), help="Training states scored: run afresh or as they come."
)
@click.option("--seed", type=click.IntRange(min=0), help="Seed of weights, batches and tasks.")
@click.option("--out", type=click.Path(path_type=Path), metavar="RUN", help="New run folder; dated under runs/.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with a run that was stopped.")
@click.option("--from-step", type=click.IntRange(min=0), metavar="N", help="With --resume: the checkpoint; 0 is none.")
@click.option("--on-this-machine", is_flag=True, help="With --resume: go on though the machine gives other bits.")
@click.option("--live", is_flag=True, help="Show the run in a browser on this machine, as `fclm watch` does.")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard event files to RUN/tensorboard too.")
@verbose
@lasting_streams
@stoppable
def train(
    preset: str | None,
    config_file: Path | None,
    assignments: tuple[str, ...],
    probe_every: int | None,
    engine: str | None,
    probe_points: int | None,
    probe_source: str | None,
    seed: int | None,
    out: Path | None,
    resume: Path | None,
    from_step: int | None,
    on_this_machine: bool,
    live: bool,
    tensorboard: bool,
    signals: Signals,
) -> None:
    """Train a model and score its hidden states every few steps.

    Values are laid over each other in this order: preset, config file, --set, the other options. Keys of --set and
    of the file are listed by `fclm data --settings`.

    \b
    Example:
      fclm train --preset tiny --probe-every 10 -s training.steps=20
    """
    # whoever calls this from Python may have computed with it, and has threads that a copy would lack
    fresh = "torch" not in sys.modules
    from fastcluster_lm import engine as wiring
    from fastcluster_lm.config import RunConfig, apply_settings, load_config, load_preset
    from fastcluster_lm.kernels import native
    from fastcluster_lm.views import Progress, print_closing

    options = {
        "probe.every": probe_every,
        "scores.engine": engine,
        "probe.n_points": probe_points,
        "probe.source": probe_source,
        "seed": seed,
    }
    typed = [*assignments, *(f"{key}={value}" for key, value in options.items() if value is not None)]

    def lay_over(stored: RunConfig | None = None) -> RunConfig:
        config = stored if stored is not None and preset is None else load_preset(preset or "tiny")
        if config_file is not None:
            config = load_config(config_file, config, chosen=[text.partition("=")[0].strip() for text in typed])
        if probe_points is not None and not any(text.startswith("probe.map_points=") for text in assignments):
            # a smaller probe set takes its map along
            typed.append(f"probe.map_points={min(config.probe.map_points, probe_points)}")
        return apply_settings(config, typed)

    if resume is None and (from_step is not None or on_this_machine):
        option = "--on-this-machine" if on_this_machine else "--from-step"
        raise ConfigError(f"{option}: expected with --resume RUN alone; a new run begins here, at step 0")
    if resume is not None and out is not None:
        raise ConfigError(f"expected one of --out and --resume, got both; --resume goes on writing to {resume}")
    if resume is None:
        asked = lay_over()
        path = out if out is not None else wiring.default_run_path(asked.name)
    else:
        folder = wiring.RunFolder.open(resume)
        path, asked = Path(folder.path), lay_over(wiring.stored_config(folder.config(), str(resume)))
    # before a run folder is there: a signal ends a compilation at once
    native.prepare(lambda text: click.echo(text, err=True))
    signals.run, report = path, asked.report
    positions = asked.probe.all_positions
    progress = Progress(asked.training.steps, sys.stderr, space=report.space, group=report.group, position=positions[0])
    with (
        # before all that has a thread
        wiring.worker_ahead(asked) if fresh else nullcontext() as ahead,
        Beside(live=live, tensorboard=tensorboard, position=positions[0]) as beside,
        progress,
    ):

        def say_where(folder: Any, step: int) -> None:
            progress.note(f"run folder {folder.path}, from step {step}")
            beside.start(folder.path, step)
            # from here on a step that is begun is finished and saved
            signals.patient = True

        def show(row: Any, scores: Any) -> None:
            progress.update(row, scores)
            beside.update(row, scores)

        hooks = wiring.Hooks(progress.note, say_where, show, signals.wants_end, signals.wants_save)
        if resume is None:
            outcome = wiring.start_run(asked, path, hooks, ahead=ahead)
        else:
            outcome = wiring.resume_run(
                resume, hooks, wanted=lambda _: asked, from_step=from_step, on_this_machine=on_this_machine, ahead=ahead
            )
    signals.patient = False
    signals.finished = outcome.finished
    if signals.wants_end():
        raise KeyboardInterrupt
    if outcome.already_finished:
        click.echo(f"{path} is finished ({asked.training.steps} steps); there is nothing to resume", err=True)
    print_closing(
        outcome.folder.scores(),
        outcome.folder.steps(),
        outcome.folder.summary() or {},
        space=report.space,
        group=report.group,
        layer=asked.headline_layer,
        positions=positions,
        stream=sys.stdout,
    )


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--step", type=int, help="Only this step.")
@click.option("--position", metavar="NAME", help="Only this token, of a run that probes several.")
@click.option("--layer", type=int, help="Only this layer; 0 is the embedding.")
@click.option("--split", type=click.Choice(["train", "val"]), help="Only this split.")
@click.option("--space", type=click.Choice(["hidden", "map"]), help="Only this space.")
@click.option("--group", type=click.Choice(["all", "input", "input_output"]), help="Only this group.")
@click.option(
    "--labels",
    type=click.Choice(["task", "distribution", "input", "output", "task_input"]),
    help="Only scores against these labels.",
)
@click.option("--sparklines", is_flag=True, help="A row for each place, with bars from 0 to 1 over all steps.")
@verbose
@listing
def scores(run: Path, form: str, sparklines: bool, position: str | None, **filters: Any) -> None:
    """Print the scores of a run: all rows as JSON or CSV, the chosen ones as a table.

    \b
    Example:
      fclm scores RUN --labels task --split val --group input_output
    """
    from fastcluster_lm.store import RunFolder
    from fastcluster_lm.views import print_rows, print_scores, sparkline_rows
    from fastcluster_lm.views.positions import chosen_position, rows_at

    folder = RunFolder.open(run)
    rows = folder.scores()
    if position is not None:
        rows = rows_at(rows, chosen_position(folder.config(), position))
    chosen = {key: value for key, value in filters.items() if value is not None}
    rows = [row for row in rows if all(row[key] == value for key, value in chosen.items())]
    if sparklines:
        drawn = sparkline_rows(rows)
        print_rows(drawn, tuple(drawn[0]) if drawn else ("layer",), format=form, stream=sys.stdout)
        return
    print_scores(rows, format=form, stream=sys.stdout)


for command in (bench, doctor, export, probe, report, study, watch):
    main.add_command(command)


@main.command()
@click.argument("root", type=click.Path(path_type=Path), required=False)
@verbose
@listing
def runs(root: Path | None, form: str) -> None:
    """List the run folders in ROOT; without it, those in `runs`, if there are any yet.

    A run that cannot be read is listed with what is wrong with it.

    \b
    Example:
      fclm runs --json
    """
    from fastcluster_lm.store import list_runs
    from fastcluster_lm.views import RUN_COLUMNS, print_rows, run_overview

    folders = [] if root is None and not Path("runs").exists() else list_runs(root or Path("runs"))
    rows = [run_overview(folder) for folder in folders]
    print_rows(rows, RUN_COLUMNS if rows else ("run",), format=form, stream=sys.stdout)


@main.command()
@click.option("--preset", metavar="NAME", help="Preset whose tasks are shown; tiny by default.")
@click.option("-c", "--config", "config_file", type=click.Path(path_type=Path), help="TOML file laid over the preset.")
@click.option("-s", "--set", "assignments", metavar="KEY=VALUE", multiple=True, help="One value, laid over all else.")
@click.option("--tasks", "tasks_file", type=click.Path(path_type=Path), help="A task set of your own, to check.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the task set.")
@click.option("--settings", is_flag=True, help="List every configuration key instead.")
@verbose
@listing
def data(
    preset: str | None,
    config_file: Path | None,
    assignments: tuple[str, ...],
    tasks_file: Path | None,
    seed: int | None,
    settings: bool,
    form: str,
) -> None:
    """Print and check a task set: a row for each instruction distribution, with an example instruction.

    What a run of these settings takes on disk is said on stderr.

    \b
    Example:
      fclm data --preset tiny --seed 3
    """
    from fastcluster_lm.config import apply_settings, describe_settings, load_config, load_preset
    from fastcluster_lm.views import print_rows

    if settings:
        keys = ("key", "type", "default", "meaning")
        print_rows(
            [dict(zip(keys, row, strict=True)) for row in describe_settings()], keys, format=form, stream=sys.stdout
        )
        return
    from fastcluster_lm.store.disk_plan import check_budget, plan_disk
    from fastcluster_lm.tasks import describe_taskset, taskset_of

    config = load_preset(preset or "tiny")
    if config_file is not None:
        config = load_config(config_file, config)
    typed = [*assignments, *([f"seed={seed}"] if seed is not None else [])]
    config = apply_settings(config, typed)
    if tasks_file is not None:
        config = apply_settings(config, [f'tasks.file="{tasks_file}"'])
    taskset = taskset_of(config.tasks, config.seed)
    rows = describe_taskset(taskset)
    plan = plan_disk(config, taskset)
    limited = check_budget(plan, config.store.max_mib)
    click.echo(f"a run takes {plan}" + (f"; {limited}" if limited else ""), err=True)
    print_rows(rows, tuple(rows[0]), format=form, stream=sys.stdout)
