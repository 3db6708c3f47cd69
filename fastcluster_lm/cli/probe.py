"""`fclm probe`: parse, call the engine, print rows; it loads and scores nothing itself."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastcluster_lm.cli.base import listing, verbose
from fastcluster_lm.config import ENGINES
from fastcluster_lm.errors import UsageError

if TYPE_CHECKING:
    from fastcluster_lm.tasks import QuestionSet, TaskSet

# the tasks that come with the package
FACTS = "facts"


class StepType(click.ParamType):
    name = "step"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == "all" or isinstance(value, int):
            return value
        if not value.isdecimal():
            self.fail(f"{value!r} is neither a step nor all.", param, ctx)
        return int(value)


class LayersType(click.ParamType):
    name = "layers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        layers: list[int] = []
        for part in value.split(","):
            first, dash, last = part.partition("-")
            if not first.isdecimal() or (dash and not last.isdecimal()):
                self.fail(f"{value!r} is no list of layers such as 0,3,6 or 0-6.", param, ctx)
            layers += range(int(first), int(last if dash else first) + 1)
        if not layers:
            self.fail(f"{value!r} names no layer.", param, ctx)
        return tuple(layers)


@click.command()
@click.argument("folder", metavar="RUN|HF_FOLDER")
@click.option("--tasks", metavar="FILE|facts", help="Tasks to ask, as a TOML file or `facts`; a run's own by default.")
@click.option("--step", type=StepType(), metavar="STEP|all", help="Checkpoints of RUN to score; the newest by default.")
@click.option("--layers", type=LayersType(), metavar="LIST", help="Layers to score, as 0,3,6 or 0-6; 0: the embedding.")
@click.option(
    "--space", type=click.Choice(["hidden", "map", "all"]), default="all", help="Without the map it is much quicker."
)
@click.option("--instances", type=click.IntRange(min=2), metavar="N", help="Instances a split, or prompts, to score.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of what is chosen and of the scores.")
@click.option("--engine", type=click.Choice(("auto", *ENGINES)), help="Scoring engine.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where the model runs and is scored.")
@click.option("--batch-size", type=click.IntRange(min=1), metavar="N", help="Instances of one forward.")
@click.option("-s", "--set", "assignments", metavar="KEY=VALUE", multiple=True, help="A value of probe or scores.")
@click.option(
    "--chat/--no-chat",
    default=None,
    help="Ask through the tokenizer's chat template, or not; as it has one, by default.",
)
@click.option("--download", is_flag=True, help="Take a name on the Hugging Face hub, and fetch that model.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="New folder for rows and maps.")
@verbose
@listing
def probe(
    folder: str,
    tasks: str | None,
    step: int | str | None,
    layers: tuple[int, ...] | None,
    space: str,
    instances: int | None,
    seed: int | None,
    engine: str | None,
    device: str | None,
    batch_size: int | None,
    assignments: tuple[str, ...],
    chat: bool | None,
    download: bool,
    out: Path | None,
    form: str,
) -> None:
    """Score a model that exists: a checkpoint of RUN, or the language model of transformers in HF_FOLDER.

    The rows are those of scores.jsonl. Those of RUN are what a full probe within training gives, each map cold; RUN is
    not written to. --out makes a folder that `fclm scores` and `fclm report` read. States go through a file (beside
    DIR, or where TMPDIR says), and as many layers are scored at once as scores.memory_mib holds, one at least.

    A model in HF_FOLDER is asked in words, and scored at the last token of each prompt; its weights must be
    safetensors. Nothing is fetched from a network without --download. FILE then has tasks over the same inputs:

    \b
      ending = "\\nAnswer:"                      # behind every wording; may be left out
      [[tasks]]                                 # two or more
      name = "capital"
      wordings = ["What is the capital of {input}?", "{input} is ruled from which town?"]
      table = { France = "Paris", Japan = "Tokyo" }

    Scores within one input need five wordings a task; nulls need two.

    \b
    Example:
      fclm probe RUN --space hidden --layers 1-2
    """
    from fastcluster_lm.engine.hugging_face import find_folder
    from fastcluster_lm.engine.probe_work import ProbeOptions
    from fastcluster_lm.engine.probing import probe_model, probe_run, settings_for
    from fastcluster_lm.views import print_scores

    typed = {"probe.seed": seed, "scores.engine": engine, "device": device, "probe.n_points": instances}
    configure = settings_for(assignments, {key: value for key, value in typed.items() if value is not None})
    options = ProbeOptions(layers, ("hidden", "map") if space == "all" else (space,), batch_size, out)
    path, is_run = find_folder(folder, download=download)
    wrong = {"--chat": is_run and chat is not None, "--step": not is_run and step is not None}
    for option, given in wrong.items():
        if given:
            raise UsageError(f"{option}: expected with {'HF_FOLDER' if is_run else 'RUN'} alone; leave it out")
    if is_run:
        taskset = None if tasks is None else _load_taskset(tasks)
        rows = probe_run(path, configure, options, step=step, taskset=taskset, say=_say)
    else:
        rows = probe_model(path, _load_questions(tasks), configure, options, chat=chat, say=_say)
    print_scores(rows, format=form, stream=sys.stdout)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _load_taskset(tasks: str) -> "TaskSet":
    from fastcluster_lm.tasks import load_taskset

    if tasks == FACTS:
        raise UsageError("--tasks: expected a TOML file of expressions for RUN, got facts, which are asked in words")
    return load_taskset(tasks)


def _load_questions(tasks: str | None) -> "QuestionSet":
    from fastcluster_lm.tasks import load_questions

    if tasks is None:
        raise UsageError("--tasks: expected facts, or a TOML file; a model in HF_FOLDER comes without tasks")
    if tasks != FACTS:
        return load_questions(tasks)
    from fastcluster_lm.studies.fact_questions import fact_questions

    return fact_questions()
