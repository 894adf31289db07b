"""Versions of libraries, ordered as PEP 440 orders them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

_VERSION = re.compile(
    r"v?(?P<release>\d+(?:\.\d+)*)"
    r"(?:[-_.]?(?P<stage>a|b|rc)\.?(?P<candidate>\d+))?"
    r"(?:[-_.]?post(?P<post>\d+))?"
    r"(?:[-_.]?dev(?P<dev>\d+))?"
    r"(?:\+(?P<local>[a-z0-9]+(?:[-_.][a-z0-9]+)*))?",
    re.IGNORECASE,
)


@dataclass(frozen=True, order=True, slots=True)
class Version:
    """A release, perhaps with a candidate, post-release or development number.

    `0.1.10.post3` comes after `0.1.10` and before `0.1.11`, `0.1.14rc1` before `0.1.14`.  What
    follows a `+` says how a release was built, not which one it is, and is dropped.

    Attributes:
        release: its numbers without zeros at the end.
        stage: `a`, `b` or `rc` and a number; `""` for a snapshot before any, `"release"` without.
        post: number of the post-release, 0 where there is none.
        dev: number of the development snapshot, infinite where it is none.
        text: as it was written, without `v` and `+...`.
    """

    release: tuple[int, ...]
    stage: tuple[str, int]
    post: int
    dev: float
    text: str = field(compare=False)

    def __str__(self) -> str:
        return self.text


def parse_version(text: str) -> Version | None:
    """Read `0.1.10.post3`; `None` when it is not a version."""
    found = _VERSION.fullmatch(text.strip())
    if found is None:
        return None
    release = [int(number) for number in found["release"].split(".")]
    while len(release) > 1 and release[-1] == 0:
        release.pop()
    stage = ("release", 0)
    if found["stage"] is not None:
        stage = (found["stage"].lower(), int(found["candidate"]))
    elif found["dev"] is not None and found["post"] is None:
        stage = ("", 0)
    return Version(
        release=tuple(release),
        stage=stage,
        post=int(found["post"] or 0),
        dev=math.inf if found["dev"] is None else int(found["dev"]),
        text=text.strip().lower().removeprefix("v").partition("+")[0],
    )
