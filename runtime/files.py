"""Files that are complete or not there."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self

from fusec.diagnostics import InputError, UsageError


class NewFile:
    """A file that gets its name when it is kept, and never exists half-written under it.

    Where its name is a link, the link stays, and what it points to is written.

    As a context it is removed at the end unless it was kept.
    """

    def __init__(self, path: Path) -> None:
        """Open it beside its place.

        Raises:
            InputError: the folder cannot be written to, or `path` is a folder or a device.
        """
        check_place(path)
        self.path = Path(os.path.realpath(path))
        self.temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(6)}.tmp")
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


def check_place(path: Path, *inputs: object) -> None:
    """Refuse a place at which no file can be written, before there is anything to write.

    Args:
        path: of the file to be written.
        inputs: paths of files that it is made of, which it must not replace; others are passed
            over.

    Raises:
        InputError: its folder does not exist, or it is a folder or a device.
        UsageError: it is one of `inputs`.
    """
    with write_errors(path):
        place = Path(os.path.realpath(path))
        if place.is_dir():
            raise InputError(f"`{path}` is a folder", hint="name a file in it")
        if not place.exists():
            os.stat(place.parent)
            return
        if not place.is_file():
            # It would be replaced by a file: not what a person means by `/dev/null`.
            raise InputError(f"`{path}` is not a file, but a device or a pipe", hint="name a file")
        for each in inputs:
            if isinstance(each, str | os.PathLike) and os.path.exists(each):
                if os.path.samefile(place, each):
                    hint = "name another file"
                    raise UsageError(f"`{path}` is what is read, and would be replaced", hint=hint)


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` into an `InputError` that names `path`.

    That nobody reads a pipe any more is no error of the place: it passes through.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"cannot write `{path}`: {reason}") from None
