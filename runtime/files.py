"""Files that are complete or not there."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self

from fusec.diagnostics import InputError


class NewFile:
    """A file that gets its name when it is kept, and never exists half-written under it.

    As a context it is removed at the end unless it was kept.
    """

    def __init__(self, path: Path) -> None:
        """Open it beside its place.

        Raises:
            InputError: the folder cannot be written to.
        """
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        with write_errors(path):
            self.file: IO[bytes] = self.temporary.open("xb")

    def __enter__(self) -> Self:
        """The file itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove it, unless it was kept."""
        self.remove()

    def keep(self) -> None:
        """Close it and give it its name."""
        self.file.close()
        os.replace(self.temporary, self.path)

    def remove(self) -> None:
        """Close it and remove it."""
        with contextlib.suppress(OSError):
            self.file.close()
        self.temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def write_errors(path: Path, hint: str | None = None) -> Iterator[None]:
    """Turn an `OSError` into an `InputError` that names `path`, with `hint`."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"cannot write `{path}`: {reason}", hint=hint) from None
