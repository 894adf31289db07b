"""Commands that are imported when they are called, and not before."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, MutableMapping
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from fusec.cli.manual import help_text, help_width, manual_of
from fusec.cli.pages import COMMANDS, GROUPS


class Command(TyperCommand):
    """A command whose help is its manual."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        formatter.write(help_text(manual_of(self, self.name or ""), help_width()))


class Loaded(MutableMapping[str, Any]):
    """Commands by name, each imported from the module of that name when it is asked for."""

    def __init__(self) -> None:
        self._held: dict[str, Any] = {}
        self._names = [name for names in GROUPS.values() for name in names]

    def __getitem__(self, name: str) -> Any:
        if name not in self._held:
            if name not in COMMANDS:
                raise KeyError(name)
            self._held[name] = _load(name)
        return self._held[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._held[name] = command

    def __delitem__(self, name: str) -> None:
        del self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Commands(TyperGroup):
    """fusec itself; its help imports no command."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = Loaded()

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all commands, in the order of the help."""
        return list(self.commands)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        formatter.write(help_text(manual_of(self, ""), help_width()))


def _load(name: str) -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    importlib.import_module(f"fusec.cli.{name}").register(app)
    app.registered_commands[0].cls = Command
    return typer.main.get_command(app)
