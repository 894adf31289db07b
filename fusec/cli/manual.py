"""What `--help` prints and man pages hold, from the parameters of a command and its `Page`."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from fusec import __version__
from fusec.cli.pages import COMMANDS, EXIT_CODES, GROUPS, ROOT, Page

_WIDTHS = (60, 80)
"""Columns of a help text, at least and at most."""

_TERM_COLUMNS = 22
"""Options up to this length have their text beside them, others below."""

Entry = tuple[str, str]
"""A term and what it means."""


@dataclass(frozen=True, slots=True)
class Manual:
    """A help text before it is laid out.

    Attributes:
        name: as it is typed: `fusec compile`.
        purpose: one sentence.
        usage: how it is called.
        about: paragraphs.
        entries: headings with what stands below them: arguments, options, commands.
        page: examples, exit codes and other pages.
    """

    name: str
    purpose: str
    usage: str
    about: tuple[str, ...]
    entries: Mapping[str, tuple[Entry, ...]]
    page: Page


def manual_of(command: Any, name: str) -> Manual:
    """The manual of a command of typer.

    Args:
        command: as typer made it.
        name: of the command, empty for `fusec` itself.
    """
    page = PAGES[name]
    paragraphs = [" ".join(part.split()) for part in (command.help or "").split("\n\n")]
    entries = _entries(command)
    if not name:
        for title, names in GROUPS.items():
            entries[title] = tuple((each, PAGES[each].purpose) for each in names)
    return Manual(
        f"fusec {name}".strip(),
        page.purpose,
        _usage(command, f"fusec {name}".strip()),
        tuple(paragraphs[1:]),
        {title: found for title, found in entries.items() if found},
        page,
    )


PAGES: Mapping[str, Page] = {"": ROOT, **COMMANDS}
"""The pages of `fusec` and of its commands."""


def _entries(command: Any) -> dict[str, tuple[Entry, ...]]:
    arguments: list[Entry] = []
    options: dict[str, list[Entry]] = {}
    for parameter in command.params:
        if parameter.hidden:
            continue
        if parameter.param_type_name == "argument":
            arguments.append((_metavar(parameter), _sentence(parameter)))
        else:
            group = parameter.rich_help_panel or "Options"
            options.setdefault(group, []).append((_term(parameter), _sentence(parameter)))
    last = next(reversed(options), "Options")
    options.setdefault(last, []).append(("-h, --help", "Show this text and exit."))
    return {
        "Arguments": tuple(arguments),
        **{title: tuple(found) for title, found in options.items()},
    }


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _term(option: Any) -> str:
    names = ", ".join(sorted(option.opts, key=len))
    return names if option.is_flag else f"{names} {_metavar(option)}"


def _sentence(parameter: Any) -> str:
    """The help of a parameter, with its default."""
    text = " ".join((parameter.help or "").split())
    default = parameter.default
    if isinstance(default, Enum):
        default = default.value
    if isinstance(default, str | int | float) and not isinstance(default, bool):
        text += f" By default {default}."
    if parameter.required and parameter.param_type_name == "option":
        text += " Required."
    return text


def _usage(command: Any, name: str) -> str:
    parts = [name]
    if hasattr(command, "commands"):
        return f"{name} COMMAND [arguments]"
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            shown = _metavar(parameter) + ("..." if parameter.nargs != 1 else "")
            parts.append(shown if parameter.required else f"[{shown}]")
    needed = (each for each in command.params if each.required and _is_option(each))
    parts += [f"{max(each.opts, key=len)} {_metavar(each)}" for each in needed]
    if any(_is_option(each) and not each.required for each in command.params):
        parts.append("[options]")
    return " ".join(parts)


def _is_option(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "option")


def _codes(page: Page) -> list[Entry]:
    """Exit codes in order: those that every command has, and its own."""
    said = {**{code: EXIT_CODES[code] for code in (0, 2, 70, 130)}, **page.codes}
    return [(str(code), text or EXIT_CODES[code]) for code, text in sorted(said.items())]


# --- on a terminal --------------------------------------------------------------------------


def help_width() -> int:
    """Columns that a help text may take on this terminal."""
    low, high = _WIDTHS
    return max(low, min(shutil.get_terminal_size().columns, high))


def help_text(manual: Manual, width: int) -> str:
    """The manual as plain text of `width` columns."""
    parts = [_filled(manual.purpose, width), f"Usage: {manual.usage}"]
    parts += [_filled(text, width) for text in manual.about]
    parts += [_section(title, found, width) for title, found in manual.entries.items()]
    if manual.page.examples:
        lines = []
        for example in manual.page.examples:
            lines += [f"  {example.command}", _filled(example.about, width, "      ")]
        parts.append("\n".join(["Examples:", *lines]))
    parts.append(_section("Exit codes", _codes(manual.page), width))
    if manual.page.see_also:
        also = ", ".join(f"fusec {name}".strip() for name in manual.page.see_also)
        parts.append(f"See also:\n{_filled(also, width, '  ')}")
    return "\n\n".join(parts) + "\n"


def _filled(text: str, width: int, indent: str = "") -> str:
    return textwrap.fill(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _section(title: str, entries: Iterable[Entry], width: int) -> str:
    """Terms with their texts in a column beside them; below a term that is too long."""
    held = [*entries]
    fitting = [len(term) for term, _ in held if len(term) <= _TERM_COLUMNS]
    column = 2 + max(fitting, default=_TERM_COLUMNS) + 2
    lines = [f"{title}:"]
    for term, text in held:
        body = _filled(text, width, " " * column)
        if len(term) + 4 > column:
            lines += [f"  {term}", body]
        else:
            lines.append(f"  {term}".ljust(column) + body[column:])
    return "\n".join(lines)


# --- for man --------------------------------------------------------------------------------


def man_page(manual: Manual) -> str:
    """The manual in the language of `man`, section 1."""
    return "\n".join(_man_lines(manual)) + "\n"


def man_name(name: str) -> str:
    """The file of a command: `fusec-compile.1`, `fusec.1` for the empty name."""
    return f"fusec-{name}.1" if name else "fusec.1"


def _man_lines(manual: Manual) -> Iterator[str]:
    name = manual.name.replace(" ", "-")
    purpose = manual.purpose[:1].lower() + manual.purpose[1:].rstrip(".")
    yield f'.TH "{name.upper()}" 1 "" "fusec {__version__}" "fusec manual"'
    yield ".nh"
    yield ".SH NAME"
    yield f"{_roff(name)} \\- {_roff(purpose)}"
    yield ".SH SYNOPSIS"
    yield f"\\fB{_roff(manual.name)}\\fR{_roff(manual.usage.removeprefix(manual.name))}"
    if manual.about:
        yield ".SH DESCRIPTION"
    for number, text in enumerate(manual.about):
        if number:
            yield ".PP"
        yield _roff(text)
    for title, entries in manual.entries.items():
        yield f'.SH "{title.upper()}"'
        yield from _man_entries(entries)
    if manual.page.examples:
        yield ".SH EXAMPLES"
    for example in manual.page.examples:
        yield from (".PP", _roff(example.about), ".PP", ".RS 4", ".nf")
        yield from (_roff(example.command), ".fi", ".RE")
    yield '.SH "EXIT STATUS"'
    yield from _man_entries(_codes(manual.page))
    if manual.page.see_also:
        yield '.SH "SEE ALSO"'
        pages = (man_name(each).removesuffix(".1") for each in manual.page.see_also)
        yield ", ".join(f"\\fB{_roff(page)}\\fR(1)" for page in pages)


def _man_entries(entries: Iterable[Entry]) -> Iterator[str]:
    for term, text in entries:
        yield from (".TP", f"\\fB{_roff(term)}\\fR", _roff(text))


def _roff(text: str) -> str:
    """`text` with what means something to roff escaped, and literals in bold."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    bold = re.sub(r"`([^`]*)`", r"\\fB\1\\fR", escaped)
    return f"\\&{bold}" if bold.startswith((".", "'")) else bold
