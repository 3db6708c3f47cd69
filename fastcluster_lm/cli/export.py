"""`fclm export`: parse, call the engine, print the folder; it writes nothing itself."""

from pathlib import Path

import click

from fastcluster_lm.cli.base import verbose
from fastcluster_lm.errors import UsageError


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("out", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "form",
    type=click.Choice(["hf", "parquet"]),
    required=True,
    help="A model for transformers, or tables for other viewers.",
)
@click.option("--step", type=click.IntRange(min=0), help="Checkpoint that is exported; the last by default.")
@verbose
def export(run: Path, out: Path, form: str, step: int | None) -> None:
    """Write what RUN holds into a new folder, DIR (OUT), in a form that other programs read.

    hf: weights and tokens, for AutoModelForCausalLM and AutoTokenizer; parquet: scores.parquet and steps.parquet.

    \b
    Example:
      fclm export RUN --to hf exported
      fclm export RUN --to parquet tables
    """
    from fastcluster_lm.engine.export import export_hugging_face, export_parquet

    if form == "parquet" and step is not None:
        raise UsageError("--step: expected with --to hf alone, since the tables hold every step")
    click.echo(export_hugging_face(run, out, step=step) if form == "hf" else export_parquet(run, out))
