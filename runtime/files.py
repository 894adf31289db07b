"""Files that are complete or not there."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self

from fusec.diagnostics import InputError, UsageError, reason_of, remedy_of
from fusec.runtime.container import is_artifact


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
        self.temporary = self.path.with_name(f".fusec-{secrets.token_hex(8)}.tmp")
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


def write_file(path: Path, content: bytes) -> None:
    """Write a file as a whole.

    Raises:
        InputError: it cannot be written.
    """
    with write_errors(path), NewFile(path) as made:
        made.file.write(content)
        made.keep()


def check_place(path: Path, *inputs: object) -> None:
    """Refuse a place at which no file can be written, before there is anything to write.

    Args:
        path: of the file to be written.
        inputs: paths of files that it is made of, or of folders with such files, which it must
            not replace; others are passed over.

    Raises:
        InputError: its folder does not exist or cannot be written to, or it is a folder or a
            device.
        UsageError: it is one of `inputs`, or a file in one that is no artifact.
    """
    with write_errors(path):
        place = Path(os.path.realpath(path))
        if place.is_dir():
            raise InputError(f"`{path}` is a folder", hint="name a file in it")
        if place.exists() and not place.is_file():
            # It would be replaced by a file: not what a person means by `/dev/null`.
            raise InputError(f"`{path}` is not a file, but a device or a pipe", hint="name a file")
        if place.exists() and any(_reads(each, place) for each in inputs):
            hint = "name another file"
            raise UsageError(f"`{path}` is what is read, and would be replaced", hint=hint)
        with tempfile.TemporaryFile(dir=place.parent):
            pass  # the system says best whether it can be written to


def _reads(source: object, place: Path) -> bool:
    """Whether a file is what is read: `source` itself, or in that folder and no artifact."""
    if not isinstance(source, str | os.PathLike) or not os.path.exists(source):
        return False
    if not os.path.isdir(source):
        return os.path.samefile(place, source)
    files = (file for file in Path(source).rglob("*") if file.exists())  # links may lead nowhere
    return any(map(place.samefile, files)) and not is_artifact(place)


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
        message = f"cannot write `{path}`: {reason_of(error)}"
        raise InputError(message, hint=remedy_of(error)) from None
