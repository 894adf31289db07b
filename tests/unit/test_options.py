"""What can be asked of a compilation, and what is said about a request that cannot be met."""

from __future__ import annotations

import pytest

from fusec.diagnostics import RequirementError, UsageError
from fusec.explanation import explain_text
from fusec.options import (
    check_requirements,
    parse_dims,
    parse_quantise,
    parse_requirement,
    selected_passes,
    settings_of,
    with_fp32_precision,
)
from fusec.passes import PIPELINE
from fusec.passes.hints import hint_for
from fusec.report import alike, details_text
from fusec.rewrite import Decision, DecisionLog, QuantRequest
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
        "error: `--require rope>=2` is not met: 1 of 3 sites fired\n"
        "  --> layers.1 (and 1 more)\n"
        "      rope.odd: 7 is odd\n"
        "\n"
        "hint: pad it"
    )
    with pytest.raises(RequirementError, match="is not met on gfx950: 1 of 3"):
        check_requirements([parse_requirement("rope>=2")], log, "gfx950", several=True)


def test_an_unmet_requirement_names_what_was_chosen_instead() -> None:
    reason = "native scaled MFMA needs gfx950; this is gfx942"
    log = DecisionLog()
    for layer in range(36):
        site, node = f"model.layers.{layer}.mlp.experts", f"moe{layer}"
        rejected = {"backend": "moe_mxfp4_native", "code": "mxfp4.arch", "reason": reason}
        refused = Decision("moe_mxfp4_native", site, "refused", "mxfp4.arch", reason, node=node)
        log.add(refused)
        log.add(
            Decision(
                "moe_mxfp4_dequant",
                site,
                "fired",
                node=node,
                details={"how": "dequantises to bf16"},
                rejected=(rejected,),
            )
        )
    log.advise(hint_for)
    with pytest.raises(RequirementError) as caught:
        check_requirements([parse_requirement("moe_mxfp4_native")], log, "gfx942")
    assert caught.value.render() == (
        "error: `--require moe_mxfp4_native>=1` is not met: 0 of 36 sites fired\n"
        "  --> model.layers.0.mlp.experts (and 35 more)\n"
        "      mxfp4.arch: native scaled MFMA needs gfx950; this is gfx942\n"
        "      chosen instead: moe_mxfp4_dequant (dequantises to bf16)\n"
        "\n"
        "hint: compile for `gfx950`, or require `moe_mxfp4_dequant`"
    )
    explained = explain_text({"gfx942": [decision.as_json() for decision in log]})
    assert explained == (
        "gfx942: 36 sites fired (1 fusion), 36 sites refused (1 fusion)\n"
        "\n"
        "  moe_mxfp4_dequant  36 of 36 fired\n"
        "  moe_mxfp4_native   0 of 36 fired\n"
        "\n"
        "refused\n"
        "  moe_mxfp4_native, 36 of 36 refused: native scaled MFMA needs gfx950; this is\n"
        "    gfx942\n"
        "    layers 0-35: model.layers.*.mlp.experts\n"
        "    code: `mxfp4.arch`\n"
        "    hint: compile for `gfx950`, or require `moe_mxfp4_dequant`\n"
        "\n"
        "fired\n"
        "  moe_mxfp4_dequant, 36 sites: dequantises to bf16\n"
        "    instead of moe_mxfp4_native: `mxfp4.arch`: native scaled MFMA needs gfx950;\n"
        "      this is gfx942"
    )


