"""`fusec help`: the help of a command, as text or as a man page."""

from __future__ import annotations

from typing import Annotated

import typer

from fusec.cli.console import data
from fusec.cli.manual import help_text, help_width, man_page, manual_of
from fusec.diagnostics import UsageError


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="help")(help_)


def help_(
    context: typer.Context,
    command: Annotated[
        str | None,
        typer.Argument(metavar="COMMAND", help="A command; without one, fusec as a whole."),
    ] = None,
    man: Annotated[bool, typer.Option("--man", help="Print a man page, for `man -l -`.")] = False,
) -> None:
    """Show the help of a command."""
    group = context.find_root().command
    name = command or ""
    found = group.get_command(context, name) if name else group  # type: ignore[attr-defined]
    if found is None:
        raise UsageError(f"no such command `{name}`", hint="`fusec help` names them all")
    manual = manual_of(found, name)
    data((man_page(manual) if man else help_text(manual, help_width())).rstrip("\n"))
