"""Which sizes of the inputs are dynamic, by what name, and in which range."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from fusec.diagnostics import UsageError
from fusec.symbolic import Range

MAX_SIZE = 1 << 40

RESERVED = frozenset(("threads", "min", "max", "Min", "Max", "Mod", "FloorDiv", "inf", "nan"))
"""Names that expressions over sizes, or texts of graphs, give another meaning."""

DimRequest: TypeAlias = "DimSpec | str | int | tuple[int, ...]"
"""`4`, `(1, 64)`, `(1, 8, 64)`, `"1:8:64"` or a `DimSpec`."""


@dataclass(frozen=True, slots=True)
class DimSpec:
    """The values that one named size may have.

    Attributes:
        minimum: the least.
        optimum: the one to be fastest at, where known.
        maximum: the most; `None` for no bound.
        asked: whether a person asked for it, so that nothing else may be promised instead.
    """

    minimum: int = 1
    optimum: int | None = None
    maximum: int | None = None
    asked: bool = False

    @property
    def range(self) -> Range:
        """The bounds."""
        return self.minimum, self.maximum

    @property
    def static(self) -> int | None:
        """The only value, if there is one."""
        return self.minimum if self.minimum == self.maximum else None

    def __str__(self) -> str:
        return range_text(self.range)


def range_text(span: Range) -> str:
    """`1..64`, `1..` or `64`."""
    least, most = span
    return f"{least}" if least == most else f"{least}..{'' if most is None else most}"


def dim_spec(name: str, request: DimRequest) -> DimSpec:
    """What `request` asks of the size called `name`.

    Raises:
        UsageError: it is not a range of positive sizes.
    """
    if isinstance(request, DimSpec):
        return request
    parts: list[int | None]
    if isinstance(request, str):
        if not re.fullmatch(r"\d*(:\d*){0,2}", request) or request == "":
            raise _wrong(name, request)
        parts = [int(part) if part else None for part in request.split(":")]
    else:
        parts = [request] if isinstance(request, int) else list(request)
    if len(parts) == 1:
        spec = DimSpec(parts[0] or 0, parts[0], parts[0], asked=True)
    elif len(parts) == 2:
        spec = DimSpec(_or_one(parts[0]), None, parts[1], asked=True)
    elif len(parts) == 3:
        spec = DimSpec(_or_one(parts[0]), parts[1], parts[2], asked=True)
    else:
        raise _wrong(name, request)
    most = MAX_SIZE if spec.maximum is None else spec.maximum
    middle = spec.minimum if spec.optimum is None else spec.optimum
    if not 1 <= spec.minimum <= middle <= most <= MAX_SIZE:
        raise _wrong(name, request)
    return spec


def dim_specs(
    dims: Mapping[str, DimRequest] | None, known: Collection[str] | None = None
) -> dict[str, DimSpec]:
    """What `dims` asks of each size.

    Args:
        dims: requests by name.
        known: the names that the source has; `None` to accept any.

    Raises:
        UsageError: a request is not a range, or the source has no size of that name.
    """
    specs = {name: dim_spec(name, request) for name, request in (dims or {}).items()}
    for name in specs:
        if known is not None and name not in known:
            listed = ", ".join(f"`{entry}`" for entry in known) or "none"
            hint = f"its dynamic sizes are {listed}"
            raise UsageError(f"the model has no dynamic size called `{name}`", hint=hint)
    return specs


def narrowed(spec: DimSpec, span: Range) -> DimSpec | None:
    """`spec` with its range cut to `span`; `None` if nothing is left."""
    least = max(spec.minimum, span[0])
    bounds = [bound for bound in (spec.maximum, span[1]) if bound is not None]
    most = min(bounds) if bounds else None
    if most is not None and least > most:
        return None
    optimum = spec.optimum
    if optimum is not None:
        optimum = max(least, optimum if most is None else min(optimum, most))
    return DimSpec(least, optimum, most, spec.asked)


def _or_one(bound: int | None) -> int:
    return 1 if bound is None else bound


def _wrong(name: str, request: object) -> UsageError:
    hint = f"write `{name}=MIN:OPT:MAX`, `{name}=MIN:MAX` or one size, such as `{name}=1:8:64`"
    return UsageError(f"`{request}` is not a range of sizes for `{name}`", hint=hint)
