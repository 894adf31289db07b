"""Versions of libraries, ordered as PEP 440 orders them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import total_ordering

_VERSION = re.compile(
    r"v?(?P<release>\d+(?:\.\d+)*)"
    r"(?:[-_.]?(?P<stage>a|b|rc)\.?(?P<candidate>\d+))?"
    r"(?:[-_.]?post(?P<post>\d+))?"
    r"(?:[-_.]?dev(?P<dev>\d+))?"
    r"(?:\+(?P<local>[a-z0-9]+(?:[-_.][a-z0-9]+)*))?",
    re.IGNORECASE,
)


@total_ordering
@dataclass(frozen=True, slots=True)
class Version:
    """A release, perhaps with a candidate, post-release or development number.

    `0.1.10.post3` comes after `0.1.10` and before `0.1.11`, `0.1.14rc1` before `0.1.14`.  What
    follows a `+` says how a release was built, not which one it is, and is dropped.

    Attributes:
        release: its numbers without zeros at the end.
        candidate: stage and number, such as `("rc", 1)`, or `None` for a release proper.
        post: number of the post-release, 0 where there is none; `post0` is not told apart.
        dev: number of the development snapshot, or `None`.
        text: as it was written, without `v` and `+...`.
    """

    release: tuple[int, ...]
    candidate: tuple[str, int] | None
    post: int
    dev: int | None
    text: str

    @property
    def _key(self) -> tuple[tuple[int, ...], tuple[str, int], int, float]:
        snapshot_of_release = self.candidate is None and self.post == 0 and self.dev is not None
        stage = ("", 0) if snapshot_of_release else self.candidate or ("z", 0)
        return self.release, stage, self.post, float("inf") if self.dev is None else self.dev

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Version) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __lt__(self, other: Version) -> bool:
        return self._key < other._key

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
    stage = found["stage"]
    return Version(
        release=tuple(release),
        candidate=None if stage is None else (stage.lower(), int(found["candidate"])),
        post=int(found["post"] or 0),
        dev=None if found["dev"] is None else int(found["dev"]),
        text=text.strip().lower().removeprefix("v").partition("+")[0],
    )
