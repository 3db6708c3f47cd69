"""What all commands share: one-line errors, -v, and the forms of a listing."""

import functools
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import click

from fastcluster_lm.cli.streams import Told, Unwritten, fill_standard_streams, lead_nowhere
from fastcluster_lm.errors import FclmError, UsageError, nearest_name


class CommandGroup(click.Group):
    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            known = self.list_commands(ctx)
            hint = nearest_name(args[0], known)
            raise click.UsageError(f"expected one of {', '.join(known)}, got {args[0]!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        fill_standard_streams()
        try:
            status = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.Abort:
            sys.exit(130)
        except click.ClickException as error:
            # one line, like our own errors; click would print the usage before it
            click.echo(f"fclm: {error.format_message()}", err=True)
            sys.exit(error.exit_code)
        sys.exit(status if isinstance(status, int) else 0)


def verbose(command: Callable) -> Callable:
    """Add -v, and turn our own errors into one line and an exit status."""

    @click.option("-v", "--verbose", is_flag=True, help="Show the traceback of an error.")
    @functools.wraps(command)
    def wrapped(verbose: bool, *args: Any, **options: Any) -> None:
        before = sys.stdout
        sys.stdout = Told(before)
        try:
            command(*args, **options)
            sys.stdout.flush()
        except BrokenPipeError:
            # who reads has had enough, as `| head` has; a Unix tool then ends so
            lead_nowhere(sys.stdout.fileno())
            sys.exit(141)
        except Unwritten as error:
            lead_nowhere(sys.stdout.fileno())
            if verbose:
                traceback.print_exc()
            click.echo(f"fclm: cannot write to standard output: {error.strerror}", err=True)
            sys.exit(1)
        except FclmError as error:
            if verbose:
                traceback.print_exc()
            click.echo(f"fclm: {error}", err=True)
            sys.exit(error.exit_code)
        except (MemoryError, RuntimeError) as error:
            # torch's own error for a processor's memory is a RuntimeError that says so
            if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
                raise
            if verbose:
                traceback.print_exc()
            hint = "a smaller batch takes less (training.batch_size, or probe's --batch-size)"
            click.echo(f"fclm: this takes more memory than there is; {hint}", err=True)
            sys.exit(1)
        finally:
            sys.stdout = before

    return wrapped


def listing(command: Callable) -> Callable:
    """Add --json and --csv; the command gets `form`."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
    @click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values with a header line.")
    @functools.wraps(command)
    def wrapped(as_json: bool, as_csv: bool, *args: Any, **options: Any) -> None:
        if as_json and as_csv:
            raise UsageError("expected one of --json and --csv, got both")
        command(*args, form="json" if as_json else "csv" if as_csv else "table", **options)

    return wrapped
