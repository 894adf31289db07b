"""Linears in few bits, because the source is quantised or because it was asked for.

Fuses

    linear(x, w)   into   fp8_linear(quantize(x), codes, scales)     fp8 and mxfp8, on a GPU
    linear(x, w)   into   mxfp4_linear(quantize(x), codes, scales)   mxfp4, with scaled matrix units
    linear(x, w)   into   mxfp4_linear(x, codes, scales)             mxfp4, without
    linear(x, w)   into   fp8_linear(x, codes, scales)               fp8 and mxfp8, on a CPU

On a GPU x is quantised as its weight is: in groups of as many elements as a block of the weight has
columns, else by token, or by the scale that the source gives; in MX formats in groups of 32 with
e8m0 scales rounded even, to e4m3fn.  Linears that read one x share its codes.  The 8-bit float is
the target's: e4m3fn codes become e4m3fnuz codes of half the value, with scales twice as large.
mxfp4 weights are padded to multiples of 256 in memory, unless `--mxfp4-align reject` says not to;
then, too, nothing but weights of such sizes is multiplied by scaled matrix units.  On a CPU x stays
as it is, nothing is padded, and the kernel widens codes as it multiplies.

A request without a pattern leaves alone what is sensitive, as vLLM and llm-compressor do: what is
returned (`lm_head`), routers, and gates of one number; and low-rank products, two linears with
nothing between, such as adapters.  A pattern that fits them takes them.  Embeddings and norms are
no linears.

Leaves it alone when
  weight      the weight is computed, not stored
  request     the weight was joined from several, and a request fits only some of them
  scales      the codes were lost on the way, or their scales are none that a kernel takes
  fp8.arch    the source has 8-bit codes that the target does not multiply
  mxfp8.arch  it is mxfp8, and the target is a GPU without scaled matrix units
  shape       the inputs are not whole groups that share a scale; on a CPU fp8 blocks may end early
  dtype       the rows are of a type that no kernel takes
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fusec.formats import MX_GROUP, Scaling, fp8_scaling, mx_scaling
from fusec.ir import OPS, Attr, Graph, Node
from fusec.ir.weights import Bits, Quantised
from fusec.passes.experts_walk import before
from fusec.passes.facts import only_reader
from fusec.passes.mxfp4_layout import ALIGNMENT, aligned, padded, padded_codes, up_to
from fusec.passes.quantised_weights import (
    NONE,
    for_matrix_units,
    format_of,
    formats,
    has_scales,
    in_few_bits,
    is_asked_as_one,
    is_multiplied,
    is_weight,
    parameter,
    quantised_rows,
    weight_facts,
)
from fusec.rewrite import FusionPass, Guard, Match, Rejection
from fusec.rewrite.driver import Builder
from fusec.target import Target

FLOATS = ("f32", "bf16", "f16")
NARROW = ("bf16", "f16")
MOST_STEPS = 32
"""Nodes after a linear that are looked at to tell what it is for."""

_AFTER_HEAD = ("cast", "reshape", "transpose", "slice", "mul", "div", "tanh")
_AFTER_ROUTER = ("softmax", "cast", "reshape", "slice", "concat", "expand", "take", "gather")


def _mxfp8(match: Match, target: Target) -> Rejection | None:
    if formats(match) != ("mxfp8",) or target.native_mxfp4 or not target.is_gpu:
        return None
    reason = f"mxfp8 needs the scaled matrix units of gfx950; this is {target.name}"
    return Rejection("mxfp8.arch", reason, match.values["weight"])


def _shape(match: Match, target: Target) -> Rejection | None:
    value = match.values["weight"]
    length = match.graph.parameters[value].shape[1]
    group = _group(match)
    may_end_early = not target.is_gpu and formats(match) == ("fp8-block",)
    if group and length % group and not may_end_early:
        reason = f"{length} inputs are not whole groups of {group} that share a scale"
        return Rejection("shape", reason, value)
    return None


def _dtype(match: Match, target: Target) -> Rejection | None:
    x, dtype = match.root.inputs[0], str(match.facts["dtype"])
    narrow = target.is_gpu and formats(match) == ("mxfp4",) and not _scaled(match, target)
    wanted = NARROW if narrow else FLOATS
    if dtype in wanted:
        return None
    return Rejection("dtype", f"the rows are {dtype}, not one of {', '.join(wanted)}", x)


def _group(match: Match) -> int:
    """Elements along the inputs that share a scale; 0 if all of them do."""
    (format,) = formats(match)
    if format.startswith("mx"):
        return MX_GROUP
    if format != "fp8-block":
        return 0
    held = match.graph.parameters[match.values["weight"]].quantised
    return 128 if held is None else held.block[1]


def _scaled(match: Match, target: Target) -> bool:
    """Whether scaled matrix units multiply the weight as it lies in memory."""
    shape = match.graph.parameters[match.values["weight"]].shape
    return target.native_mxfp4 and (match.facts["pads"] is True or aligned(*shape))


class Quantise(FusionPass):
    """Puts a product of codes in the place of a linear."""

    name: ClassVar[str] = "quantise"
    fusion: ClassVar[str | None] = "quantise"
    rounds: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("linear", "merge_qkv", "merge_gate_up", "wide_linear")
    beside: ClassVar[tuple[str, ...]] = ("merge_qkv", "merge_gate_up")
    guards: ClassVar[tuple[Guard, ...]] = (
        is_weight,
        is_asked_as_one,
        has_scales,
        is_multiplied,
        _mxfp8,
        _shape,
        _dtype,
    )

    def anchors(self) -> frozenset[str]:
        """Products with a weight."""
        return frozenset(("linear",))

    def find(self, graph: Graph, node: Node) -> Match | None:
        """A linear whose weight is in few bits, or is to be."""
        value, settings = node.inputs[1], self.settings
        bare = any(request.pattern == "*" for request in settings.quantise)
        left_alone = bare and is_sensitive(graph, node)
        format = format_of(graph, value, settings, experts=False, left_alone=left_alone)
        if format == NONE:
            return None
        facts: dict[str, Attr] = {
            **weight_facts(["weight"], [format], turned=False),
            "pads": settings.mxfp4_align == "pad",
            "dtype": graph.type(node.inputs[0]).dtype,
        }
        return Match(graph, node, values={"weight": value}, inner=(node,), facts=facts)

    def details(self, match: Match, target: Target) -> Mapping[str, str | int | float]:
        """The format, and what the rows are quantised to."""
        (format,) = formats(match)
        found: dict[str, str | int | float] = {"format": format, "activations": str(target.fp8)}
        if not target.is_gpu:
            found["activations"] = str(match.facts["dtype"])
        elif format.startswith("mx"):
            scaled = format == "mxfp8" or _scaled(match, target)
            found["activations"] = "mxfp8" if scaled else str(match.facts["dtype"])
        return found

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Quantise the rows, and multiply."""
        if formats(match) == ("mxfp4",):
            return {match.root.output: _mxfp4(match, target, build)}
        product = _fp8 if target.is_gpu else _fp8_of_floats
        return {match.root.output: product(match, target, build)}


