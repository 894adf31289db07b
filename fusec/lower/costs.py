"""What each step moves and computes: bytes read, bytes written, and floating-point operations.

**Bytes** are those of a perfect cache: an operand is read once, a result written once, wherever it
lies; an axis of stride 0 is one element.  Weights count as they are stored, packed and quantised.
Of a table that is read by index only the rows that are looked up count, of experts only as many as
there can be choices.  What a kernel keeps between its launches is written by the first launch that
names it and read by the others.

**Flops** of products are two for each multiplication and its addition, `2*M*N*K`, and nothing for
what is done to the sums in registers: the number that peak rates of matrix units are stated in.
Elsewhere each addition, multiplication, comparison or call of a function such as `exp` is one.
Moving, converting and ordering elements is none.

`TABLE` has a row for every operation of the IR.  Costs are sizes: integers, or expressions over the
symbols of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fusec import symbolic
from fusec.dtypes import DTYPES
from fusec.ir import Graph, Node, TensorType
from fusec.ir.ops import is_opaque, op_named
from fusec.ir.types import Attrs, bool_attr, int_attr, str_attr
from fusec.kernels.launch import Call, Launch, Storage
from fusec.lower.region import Value
from fusec.lower.region_plan import FOLDS, RegionPlan
from fusec.lower.regions import BuiltRegion
from fusec.symbolic import Dim
from fusec.target import Target

Unit: TypeAlias = Literal["f64", "f32", "f16", "bf16", "f8", "f4", "i64"]
"""What lanes or matrix units compute with; `i64` stands for all integers and flags."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step takes.

    Attributes:
        read: bytes.
        write: bytes.
        flops: operations.
        unit: what they are done in.
    """

    read: Dim
    write: Dim
    flops: Dim
    unit: Unit


@dataclass(frozen=True, slots=True)
class Work:
    """Operations of a node, and which of its launches does them.

    Attributes:
        flops: operations.
        operand: the launch that reads it does them; `None` for the one that writes the first
            result.
    """

    flops: Dim
    operand: int | None = None


@dataclass(frozen=True, slots=True)
class Shapes:
    """A node, as formulas see it."""

    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    attrs: Attrs

    @classmethod
    def of(cls, graph: Graph, node: Node) -> Shapes:
        """The types of `node`."""
        inputs = tuple(graph.type(value) for value in node.inputs)
        return cls(inputs, tuple(graph.type(value) for value in node.outputs), node.attrs)


Formula: TypeAlias = Callable[[Shapes], tuple[Work, ...]]
Share: TypeAlias = Callable[[Shapes], Mapping[int, tuple[Dim, Dim]]]
"""For operands of which a part is read: how many of how many equal pieces."""


def _all_of_each(shapes: Shapes) -> Mapping[int, tuple[Dim, Dim]]:
    return {}


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table.

    Attributes:
        work: what is computed.
        share: which operands are read in part.
        product: whether matrix units do it.
    """

    work: Formula
    share: Share = _all_of_each
    product: bool = False


ELEMENT: Mapping[str, int] = {
    **dict.fromkeys(("add", "sub", "mul", "div", "neg", "abs", "sign", "clamp", "relu"), 1),
    **dict.fromkeys(("minimum", "maximum", "eq", "ne", "lt", "le", "gt", "ge"), 1),
    **dict.fromkeys(("and", "or", "xor", "not", "shl", "shr", "isnan", "isinf"), 1),
    **dict.fromkeys(("floor", "ceil", "round", "trunc", "sqrt", "rsqrt", "reciprocal"), 1),
    **dict.fromkeys(("exp", "exp2", "expm1", "log", "log2", "log1p", "erf", "erfc"), 1),
    **dict.fromkeys(("sin", "cos", "tan", "asin", "acos", "atan", "atan2", "pow"), 1),
    **dict.fromkeys(("sinh", "cosh", "tanh", "asinh", "acosh", "atanh"), 1),
    **dict.fromkeys(("floordiv", "mod", "fmod"), 1),
    **dict.fromkeys(("where", "cast"), 0),
    "sigmoid": 4,  # 1 / (1 + exp(-x))
    "silu": 4,  # x / (1 + exp(-x))
    "quick_gelu": 5,  # x / (1 + exp(-1.702 x))
    "log_sigmoid": 4,  # -log(1 + exp(-x))
    "softplus": 4,  # log(1 + exp(beta x)) / beta
    "mish": 5,  # x tanh(log(1 + exp(x)))
    "gelu": 5,  # 0.5 x (1 + erf(x / sqrt(2)))
    "elu": 3,  # alpha (exp(x) - 1) below 0
    "leaky_relu": 2,
    "hardsigmoid": 3,  # clip(x + 3, 0, 6) / 6
    "hardswish": 4,  # x clip(x + 3, 0, 6) / 6
}
"""Operations of one element of an elementwise operation."""

