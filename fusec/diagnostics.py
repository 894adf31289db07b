"""Errors a person can act on: what is wrong, where, and what to do.

Every class fixes the exit code of the command line.  Standard library only: the runtime uses it.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from typing import ClassVar


class FusecError(Exception):
    """A problem that is not a bug of fusec; printed without a traceback.

    Args:
        message: one sentence without a full stop, literals in backticks.
        at: where: a file, a module path, a node, a line.
        detail: further lines printed under `at`.
        hint: what to do about it.
    """

    exit_code: ClassVar[int] = 1
    usual_hint: ClassVar[str | None] = None
    """What to do where the error itself does not say."""

    def __init__(
        self,
        message: str,
        *,
        at: str | None = None,
        detail: tuple[str, ...] = (),
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.at = at
        self.detail = detail
        self.hint = hint or self.usual_hint

    def render(self) -> str:
        """`error: ...`, then where, then what to do."""
        lines = [f"error: {self}"]
        if self.at is not None:
            lines.append(f"  --> {self.at}")
        lines += [f"      {line}" for line in self.detail]
        if self.hint is not None:
            lines += ["", f"hint: {self.hint}"]
        return "\n".join(lines)


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """A hint with the name that was perhaps meant, if one is near."""
    near = difflib.get_close_matches(name, [*known], n=1)
    return f"did you mean `{near[0]}`?" if near else None


def counted(number: int, noun: str) -> str:
    """`1 record`, `2 records`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def reason_of(error: OSError) -> str:
    """What the system says, to go on in a sentence with."""
    return (error.strerror or str(error)).lower()


_REMEDIES = {
    errno.ENOENT: "check the path: each folder in it has to exist",
    errno.ENOTDIR: "check the path: a file stands in it where a folder should",
    errno.EISDIR: "name a file in it",
    errno.EEXIST: "name another place: a file stands there",
    errno.EACCES: "ask for the right to it, or name another place",
    errno.EPERM: "ask for the right to it, or name another place",
    errno.EROFS: "name a place on a disk that can be written to",
    errno.ENOSPC: "make room, or name a place on another disk",
    errno.EDQUOT: "make room, or name a place on another disk",
    errno.EFBIG: "raise the limit, `ulimit -f`, or name a place on another disk",
    errno.ENAMETOOLONG: "give it a shorter name",
}


def remedy_of(error: OSError) -> str:
    """What to do about a file that the system refuses."""
    return _REMEDIES.get(error.errno or 0, "`--debug` shows what was done")


class InputError(FusecError):
    """The source, or the data given to a model, is at fault."""


def read_error(path: object, error: OSError) -> InputError:
    """What to raise where the system refuses that a file is read."""
    return InputError(f"cannot read `{path}`: {reason_of(error)}", hint=remedy_of(error))


class UnsupportedError(InputError):
    """The model is sound, but fusec cannot compile this part of it for this target."""


class UsageError(FusecError):
    """The command was called wrongly."""

    exit_code = 2


class RequirementError(FusecError):
    """A `--require` was not met."""

    exit_code = 3


class MismatchError(FusecError):
    """`verify` found that an artifact does not compute what its source does."""

    exit_code = 4


class ArtifactError(FusecError):
    """An artifact is corrupt, of another version, or not made for this device."""

    exit_code = 5
    usual_hint = "copy the file again, or compile again"


class DeviceError(FusecError):
    """No such device, or no driver for it."""

    exit_code = 6


class InternalError(FusecError):
    """A bug in fusec."""

    exit_code = 70


class VerifyError(InternalError):
    """A graph breaks one of its own rules."""


class ParseError(InputError):
    """Text that is not a graph, an expression or a specification."""
