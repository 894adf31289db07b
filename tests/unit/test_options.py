"""What can be asked of a compilation, and what is said about a request that cannot be met."""

from __future__ import annotations

import pytest

from fusec.diagnostics import RequirementError, UsageError
from fusec.options import check_requirements, parse_dims, parse_requirement, selected_passes
from fusec.passes import PIPELINE
from fusec.rewrite import Decision, DecisionLog
from fusec.target import CPU_ARCHES, best_cpu_arch, target_named


@pytest.mark.parametrize(
    ("text", "fusion", "count"),
    [("attention", "attention", 1), ("moe>=4", "moe", 4), ("rope >= 12", "rope", 12)],
)
def test_requirements(text: str, fusion: str, count: int) -> None:
    found = parse_requirement(text)
    assert (found.fusion, found.count) == (fusion, count)


@pytest.mark.parametrize("text", ["", "attention>4", "attention>=", "attention>=-1", ">=3"])
def test_a_requirement_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="is not a requirement"):
        parse_requirement(text)


def test_an_unknown_fusion_lists_those_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        parse_requirement("atention>=4")
    assert "`attention`" in (caught.value.hint or "")


def test_an_unmet_requirement_tells_why() -> None:
    log = DecisionLog(
        [
            Decision("rope", "layers.0", "fired", node="a"),
            Decision("rope", "layers.1", "refused", "rope.odd", "7 is odd", "pad it", "b"),
            Decision("rope", "layers.2", "refused", "rope.odd", "7 is odd", "pad it", "c"),
        ]
    )
    check_requirements([parse_requirement("rope")], log, "cpu")
    with pytest.raises(RequirementError) as caught:
        check_requirements([parse_requirement("rope>=2")], log, "cpu")
    assert caught.value.exit_code == 3
    assert caught.value.render() == (
        "error: `--require rope>=2` is not met on cpu: 1 of 3 sites fired\n"
        "  --> layers.1 (and 1 more)\n"
        "      rope.odd: 7 is odd\n"
        "\n"
        "hint: pad it"
    )


def test_passes_can_be_left_out() -> None:
    names = [each.name for each in PIPELINE]
    kept = [each.name for each in selected_passes([names[-1]])]
    assert kept == names[:-1]
    with pytest.raises(UsageError, match="unknown pass `nothing`"):
        selected_passes(["nothing"])


def test_products_and_architectures_are_targets() -> None:
    assert target_named("MI355X").name == "gfx950"
    assert target_named("mi300x") == target_named("gfx942")
    assert target_named("h200").family == "nvidia"
    assert target_named("x86-64-v4").arch == "x86-64-v4"
    with pytest.raises(UsageError, match="unknown target `gfx999`"):
        target_named("gfx999")


def test_the_host_is_an_argument() -> None:
    host = CPU_ARCHES["x86-64-v3"]
    target = target_named("cpu", host=host)
    assert (target.name, target.arch, target.features) == ("cpu", "x86-64-v3", host.features)
    with pytest.raises(UsageError, match="no AVX2"):
        target_named("cpu", host=None)


def test_the_richest_instruction_set_that_fits() -> None:
    for target in CPU_ARCHES.values():
        assert best_cpu_arch(frozenset(target.features)) is target
    assert best_cpu_arch(frozenset({"sse2"})) is None


def test_dims() -> None:
    assert parse_dims(["batch=1:8:64", "seq=4"]) == {"batch": "1:8:64", "seq": "4"}
    for texts in (["batch"], ["=1:2"], ["a=1", "a=2"], ["a b=1"]):
        with pytest.raises(UsageError, match="not a range of a named size"):
            parse_dims(texts)
