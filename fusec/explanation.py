"""What was decided, for people: counts by fusion, then places with the same reason together."""

from __future__ import annotations

import fnmatch
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fusec.report import Row, alike, details_text, fusion_counts, rejected_texts

Decided = Mapping[str, Sequence[Row]]
"""Decisions by target."""

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
"""A part of a module path that is a number."""

_MOST_PLACES = 6
"""Module paths that are named before the rest are counted."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which decisions to tell of.

    Attributes:
        fusion: the only one, if any.
        site: a pattern over module paths; what lies inside of a module that fits it counts too.
        refused: whether to tell of refusals alone.
    """

    fusion: str | None = None
    site: str | None = None
    refused: bool = False

    def __call__(self, row: Row) -> bool:
        """Whether to tell of this decision."""
        return (
            self.fusion in (None, row["fusion"])
            and (not self.refused or row["status"] == "refused")
            and (self.site is None or _lies_in(row["site"], self.site))
        )


def _lies_in(site: str, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(site, each) for each in (pattern, f"{pattern}.*"))


def explain_text(decided: Decided, wanted: Filter = Filter(), width: int = 80) -> str:
    """How often each fusion fired, what was refused, where and why, and how the rest fired.

    Args:
        decided: decisions by target; where targets agree, what they have in common is told once.
        wanted: what to tell of.
        width: in columns.
    """
    kept = {target: [row for row in rows if wanted(row)] for target, rows in decided.items()}
    if wanted.site is not None:
        return _by_site(kept, decided, wanted.site, width)
    if not any(kept.values()):
        nothing = "nothing was refused" if wanted.refused else "no fusion matched anywhere"
        return f"{nothing} in this model"
    named = {row["fusion"] for rows in kept.values() for row in rows}
    heads = {target: _headline(rows) for target, rows in kept.items()}
    counts = {target: fusion_counts(rows) for target, rows in decided.items()}
    first = next(iter(counts.values()))
    if len({*heads.values()}) == 1 and all(each == first for each in counts.values()):
        heads = {", ".join(heads): next(iter(heads.values()))}
        counts = {"": first}
    parts = ["\n".join(f"{target}: {said}" for target, said in heads.items())]
    parts.append(_summary(counts, named))
    for title, blocks in (
        ("refused", _merged(kept, decided, _refused)),
        ("fired", _merged(kept, decided, _named if wanted.fusion else _fired)),
    ):
        if blocks:
            parts.append("\n".join([title, *(block.text(width) for block in blocks)]))
    return "\n\n".join(parts)


