"""Ranges decide minima, maxima, quotients and remainders; what is left keeps its value."""

from __future__ import annotations

import random

import pytest

from fusec.symbolic import evaluate, parse_dim, simplify

RANGES = {"seq": (3, 63), "batch": (1, None)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max(seq, 1)", "seq"),
        ("min(seq, 64)", "seq"),
        ("min(seq, 2)", "2"),
        ("max(1 - seq, 0) + 4", "4"),
        ("max(seq, seq - 1, batch*0)", "seq"),
        ("min(seq, 5)", "min(5, seq)"),
        ("seq // 64", "0"),
        ("seq % 64", "seq"),
        ("(seq + 64) % 64", "seq"),
        ("(seq + 60) // 64", "((seq + 60)//64)"),
        ("batch * max(seq, 2) // 4", "((batch*seq)//4)"),
        ("min(max(batch, 1), seq)", "min(batch, seq)"),
    ],
)
def test_simplify(text: str, expected: str) -> None:
    assert str(simplify(parse_dim(text), RANGES)) == expected


def test_values_stay() -> None:
    random.seed(1)
    atoms = ["seq", "batch", "3", "64"]

    def expression(depth: int) -> str:
        if depth == 0:
            return random.choice(atoms)
        left, right = expression(depth - 1), expression(depth - 1)
        kind = random.choice(["({}) + ({})", "({}) - ({})", "min({}, {})", "max({}, {})", "D", "M"])
        if kind in "DM":
            return f"({left}) {'//' if kind == 'D' else '%'} {random.choice([2, 5, 64, 200])}"
        return kind.format(left, right)

    for _ in range(300):
        dim = parse_dim(expression(3))
        simple = simplify(dim, RANGES)
        for _ in range(5):
            values = {"seq": random.randint(3, 63), "batch": random.randint(1, 9)}
            assert evaluate(simple, values) == evaluate(dim, values), str(dim)
