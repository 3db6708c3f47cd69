"""`python -m tests.goldens`: record what runs leave, and check at another commit that they leave the same still."""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

# before torch: sums of several threads are those of another run
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

import click  # noqa: E402

from tests.goldens.comparison import compare  # noqa: E402
from tests.goldens.contents import Contents  # noqa: E402

RECORD = click.argument("record_file", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))


@click.group()
def main() -> None:
    """Record what small runs leave (rows, maps, checkpoints), and check that another commit leaves the same.

    A record holds on the machine it was made on, with the same packages; a minute of one core makes it.
    """


@main.command()
@RECORD
def record(record_file: Path) -> None:
    """Run everything and write what it leaves to FILE.

    \b
    Example:
      python -m tests.goldens record /tmp/goldens.json
    """
    found = _run_all(())
    record_file.write_text(json.dumps(found, indent=0))


@main.command()
@RECORD
@click.option("--only", multiple=True, metavar="NAME", help="Only runs whose names begin so; may be given again.")
def check(record_file: Path, only: tuple[str, ...]) -> None:
    """Run everything again and print in what it differs from FILE; exit 1 if in anything that was there.

    New runs, files, columns, rows and tensors are told, and are no failure.

    \b
    Example:
      python -m tests.goldens check /tmp/goldens.json --only attached
    """
    recorded = json.loads(record_file.read_text())
    wanted = {name: own for name, own in recorded.items() if name == MACHINE or _is_chosen(name, only)}
    # as the file would hold it
    comparison = compare(wanted, json.loads(json.dumps(_run_all(only))))
    for line in comparison.news:
        click.echo(f"new: {line}")
    for line in comparison.differences:
        click.echo(f"DIFFERS: {line}")
    rows = sum(len(table) for own in wanted.values() for table in own.values() if isinstance(table, list))
    click.echo(f"{len(wanted) - 1} runs, {rows} rows: {len(comparison.differences) or 'no'} differences")
    if comparison.differences:
        sys.exit(1)


# what stands beside the runs in a record
MACHINE = "machine"


def _run_all(only: tuple[str, ...]) -> dict[str, Contents]:
    import torch

    from fastcluster_lm.device import describe_environment
    from tests.goldens.runs import runs

    torch.set_num_threads(1)
    chosen = {name: run for name, run in runs().items() if _is_chosen(name, only)}
    if not chosen:
        raise click.BadParameter(f"expected the beginning of one of {', '.join(runs())}", param_hint="--only")
    found: dict[str, Contents] = {MACHINE: {"environment": describe_environment()}}
    with tempfile.TemporaryDirectory() as place:
        for name, run in chosen.items():
            started = time.monotonic()
            (folder := Path(place) / name).mkdir()
            found |= {f"{name}{part and '/'}{part}": own for part, own in run(folder).items()}
            click.echo(f"{name}  {time.monotonic() - started:.1f} s", err=True)
    return found


def _is_chosen(name: str, only: tuple[str, ...]) -> bool:
    return not only or name.startswith(only)


if __name__ == "__main__":
    main()
