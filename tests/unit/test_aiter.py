"""AITER's kernels: what each release has, and which calls fit it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from external_sites import (
    GROUPS,
    PACKED,
    ROWS,
    SAMPLES,
    TOKENS,
    Sample,
    call_of,
    halves_of,
    refusal,
)

from fusec.diagnostics import ParseError, UsageError
from fusec.ir import Graph, TensorType
from fusec.ir.types import Attr
from fusec.kernels.external.aiter import AITER, FINITE_MAX, GATED_MAX
from fusec.kernels.external.call import ExternalCall
from fusec.kernels.external.manifest import Form, Need, Refusal, needs
from fusec.kernels.external.provider import ADAPTERS, parse_provider, records
from fusec.kernels.external.versions import Version, parse_version
from fusec.kernels.launch import Launch
from fusec.kernels.registry import Kernel, choose, kernels
from fusec.signatures import Parameter, Signature, parse_signature
from fusec.symbolic import symbol
from fusec.target import target_named

OLD = "(q, q_weight, q_eps, k, k_weight, k_eps)"
NEW = "(q_out, q, q_weight, q_eps, k_out, k, k_weight, k_eps)"
TWO_NORMS = needs("fused_qk_rmsnorm", "hip", OLD, NEW)


def version(text: str) -> Version:
    found = parse_version(text)
    assert found is not None
    return found


def lookup(release: str, need: Need) -> Form | Refusal:
    return AITER.lookup(version(release), need)


def record(release: str, function: str, op: str) -> Kernel:
    wanted = f"{op}.aiter.{function}"
    held = records(parse_provider(f"aiter=={release}"))
    return next(each for each in held if each.name == wanted)


def call(kernel: Kernel, sample: Sample, target: str = "gfx950") -> tuple[Launch, ExternalCall]:
    graph, node = sample.node()
    (launch,) = kernel.launches(call_of(graph, node, target_named(target)))
    assert isinstance(launch.code, ExternalCall)
    return launch, launch.code


def given(external: ExternalCall) -> dict[str, object]:
    return {argument.name: argument.value for argument in external.arguments}


# --- versions and signatures ----------------------------------------------------------------


def test_versions_are_ordered_as_releases_are() -> None:
    texts = ("0.1.9", "0.1.10.dev1", "0.1.10rc1", "0.1.10", "0.1.10.post1.dev2", "0.1.10.post3")
    ordered = [version(text) for text in (*texts, "0.1.11", "0.2")]
    assert sorted(reversed(ordered)) == ordered
    assert version("v0.1.10.post3+rocm7.1") == version("0.1.10.post3")
    assert version("0.1.14.0") == version("0.1.14") != version("0.1.14.post1")
    assert parse_version("latest") is None


@pytest.mark.parametrize(
    "text",
    (
        "()",
        "(a, b=1, *, c: int | None = None, d) -> tuple[Tensor, Tensor]",
        "(*args, **kwargs)",
        "(a, *rest, b='silu', **more)",
    ),
)
def test_signatures_print_and_parse_back(text: str) -> None:
    signature = parse_signature(text)
    assert str(signature) == text
    assert parse_signature(str(signature)) == signature


def test_signatures_differ_by_names_kinds_and_defaults_only() -> None:
    signature = parse_signature("(a: Tensor, b: float = 1e-6) -> None")
    assert signature == parse_signature("(a: 'torch.Tensor', b=0.000001)")
    assert signature.parameters[1] == Parameter("b", default="1e-06")
    others = ("(b, a=1e-6)", "(a, b)", "(a, b=1e-5)", "(a, *, b=1e-6)", "(a)", "(a, b=1e-6, c=0)")
    assert all(signature != parse_signature(other) for other in others)


@pytest.mark.parametrize("text", ("", "a, b", "(a", "(): pass\nx", "[T](a)", "(a, a)", "(1)"))
def test_what_is_no_signature_is_refused(text: str) -> None:
    with pytest.raises(ParseError):
        parse_signature(text)


# --- the provider ---------------------------------------------------------------------------


def test_a_provider_is_a_library_and_a_release() -> None:
    provider = parse_provider(" AITER == 0.1.10.post3 ")
    assert (provider.library, provider.version) == ("aiter", version("0.1.10.post3"))
    assert str(provider) == "aiter==0.1.10.post3"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    (
        ("aiter", "does not name a library and its version", "LIBRARY==VERSION"),
        ("aiter>=0.1.14", "does not name a library and its version", "LIBRARY==VERSION"),
        ("aiter==", "does not name a library and its version", "LIBRARY==VERSION"),
        ("cutlass==3.0", "knows no library `cutlass`", "`aiter`"),
        ("aiter==newest", "`newest` is no version", "0.1.20.post1"),
        ("aiter==0.1.0", "the first release that fusec knows is 0.1.1", "`0.1.1`, `0.1.2`"),
        ("aiter==9.0", "the last release that fusec knows is", "`0.1.20`, `0.1.20.post1`"),
        ("aiter==0.1.14rc1", "aiter has no such release", "`0.1.13.post1`, `0.1.14`"),
        ("aiter==0.1.10.post4", "aiter has no such release", "`0.1.10.post3`, `0.1.11`"),
    ),
)
def test_other_providers_are_errors_of_usage(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=r"^`--provider ") as caught:
        parse_provider(text)
    assert caught.value.exit_code == 2
    assert message in str(caught.value)
    assert caught.value.hint is not None and hint in caught.value.hint


# --- the manifest ---------------------------------------------------------------------------


def test_no_two_functions_of_a_release_are_in_one_place() -> None:
    for release in AITER.versions:
        places = Counter(place for form in AITER.forms_of(release) for place in form.symbols)
        assert set(places.values()) == {1}, release


def test_every_form_is_whole() -> None:
    assert list(AITER.versions) == sorted(set(AITER.versions))
    for form in AITER.forms:
        assert form.versions and form.signature.parameters
        assert parse_signature(str(form.signature)) == form.signature
        assert not form.signature.is_opaque
        assert len(set(form.signature.names)) == len(form.signature.names)
        assert form.module.split(".")[0] == "aiter"
        assert form.is_exported is False or form.backend == "hip"


SINCE = {
    ("_fused_qk_rmsnorm", 8): ("0.1.14", None),
    ("fused_qk_rmsnorm", 6): ("0.1.12", "0.1.13.post1"),
    ("fused_qk_rmsnorm", 16): ("0.1.14", None),
    ("fused_qk_rmsnorm_group_quant", 14): ("0.1.12", "0.1.12.post2"),
    ("fused_qk_rmsnorm_group_quant", 15): ("0.1.13", None),
    ("fused_qk_rmsnorm_per_token_quant", 13): ("0.1.14", None),
    ("fused_rms_gated_fp8_group_quant", 13): ("0.1.13", None),
    ("causal_conv1d_update_single_token", 13): ("0.1.13", None),
    ("act_mul_and_fp8_group_quant", 4): ("0.1.6.post2", None),
    ("fused_rms_fp8_group_quant", 11): ("0.1.6.post2", "0.1.19"),
    ("fused_rms_fp8_group_quant", 12): ("0.1.19.post1", None),
    ("fused_add_rmsnorm_pad", 5): ("0.1.6.post2", None),
    ("act_mul_and_mxfp4_quant", 5): ("0.1.6.post2", None),
    ("gated_rmsnorm_fp8_group_quant", 8): ("0.1.12.post1", None),
    ("silu_and_mul_quant", 6): ("0.1.15", None),
    ("fused_qkv_split_qk_norm_rope_cache", 21): ("0.1.15", None),
}


@pytest.mark.parametrize(("function", "count"), SINCE)
def test_releases_that_have_a_function(function: str, count: int) -> None:
    forms = [
        form
        for form in AITER.forms
        if form.function == function and len(form.signature.parameters) == count
    ]
    held = sorted({release for form in forms for release in form.versions})
    first, last = SINCE[function, count]
    assert held[0] == version(first)
    assert held[-1] == (AITER.versions[-1] if last is None else version(last))


def test_fused_moe_has_a_gate_mode_since_0_1_14() -> None:
    forms = [form for form in AITER.forms if form.symbol == "aiter.fused_moe:fused_moe"]
    with_mode = [form for form in forms if "gate_mode" in form.signature.names]
    without = [form for form in forms if "gate_mode" not in form.signature.names]
    assert min(form.first for form in with_mode) == version("0.1.14")
    assert max(form.last for form in without) == version("0.1.13.post1")


# --- the outage: one name, two functions ----------------------------------------------------


@pytest.mark.parametrize(
    ("release", "function", "signature"),
    (
        ("0.1.12", "fused_qk_rmsnorm", OLD),
        ("0.1.13", "fused_qk_rmsnorm", OLD),
        ("0.1.13.post1", "fused_qk_rmsnorm", OLD),
        ("0.1.14", "_fused_qk_rmsnorm", NEW),
        ("0.1.20.post1", "_fused_qk_rmsnorm", NEW),
    ),
)
def test_each_release_gives_the_form_it_has(release: str, function: str, signature: str) -> None:
    form = lookup(release, TWO_NORMS)
    assert isinstance(form, Form)
    assert form.symbol == f"aiter.ops.fused_qk_norm_rope_cache_quant:{function}"
    assert form.signature == parse_signature(signature)


@pytest.mark.parametrize("release", ("0.1.10.post3", "0.1.11.post1"))
def test_a_release_without_it_says_which_have_it(release: str) -> None:
    found = lookup(release, TWO_NORMS)
    assert isinstance(found, Refusal)
    last = AITER.versions[-1]
    assert found.reasons == (
        f"aiter {release} has no `fused_qk_rmsnorm`",
        f"0.1.12 to {last} have the one that is needed",
    )


def test_the_namesake_is_another_kernel() -> None:
    found = lookup("0.1.14", needs("fused_qk_rmsnorm", "hip", OLD))
    assert isinstance(found, Refusal)
    namesake = "aiter.ops.fused_qk_rmsnorm_group_quant:fused_qk_rmsnorm"
    assert (
        f"aiter 0.1.14 has `{namesake}` with 16 parameters, which is another kernel: "
        "the one that is needed has 6"
    ) in found.reasons
    assert any(":_fused_qk_rmsnorm` with 8 parameters" in reason for reason in found.reasons)


def test_the_namesake_has_the_name_that_the_old_form_had() -> None:
    place = "aiter:fused_qk_rmsnorm"
    before, after = (
        next(form for form in AITER.forms_of(version(release)) if place in form.symbols)
        for release in ("0.1.13", "0.1.14")
    )
    assert before.signature == parse_signature(OLD)
    assert len(after.signature.parameters) == 16


def test_the_namesake_is_never_taken() -> None:
    for release in AITER.versions:
        for adapter in ADAPTERS["aiter"]:
            found = AITER.lookup(release, adapter.need)
            if isinstance(found, Form):
                assert found.signature in adapter.need.signatures
                assert len(found.signature.parameters) != 16
                assert found.backend == adapter.need.backend


def test_a_kernel_that_moved_is_found_where_it_is() -> None:
    need = next(a.need for a in ADAPTERS["aiter"] if a.need.function == "fused_rms_mxfp4_quant")
    before, after = (lookup(release, need) for release in ("0.1.9", "0.1.10"))
    assert isinstance(before, Form) and isinstance(after, Form)
    assert before.module == "aiter.ops.triton.fused_mxfp4_quant"
    assert after.module == "aiter.ops.triton.quant.fused_mxfp4_quant"


# --- the records ----------------------------------------------------------------------------


def test_no_library_is_used_unless_it_is_asked_for() -> None:
    assert all(each.provider != "external" for held in kernels().values() for each in held)


def test_records_have_names_of_their_own() -> None:
    names = [each.name for each in records(parse_provider("aiter==0.1.14"))]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", ("dual_rms_norm", "rms_norm", "add_rms_norm"))
def test_a_library_is_preferred_and_fusec_is_the_default(name: str) -> None:
    graph, node = SAMPLES[name].node()
    target = target_named("gfx950")
    chosen = choose(graph, node, target, records(parse_provider("aiter==0.1.14"))).kernel
    default = choose(graph, node, target).kernel
    assert chosen is not None and chosen.provider == "external"
    assert default is not None and default.provider != "external"


def test_a_release_that_lacks_a_kernel_leaves_the_node_to_fusec() -> None:
    graph, node = SAMPLES["dual_rms_norm"].node()
    lacking = records(parse_provider("aiter==0.1.11"))
    choice = choose(graph, node, target_named("gfx942"), lacking)
    assert choice.kernel is not None and choice.kernel.provider != "external"
    assert choice.refused[0].kernel == "dual_rms_norm.aiter.fused_qk_rmsnorm"
    assert choice.refused[0].reason.startswith("aiter 0.1.11 has no `fused_qk_rmsnorm`")


@pytest.mark.parametrize("release", [str(each) for each in AITER.versions])
def test_calls_fit_the_signature_of_their_release(release: str) -> None:
    """Every argument has a parameter, every parameter without a default an argument."""
    for name, sample in SAMPLES.items():
        graph, node = sample.node()
        target = target_named("gfx950")
        for kernel in records(parse_provider(f"aiter=={release}")):
            if kernel.op != node.op or kernel.supports(graph, node, target) is not None:
                continue
            launch, external = call(kernel, sample)
            names = [argument.name for argument in external.arguments]
            required = {p.name for p in external.signature.parameters if p.default is None}
            assert len(names) == len(set(names)), (name, kernel.name)
            assert required <= set(names) <= set(external.signature.names), (name, kernel.name)
            assert release in external.versions
            written = [a.value for a in external.arguments if a.given == "operand"]
            placed = {each for each in (*written, *external.returned) if each is not None}
            assert placed == set(range(len(launch.operands))), (name, kernel.name)
            assert json.loads(json.dumps(external.document())) == external.document()


def test_every_sample_is_computed_by_the_last_release() -> None:
    last = records(parse_provider(f"aiter=={AITER.versions[-1]}"))
    used = {
        kernel.name
        for sample in SAMPLES.values()
        for kernel in last
        if kernel.op == sample.op and refusal(kernel, sample) is None
    }
    assert used == {kernel.name for kernel in last}


def test_the_two_forms_are_called_each_in_its_way() -> None:
    old = call(record("0.1.13", "fused_qk_rmsnorm", "dual_rms_norm"), SAMPLES["dual_rms_norm"])[1]
    new = call(record("0.1.14", "fused_qk_rmsnorm", "dual_rms_norm"), SAMPLES["dual_rms_norm"])[1]
    operands = {"q": 0, "q_weight": 1, "q_eps": 1e-6, "k": 2, "k_weight": 3, "k_eps": 1e-5}
    assert given(old) == operands and old.returned == (4, 5)
    assert given(new) == {**operands, "q_out": 4, "k_out": 5} and new.returned == ()
    assert old.distributions[0] == "amd-aiter"


def test_strided_rows_are_passed_as_they_lie() -> None:
    graph, node = SAMPLES["dual_rms_norm"].node()
    target = target_named("gfx950")
    dense = call_of(graph, node, target)
    views = [
        replace(each, buffer=9, strides=(2112, 1), offset=at)
        for each, at in ((dense.inputs[0], 0), (dense.inputs[2], 1536))
    ]
    inputs = (views[0], dense.inputs[1], views[1], dense.inputs[3])
    kernel = record("0.1.14", "fused_qk_rmsnorm", "dual_rms_norm")
    (launch,) = kernel.launches(replace(dense, inputs=inputs))
    assert kernel.layouts(graph, node) == ("even_rows",) * 6
    assert launch.operands[2].strides == (2112, 1) and launch.operands[2].offset == 1536


def test_dense_operands_where_a_release_takes_no_others() -> None:
    graph, node = SAMPLES["dual_rms_norm_quant"].node()
    layouts = [
        record(release, "fused_qk_rmsnorm_group_quant", "dual_rms_norm_quant").layouts(graph, node)
        for release in ("0.1.12", "0.1.13")
    ]
    assert set(layouts[0]) == {"contiguous"} and set(layouts[1]) == {"even_rows"}


# --- what each function refuses -------------------------------------------------------------


def with_attrs(name: str, **attrs: Attr) -> Sample:
    return replace(SAMPLES[name], attrs={**SAMPLES[name].attrs, **attrs})


def with_scaling(name: str, **changes: object) -> Sample:
    scaling = SAMPLES[name].scaling
    assert scaling is not None
    return replace(SAMPLES[name], scaling=replace(scaling, **changes))  # type: ignore[arg-type]


def long_rows(name: str, length: int) -> Sample:
    sample = SAMPLES[name]
    shapes = [tuple(length if dim == 4096 else dim for dim in shape) for shape in sample.shapes]
    return replace(sample, shapes=tuple(shapes))


REFUSED = [
    ("0.1.14", "fused_qk_rmsnorm", with_attrs("dual_rms_norm", weight_offset=1),
     "it cannot add 1 to the weight"),
    ("0.1.14", "fused_qk_rmsnorm", replace(SAMPLES["dual_rms_norm"], dtype="f32"),
     "`%x0` is f32; it takes bf16 or f16"),
    ("0.1.14", "fused_qk_rmsnorm", replace(SAMPLES["dual_rms_norm"], dtypes={3: "f32"}),
     "weight `%x3` is f32 beside rows of bf16"),
    ("0.1.14", "rmsnorm", long_rows("rms_norm", 8196),
     "a row has 8196 elements; it takes up to 8192"),
    ("0.1.14", "rmsnorm", long_rows("rms_norm", 4098),
     "a row has 4098 elements, no multiple of 4"),
    ("0.1.16", "rmsnorm", with_attrs("rms_norm", weight_offset=1), "it cannot add 1 to the weight"),
    ("0.1.14", "rmsnorm_quant", with_scaling("rms_norm_quant", dtype="f8e4m3fnuz"),
     "it quantises to f8e4m3fn, not f8e4m3fnuz"),
    ("0.1.14", "rmsnorm_quant", with_scaling("rms_norm_quant", maximum=224.0),
     "it scales the largest element to 448 on gfx950; this operation to 224"),
    ("0.1.14", "rmsnorm_quant", with_scaling("rms_norm_quant", group=32),
     "its groups have 64 or 128 elements, not 32"),
    ("0.1.14", "rmsnorm_quant", with_scaling("rms_norm_quant", rounding="up"),
     "it rounds scales `none`, not `up`"),
    ("0.1.14", "rmsnorm_quant", with_scaling("rms_norm_quant", upper_bound=1.0),
     "it has no upper bound of scales"),
    ("0.1.14", "rmsnorm_quant", long_rows("rms_norm_quant", 5120),
     "it has no groups in rows of 4097 to 6144 elements; this one has 5120"),
    ("0.1.14", "rmsnorm_quant", with_attrs("rms_norm_quant", with_plain=True),
     "it gives no result beside the quantised one"),
    ("0.1.14", "rmsnorm_quant", SAMPLES["rms_norm_quant/tensor"],
     "its scales are by token or group, not by tensor"),
    ("0.1.14", "fused_rms_fp8_per_tensor_static_quant", SAMPLES["rms_norm_quant"],
     "its scales are by tensor, not by group"),
    ("0.1.14", "fused_rms_fp8_group_quant", replace(SAMPLES["rms_norm_quant"], scaling=TOKENS),
     "its scales are by group, not by token"),
    ("0.1.14", "fused_rms_mxfp4_quant", with_scaling("rms_norm_quant/packed", rounding="up"),
     "it rounds scales `even`, not `up`"),
    ("0.1.14", "fused_rms_mxfp4_quant", with_attrs("rms_norm_quant/packed", with_plain=True),
     "it gives no result beside the quantised one"),
    ("0.1.14", "fused_qk_rmsnorm_group_quant", with_attrs("dual_rms_norm_quant", quantises="both"),
     "it quantises the first of the two norms only"),
    ("0.1.14", "fused_rms_gated_fp8_group_quant",
     with_scaling("gated_rms_norm_quant", layout="column"),
     "it cannot lay out the scales of each group together"),
    ("0.1.14", "fused_rms_gated_fp8_group_quant", SAMPLES["gated_rms_norm_quant/token"],
     "it has a scale for each head, not one for all heads of a token"),
    ("0.1.14", "fused_rms_gated_fp8_group_quant", with_scaling("gated_rms_norm_quant", group=256),
     "groups of 256 elements do not divide a head of 128"),
    ("0.1.14", "gated_rmsnorm_fp8_group_quant",
     with_attrs("gated_rms_norm_quant", activation="sigmoid"),
     "its gate is silu, not sigmoid"),
    ("0.1.14", "gated_rmsnorm_fp8_group_quant",
     with_attrs("gated_rms_norm_quant", norm_before_gate=False),
     "it norms before the gate, not after it"),
    ("0.1.14", "gated_rmsnorm_fp8_group_quant",
     replace(with_attrs("gated_rms_norm_quant", shape=(ROWS, 4096)),
             shapes=((ROWS, 16, 256), (256,), (ROWS, 16, 256))),
     "a head has 256 elements; it takes 128"),
    ("0.1.18", "gated_rmsnorm_fp8_per_token_quant",
     replace(with_attrs("gated_rms_norm_quant/token", shape=(ROWS, 129 * 128)),
             shapes=((ROWS, 129, 128), (128,), (ROWS, 129, 128))),
     "a token has 129 heads; it takes up to 128"),
    ("0.1.15", "silu_and_mul_quant",
     replace(SAMPLES["silu_mul_quant"], shapes=((ROWS, 10240),)),
     "it has no groups in rows of 4097 to 6144 elements; this one has 5120"),
    ("0.1.15", "act_mul_and_fp8_group_quant",
     replace(SAMPLES["silu_mul_quant"], shapes=((ROWS, 2048), (ROWS, 2048)), halves=False),
     "gate and up are not halves of one value"),
]  # fmt: skip


@pytest.mark.parametrize(("release", "function", "sample", "reason"), REFUSED)
def test_a_node_beyond_a_function_is_refused(
    release: str, function: str, sample: Sample, reason: str
) -> None:
    assert refusal(record(release, function, sample.op), sample) == reason


@pytest.mark.parametrize("name", ("rms_norm", "rms_norm_quant"))
def test_a_norm_without_a_weight_is_refused(name: str) -> None:
    attrs = {key: held for key, held in SAMPLES[name].attrs.items() if key != "has_weight"}
    sample = replace(SAMPLES[name], attrs=attrs, shapes=((ROWS, 4096),))
    kernels = [each for each in records(parse_provider("aiter==0.1.14")) if each.op == sample.op]
    assert {refusal(kernel, sample) for kernel in kernels} == {"it needs a weight"}


@pytest.mark.parametrize("name", SAMPLES)
def test_rows_of_unknown_length_are_refused(name: str) -> None:
    sample = SAMPLES[name]
    if sample.halves:
        return
    shapes = [
        tuple(symbol("width") * 128 if dim == shape[-1] else dim for dim in shape)
        if index not in sample.dtypes
        else shape
        for index, shape in enumerate(sample.shapes)
    ]
    attrs = {key: held for key, held in sample.attrs.items() if key != "shape"}
    open_sample = replace(sample, shapes=tuple(shapes), attrs=attrs)
    kernels = [each for each in records(parse_provider("aiter==0.1.20")) if each.op == sample.op]
    assert kernels
    for kernel in kernels:
        reason = refusal(kernel, open_sample)
        assert reason is not None and "have no length known at compile time" in reason


@pytest.mark.parametrize("name", SAMPLES)
def test_every_call_of_it_runs_on_instinct_alone(name: str) -> None:
    kernels = records(parse_provider("aiter==0.1.20"))
    assert {kernel.families for kernel in kernels} == {("amdgpu",)}
    fitting = [each for each in kernels if each.op == SAMPLES[name].op]
    fitting = [each for each in fitting if refusal(each, SAMPLES[name]) is None]
    assert fitting
    for kernel in fitting:
        reason = refusal(kernel, SAMPLES[name], "sm_90")
        assert reason is not None and "this is sm_90" in reason


@pytest.mark.parametrize(("maximum", "taken"), ((240.0, True), (224.0, False)))
def test_most_functions_scale_to_240_on_gfx942(maximum: float, taken: bool) -> None:
    assert FINITE_MAX["gfx942"] == 240.0 and GATED_MAX["gfx942"] == 224.0
    sample = with_scaling("rms_norm_quant", dtype="f8e4m3fnuz", maximum=maximum)
    for function in ("rmsnorm_quant", "fused_rms_fp8_group_quant"):
        reason = refusal(record("0.1.14", function, "rms_norm_quant"), sample, "gfx942")
        assert (reason is None) is taken
        assert taken or (reason is not None and "to 240 on gfx942" in reason)


@pytest.mark.parametrize("maximum", (224.0, 240.0))
def test_the_gated_kernel_is_told_its_maximum(maximum: float) -> None:
    sample = with_scaling("gated_rms_norm_quant", dtype="f8e4m3fnuz", maximum=maximum)
    kernel = record("0.1.14", "fused_rms_gated_fp8_group_quant", "gated_rms_norm_quant")
    assert refusal(kernel, sample, "gfx942") is None
    arguments = given(call(kernel, sample, "gfx942")[1])
    assert (arguments["fp8_min"], arguments["fp8_max"]) == (-maximum, maximum)
    assert arguments["fp8_min_scaling_factor"] == 1 / (512 * maximum)


def test_the_floor_of_rounded_scales_is_a_power_of_two() -> None:
    kernel = record("0.1.14", "fused_rms_gated_fp8_group_quant", "gated_rms_norm_quant")
    sample = with_scaling("gated_rms_norm_quant", rounding="up")
    assert given(call(kernel, sample)[1])["fp8_min_scaling_factor"] == 2.0**-17
    assert sample.scaling is not None
    assert sample.scaling.scale(0.0) == 2.0**-17  # type: ignore[arg-type]


def test_both_gates_fuse() -> None:
    kernel = record("0.1.14", "fused_rms_gated_fp8_group_quant", "gated_rms_norm_quant")
    sample = with_attrs("gated_rms_norm_quant", activation="sigmoid")
    assert refusal(kernel, sample) is None
    assert given(call(kernel, sample)[1])["activation"] == "sigmoid"


def test_four_bit_floats_need_gfx950() -> None:
    for op, function in (("rms_norm_quant", "fused_rms_mxfp4_quant"),
                         ("silu_mul_quant", "act_mul_and_mxfp4_quant")):  # fmt: skip
        sample = SAMPLES[f"{op}/packed"]
        kernel = record("0.1.14", function, op)
        assert refusal(kernel, sample) is None
        assert refusal(kernel, sample, "gfx942") == "it runs on gfx950; this is gfx942"


def test_scales_of_each_group_together() -> None:
    column = with_scaling("dual_rms_norm_quant", layout="column")
    kernel = record("0.1.14", "fused_qk_rmsnorm_group_quant", "dual_rms_norm_quant")
    assert refusal(kernel, column) is None
    launch, external = call(kernel, column)
    assert given(external)["transpose_scale"] is True
    assert launch.operands[5].shape == (ROWS, 12) and launch.operands[5].strides == (12, 1)


def test_gate_and_up_are_one_operand() -> None:
    kernel = record("0.1.15", "silu_and_mul_quant", "silu_mul_quant")
    launch, external = call(kernel, SAMPLES["silu_mul_quant"])
    assert launch.operands[0].shape == (ROWS, 4096) and launch.operands[0].strides == (4096, 1)
    assert given(external)["input"] == 0 and given(external)["scale"] == 2


@pytest.mark.parametrize("first", (0, 1))
def test_up_before_gate_is_refused(first: int) -> None:
    graph = Graph("swapped", {"rows": (1, 8)})
    whole = graph.add_input("whole", TensorType("bf16", (ROWS, 4096)))
    node = graph.add("silu_mul_quant", halves_of(graph, whole, first), GROUPS.attrs())
    kernel = record("0.1.15", "silu_and_mul_quant", "silu_mul_quant")
    reason = kernel.supports(graph, node, target_named("gfx950"))
    swapped = "gate and up are not halves of one value, in this order"
    assert reason == (swapped if first else None)


def test_rows_that_may_be_strided_are_refused_where_they_must_be_dense() -> None:
    graph = Graph("strided", {"rows": (1, 8)})
    wide = graph.add_input("wide", TensorType("bf16", (ROWS, 8192)))
    window: dict[str, Attr] = {"axis": -1, "start": 0, "stop": 4096, "step": 1}
    whole = graph.add("slice", [wide], window).output
    node = graph.add("silu_mul_quant", halves_of(graph, whole), PACKED.attrs())
    kernel = record("0.1.14", "act_mul_and_mxfp4_quant", "silu_mul_quant")
    reason = kernel.supports(graph, node, target_named("gfx950"))
    assert reason == f"`%{whole}` is a view whose rows need not be dense"


def test_signature_is_the_key_and_not_the_name() -> None:
    """The same function with one more parameter is another function."""
    form = next(form for form in AITER.forms if form.function == "_fused_qk_rmsnorm")
    assert TWO_NORMS.accepts(form)
    longer = Signature((*form.signature.parameters, Parameter("stream", default="None")))
    assert not TWO_NORMS.accepts(replace(form, signature=longer))
    assert not TWO_NORMS.accepts(replace(form, backend="triton"))
