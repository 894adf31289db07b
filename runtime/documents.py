"""JSON from an artifact, read without trusting its shape.

Every access names the place it failed at, as in ``manifest.json: `inputs[0].shape` ...``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fusec.diagnostics import ParseError
from fusec.runtime.errors import LimitError, MalformedError
from fusec.symbolic import Dim, evaluate, parse_dim

MAX_INTEGER = (1 << 63) - 1
MAX_STRING = 1 << 16
MAX_ITEMS = 1 << 22
MAX_RANK = 64

_T = TypeVar("_T")


def canonical_json(document: object) -> bytes:
    """The one text of `document`: sorted keys, no spaces, ASCII, a newline at the end."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii") + b"\n"


def parse_json(data: bytes | memoryview, at: str) -> object:
    """Read one JSON value; duplicate keys, NaN and infinities are refused.

    Raises:
        MalformedError: it is not JSON.
    """

    def refuse(constant: str) -> object:
        raise ValueError(f"`{constant}` is not JSON")

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key is there more than once")
        return found

    try:
        text = bytes(data).decode("utf-8")
        return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
    except RecursionError:
        raise MalformedError("the JSON is nested too deeply", at=at) from None
    except ValueError as error:
        raise MalformedError(f"this is not JSON: {str(error)[:200]}", at=at) from None


@dataclass(frozen=True, slots=True)
class Field:
    """A JSON value and where it is; each reader checks the type or raises `MalformedError`."""

    value: object
    at: str
    path: str = ""

    def error(self, expected: str) -> MalformedError:
        """The error for this field not being `expected`."""
        shown = json.dumps(self.value, default=str)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        place = f"`{self.path}`" if self.path else "the document"
        return MalformedError(f"{place} must be {expected}, not `{shown}`", at=self.at)

    def get(self, key: str) -> Field:
        """The member `key`, which must be there."""
        found = self.get_or_none(key)
        if found is None:
            raise MalformedError(
                f"`{self.path}.{key}`".replace("`.", "`") + " is missing", at=self.at
            )
        return found

    def get_or_none(self, key: str) -> Field | None:
        """The member `key`; `None` where it is absent or null."""
        value = self.mapping().get(key)
        return None if value is None else self._member(key, value)

    def mapping(self) -> Mapping[str, object]:
        """The value as an object."""
        if not isinstance(self.value, dict):
            raise self.error("an object")
        return self.value

    def members(self) -> Iterator[tuple[str, Field]]:
        """The members of an object, in its order."""
        for key, value in self.mapping().items():
            yield key, self._member(key, value)

    def items(self, limit: int = MAX_ITEMS) -> list[Field]:
        """The items of an array."""
        if not isinstance(self.value, list):
            raise self.error("an array")
        if len(self.value) > limit:
            raise LimitError(f"`{self.path}` has more than {limit} items", at=self.at)
        return [
            Field(item, self.at, f"{self.path}[{index}]") for index, item in enumerate(self.value)
        ]

    def tuple_of(self, read: Callable[[Field], _T], limit: int = MAX_ITEMS) -> tuple[_T, ...]:
        """The items of an array, each one read by `read`."""
        return tuple(read(item) for item in self.items(limit))

    def string(self) -> str:
        """The value as a string."""
        if not isinstance(self.value, str) or len(self.value) > MAX_STRING:
            raise self.error("a string")
        return self.value

    def one_of(self, *choices: str) -> str:
        """The value as one of `choices`."""
        if self.value not in choices:
            raise self.error(" or ".join(f"`{choice}`" for choice in choices))
        return str(self.value)

    def sha256(self) -> str:
        """The value as 64 lower-case hexadecimal digits."""
        text = self.string()
        if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
            raise self.error("a SHA-256")
        return text

    def integer(self, low: int = 0, high: int = MAX_INTEGER) -> int:
        """The value as an integer in `[low, high]`."""
        if type(self.value) is not int or not low <= self.value <= high:
            raise self.error(f"an integer from {low} to {high}")
        return self.value

    def number(self) -> float:
        """The value as a finite number."""
        if type(self.value) not in (int, float) or not abs(float(_number(self.value))) < 1e309:
            raise self.error("a number")
        return float(_number(self.value))

    def dim(self, low: int = 0) -> Dim:
        """The value as a size: an integer, or the text of an expression.

        Raises:
            MalformedError: it is neither, or a constant outside of `[low, 2**63)`.
        """
        if isinstance(self.value, str):
            try:
                result = parse_dim(self.value)
            except ParseError as error:
                raise MalformedError(f"`{self.path}`: {error}", at=self.at) from None
            if not isinstance(result, int):
                return result
        else:
            result = self.integer(-MAX_INTEGER - 1)
        if not low <= result <= MAX_INTEGER:
            raise self.error(f"a size from {low} to {MAX_INTEGER}")
        return result

    def _member(self, key: str, value: object) -> Field:
        return Field(value, self.at, f"{self.path}.{key}" if self.path else key)


def evaluate_dim(dim: Dim, values: Mapping[str, int], at: str, low: int = 0) -> int:
    """The value of `dim`, checked to be in `[low, 2**63)`.

    Raises:
        MalformedError: a symbol is unknown, a divisor is zero or the value is out of range.
    """
    try:
        result = evaluate(dim, values)
    except ParseError as error:
        raise MalformedError(str(error), at=at) from None
    if not low <= result <= MAX_INTEGER:
        raise MalformedError(f"`{dim}` is `{result}`, which no size can be", at=at)
    return result


def _number(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")
