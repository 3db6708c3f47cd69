"""`fclm doctor`: parse, ask the engine room, print; it examines nothing itself."""

import json
import sys
from pathlib import Path

import click

from fastcluster_lm.cli.base import listing, verbose
from fastcluster_lm.errors import UsageError


@click.command()
@click.option("--self-test", is_flag=True, help="Run the tests that need a GPU on this machine; minutes.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="FILE", help="JSON file of --self-test, to be sent on."
)
@click.option("--compile", "compile_", is_flag=True, help="Compile the CPU kernels that are missing here, and end.")
@verbose
@listing
def doctor(self_test: bool, out: Path | None, compile_: bool, form: str) -> None:
    """Say what this machine offers: driver, packages, which engines can run and why not the others, compiler, threads.

    With --self-test, run a checkout's tests marked gpu or rapids, name those that were skipped, and end with status 1
    if one failed. The file holds versions, figures and messages of errors, no host name.

    With --compile, compile kernels for the level of instructions that FCLM_MARCH names (x86-64-v2, x86-64-v3, x86-64-v4
    or native); without it for the level in use and for native, which FCLM_MARCH=native then takes.

    \b
    Example:
      fclm doctor
    """
    from fastcluster_lm.views import print_rows

    if compile_:
        from fastcluster_lm.engine.doctor import compile_kernels

        if self_test or out is not None:
            raise UsageError("--compile: expected neither --self-test nor -o beside it")
        compile_kernels(lambda text: click.echo(text, err=True))
        return
    if not self_test:
        from fastcluster_lm.engine.doctor import COLUMNS, examine

        if out is not None:
            raise UsageError("-o: expected --self-test beside it; fclm doctor --json prints the same facts")
        print_rows(examine(), COLUMNS, format=form, stream=sys.stdout)
        return
    from fastcluster_lm.engine.self_test import run_self_test

    click.echo("running the tests marked gpu or rapids ...", err=True)
    report = run_self_test()
    if out is not None:
        out.write_text(json.dumps(report, indent=1) + "\n")
    rows = [{**test, "measured": " ".join(f"{key}={value}" for key, value in test["measured"].items())}
            for test in report["tests"]]  # fmt: skip
    print_rows(rows, ("outcome", "name", "seconds", "measured", "message"), format=form, stream=sys.stdout)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in report["counts"].items())
    click.echo(f"{counts} in {report['seconds']:.0f} s{f'; written to {out}' if out is not None else ''}", err=True)
    if report["counts"]["failed"]:
        sys.exit(1)