def _headline(rows: Sequence[Row]) -> str:
    fired = [row["fusion"] for row in rows if row["status"] == "fired"]
    refused = [row["fusion"] for row in rows if row["status"] == "refused"]
    said = [
        f"{_count(len(names), 'site')} {word} ({_count(len({*names}), 'fusion')})"
        for word, names in (("fired", fired), ("refused", refused))
        if names
    ]
    return ", ".join(said) if said else "nothing"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _summary(counts: Mapping[str, Mapping[str, tuple[int, int]]], fusions: Iterable[str]) -> str:
    """A line for each fusion and a column for each target, with a mark where targets differ."""
    lines = [["", *counts, ""]] if len(counts) > 1 else []
    for name in sorted(fusions):
        cells = []
        for found in counts.values():
            fired, refused = found.get(name, (0, 0))
            cells.append(f"{fired} of {fired + refused} fired" if fired + refused else "-")
        lines.append([name, *cells, "differs" if len({*cells}) > 1 else ""])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ([c.ljust(w) for c, w in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"  {'  '.join(cells)}".rstrip() for cells in padded)


@dataclass(frozen=True, slots=True)
class _Block:
    """What is told of some sites of a fusion: its name, a sentence, and lines below it."""

    fusion: str
    said: str
    lines: tuple[str, ...]
    targets: tuple[str, ...] = ()

    def text(self, width: int) -> str:
        """The block, indented and wrapped."""
        where = f" on {', '.join(self.targets)}" if self.targets else ""
        below = (_wrapped(line, width, "    ") for line in self.lines)
        return "\n".join([_wrapped(f"{self.fusion}{where}{self.said}", width, "  "), *below])


def _wrapped(text: str, width: int, indent: str) -> str:
    """`text` from `indent` on; its other lines begin below the text after its first colon."""
    key = re.match(r"(code|hint|kernel|(at )?layers)[: ] ?", text)
    hang = " " * (len(key[0]) if key else 2)
    return textwrap.fill(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent + hang,
        break_long_words=False,
        break_on_hyphens=False,
    )


_Blocks = Callable[[str, int, Sequence[Row]], Iterator[_Block]]


def _merged(kept: Decided, decided: Decided, blocks_of: _Blocks) -> list[_Block]:
    """The blocks of all targets, equal ones once; others say for which target they are."""
    found: dict[_Block, list[str]] = {}
    for target, rows in kept.items():
        totals = fusion_counts(decided[target])
        for name in sorted({row["fusion"] for row in rows}):
            of_name = [row for row in rows if row["fusion"] == name]
            for block in blocks_of(name, sum(totals[name]), of_name):
                found.setdefault(block, []).append(target)
    return [
        block if len(targets) == len(decided) else replace(block, targets=tuple(targets))
        for block, targets in found.items()
    ]


def _refused(name: str, total: int, rows: Sequence[Row]) -> Iterator[_Block]:
    rows = [row for row in rows if row["status"] == "refused"]
    for text, places in alike([f"{row['code']}\n{row['reason']}" for row in rows]):
        code, _, reason = text.partition("\n")
        sites = [rows[place]["site"] for place in places]
        lines = [*places_text(sites), f"code: `{code}`"]
        if hint := rows[places[0]]["hint"]:
            lines.append(f"hint: {hint}")
        yield _Block(name, f", {len(places)} of {total} refused: {reason}", tuple(lines))


def _fired(name: str, total: int, rows: Sequence[Row]) -> Iterator[_Block]:
    """How sites fired, where there is something to tell; and where, if not all did alike."""
    blocks = [*_named(name, total, rows)]
    for block in blocks:
        if len(blocks) > 1:
            yield block
            continue
        told = tuple(line for line in block.lines if not line.startswith("at "))
        if told or " by " in block.said or ":" in block.said:
            yield replace(block, lines=told)


def _named(name: str, total: int, rows: Sequence[Row]) -> Iterator[_Block]:
    """How, where and by which kernels sites fired."""
    rows = [row for row in rows if row["status"] == "fired"]
    told = [
        "\n".join((row.get("backend") or "", details_text(row), *rejected_texts(row)))
        for row in rows
    ]
    for text, places in alike(told):
        backend, details, *rejected = text.split("\n")
        said = f", {_count(len(places), 'site')}"
        said += f" by {backend}" if backend else ""
        said += f": {details}" if details else ""
        where = [f"at {line}" for line in places_text([rows[place]["site"] for place in places])]
        yield _Block(name, said, (*where, *rejected))


def places_text(sites: Sequence[str]) -> list[str]:
    """Sites with their layers as ranges: `layers 0-2, 5: model.layers.*.mlp`.

    A site that stands alone, or is in no layer, is named as it is.
    """
    groups: dict[str, list[tuple[int, str]]] = {}
    for site in sites:
        number = _NUMBER.search(site)
        masked = site if number is None else _NUMBER.sub("*", site)
        groups.setdefault(masked, []).append((-1 if number is None else int(number[0]), site))
    alone: list[str] = []
    together: dict[str, list[str]] = {}
    for masked, members in groups.items():
        layers = sorted({layer for layer, _ in members})
        if len(layers) == 1:
            alone += dict.fromkeys(site for _, site in members)
        else:
            together.setdefault(ranges_text(layers), []).append(masked)
    lines = [f"layers {layers}: {', '.join(masked)}" for layers, masked in together.items()]
    if alone:
        more = len(alone) - _MOST_PLACES
        shown = ", ".join(alone[:_MOST_PLACES])
        lines.append(f"{shown} and {more} more" if more > 0 else shown)
    return lines


def ranges_text(numbers: Sequence[int]) -> str:
    """Sorted numbers in few words: `0-2, 5, 9-60`."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return ", ".join(f"{low}" if low == high else f"{low}-{high}" for low, high in runs)


# --- one place ------------------------------------------------------------------------------


def _by_site(kept: Decided, decided: Decided, pattern: str, width: int) -> str:
    """Everything that was decided at each site, the sites in the order of the model."""
    if not any(kept.values()):
        sites = sorted({row["site"] for rows in decided.values() for row in rows})
        near = [site for site in sites if pattern.strip("*.").split(".")[-1] in site]
        said = f"nothing was decided at `{pattern}`: no fusion matched there"
        if near:
            said += f"; decisions were made at {', '.join(places_text(near))}"
        return _wrapped(said, width, "")
    texts: dict[str, list[str]] = {}
    for target, rows in kept.items():
        lines: list[str] = []
        by_site: dict[str, list[Row]] = {}
        for row in sorted(rows, key=lambda row: _natural(row["site"])):
            by_site.setdefault(row["site"], []).append(row)
        for site, of_site in by_site.items():
            lines.append(site)
            for row in of_site:
                lines += _at_site(row, width)
        texts.setdefault("\n".join(lines or ["nothing"]), []).append(target)
    heads = {text: f"{', '.join(targets)}\n" for text, targets in texts.items()}
    return "\n\n".join(f"{heads[text] if len(decided) > 1 else ''}{text}" for text in texts)


def _natural(site: str) -> list[tuple[int, str]]:
    """A key that puts layer 9 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in site.split(".")]


def _at_site(row: Row, width: int) -> Iterator[str]:
    fired = row["status"] == "fired"
    said = details_text(row) if fired else row["reason"]
    head = f" {row['status']}" + (f": {said}" if said else "")
    lines = [f"code: `{row['code']}`"] if not fired else []
    lines += [f"hint: {row['hint']}"] if row.get("hint") else []
    lines += [f"kernel: {row['backend']}"] if row.get("backend") else []
    yield _Block(row["fusion"], head, (*lines, *rejected_texts(row))).text(width)
