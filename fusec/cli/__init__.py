"""The command line.  Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import platform
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import typer

from fusec import __version__
from fusec.cli.commands import Commands
from fusec.cli.console import say
from fusec.diagnostics import FusecError, InternalError, UsageError

app = typer.Typer(
    name="fusec",
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DEBUG = "--debug"

WRONG_CALL: Any = typer.BadParameter.__bases__
"""What typer raises for wrong options; between its releases it has had several homes."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fusec {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
    debug: bool = typer.Option(False, DEBUG, help="Show a traceback with an error."),
) -> None:
    """Compile a model ahead of time for AMD Instinct GPUs and the CPU, and run it.

    Data goes to standard output, everything else to standard error.
    """


def main(arguments: tuple[str, ...] | None = None) -> None:
    """Run a command and exit with the code of the contract.

    A `FusecError` is for the person at the terminal: it gets no traceback unless `--debug`.
    """
    given = [*(sys.argv[1:] if arguments is None else arguments)]
    debug = DEBUG in given
    given = [DEBUG] * debug + [argument for argument in given if argument != DEBUG]
    try:
        code = app(given, prog_name="fusec", standalone_mode=False)
    except WRONG_CALL as error:
        if not given:  # the help
            say(error.format_message())
        else:
            say(_usage_error(error).render())
        sys.exit(UsageError.exit_code)
    except FusecError as error:
        if debug:
            raise
        say(error.render())
        if error.exit_code == InternalError.exit_code:
            say(_how_to_report(given))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:  # the last resort: whatever comes here is a bug, and says so
        if debug:
            raise
        say(f"error: a bug in fusec: {type(error).__name__}: {error}")
        say(_how_to_report(given))
        sys.exit(InternalError.exit_code)
    sys.exit(code or 0)


def _how_to_report(given: Sequence[str]) -> str:
    """What a report of a bug needs: the command as it was given, and the versions."""
    python = ".".join(map(str, sys.version_info[:3]))
    return (
        f"\ncommand: {shlex.join(['fusec', *given])}\n"
        f"version: fusec {__version__}, Python {python}, {platform.platform()}\n"
        "\nhint: run the command again with `--debug` and report what it prints"
    )


def _usage_error(error: Any) -> UsageError:
    """What typer says of a wrong call, in the words and the form of all other errors."""
    said = error.format_message().strip().rstrip(".").replace("Value error, ", "")
    said = re.sub(r"'([^']*)'|(?<![\w'-])(--[a-z][\w-]*)", r"`\1\2`", said)
    command = "fusec" if error.ctx is None else error.ctx.command_path
    return UsageError(said[:1].lower() + said[1:], hint=f"`{command} --help` shows what it takes")