def test_kernels_that_compute_a_fusion_and_those_that_do_not() -> None:
    hip = {"backend": "silu_mul_quant.hip", "reason": "it does not give the result"}
    reader = "`linear` at `model.layers.{}.mlp.gate` in bf16"
    rows = [
        Decision(
            "silu_mul_quant",
            f"model.layers.{layer}.mlp",
            "fired",
            details={"with_plain": reader.format(layer), "norm_before_gate": True},
            backend="silu_mul_quant.triton",
            rejected=(hip,),
        )
        for layer in range(2)
    ]
    rows.append(Decision("silu_mul_quant", "mtp", "fired", backend="silu_mul_quant.hip"))
    assert explain_text({"gfx950": [row.as_json() for row in rows]}) == (
        "gfx950: 3 sites fired (1 fusion)\n"
        "\n"
        "  silu_mul_quant  3 of 3 fired\n"
        "\n"
        "fired\n"
        "  silu_mul_quant, 2 sites by silu_mul_quant.triton: also read by `linear` at\n"
        "    `model.layers.*.mlp.gate` in bf16, norm before gate yes\n"
        "    at layers 0-1: model.layers.*.mlp\n"
        "    not by silu_mul_quant.hip: it does not give the result\n"
        "  silu_mul_quant, 1 site by silu_mul_quant.hip\n"
        "    at mtp"
    )


def test_details_in_any_order_begin_with_how() -> None:
    details = {"experts": 8, "hidden": 96, "hidden_pad": 160, "how": "scaled MFMA"}
    said = details_text({"details": details})
    assert said == "scaled MFMA, experts 8, hidden 96 padded to 256"


def test_reasons_that_differ_in_numbers_stand_together() -> None:
    texts = ["read by `layers.0.q`", "read by `layers.1.q`", "size 3", "size 4", "size 3"]
    assert alike(texts) == [
        ("read by `layers.*.q`", [0, 1]),
        ("size 3", [2, 4]),
        ("size 4", [3]),
    ]
    assert alike(["`%norm_7` is read", "`%norm_12` is read"]) == [("`%norm_*` is read", [0, 1])]
    assert alike(texts[:1]) == [("read by `layers.0.q`", [0])]


@pytest.mark.parametrize(
    ("text", "format", "pattern"),
    [
        ("fp8-block", "fp8-block", "*"),
        ("mxfp4:experts", "mxfp4", "experts"),
        ("fp8-token:*.mlp.*", "fp8-token", "*.mlp.*"),
    ],
)
def test_formats(text: str, format: str, pattern: str) -> None:
    found = parse_quantise(text)
    assert (found.format, found.pattern, str(found)) == (format, pattern, text)


@pytest.mark.parametrize("text", ["", "fp8", "int4", "mxfp4 ", "MXFP4", ":experts", "nvfp4:x"])
def test_an_unknown_format_lists_those_there_are(text: str) -> None:
    with pytest.raises(UsageError, match="unknown format") as caught:
        parse_quantise(text)
    hint = caught.value.hint or ""
    for format in ("fp8-tensor", "fp8-token", "fp8-block", "mxfp4", "mxfp8"):
        assert f"`{format}`" in hint


def test_a_format_for_no_weights() -> None:
    with pytest.raises(UsageError, match="names no weights"):
        parse_quantise("mxfp4:")


def test_settings_reach_the_passes() -> None:
    settings = settings_of(["mxfp4:experts", "fp8-block"], "reject", 4)
    assert settings.quantise == (QuantRequest("mxfp4", "experts"), QuantRequest("fp8-block"))
    assert (settings.mxfp4_align, settings.tensor_parallel) == ("reject", 4)
    assert all(each.settings is settings for each in selected_passes((), settings))
    with pytest.raises(UsageError, match="no number of ranks"):
        settings_of([], "pad", 0)
    with pytest.raises(UsageError, match="unknown `--mxfp4-align cut`"):
        settings_of([], "cut", 1)


def test_how_precise_products_of_f32_are() -> None:
    cpus = [target_named(name) for name in ("x86-64-v3", "sapphirerapids")]
    found = with_fp32_precision(cpus, "high")
    assert [target.name for target in found] == [target.name for target in cpus]
    assert {target.fp32_precision for target in found} == {"high"}
    gpus = [target_named("gfx950")]
    assert with_fp32_precision(gpus, "highest") == tuple(gpus)
    with pytest.raises(UsageError, match="has no meaning for `gfx950`"):
        with_fp32_precision([*cpus, *gpus], "medium")
    with pytest.raises(UsageError, match="unknown `--fp32-precision low`") as caught:
        with_fp32_precision(cpus, "low")
    assert caught.value.hint == "write `highest`, `high`, `medium`"


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
