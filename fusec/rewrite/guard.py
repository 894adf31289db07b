"""Guards: why a pass leaves a match alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from fusec.rewrite.pattern import Match
from fusec.target import Target


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a match was left alone.

    Attributes:
        code: stable; tests and scripts may rely on it.
        reason: a sentence without a full stop; may change.
        at: the value that is at fault, if one is.
        hint: what to change so that it fires.
    """

    code: str
    reason: str
    at: str | None = None
    hint: str | None = None


Guard: TypeAlias = Callable[[Match, Target], Rejection | None]
"""`None` means go on.  A guard reads; it never changes the graph, and never raises."""