def _fp8(match: Match, target: Target, build: Builder) -> str:
    graph, node = match.graph, match.root
    x, value, *bias = node.inputs
    (format,) = formats(match)
    held = in_few_bits(match, "weight", target)
    codes, scale = held.codes, held.scale
    static = None
    if format == "mxfp8":
        scaling = mx_scaling("f8e4m3fn", "even")
    else:
        codes, scale = for_matrix_units(held, target, by_row=format == "fp8-token")
        scaling = _row_scaling(str(target.fp8), _group(match))
        if held.input_scale is not None and scaling.granularity == "token":
            scaling = fp8_scaling(scaling.dtype, "tensor")
            given = held.input_scale
            if scaling.dtype != held.codes.type.dtype:
                given = given.derive(f"{given.name}.doubled", given.type, "doubled", _doubled)
            static = parameter(graph, f"{value}.input_scale", given)
    attrs: dict[str, Attr] = {
        **scaling.attrs(),
        "weight_block": _weight_block(held, format),
        "has_bias": bool(bias),
        "dtype": graph.type(node.output).dtype,
    }
    operands = [
        *quantised_rows(build, x, scaling.attrs(), static),
        parameter(graph, f"{value}.codes", codes),
        parameter(graph, f"{value}.scale", scale),
    ]
    return build.value("fp8_linear", [*operands, *bias], attrs)


