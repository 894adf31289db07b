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
    print(json.dumps(document, indent=2, ensure_ascii=not as_is))


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


_LEAST_COLUMN = 12
"""What is narrower is not read as text."""


def table(header: Sequence[str], rows: Iterable[Sequence[object]], width: int | None = None) -> str:
    """Columns aligned with spaces, numbers to the right; readable without colour.

    Args:
        header: names of the columns.
        rows: as many cells each.
        width: columns of the terminal that the last column is wrapped in, if there is room for one;
            `None` to leave it.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    right = [all(_is_number(row[i]) for row in cells) for i in range(len(header))]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    lines = []
    for row in [list(header), *cells]:
        parts = (
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(row, widths, right, strict=True)
        )
        line = "  ".join(parts).rstrip()
        hang = sum(widths[:-1]) + 2 * (len(widths) - 1)
        if width is not None and hang + _LEAST_COLUMN <= width < len(line):
            indent = " " * hang
            line = textwrap.fill(line, width, subsequent_indent=indent, break_on_hyphens=False)
        lines.append(line)
    return "\n".join(lines)


def _is_number(text: str) -> bool:
    return bool(text) and text[0].isdigit()
