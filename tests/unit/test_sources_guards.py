"""Guards are read, never run, and cut ranges to where they hold."""

from __future__ import annotations

import pytest

from fusec import symbolic
from fusec.diagnostics import UsageError
from fusec.frontend.dims import DimSpec, dim_spec, dim_specs, narrowed
from fusec.frontend.guards import read_guards
from fusec.frontend.live import sample_sizes
from fusec.symbolic import Range

S, T = symbolic.symbol("s0"), symbolic.symbol("s1")
SHAPES: dict[str, tuple[symbolic.Dim, ...]] = {
    "L['x']": (S, 8),
    "L['y']": (T, S),
    "L['args'][0]": (S + 1,),
}


def _read(
    guard: str, hint: int = 40, span: Range = (1, None), other: int = 10
) -> tuple[Range, Range]:
    ranges: dict[str, Range] = {"s0": span, "s1": (1, 100)}
    reading = read_guards([guard], SHAPES, ranges, {"s0": hint, "s1": other})
    found = {**ranges, **reading.ranges}
    return found["s0"], found["s1"]


@pytest.mark.parametrize(
    ("guard", "expected"),
    [
        ("L['x'].size()[0] <= 64", (1, 64)),
        ("L['x'].size()[0] == 40", (40, 40)),
        ("Eq(L['x'].size()[0], 40)", (40, 40)),
        ("2 <= L['x'].size()[0] and L['x'].size()[0] <= 127", (2, 127)),
        ("2 <= L['x'].size()[0] <= 127", (2, 127)),
        ("(L['x'].size()[0] + (64 + -1 * (L['x'].size()[0] % 64)) % 64) // 64 == 1", (1, 64)),
        ("L['x'].size()[0] != 100", (1, 99)),
        ("not (L['x'].size()[0] > 1000000)", (1, 1000000)),
        ("L['x'].size()[0] < 100000 or L['x'].size()[0] > 5", (1, None)),
        ("min(16, L['x'].size()[0]) <= L['x'].size()[0]", (1, None)),
        ("Max(16, L['x'].size()[0]) == 40", (40, 40)),
        ("L['x'].size()[0]**2 <= 10000", (1, 100)),
        ("L['args'][0].size()[0] <= 50", (1, 49)),
        ("L['x'].shape[0] <= 64", (1, 64)),
        ("L['x'].size()[0] % 8 == 0", (40, 40)),
        ("Eq(Mod(s0, 8), 0)", (40, 40)),
        (
            "Equality(Mod(Symbol('s0', positive=True, integer=True), Integer(8)), Integer(0))",
            (40, 40),
        ),
        ("LessThan(Mul(Float('0.5', precision=53), ToFloat(Symbol('s0'))), Integer(25))", (1, 50)),
        ("(s0 < 100) & (~(s0 <= 5) | (s0 > 9))", (6, 99)),
        ("math.trunc(0.25*torch.sym_float(L['x'].size()[0])) == 10", (40, 43)),
        ("math.ceil(torch.sym_float(L['x'].size()[0]) / 8.0) <= 5", (1, 40)),
    ],
)
def test_a_guard_cuts_the_range(guard: str, expected: Range) -> None:
    assert _read(guard)[0] == expected


def test_a_guard_keeps_to_the_claimed_range() -> None:
    assert _read("L['x'].size()[0] <= 64", span=(8, 32), hint=16)[0] == (8, 32)


def test_two_symbols_limit_each_other() -> None:
    first, second = _read("L['x'].size()[0] + L['y'].size()[0] <= 200")
    assert first[1] is not None and second[1] is not None
    assert first[1] + second[1] <= 200


def test_equal_sizes_are_one() -> None:
    reading = read_guards(
        ["L['x'].size()[0] == L['y'].size()[0]"],
        SHAPES,
        {"s0": (1, None), "s1": (1, None)},
        {"s0": 4, "s1": 4},
    )
    assert reading.equal == {"s1": "s0"}
    assert not reading.ranges


@pytest.mark.parametrize(
    "guard",
    [
        "__import__('os').getpid() > L['x'].size()[0]",
        "L['x'].size()[0] in [1, 2]",
        "(lambda: L['x'].size()[0])() > 0",
        "L['x'].size()[7] > 0",
        "L['x'].size()[0] ** 1000000000 > 0",
        "L['x'].size()[0] > " + "(" * 300 + "1" + ")" * 300,
        "L['x'].size()[0] > 1; import os",
        "L['x'].size()[0] >" + " 1 +" * 20000 + " 1",
    ],
)
def test_a_guard_that_cannot_be_read_fixes_the_size(guard: str) -> None:
    reading = read_guards([guard], SHAPES, {"s0": (1, None)}, {"s0": 40})
    assert reading.unread == (guard,)
    assert reading.ranges == {"s0": (40, 40)}


def test_a_guard_about_something_else_is_left_alone() -> None:
    reading = read_guards(["isinstance(L['x'], Tensor)"], SHAPES, {"s0": (1, None)}, {"s0": 40})
    assert not reading.ranges and not reading.unread


# --- what people ask for --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ("1:8:64", DimSpec(1, 8, 64, True)),
        ("2:64", DimSpec(2, None, 64, True)),
        ("16", DimSpec(16, 16, 16, True)),
        ("1::64", DimSpec(1, None, 64, True)),
        (":8:", DimSpec(1, 8, None, True)),
        (7, DimSpec(7, 7, 7, True)),
        ((1, 64), DimSpec(1, None, 64, True)),
        ((2, 4, 8), DimSpec(2, 4, 8, True)),
    ],
)
def test_ranges_are_read(request_: str | int | tuple[int, ...], expected: DimSpec) -> None:
    assert dim_spec("batch", request_) == expected


@pytest.mark.parametrize(
    "request_", ["", "a", "8:4", "0", "1:9:8", "1:2:3:4", "-1:2", (1, 2, 3, 4)]
)
def test_other_ranges_are_refused(request_: str | tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="is not a range of sizes for `batch`"):
        dim_spec("batch", request_)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="no dynamic size called `sequence`") as caught:
        dim_specs({"sequence": 4}, ("batch", "seq"))
    assert "`seq`" in (caught.value.hint or "")


def test_narrowing() -> None:
    assert narrowed(DimSpec(1, 8, 64), (2, 32)) == DimSpec(2, 8, 32)
    assert narrowed(DimSpec(1, 60, None), (1, 32)) == DimSpec(1, 32, 32)
    assert narrowed(DimSpec(40, None, 64), (1, 32)) is None


def test_sample_sizes_are_unlike_the_model() -> None:
    specs = {"batch": DimSpec(), "seq": DimSpec(maximum=512), "fixed": DimSpec(8, 8, 8)}
    sizes = sample_sizes(specs, {3, 37, 41, 64})
    assert sizes["batch"] >= 2 and sizes["seq"] >= 2
    assert not {sizes["batch"], sizes["seq"]} & {3, 37, 41, 64}
    assert sizes["batch"] != sizes["seq"] and sizes["fixed"] == 8
    assert 2 <= sample_sizes({"seq": DimSpec(1, None, 4)}, set())["seq"] <= 4