def _fp8_of_floats(match: Match, target: Target, build: Builder) -> str:
    """The product of x as it is; e8m0 scales become f32."""
    graph, node = match.graph, match.root
    x, value, *bias = node.inputs
    (format,) = formats(match)
    held = in_few_bits(match, "weight", target)
    codes, scale = for_matrix_units(held, target, by_row=format == "fp8-token")
    operands = [
        x,
        parameter(graph, f"{value}.codes", codes),
        parameter(graph, f"{value}.scale", scale),
        *bias,
    ]
    attrs: dict[str, Attr] = {
        "weight_block": _weight_block(held, format),
        "has_bias": bool(bias),
        "dtype": graph.type(node.output).dtype,
    }
    return build.value("fp8_linear", operands, attrs)


def _weight_block(held: Quantised, format: str) -> tuple[int, int]:
    """Rows and columns that share a scale."""
    outputs, length = held.values_shape
    blocks = {"fp8-tensor": (outputs, length), "fp8-token": (1, length)}
    return blocks.get(format, held.block)


def _row_scaling(dtype: str, group: int) -> Scaling:
    if group:
        return fp8_scaling(dtype, "group", group=group)
    return fp8_scaling(dtype, "token")


def _doubled(bits: Bits) -> Bits:
    return (bits * 2).astype(bits.dtype)


def _mxfp4(match: Match, target: Target, build: Builder) -> str:
    graph, node = match.graph, match.root
    x, value, *bias = node.inputs
    held = in_few_bits(match, "weight", target)
    outputs, _ = held.values_shape
    pads = target.is_gpu and match.facts["pads"] is True
    step = ALIGNMENT if pads else 1
    codes, scale = padded_codes(held.codes, held.scale, step, step)
    scaled = _scaled(match, target)
    scaling = mx_scaling("f8e4m3fn", "even")
    rows = quantised_rows(build, x, scaling.attrs()) if scaled else [x]
    if bias and bias[0] in graph.parameters and outputs % step:
        wide = padded(graph.parameters[bias[0]], (up_to(outputs, step),))
        bias = [parameter(graph, f"{bias[0]}.padded", wide)]
    operands = [
        *rows,
        parameter(graph, f"{value}.codes", codes),
        parameter(graph, f"{value}.scale", scale),
        *bias,
    ]
    attrs: dict[str, Attr] = {
        **(scaling.attrs() if scaled else {}),
        "has_x_scale": scaled,
        "has_bias": bool(bias),
        "dtype": graph.type(node.output).dtype,
    }
    return build.value("mxfp4_linear", operands, attrs)


# --- what a request without a pattern leaves alone ------------------------------------------


def is_sensitive(graph: Graph, linear: Node) -> bool:
    """Whether a request without a pattern leaves `linear` alone."""
    if graph.type(linear.inputs[1]).shape[0] == 1:
        return True
    return any(is_one(graph, linear) for is_one in (_is_head, _is_router, _is_of_low_rank))


def _is_head(graph: Graph, linear: Node) -> bool:
    """Whether the result is returned, maybe shaped, scaled or capped, and read by nobody else."""
    node, returned = linear, frozenset(graph.outputs)
    for _ in range(MOST_STEPS):
        if returned.intersection(node.outputs):
            return True
        readers = graph.users(node.output) if len(node.outputs) == 1 else ()
        if len(readers) != 1 or readers[0].op not in _AFTER_HEAD:
            return False
        others = [value for value in readers[0].inputs if value != node.output]
        if any(graph.constant(value) is None for value in others):
            return False
        node = readers[0]
    return False


def _is_router(graph: Graph, linear: Node) -> bool:
    """Whether the result, through views and elementwise operations, chooses or weights experts."""
    waiting, seen = [linear], {linear.name}
    while waiting and len(seen) < MOST_STEPS:
        node = waiting.pop()
        for value in node.outputs:
            for reader in graph.users(value):
                if reader.op in ("topk", "router") or (
                    reader.op == "moe" and value in reader.inputs[1:3]
                ):
                    return True
                carries = reader.op in _AFTER_ROUTER or (
                    reader.op in OPS and OPS[reader.op].elementwise
                )
                if carries and reader.name not in seen:
                    seen.add(reader.name)
                    waiting.append(reader)
    return False


def _is_of_low_rank(graph: Graph, linear: Node) -> bool:
    """Whether another linear multiplies what this one gives, or gives what it multiplies."""
    source = graph.producer(before(graph, linear.inputs[0], "cast"))
    if source is not None and source.op == "linear":
        return True
    value = linear.output
    while (reader := only_reader(graph, value)) is not None and reader.op == "cast":
        value = reader.output
    return reader is not None and reader.op == "linear"