TANH_GELU = 9
"""Of `gelu` with tanh: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""

QUANTISE = 4
"""Of an element that is quantised: its size, the largest of a group, the scaling, the clamping."""

SCORE = 5
"""Of an element of a softmax: the largest, the difference, the power, the sum, the quotient."""


def activation_flops(name: str) -> int:
    """Operations of one element of an activation that an attribute names."""
    named = {"none": 0, "gelu_tanh": TANH_GELU, "relu2": 2, "swiglu_oai": 8, "swiglu_limit": 7}
    return named[name] if name in named else ELEMENT[name]


def _nothing(shapes: Shapes) -> tuple[Work, ...]:
    return ()


def _each(flops: int) -> Formula:
    """So many operations for each element of the first result."""
    return lambda shapes: (Work(flops * shapes.outputs[0].elements),)


def _each_operand(flops: int) -> Formula:
    """So many operations for each element of the first operand."""
    return lambda shapes: (Work(flops * shapes.inputs[0].elements),)


def _gelu(shapes: Shapes) -> tuple[Work, ...]:
    name = "gelu_tanh" if str_attr(shapes.attrs, "approximate") == "tanh" else "gelu"
    return (Work(activation_flops(name) * shapes.outputs[0].elements),)


# --- norms and activations ------------------------------------------------------------------


def _rms_norm(shapes: Shapes) -> tuple[Work, ...]:
    """x * rsqrt(mean(x*x) + eps) [* weight]: a square, its sum, the scaling, the weight."""
    flops = 3 + bool_attr(shapes.attrs, "has_weight")
    return (Work(flops * shapes.inputs[0].elements),)


def _layer_norm(shapes: Shapes) -> tuple[Work, ...]:
    """The sum, the difference, its square, their sum, the scaling, then weight and bias."""
    flops = 5 + bool_attr(shapes.attrs, "has_weight") + bool_attr(shapes.attrs, "has_bias")
    return (Work(flops * shapes.inputs[0].elements),)


def _dual_rms_norm(shapes: Shapes) -> tuple[Work, ...]:
    """Two norms with weights; each belongs to the launch that reads its rows."""
    return tuple(Work(4 * shapes.inputs[operand].elements, operand) for operand in (0, 2))


def _dual_rms_norm_quant(shapes: Shapes) -> tuple[Work, ...]:
    quantised = (0, 2) if shapes.attrs["quantises"] == "both" else (0,)
    extra = [Work(QUANTISE * shapes.inputs[operand].elements, operand) for operand in quantised]
    return (*_dual_rms_norm(shapes), *extra)


def _gated_rms_norm(shapes: Shapes) -> tuple[Work, ...]:
    """A norm with a weight, the activation of the gate, and their product."""
    flops = 4 + activation_flops(str_attr(shapes.attrs, "activation")) + 1
    return (Work(flops * shapes.inputs[0].elements),)


def _gelu_mul(shapes: Shapes) -> tuple[Work, ...]:
    name = "gelu_tanh" if str_attr(shapes.attrs, "approximate") == "tanh" else "gelu"
    return (Work((activation_flops(name) + 1) * shapes.inputs[0].elements),)


def _quantised(inner: Formula) -> Formula:
    """What `inner` does, and the quantisation of its first result."""
    return lambda shapes: (*inner(shapes), Work(QUANTISE * shapes.inputs[0].elements))


def _rotated(x: TensorType, attrs: Attrs) -> Dim:
    """Two products and a sum for each element that is rotated."""
    return 3 * symbolic.product(x.shape[:-1]) * int_attr(attrs, "rotary_dim")


def _rope(shapes: Shapes) -> tuple[Work, ...]:
    return (Work(_rotated(shapes.inputs[0], shapes.attrs)),)


def _qk_norm_rope(shapes: Shapes) -> tuple[Work, ...]:
    norm = 3 * bool_attr(shapes.attrs, "has_norm") + bool_attr(shapes.attrs, "has_weight")
    total: Dim = 0
    for x in shapes.inputs[:2]:
        total = total + norm * x.elements + _rotated(x, shapes.attrs)
    return (Work(total),)


def _router(shapes: Shapes) -> tuple[Work, ...]:
    """Scores of all experts; choosing among them is not counted, nor what follows it."""
    return (Work(SCORE * shapes.inputs[0].elements),)


# --- products -------------------------------------------------------------------------------


def _matmul(shapes: Shapes) -> tuple[Work, ...]:
    """2*M*N*K for each matrix of the batch."""
    return (Work(2 * shapes.outputs[0].elements * shapes.inputs[0].shape[-1], 1),)


def _linear(weight: int, packed: int = 1) -> Formula:
    """2*M*N*K of rows [..., K] and the weight [N, K / packed] that is an operand."""

    def formula(shapes: Shapes) -> tuple[Work, ...]:
        place = weight + _scale_operands(shapes.attrs)
        columns, length = shapes.inputs[place].shape
        rows = symbolic.product(shapes.outputs[0].shape[:-1])
        return (Work(2 * rows * columns * length * packed, place),)

    return formula


def _scale_operands(attrs: Attrs) -> int:
    """Whether rows come as codes, with an operand of their scales."""
    return int("granularity" in attrs or bool_attr(attrs, "has_x_scale"))


def _grouped_mm(shapes: Shapes) -> tuple[Work, ...]:
    """Each row is multiplied by one matrix."""
    return (Work(2 * shapes.outputs[0].elements * shapes.inputs[0].shape[1], 1),)


def _grouped_share(shapes: Shapes) -> Mapping[int, tuple[Dim, Dim]]:
    matrices = shapes.inputs[1].shape[0]
    return {1: (symbolic.minimum(matrices, shapes.inputs[0].shape[0]), matrices)}


def _conv(shapes: Shapes) -> tuple[Work, ...]:
    """Two for each output element and each weight of its filter."""
    filters = symbolic.product(shapes.inputs[1].shape[1:])
    return (Work(2 * shapes.outputs[0].elements * filters, 1),)


def _causal_conv1d(shapes: Shapes) -> tuple[Work, ...]:
    flops = 2 * shapes.inputs[1].shape[1] + activation_flops(str_attr(shapes.attrs, "activation"))
    return (Work(flops * shapes.outputs[0].elements),)


def _solve_triangular(shapes: Shapes) -> tuple[Work, ...]:
    """N*N for each column of the right-hand side: half of a product."""
    return (Work(shapes.outputs[0].elements * shapes.inputs[0].shape[-1]),)


def attended_twice(
    queries: Dim, keys: Dim, causal: bool, window: int | None, chunk: int | None = None
) -> Dim:
    """Twice the pairs of a query and a key that attention multiplies.

    Query s stands at key position s + keys - queries.  Counting each query's keys gives a sum over
    positions p of p, or of min(p, window) with a window; where a window has two sides the pairs
    nearer than it are counted as if no query were near an end, unless there are as many keys; so
    are those of chunks that are seen whole.
    """
    if chunk is not None:
        return _attended_in_chunks(queries, keys, causal, chunk)
    if causal and window is None:
        return 2 * queries * keys - queries * (queries - 1)
    if causal and window is not None:
        return _up_to(keys, window) - _up_to(keys - queries, window)
    if window is None:
        return 2 * queries * keys
    if queries == keys:
        beyond = symbolic.maximum(keys - window, 0)
        return 2 * (keys * keys - beyond * (beyond + 1))
    return 2 * queries * symbolic.minimum(keys, 2 * window - 1)


def _attended_in_chunks(queries: Dim, keys: Dim, causal: bool, chunk: int) -> Dim:
    if not causal and queries != keys:
        return 2 * queries * symbolic.minimum(keys, chunk)

    def up_to(last: Dim) -> Dim:
        """Of positions below `last`: those of whole chunks, and of the chunk that it cuts."""
        whole, rest = symbolic.floor_divide(last, chunk), symbolic.modulo(last, chunk)
        if causal:
            return whole * chunk * (chunk + 1) + rest * (rest + 1)
        return 2 * (whole * chunk * chunk + rest * rest)

    return up_to(keys) - up_to(keys - queries)


def _up_to(last: Dim, window: int) -> Dim:
    """Twice the sum of min(p, window) for p from 1 to `last`."""
    near = symbolic.minimum(last, window)
    return near * (near + 1) + 2 * (last - near) * window


def _attention(shapes: Shapes) -> tuple[Work, ...]:
    """Scores and their sums over values: 2*(D + Dv) for each pair that is not masked out."""
    q, k, v = shapes.inputs[:3]
    window, chunk = (
        None if shapes.attrs.get(name) is None else int_attr(shapes.attrs, name)
        for name in ("window", "chunk")
    )
    causal = bool_attr(shapes.attrs, "causal")
    pairs = attended_twice(q.shape[2], k.shape[2], causal, window, chunk)
    return (Work(q.shape[0] * q.shape[1] * pairs * (q.shape[3] + v.shape[3]), 1),)


def _gated_delta_rule(shapes: Shapes) -> tuple[Work, ...]:
    """The recurrence: decay, k S, the change of S, and q S: 7*Dk*Dv for each step and head."""
    depth, width = shapes.inputs[0].shape[3], shapes.inputs[2].shape[3]
    return (Work(7 * symbolic.product(shapes.inputs[2].shape[:3]) * depth * width),)


def _selective_scan(shapes: Shapes) -> tuple[Work, ...]:
    """The state decays, takes in and gives out: 5 for each, and 2 for a decay of its own."""
    each = 5 if shapes.inputs[2].shape[1] == 1 else 7
    return (Work(each * shapes.outputs[0].elements * shapes.inputs[3].shape[3]),)


# --- experts --------------------------------------------------------------------------------


def _experts_at(shapes: Shapes) -> tuple[int, int]:
    """Where `experts` [T, k] and `gate_up` are among the operands."""
    first = 2 + _scale_operands(shapes.attrs)
    return first, first + 1


def _experts(step: int, packed: int) -> Formula:
    """Two products of T*k rows: with gate_up, then, `step` operands further, with down.

    Args:
        step: 2 where scales follow the weights, else 1.
        packed: elements in a byte or number of the weights.
    """

    def formula(shapes: Shapes) -> tuple[Work, ...]:
        choices, gate_up = _experts_at(shapes)
        rows = shapes.inputs[choices].elements
        return tuple(
            Work(2 * rows * packed * symbolic.product(shapes.inputs[place].shape[1:]), place)
            for place in (gate_up, gate_up + step)
        )

    return formula


def _chosen_experts(shapes: Shapes) -> Mapping[int, tuple[Dim, Dim]]:
    """Of weights, scales and biases no more experts are read than there are choices."""
    choices, gate_up = _experts_at(shapes)
    count = shapes.inputs[gate_up].shape[0]
    chosen = symbolic.minimum(count, shapes.inputs[choices].elements)
    return {place: (chosen, count) for place in range(gate_up, len(shapes.inputs))}


# --- by index -------------------------------------------------------------------------------


def _rows_looked_up(shapes: Shapes) -> Mapping[int, tuple[Dim, Dim]]:
    """Of the first operand as many elements are read as there are in the result, if it has more."""
    table, found = shapes.inputs[0].elements, shapes.outputs[0].elements
    return {0: (symbolic.minimum(table, found), table)}


_NORMS: dict[str, Formula] = {
    "rms_norm": _rms_norm,
    "add_rms_norm": _each_operand(5),  # the sum, then a norm with a weight
    "gated_rms_norm": _gated_rms_norm,
    "silu_mul": _each_operand(5),
    "gelu_mul": _gelu_mul,
    "swiglu_oai": _each_operand(activation_flops("swiglu_oai")),
}

_VIEWS = ("reshape", "transpose", "expand", "slice", "flip")
_MOVES = ("slice_scatter", "concat", "pad", "constant", "full", "iota", "sort", "topk")

TABLE: Mapping[str, Row] = {
    **{op: Row(_each(flops)) for op, flops in ELEMENT.items() if op != "gelu"},
    "gelu": Row(_gelu),
    **{op: Row(_nothing) for op in (*_VIEWS, *_MOVES)},
    **{op: Row(_nothing, _rows_looked_up) for op in ("take", "gather", "index")},
    # What is written over is read and written as a whole; combining is one operation.
    "index_put": Row(lambda shapes: (Work(shapes.inputs[1].elements),)),
    "scatter": Row(lambda shapes: (Work(shapes.inputs[2].elements),)),
    **{f"reduce_{how}": Row(_each_operand(1)) for how in ("sum", "mean", "max", "min", "prod")},
    **{op: Row(_each_operand(1)) for op in ("reduce_any", "reduce_all", "argmax", "argmin")},
    **{op: Row(_each_operand(1)) for op in ("cumsum", "cumprod")},
    "histogram": Row(_each_operand(3)),  # two for the bin, one to count
    "softmax": Row(_each_operand(SCORE)),
    "log_softmax": Row(_each_operand(SCORE)),
    "logsumexp": Row(_each_operand(SCORE - 1)),
    "router": Row(_router),
    **{op: Row(formula) for op, formula in _NORMS.items()},
    **{f"{op}_quant": Row(_quantised(formula)) for op, formula in _NORMS.items()},
    "dual_rms_norm": Row(_dual_rms_norm),
    "dual_rms_norm_quant": Row(_dual_rms_norm_quant),
    "layer_norm": Row(_layer_norm),
    "l2_norm": Row(_each_operand(3)),
    "rope": Row(_rope),
    "qk_norm_rope": Row(_qk_norm_rope),
    "quantize": Row(_each_operand(QUANTISE)),
    "dequantize": Row(_each(1)),
    "matmul": Row(_matmul, product=True),
    "linear": Row(_linear(1), product=True),
    "linear_epilogue": Row(_linear(1), product=True),
    "linear_glu": Row(_linear(1), product=True),
    "fp8_linear": Row(_linear(1), product=True),
    "mxfp4_linear": Row(_linear(1, packed=2), product=True),
    "grouped_mm": Row(_grouped_mm, _grouped_share, product=True),
    "conv": Row(_conv, product=True),
    "conv_epilogue": Row(_conv, product=True),
    "causal_conv1d": Row(_causal_conv1d),
    "solve_triangular": Row(_solve_triangular),
    "attention": Row(_attention, product=True),
    "gated_delta_rule": Row(_gated_delta_rule, product=True),
    "selective_scan": Row(_selective_scan),
    "moe": Row(_experts(1, packed=1), _chosen_experts, product=True),
    "moe_fp8": Row(_experts(2, packed=1), _chosen_experts, product=True),
    "moe_mxfp4": Row(_experts(2, packed=2), _chosen_experts, product=True),
}
"""What each operation of the IR computes, and what it reads in part."""


def row_of(op: str) -> Row:
    """The row of an operation; one of an extension counts as one for each element it reads.

    Raises:
        InternalError: there is no such operation.
    """
    if op in TABLE:
        return TABLE[op]
    op_named(op)
    return Row(_each_operand(1))


# --- units ----------------------------------------------------------------------------------


def product_unit(x: str, weight: str, target: Target) -> Unit:
    """What a product of rows of dtype `x` with a weight of another is computed in."""
    if not target.is_gpu:
        has_pairs = not {"avx512_bf16", "amx_bf16"}.isdisjoint(target.features)
        if x == "f64":
            return "f64"
        return "bf16" if x == "bf16" and has_pairs else "f32"
    if x == "f4e2m1x2":
        return "f4" if target.native_mxfp4 else "bf16"
    if DTYPES[x].bits == 8:
        return "f8" if weight != "f4e2m1x2" or target.native_mxfp4 else "bf16"
    return lane_unit(x) if x not in ("f16", "bf16") else "f16" if x == "f16" else "bf16"


def lane_unit(dtype: str) -> Unit:
    """What lanes compute in for elements of a dtype: narrow floats are widened."""
    if DTYPES[dtype].is_float:
        return "f64" if dtype == "f64" else "f32"
    return "i64"


def _unit(op: str, shapes: Shapes, target: Target) -> Unit:
    if not row_of(op).product:
        dtypes = [kind.dtype for kind in (*shapes.inputs, *shapes.outputs)]
        floats = [dtype for dtype in dtypes if DTYPES[dtype].is_float]
        return lane_unit((floats or dtypes)[0])
    weights = [kind.dtype for kind in shapes.inputs[1:] if kind.dtype == "f4e2m1x2"]
    x = shapes.inputs[0].dtype
    return product_unit(x, weights[0] if weights else x, target)


# --- steps ----------------------------------------------------------------------------------


def stored_bytes(storage: Storage) -> Dim:
    """Bytes of the elements of `storage`, each counted once."""
    sizes = zip(storage.shape, storage.strides, strict=True)
    return symbolic.product([size for size, stride in sizes if stride != 0]) * (
        DTYPES[storage.dtype].itemsize
    )


def launch_costs(
    call: Call, launches: Sequence[Launch], ignored: Collection[int] = ()
) -> tuple[Cost, ...]:
    """The cost of each launch of a node.

    Args:
        call: the node and where its operands lie.
        launches: that compute it, in order; those for other sizes among them.
        ignored: buffers that are neither operands nor results: where errors are reported.

    Raises:
        InternalError: there is no such operation.
    """
    return _Launches(call, launches, ignored).costs()


class _Launches:
    def __init__(self, call: Call, launches: Sequence[Launch], ignored: Collection[int]) -> None:
        self.call = call
        self.launches = launches
        self.ignored = frozenset(ignored)
        self.shapes = Shapes.of(call.graph, call.node)
        self.row = row_of(call.node.op)
        self.reads = [self._touched(storage) for storage in call.inputs]
        self.writes = [self._touched(storage) for storage in call.outputs]

    def costs(self) -> tuple[Cost, ...]:
        """A cost for each launch."""
        unit = _unit(self.call.node.op, self.shapes, self.call.target)
        read = [self._read(launch) for launch in range(len(self.launches))]
        write = [self._written(launch) for launch in range(len(self.launches))]
        flops: list[Dim] = [0] * len(self.launches)
        for work in self.row.work(self.shapes):
            for launch in self._workers(work):
                flops[launch] = flops[launch] + work.flops
        self._add_between(read, write)
        return tuple(Cost(*each, unit) for each in zip(read, write, flops, strict=True))

    def _touched(self, storage: Storage) -> frozenset[int]:
        """The launches that name a storage: at its place, else anywhere in its buffer."""
        same_place: set[int] = set()
        same_buffer: set[int] = set()
        for number, launch in enumerate(self.launches):
            for operand in launch.operands:
                if operand.buffer == storage.buffer:
                    same_buffer.add(number)
                    if operand.byte_offset == storage.byte_offset:
                        same_place.add(number)
        return frozenset(same_place or same_buffer)

    def _workers(self, work: Work) -> frozenset[int]:
        """The launches that do some work; the last one where none names the operand."""
        workers = self.writes[0] if work.operand is None else self.reads[work.operand]
        return workers or frozenset((len(self.launches) - 1,))

    def _read(self, launch: int) -> Dim:
        shares = self.row.share(self.shapes)
        total: Dim = 0
        seen: set[Storage] = set()
        for place, storage in enumerate(self.call.inputs):
            if launch in self.reads[place] and storage not in seen:
                seen.add(storage)
                size = stored_bytes(storage)
                if place in shares:
                    part, whole = shares[place]
                    size = symbolic.floor_divide(size * part, whole)
                total = total + size
        return total

    def _written(self, launch: int) -> Dim:
        total: Dim = 0
        for place, storage in enumerate(self.call.outputs):
            if launch in self.writes[place]:
                total = total + stored_bytes(storage)
        return total

    def _add_between(self, read: list[Dim], write: list[Dim]) -> None:
        """Add what launches hand to later ones."""
        operands = {storage.buffer for storage in (*self.call.inputs, *self.call.outputs)}
        known: set[int] = set()
        for number, launch in enumerate(self.launches):
            held = {
                storage.buffer: storage
                for storage in launch.operands
                if storage.buffer not in operands and storage.buffer not in self.ignored
            }
            for buffer, storage in held.items():
                if buffer in known:
                    read[number] = read[number] + stored_bytes(storage)
                else:
                    write[number] = write[number] + stored_bytes(storage)
            known |= set(held)


def region_cost(built: BuiltRegion) -> Cost:
    """The cost of a generated kernel."""
    region = built.region
    read: Dim = 0
    write: Dim = 0
    for number, operand in enumerate(region.operands):
        sizes = zip(region.axes, operand.strides, strict=True)
        size = symbolic.product([size for size, stride in sizes if stride != 0])
        size = size * DTYPES[operand.dtype].itemsize
        if number in built.written:
            write = write + size
        else:
            read = read + size
    flops = _region_flops(built)
    unit: Unit = "f32"
    if flops:
        unit = max(flops, key=lambda each: flops[each][0])
    total: Dim = 0
    for _, part in flops.values():
        total = total + part
    return Cost(read, write, total, unit)


def _region_flops(built: BuiltRegion) -> dict[Unit, tuple[int, Dim]]:
    """For each unit: operations an element, by which units are compared, and operations in all."""
    plan, region = RegionPlan(built.region), built.region
    everywhere = symbolic.product(region.axes)
    rows = symbolic.product(region.axes[: plan.first_row])
    found: dict[Unit, tuple[int, Dim]] = {}
    for position, value in enumerate(region.values):
        flops = _value_flops(value)
        if not flops:
            continue
        folds = value.op in FOLDS and plan.per_element[value.args[0]]
        is_each = folds or plan.per_element[position] or not plan.is_rows
        sources = [region.values[argument].dtype for argument in value.args]
        unit = lane_unit(sources[0] if sources else value.dtype)
        count, total = found.get(unit, (0, 0))
        found[unit] = (count + flops * is_each, total + flops * (everywhere if is_each else rows))
    return found


def _value_flops(value: Value) -> int:
    """Operations of one value of a region: of an element where it is a reduction or a scan."""
    if value.op in ("load", "constant", "index"):
        return 0
    if value.op == "gelu" and value.attr("approximate") == "tanh":
        return TANH_GELU
    if value.op in ELEMENT:
        return ELEMENT[value.op]
    op_named(value.op)
    return 1


def residual_cost(
    graph: Graph,
    node: Node,
    target: Target,
    inputs: Sequence[Storage],
    outputs: Sequence[Storage],
) -> Cost:
    """The cost of a node that onnxruntime runs on dense operands.

    What an operation that fusec gives no meaning to computes is not known, and counts as nothing.
    """
    read: Dim = 0
    write: Dim = 0
    for storage in inputs:
        read = read + stored_bytes(storage)
    for storage in outputs:
        write = write + stored_bytes(storage)
    if is_opaque(node.op):
        return Cost(read, write, 0, "f32")
    shapes = Shapes.of(graph, node)
    flops: Dim = 0
    for work in row_of(node.op).work(shapes):
        flops = flops + work.flops
    return Cost(read, write, flops, _unit(node.op, shapes, target))
