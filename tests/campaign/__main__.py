"""`python -m tests.campaign`: put the promises to the test and print a row for each; exit 1 if one is not met."""

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path

# before torch: no thread pool stands where children are forked
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

import click  # noqa: E402

from tests.campaign.schedule import Row, long_rows, names, short_rows  # noqa: E402


@click.command()
@click.option(
    "--hours", type=click.FloatRange(min=0), default=1.0, show_default=True, help="Time for the whole campaign."
)
@click.option("--short", is_flag=True, help="The short form alone, as the tests run it.")
@click.option("--only", multiple=True, metavar="NAME", help="Only this promise; may be given again.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides what is tried, not when.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each row, as soon as it is there.")
@click.option("--page", type=click.Path(path_type=Path), help="Write the table into this page, between its two marks.")
@click.option("--list", "listing", is_flag=True, help="Print the names of the promises and end.")
def main(
    hours: float, short: bool, only: tuple[str, ...], seed: int, as_json: bool, page: Path | None, listing: bool
) -> None:
    """Put the promises to the test on this machine alone, below a temporary folder that is removed at the end."""
    known = names()
    if listing:
        click.echo("\n".join(known))
        return
    if unknown := set(only) - set(known):
        raise click.BadParameter(f"expected one of {', '.join(known)}, got {unknown.pop()}", param_hint="--only")
    from tests.campaign import children

    # so that the temporary folders go, and the children with them
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    children.warm()
    chosen = list(only) or known
    rows = []
    for row in short_rows(chosen, seed) if short else long_rows(chosen, seed, hours):
        rows.append(row)
        click.echo(_as_json(row) if as_json else _as_text(row, short=short))
        sys.stdout.flush()
    if page is not None:
        from tests.campaign.page import write_page

        options = " --short" if short else f" --hours {hours:g}"
        write_page(page, rows, command=f"python -m tests.campaign{options}{f' --seed {seed}' if seed else ''}")
    if not all(row.outcome.met for row in rows):
        sys.exit(1)


def _as_json(row: Row) -> str:
    return json.dumps(asdict(row) | {"met": row.outcome.met})


def _as_text(row: Row, *, short: bool) -> str:
    outcome = row.outcome
    counted = f"{outcome.times:,}" if short else row.counted
    lines = [
        f"{row.name}: {row.promise}",
        f"  {counted} {outcome.done}; held {outcome.held:,}{'; ' if outcome.figure else ''}{outcome.figure}",
        f"  {'met' if outcome.met else 'NOT MET'} ({row.seconds:.0f} s)",
    ]
    return "\n".join(lines + [f"  broken: {line}" for line in outcome.broken])


if __name__ == "__main__":
    main()
