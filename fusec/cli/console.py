"""What people see: messages, progress and tables, all on stderr but for data."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # rich takes longer to import than most commands take
    from rich.console import Console
    from rich.progress import Progress
    from rich.status import Status


def say(text: str) -> None:
    """Print a line to stderr, as it is."""
    print(text, file=sys.stderr, flush=True)


def data(text: str) -> None:
    """Print data to stdout; letters that its encoding does not have are escaped, as on stderr."""
    encoding = sys.stdout.encoding or "utf-8"  # a stream of text alone has none
    print(text.encode(encoding, "backslashreplace").decode(encoding))


def data_json(document: object) -> None:
    """Print one JSON document to stdout."""
    as_is = (sys.stdout.encoding or "utf-8").lower() == "utf-8"
    data(json.dumps(document, indent=2, ensure_ascii=not as_is))


class Stages:
    """The lines that `compile` prints: a word, what was done, the seconds it took."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._word = ""
        self._spinner: Status | None = None

    @contextmanager
    def stage(self, word: str) -> Iterator[list[str]]:
        """Show a spinner while a stage runs, then its line; the caller appends what to say.

        The first text stands beside the word and the time, the rest below.
        """
        said: list[str] = []
        begin = time.monotonic()
        if self.quiet:
            yield said
            return
        self._word = word
        with _terminal().status(word) as self._spinner:
            yield said
        self._spinner = None
        seconds = time.monotonic() - begin
        first, *rest = said or [""]
        say(f"{word:<9} {first:<70} {seconds:8.1f} s".rstrip())
        for line in rest:
            say(f"{'':<9} {line}")

    def status(self, text: str) -> None:
        """Show `text` beside the spinner."""
        if self._spinner is not None:
            self._spinner.update(f"{self._word:<9} {text}")

    def progress(self, done: int, total: int) -> None:
        """Show how much of the stage is done."""
        if total:
            self.status(f"{100 * done // total} %")


@contextmanager
def progress_bar(
    quiet: bool = False, *, counts: Literal["records", "bytes"] | None = None
) -> Iterator[Progress]:
    """A bar on a terminal, nothing elsewhere.

    Args:
        quiet: show nothing there either.
        counts: what the bar counts; `None` if there is nothing to count.
    """
    from rich import progress

    terminal = _terminal()
    columns = {"records": progress.MofNCompleteColumn, "bytes": progress.DownloadColumn}
    bar = progress.Progress(
        progress.SpinnerColumn(),
        progress.TextColumn("{task.description}"),
        *([] if counts is None else [progress.BarColumn(), columns[counts]()]),
        progress.TimeElapsedColumn(),
        console=terminal,
        transient=True,
        disable=quiet or not terminal.is_terminal,
    )
    with bar:
        yield bar


def _terminal() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def text_width() -> int:
    """Columns that a text may take: those of the terminal, within what reads well."""
    return max(60, min(shutil.get_terminal_size().columns, 100))


def terminal_width() -> int | None:
    """Columns of the terminal that data goes to; `None` where it goes to a file or a program."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


_LEAST_COLUMN = 12
"""What is narrower is not read as text."""


def table(header: Sequence[str], rows: Iterable[Sequence[object]], width: int | None = None) -> str:
    """Columns aligned with spaces, numbers to the right; readable without colour.

    Args:
        header: names of the columns.
        rows: as many cells each.
        width: columns of the terminal; `None` for lines of any length.  The last column is wrapped
            in what the others leave.  If that is too little, the columns stand in several tables
            below each other, in which the rows have numbers.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    if width is None or _whole(widths) <= width or len(header) == 2:
        return _aligned(header, cells, width)
    if _whole([*widths[:-1], _least(header, cells)]) <= width:
        return _aligned(header, cells, width)
    numbers = ["#", *(str(number) for number in range(1, len(cells) + 1))]
    lead = _whole([len(numbers[-1]), widths[0]])
    parts: list[list[int]] = []
    taken = width
    for column, needed in enumerate(widths[1:], start=1):
        if taken + 2 + needed > width:
            parts.append([])
            taken = lead
        parts[-1].append(column + 1)
        taken += 2 + needed
    lines = [[number, *row] for number, row in zip(numbers, [header, *cells], strict=True)]
    tables = ([[line[i] for i in (0, 1, *part)] for line in lines] for part in parts)
    return "\n\n".join(_aligned(first, others, width) for first, *others in tables)


def _whole(widths: Sequence[int]) -> int:
    """Columns that a line of cells takes."""
    return sum(widths) + 2 * (len(widths) - 1)


def _least(header: Sequence[str], cells: Sequence[Sequence[str]]) -> int:
    """Columns that the last cells take at least if they are wrapped between words."""
    words = (word for row in (header, *cells) for word in row[-1].split())
    return max(_LEAST_COLUMN, max(map(len, words), default=0))


def _aligned(header: Sequence[str], cells: Sequence[Sequence[str]], width: int | None) -> str:
    right = [all(_is_number(row[i]) for row in cells) for i in range(len(header))]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    indent = " " * (_whole(widths) - widths[-1])
    has_room = width is not None and len(indent) + _least(header, cells) <= width
    lines = []
    for row in [header, *cells]:
        parts = (
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(row, widths, right, strict=True)
        )
        line = "  ".join(parts).rstrip()
        if width is not None and has_room and len(line) > width:
            line = textwrap.fill(line, width, subsequent_indent=indent, break_on_hyphens=False)
        lines.append(line)
    return "\n".join(lines)


def _is_number(text: str) -> bool:
    return bool(text) and text[0].isdigit()
