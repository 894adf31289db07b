"""Size expressions mean what Python's integers mean, print what they parse, and stay in bounds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusec import symbolic
from fusec.diagnostics import ParseError
from fusec.symbolic import Dim, bounds, evaluate, parse_dim, symbol

NAMES = ("batch", "seq", "x")
RANGES: dict[str, symbolic.Range] = {"batch": (1, 64), "seq": (2, 4096), "x": (0, 9)}


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> str:
    """Python source over the names, with divisors that are never zero."""
    if depth == 0 or draw(st.booleans()):
        return draw(st.sampled_from((*NAMES, "1", "2", "3", "64", "0")))
    left, right = (draw(expressions(depth=depth - 1)) for _ in range(2))
    operator = draw(st.sampled_from(("+", "-", "*", "//", "%", "min", "max")))
    if operator in ("min", "max"):
        return f"{operator}({left}, {right})"
    if operator in ("//", "%"):
        return f"(({left}) {operator} {draw(st.integers(1, 100))})"
    return f"(({left}) {operator} ({right}))"


values = st.fixed_dictionaries(
    {name: st.integers(low, high or 9) for name, (low, high) in RANGES.items()}
)


@given(expressions(), values)
def test_means_what_python_means(text: str, at: dict[str, int]) -> None:
    wanted: Any = eval(text, {"min": min, "max": max}, dict(at))
    assert evaluate(parse_dim(text), at) == wanted


@given(expressions())
def test_prints_what_it_parses(text: str) -> None:
    dim = parse_dim(text)
    assert parse_dim(str(dim)) == dim


@given(expressions(), values)
def test_bounds_hold(text: str, at: dict[str, int]) -> None:
    dim = parse_dim(text)
    low, high = bounds(dim, RANGES)
    assert low <= evaluate(dim, at) <= high


@given(expressions(), values, st.integers(1, 7))
def test_substitution_agrees_with_evaluation(text: str, at: dict[str, int], size: int) -> None:
    partly = symbolic.substitute(parse_dim(text), {"batch": size})
    assert evaluate(partly, at) == evaluate(parse_dim(text), {**at, "batch": size})


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("seq*batch", "batch*seq"),
        ("(64*seq)//64", "seq"),
        ("(64*seq + 3)//64", "seq"),
        ("((seq//5)//2)//2", "seq//20"),
        ("(((seq - 10)//5 + 1) - 3)//2 + 1", "(seq - 10)//10"),
        ("(batch*seq*128)//(batch*seq)", "128"),
        ("((seq + 1)*batch)//(seq + 1)", "batch"),
        ("(64*seq + 70) % 64", "6"),
        ("batch*(seq + 1) - batch", "batch*seq"),
        ("FloorDiv(s0 + 1, 2)", "(s0 + 1)//2"),
        ("PythonMod(7, 4)", "3"),
        ("max(seq, seq, 3, 5)", "max(5, seq)"),
    ],
)
def test_equal_expressions_are_the_same(left: str, right: str) -> None:
    assert parse_dim(left) == parse_dim(right)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 +",
        "seq)",
        "(seq",
        "seq seq",
        "__import__('os')",
        "f(seq)",
        "1//0",
        "seq % 0",
        "seq ** 9",
        "seq ** -1",
        "9" * 30,
        "(" * 100 + "1" + ")" * 100,
        "a" * 5000,
        "1.5",
        "FloorDiv(seq)",
    ],
)
def test_refuses_what_is_no_size(text: str) -> None:
    with pytest.raises(ParseError):
        parse_dim(text)


def test_a_missing_symbol_is_named() -> None:
    with pytest.raises(ParseError, match="no value for `seq` in `batch\\*seq`"):
        evaluate(symbol("batch") * symbol("seq"), {"batch": 2})


def test_ceil_divide_and_product() -> None:
    seq: Dim = symbol("seq")
    assert evaluate(symbolic.ceil_divide(seq, 64), {"seq": 65}) == 2
    assert symbolic.product(()) == 1
    assert symbolic.symbols_of(symbolic.maximum(seq, symbol("x") + 1)) == {"seq", "x"}
