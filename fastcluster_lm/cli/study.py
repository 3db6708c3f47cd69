"""`fclm study`: parse, run studies, print their verdicts; it measures and judges nothing itself."""

import sys
from pathlib import Path

import click

from fastcluster_lm.cli.base import listing, verbose


@click.command()
@click.argument("name")
@click.option(
    "--preset", default="nano", metavar="nano|paper", help="Size of the runs: minutes on a CPU, or for a GPU."
)
@click.option("--seeds", type=click.IntRange(min=1), default=5, help="Seeds, from 0 on; a verdict needs five.")
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("studies"), help="Folder of all results.")
@click.option(
    "--page",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With all: the page of verdicts goes here too; with real-llm: its section does, on the page that is there.",
)
@click.option(
    "--model",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="FOLDER",
    help="With real-llm: a local Hugging Face folder of safetensors in place of SmolLM2.",
)
@click.option("--plan", "only_plan", is_flag=True, help="Say what would be run and about how long, and run nothing.")
@verbose
@listing
def study(
    name: str, preset: str, seeds: int, out: Path, page: Path | None, model: Path | None, only_plan: bool, form: str
) -> None:
    """Run the study NAME, or `all`, and print its verdict beside the rule; `list` shows them.

    Finished runs are kept in the folder, so that a stop loses one run; studies share the runs they have in common.
    A verdict rests on one statistic a seed, paired with its control; p is adjusted over all studies.

    \b
    Example:
      fclm study list
      fclm study dynamics --preset nano --seeds 5 --plan
    """
    from fastcluster_lm.studies import APART, STUDIES, describe_plan, perform
    from fastcluster_lm.views import print_rows

    if name == "list":
        rows = [{"name": one.name, "question": one.question} for one in (*STUDIES.values(), *APART.values())]
        print_rows(rows, ("name", "question"), format=form, stream=sys.stdout)
        return
    if only_plan:
        click.echo(describe_plan(name, preset, seeds, out, model=model))
        return
    verdicts = perform(name, preset, seeds, out, lambda text: click.echo(text, err=True), page=page, model=model)
    rows = [verdict.to_dict() for verdict in verdicts]
    columns = ("study", "verdict", "mean", "low", "high", "margin", "p_adjusted", "reason", "claim", "rule")
    if form != "table":
        print_rows(rows, columns, format=form, stream=sys.stdout)
        return
    print_rows(rows, columns[:-3], stream=sys.stdout)
    for row in rows:
        click.echo(
            f"\n{row['study']}: {row['verdict']}: {row['reason']}\n  claim: {row['claim']}\n  rule: {row['rule']}"
        )
