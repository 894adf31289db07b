"""The command line.  Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import errno
import os
import platform
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

import typer

from fusec import __version__
from fusec.cli.commands import Commands
from fusec.cli.console import say
from fusec.cli.pages import COMMANDS
from fusec.diagnostics import (
    FusecError,
    InputError,
    InternalError,
    UsageError,
    read_error,
    reason_of,
    remedy_of,
)

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

INTERRUPTED = 128 + signal.SIGINT

MACHINE_ERRORS = frozenset(
    (
        errno.EACCES,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.EMFILE,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.EPERM,
        errno.EROFS,
    )
)
"""What the system says of this machine, not of fusec: a full disk, a folder that is read-only."""


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
    _open_closed_streams()
    if arguments is None:  # this is the process of the command
        _clean_up_when_ended()
    given = [*(sys.argv[1:] if arguments is None else arguments)]
    debug = DEBUG in given
    given = [DEBUG] * debug + [argument for argument in given if argument != DEBUG]
    try:
        code = _run(given)
    except WRONG_CALL as error:
        if not given:  # the help
            say(error.format_message())
            sys.exit(UsageError.exit_code)
        wrong = _wrong_call(error, given)
        say(wrong.render())
        sys.exit(wrong.exit_code)
    except FusecError as error:
        if debug:
            raise
        say(error.render())
        if error.exit_code == InternalError.exit_code:
            say(_how_to_report(given))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except _Terminated as end:
        sys.exit(128 + end.signal)
    except BrokenPipeError:
        _end_without_reader()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer has turned it into exit code 1
            _end_without_reader()
        raise
    except Exception as error:  # the last resort: whatever the machine does not explain is a bug
        if debug:
            raise
        refused = _machine_error(error)
        if refused is not None:
            say(refused.render())
            sys.exit(refused.exit_code)
        say(f"error: a bug in fusec: {type(error).__name__}: {error}")
        say(_how_to_report(given))
        sys.exit(InternalError.exit_code)
    if code == INTERRUPTED:  # in a command, typer turns the interrupt into this code
        say("interrupted")
    sys.exit(code or 0)


def _machine_error(error: Exception) -> InputError | None:
    """What the system says of this machine, in the form of all other errors; `None` for others."""
    if isinstance(error, MemoryError):
        return InputError("there is not enough memory", hint="`--debug` shows for what")
    if not isinstance(error, OSError) or error.errno not in MACHINE_ERRORS:
        return None
    where = None if error.filename is None else str(error.filename)
    return InputError(f"the system refuses: {reason_of(error)}", at=where, hint=remedy_of(error))


def _open_closed_streams() -> None:
    """Give a process that was started without standard streams ones that hold nothing.

    Otherwise messages go to standard output where there is no standard error, and the next file
    that is opened gets the number of a standard stream.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))


class _Terminated(BaseException):
    """The process was asked to end, by this signal."""

    def __init__(self, signal: int) -> None:
        super().__init__()
        self.signal = signal


class _Interrupted(KeyboardInterrupt):
    """As a class of its own: after a plain one Python ends by the signal, with no exit code."""


def _clean_up_when_ended() -> None:
    """Let signals that end the process remove what is half-written.

    A second one ends it at once.  What was ignored, as by `nohup`, stays ignored.
    """

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise _Interrupted if number == signal.SIGINT else _Terminated(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


def _run(given: Sequence[str]) -> Any:
    """The exit code of a command.

    Libraries that are being imported make other errors of an interrupt; it stays one.
    """
    try:
        code = app(given, prog_name="fusec", standalone_mode=False)
        sys.stdout.flush()
        return code
    except Exception:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # since `end`
            raise _Interrupted from None
        raise


def _end_without_reader() -> NoReturn:
    """End quietly: whoever read what is printed here has gone, as `head` does."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):  # what they still hold is written when Python ends
        os.dup2(nowhere, stream.fileno())
    sys.exit(128 + signal.SIGPIPE)


def _how_to_report(given: Sequence[str]) -> str:
    """What a report of a bug needs: the command as it was given, and the versions."""
    python = ".".join(map(str, sys.version_info[:3]))
    return (
        f"\ncommand: {shlex.join(['fusec', *given])}\n"
        f"version: fusec {__version__}, Python {python}, {platform.platform()}\n"
        "\nhint: run the command again with `--debug` and report what it prints"
    )


def _wrong_call(error: Any, given: Sequence[str]) -> FusecError:
    """What typer says of a wrong call, in the words and the form of all other errors."""
    said = error.format_message().partition(". Choose from:")[0]  # which the argument's name has
    said = said.strip().rstrip(".").replace("Value error, ", "")
    said = re.sub(r"'([^']*)'|(?<![\w'-])(--[a-z][\w-]*)", r"`\1\2`", said)
    first = next((argument for argument in given if not argument.startswith("-")), "")
    command = f"fusec {first}" if first in COMMANDS else "fusec"
    if (unreadable := re.search(r"`([^`]*)` is not readable$", said)) is not None:
        denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return read_error(unreadable[1], denied)
    return UsageError(said[:1].lower() + said[1:], hint=f"`{command} --help` shows what it takes")
