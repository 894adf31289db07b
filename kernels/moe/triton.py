"""Records of routed experts on a GPU: several launches with buffers in between.

1. `triton_align_kernel.py` puts the pairs of tokens and slots in the order of their experts.
2. `moe_product_kernel`: rows of tokens times gate_up, and the activation.
3. Where one scale spans a whole activated row or expert, `triton_quantise_kernel.py` quantises it;
   scales of groups are made in step 2.
4. `moe_product_kernel`: activated rows times down, times the weight of the route.
5. `moe_sum_kernel`: the sum over the slots of a token.

Values in between belong to a pair and lie at its number, in f32 unless they are codes or the next
product takes another float.  Nothing is added atomically: the result is the same for every run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fusec import symbolic
from fusec.diagnostics import InternalError
from fusec.formats import MX_GROUP, Scaling
from fusec.ir import Graph, Node
from fusec.ir.ops.quantised import weight_block
from fusec.ir.types import bool_attr, float_attr, str_attr
from fusec.kernels.launch import Call, Launch, Layout, Param, Storage, TritonSource
from fusec.kernels.registry import Kernel, Supports
from fusec.kernels.triton_gemm import SCALAR_SPILLS
from fusec.kernels.triton_rows import FAMILIES, is_divisible
from fusec.symbolic import Dim
from fusec.target import Target

ACTIVATIONS = {
    "silu": 0,
    "gelu": 1,
    "gelu_tanh": 2,
    "quick_gelu": 3,
    "relu": 4,
    "relu2": 5,
    "swiglu_oai": 6,
}
"""Numbers of the activations in `triton_activation_kernel.py`."""

POINTERS = {
    "f32": "*fp32",
    "bf16": "*bf16",
    "f16": "*fp16",
    "i32": "*i32",
    "i64": "*i64",
    "f8e4m3fn": "*fp8e4nv",
    "f8e4m3fnuz": "*fp8e4b8",
    "f4e2m1x2": "*u8",
    "e8m0": "*u8",
}
"""Triton's pointer types by dtype."""

PLAIN, FP8, MXFP4_WIDENED, MXFP4_NATIVE = range(4)
"""Formats of `moe_product_kernel`."""

CODE_BITS = {"f8e4m3fn": (3, 8), "f8e4m3fnuz": (3, 7)}
"""Bits of mantissa, and the exponent of the largest value, of formats that are quantised to."""

MOST_EXPERTS = 1023
"""Experts that one program counts, with one more bin for what is none."""

CHUNK = 512
"""Pairs that one program counts and puts in order."""

STEP = 8
"""Pairs of a chunk that are compared with all others at a time."""

SUM_BLOCK = 1024
"""Columns of a token that one program adds up."""

QUANTISE_BLOCK = 128
"""Columns of a row that are quantised at a time."""

NO_BOUND = 3.4e38
"""Above every scale."""

LARGEST_OFFSET = 2**31
"""Offsets in the weight of one expert are 32-bit numbers."""


@dataclass(frozen=True, slots=True)
class Experts:
    """The operands of a node and what its attributes say of them.

    Attributes:
        call: what is computed.
        x: rows [T, H], floats or codes.
        x_scale: scales of codes, or `None`.
        weights: of the routes, [T, k].
        indices: of the experts, [T, k].
        gate_up: weight of the first product.
        gate_up_scale: its scales, or `None`.
        down: weight of the second product.
        down_scale: its scales, or `None`.
        biases: gate_up's and down's, or none.
        scaling: how activated rows are quantised, or `None`.
        format: of `moe_product_kernel`.
    """

    call: Call
    x: Storage
    x_scale: Storage | None
    weights: Storage
    indices: Storage
    gate_up: Storage
    gate_up_scale: Storage | None
    down: Storage
    down_scale: Storage | None
    biases: tuple[Storage, ...]
    scaling: Scaling | None
    format: int

    @staticmethod
    def of(call: Call) -> Experts:
        """The operands of `call`, by the operation of its node."""
        op, rest = call.node.op, list(call.inputs)
        scaled = op == "moe_fp8" or bool_attr(call.attrs, "has_x_scale")
        narrow = op != "moe"
        x = rest.pop(0)
        x_scale = rest.pop(0) if scaled else None
        weights, indices, gate_up = rest.pop(0), rest.pop(0), rest.pop(0)
        gate_up_scale = rest.pop(0) if narrow else None
        down = rest.pop(0)
        down_scale = rest.pop(0) if narrow else None
        kinds = {"moe": PLAIN, "moe_fp8": FP8}
        mxfp4 = MXFP4_NATIVE if scaled else MXFP4_WIDENED
        return Experts(
            call,
            x,
            x_scale,
            weights,
            indices,
            gate_up,
            gate_up_scale,
            down,
            down_scale,
            tuple(rest),
            Scaling.of(call.attrs) if scaled else None,
            kinds.get(op, mxfp4),
        )

    @property
    def tokens(self) -> Dim:
        """T."""
        return self.x.shape[0]

    @property
    def top_k(self) -> int:
        """Experts of a token."""
        return _known(self.indices.shape[1])

    @property
    def pairs(self) -> Dim:
        """Tokens times experts of each."""
        return self.tokens * self.top_k

    @property
    def count(self) -> int:
        """E."""
        return _known(self.gate_up.shape[0])

    @property
    def hidden(self) -> int:
        """H."""
        return _known(self.call.output_type().shape[1])

    @property
    def inner(self) -> int:
        """I."""
        axis = 1 if self.transposed else 2
        return _known(self.down.shape[axis]) * (2 if self.down.dtype == "f4e2m1x2" else 1)

    @property
    def transposed(self) -> bool:
        """Whether weights lie as [E, in, out]."""
        return bool_attr(self.call.attrs, "transposed")

    @property
    def gated(self) -> bool:
        """Whether there are gate and up rows."""
        return bool_attr(self.call.attrs, "gated")

    @property
    def interleaved(self) -> bool:
        """Whether gate and up rows alternate."""
        return self.gated and str_attr(self.call.attrs, "gate_up_layout") == "interleaved"


@dataclass(frozen=True, slots=True)
class Order:
    """The rows of all experts in order: what `triton_align_kernel.py` makes.

    Attributes:
        pairs: the pair at each place.
        extents: where the rows of each expert lie.
        block_expert: the expert of each block.
        blocks: the most blocks that there may be.
        block: rows of a block.
    """

    pairs: Storage
    extents: Storage
    block_expert: Storage
    blocks: Dim
    block: int

    @property
    def storages(self) -> dict[str, Storage]:
        """The buffers, by the names of arguments."""
        return {
            "p_pairs": self.pairs,
            "p_extents": self.extents,
            "p_block_expert": self.block_expert,
        }


def _known(size: Dim) -> int:
    if not isinstance(size, int):
        raise InternalError(f"{size} is not known at compile time")
    return size


def _launch(
    call: Call,
    module: str,
    function: str,
    operands: Mapping[str, Storage],
    params: Mapping[str, Param],
    constants: Mapping[str, int],
    grid: tuple[Dim, Dim],
    *,
    warps: int = 4,
    stages: int = 2,
) -> Launch:
    """A launch whose arguments are pointers, then parameters, then constants.

    Args:
        call: what is computed.
        module: `align`, `quantise` or "" for the products.
        function: in it.
        operands: storages by the names of the pointers, in order.
        params: integers are i64 and numbers f32, in order.
        constants: compile-time arguments.
        grid: work groups along the first two axes.
        warps: waves of a work group.
        stages: of the software pipeline.
    """
    signature = [(name, POINTERS[storage.dtype]) for name, storage in operands.items()]
    signature += [
        (name, "fp32" if isinstance(value, float) else "i64") for name, value in params.items()
    ]
    divisible = [name for name, each in operands.items() if is_divisible(each.byte_offset)]
    divisible += [
        name
        for name, value in params.items()
        if not isinstance(value, float) and is_divisible(value)
    ]
    suffix = f"triton_{module}_kernel" if module else "triton_kernel"
    return Launch(
        symbol=function,
        operands=tuple(operands.values()),
        params=tuple(params.values()),
        grid=(*grid, 1),
        code=TritonSource(
            module=f"fusec.kernels.moe.{suffix}",
            function=function,
            signature=tuple(signature),
            constants=tuple(sorted(constants.items())),
            divisible=tuple(divisible),
            warps=warps,
            options=(("num_stages", stages),),
        ),
    )


def block_rows(experts: Experts) -> int:
    """Rows of a block: about as many as an expert has when most tokens come at once."""
    ranges = experts.call.graph.symbols
    _, most = symbolic.bounds(experts.pairs, ranges)
    for rows in (16, 32):
        if most <= rows * experts.count:
            return rows
    return 64


def _sorted(experts: Experts) -> tuple[Order, tuple[Launch, ...]]:
    call, count, block = experts.call, experts.count, block_rows(experts)
    pairs = experts.pairs
    chunks = symbolic.ceil_divide(pairs, CHUNK)
    blocks = symbolic.minimum(pairs, symbolic.ceil_divide(pairs, block) + count)
    order = Order(
        call.scratch("i32", (blocks * block,)),
        call.scratch("i32", (2 * count + 1,)),
        call.scratch("i32", (blocks,)),
        blocks,
        block,
    )
    counts = call.scratch("i32", (chunks, count))
    bins = 1 << count.bit_length()
    indices, stride = experts.indices, experts.indices.strides[0]
    shape = {"E": count, "TOP_K": experts.top_k, "CHUNK": CHUNK}
    params = {"experts_stride": stride, "pairs": pairs}
    return order, (
        _launch(
            call,
            "align",
            "moe_count_kernel",
            {"p_experts": indices, "p_counts": counts},
            params,
            {**shape, "BINS": bins},
            (chunks, 1),
        ),
        _launch(
            call,
            "align",
            "moe_offsets_kernel",
            {"p_counts": counts, "p_extents": order.extents},
            {"chunks": chunks},
            {"E": count, "BLOCK_M": block, "BINS": bins},
            (1, 1),
        ),
        _launch(
            call,
            "align",
            "moe_place_kernel",
            {
                "p_experts": indices,
                "p_counts": counts,
                "p_extents": order.extents,
                "p_pairs": order.pairs,
                "p_block_expert": order.block_expert,
            },
            params,
            {**shape, "STEP": STEP, "BLOCK_M": block},
            (chunks, 1),
        ),
    )


@dataclass(frozen=True, slots=True)
class Product:
    """One of the two products.

    Attributes:
        first: whether it is the one with gate_up.
        a: its rows.
        a_scale: their scales, or `None`.
        weight: [E, N, K], or [E, K, N] where transposed.
        scale: of the weight, or `None`.
        y: where its results lie.
        y_scale: where their scales lie, if it makes any.
        depth: K.
        width: N.
    """

    first: bool
    a: Storage
    a_scale: Storage | None
    weight: Storage
    scale: Storage | None
    y: Storage
    y_scale: Storage | None
    depth: int
    width: int


def _product(experts: Experts, order: Order, product: Product) -> Launch:
    call, scaling = experts.call, experts.scaling
    a, weight = product.a, product.weight
    scale = product.scale if product.scale is not None else weight
    a_scale = product.a_scale if product.a_scale is not None else a
    y_scale = product.y_scale if product.y_scale is not None else product.y
    bias = experts.biases[0 if product.first else 1] if experts.biases else a
    wide = product.first and experts.interleaved
    halves = product.first and experts.gated and not wide
    width = product.width // 2 if halves else product.width
    block_n, block_k = _tile(experts, product, wide)
    oai = str_attr(call.attrs, "activation") == "swiglu_oai"
    row_axis, column_axis = (2, 1) if experts.transposed else (1, 2)
    mantissa, highest = CODE_BITS[scaling.dtype] if scaling is not None else (0, 0)
    a_scale_row, a_scale_group = _scale_strides(product.a_scale, scaling, product.first)
    block = weight_block(call.attrs) if experts.format == FP8 else (1, MX_GROUP)
    quantises = product.y_scale is not None and scaling is not None
    # NVIDIA GPUs widen 4-bit floats, and add 8-bit ones twice, in registers: many for four warps.
    crowded = call.target.family == "nvidia" and experts.format != PLAIN
    columns = block_n // 2 if wide else block_n
    return _launch(
        call,
        "",
        "moe_product_kernel",
        {
            "p_a": a,
            "p_a_scale": a_scale,
            "p_w": weight,
            "p_w_scale": scale,
            "p_bias": bias,
            "p_weights": experts.weights,
            **order.storages,
            "p_y": product.y,
            "p_y_scale": y_scale,
        },
        {
            "a_stride": a.strides[0],
            "a_scale_row": a_scale_row,
            "a_scale_group": a_scale_group,
            "weights_stride": experts.weights.strides[0],
            "alpha": float_attr(call.attrs, "alpha") if oai else 0.0,
            "limit": float_attr(call.attrs, "limit") if oai else 0.0,
            **_scale_limits(scaling),
        },
        {
            "E": experts.count,
            "TOP_K": experts.top_k,
            "FORMAT": experts.format,
            "FIRST": int(product.first),
            "K": product.depth,
            "N": width,
            "UP": width if halves else 0,
            "WIDE": int(wide),
            "ACTIVATION": ACTIVATIONS[str_attr(call.attrs, "activation")],
            "HAS_BIAS": int(bool(experts.biases)),
            "BIAS_STRIDE": _known(bias.strides[0]) if experts.biases else 0,
            "A_GROUP": scaling.group if scaling is not None else 0,
            "W_EXPERT": _known(weight.strides[0]),
            "W_ROW": _known(weight.strides[row_axis]),
            "W_COLUMN": _known(weight.strides[column_axis]),
            "S_EXPERT": _known(scale.strides[0]),
            "S_ROW": _known(scale.strides[1]),
            "W_BLOCK_N": block[0],
            "W_BLOCK_K": block[1],
            "ONE_SCALE": int(block[0] % block_n == 0 and (not halves or width % block_n == 0)),
            "Y_GROUP": scaling.group if quantises and scaling is not None else 0,
            "Y_POWER": int(scaling is not None and scaling.scale_dtype == "e8m0"),
            "Y_ROUNDING": _rounding(scaling),
            "Y_MANTISSA": mantissa,
            "Y_HIGHEST": highest,
            "EVEN_A": int(product.depth % block_k == 0),
            **_even(experts, product, width, block_n, block_k),
            "BLOCK_M": order.block,
            "BLOCK_N": block_n,
            "BLOCK_K": block_k,
        },
        (order.blocks, symbolic.ceil_divide(width // 2 if wide else width, columns)),
        warps=8 if crowded or _ragged(product) or block_n * (2 if halves else 1) >= 256 else 4,
    )


def _tile(experts: Experts, product: Product, wide: bool) -> tuple[int, int]:
    """Columns of the weight's rows and of K that are multiplied at a time."""
    scaling = experts.scaling
    columns = 64
    if scaling is not None and product.y_scale is not None:
        columns = max(columns, scaling.group)
    halves = product.first and experts.gated
    spills = experts.format == FP8 and experts.call.target.family == "nvidia"
    if columns == 64 and not halves and not spills:
        columns = 128
    block_n = columns * 2 if wide else columns
    if _ragged(product):
        return block_n, 32
    if experts.format in (MXFP4_NATIVE, FP8):
        return block_n, _fp8_depth(experts)
    return block_n, 64


def _ragged(product: Product) -> bool:
    """Whether rows of the weight begin anywhere: its elements are loaded one by one."""
    _, row, column = product.weight.strides
    return not all(each == 1 or is_divisible(each) for each in (row, column))


def _fp8_depth(experts: Experts) -> int:
    """Columns that all have one scale, or whole groups where the hardware takes scales."""
    if experts.format == MXFP4_NATIVE:
        return 128
    return 128 if _even_groups(experts.call.graph, experts.call.node, 128) else 64


def _even(
    experts: Experts, product: Product, width: int, block_n: int, block_k: int
) -> dict[str, int]:
    """Whether every tile of the weight lies within it: padding counts."""
    depth, rows = product.depth, width
    if experts.format in (MXFP4_WIDENED, MXFP4_NATIVE):
        expert, row = (_known(stride) for stride in product.weight.strides[:2])
        depth, rows = row * 2, expert // row
    needed = -(-product.depth // block_k) * block_k
    last = -(-width // block_n) * block_n
    halves = product.first and experts.gated and not experts.interleaved
    covered = width % block_n == 0 if halves else last <= rows
    return {"EVEN_K": int(needed <= depth), "EVEN_N": int(covered)}


def _scale_strides(scale: Storage | None, scaling: Scaling | None, given: bool) -> tuple[Dim, Dim]:
    """Elements from a row's scales to the next row's, and from a group's to the next group's."""
    if scale is None or scaling is None:
        return 0, 0
    if scaling.granularity == "tensor" and given:
        return 0, 0
    if given and scaling.layout == "column":
        return scale.strides[1], scale.strides[0]
    return scale.strides[0], scale.strides[1]


def _rounding(scaling: Scaling | None) -> int:
    if scaling is None:
        return 0
    return {"none": 0, "up": 1, "even": 2, "down": 3}[scaling.rounding]


def _scale_limits(scaling: Scaling | None) -> dict[str, Param]:
    if scaling is None:
        return {"maximum": 0.0, "upper_bound": 0.0}
    bound = scaling.upper_bound
    return {
        "maximum": float(scaling.maximum),
        "upper_bound": NO_BOUND if bound is None else bound,
    }


def _quantised(
    experts: Experts, order: Order, rows: Storage
) -> tuple[Storage, Storage, tuple[Launch, ...]]:
    """Codes, their scales, and the launches that make them of activated rows."""
    call, scaling, inner = experts.call, experts.scaling, experts.inner
    assert scaling is not None
    codes = call.scratch(scaling.dtype, (experts.pairs, inner))
    scale = call.scratch("f32", (experts.pairs, 1))
    of_expert = scaling.granularity == "tensor"
    largest = call.scratch("f32", (order.blocks,)) if of_expert else scale
    block = QUANTISE_BLOCK if is_divisible(inner) else QUANTISE_BLOCK // 4
    shape = {"E": experts.count, "N": inner, "BLOCK_M": order.block, "BLOCK": block}
    quantise = _launch(
        call,
        "quantise",
        "moe_quantise_kernel",
        {"p_x": rows, "p_largest": largest, "p_codes": codes, "p_scale": scale, **order.storages},
        _scale_limits(scaling),
        {
            **shape,
            "OF_EXPERT": int(of_expert),
            "ROUND_UP": int(scaling.rounding == "up"),
            "BLOCKS": 64,
        },
        (order.blocks, 1),
    )
    if not of_expert:
        return codes, scale, (quantise,)
    find = _launch(
        call,
        "quantise",
        "moe_largest_kernel",
        {"p_x": rows, "p_largest": largest, **order.storages},
        {},
        shape,
        (order.blocks, 1),
    )
    return codes, scale, (find, quantise)


def _moe(call: Call) -> tuple[Launch, ...]:
    experts = Experts.of(call)
    scaling, pairs, inner, hidden = experts.scaling, experts.pairs, experts.inner, experts.hidden
    order, launches = _sorted(experts)
    groups = scaling is not None and scaling.granularity == "group"
    activated_scale = None
    if scaling is None:
        activated = call.scratch(experts.x.dtype, (pairs, inner))
    elif groups:
        activated = call.scratch(scaling.dtype, (pairs, inner))
        activated_scale = call.scratch(scaling.scale_dtype, (pairs, inner // scaling.group))
    else:
        activated = call.scratch("f32", (pairs, inner))
    first = Product(
        first=True,
        a=experts.x,
        a_scale=experts.x_scale,
        weight=experts.gate_up,
        scale=experts.gate_up_scale,
        y=activated,
        y_scale=activated_scale,
        depth=hidden,
        width=inner * (2 if experts.gated else 1),
    )
    launches += (_product(experts, order, first),)
    if scaling is not None and not groups:
        activated, activated_scale, more = _quantised(experts, order, activated)
        launches += more
    products = call.scratch("f32", (pairs, hidden))
    second = replace(
        first,
        first=False,
        a=activated,
        a_scale=activated_scale,
        weight=experts.down,
        scale=experts.down_scale,
        y=products,
        y_scale=None,
        depth=inner,
        width=hidden,
    )
    return (*launches, _product(experts, order, second), _sum(experts, products))


def _sum(experts: Experts, products: Storage) -> Launch:
    out = experts.call.outputs[0]
    block = min(SUM_BLOCK, max(64, 1 << (experts.hidden - 1).bit_length()))
    return _launch(
        experts.call,
        "",
        "moe_sum_kernel",
        {"p_products": products, "p_experts": experts.indices, "p_y": out},
        {"experts_stride": experts.indices.strides[0], "y_stride": out.strides[0]},
        {"E": experts.count, "TOP_K": experts.top_k, "N": experts.hidden, "BLOCK": block},
        (experts.tokens, symbolic.ceil_divide(experts.hidden, block)),
    )


# --- what is refused ------------------------------------------------------------------------


def _routed(graph: Graph, node: Node, operands: tuple[str, ...]) -> str | None:
    """Why the routes, or the weights [gate_up, down] and biases, are none that it takes."""
    weights, indices, gate_up, down, *biases = (graph.type(value) for value in operands)
    if weights.dtype not in ("f32", "bf16", "f16"):
        return f"its routing weights are floats, not `{weights.dtype}`"
    if indices.dtype not in ("i32", "i64"):
        return f"its expert indices are i32 or i64, not `{indices.dtype}`"
    sizes = (*gate_up.shape, *down.shape, indices.shape[1])
    if not all(isinstance(size, int) for size in sizes):
        return f"the sizes of `{gate_up}` and `{down}` are not all known at compile time"
    if _known(gate_up.shape[0]) > MOST_EXPERTS:
        return f"it counts {MOST_EXPERTS} experts, not {gate_up.shape[0]}"
    for kind in (gate_up, down):
        if _known(symbolic.product(kind.memory_shape[1:])) >= LARGEST_OFFSET:
            return f"the weight of one expert of `{kind}` has more than {LARGEST_OFFSET} elements"
    if any(bias.dtype not in ("f32", "bf16", "f16") for bias in biases):
        return "its biases are floats"
    return None


def _supports_moe(graph: Graph, node: Node, target: Target) -> str | None:
    x = graph.type(node.inputs[0])
    if x.dtype not in ("bf16", "f16"):
        return f"it multiplies bf16 or f16, not {x.dtype}"
    if any(graph.type(value).dtype != x.dtype for value in node.inputs[3:5]):
        return f"its experts are of the dtype of the tokens, `{x.dtype}`"
    return _routed(graph, node, node.inputs[1:])


def _supports_fp8(graph: Graph, node: Node, target: Target) -> str | None:
    scaling = Scaling.of(node.attrs)
    if scaling.dtype != target.fp8:
        return f"fp8.arch: `{target.name}` multiplies {target.fp8}; this is {scaling.dtype}"
    scales = [graph.type(node.inputs[index]).dtype for index in (1, 5, 7)]
    if scaling.scale_dtype != "f32" or scales != ["f32"] * 3:
        return f"scales: they are f32, not {', '.join(sorted(set(scales)))}"
    inputs = node.inputs
    reason = _routed(graph, node, (*inputs[2:5], inputs[6], *inputs[8:]))
    if reason is not None:
        return reason
    if not _even_groups(graph, node, 64):
        return "scales: a group of columns with one scale is not a multiple of 64 long"
    return _supports_group(graph.type(inputs[6]).shape[2], scaling)


def _even_groups(graph: Graph, node: Node, size: int) -> bool:
    """Whether `size` columns of K, from a multiple of it, have one scale on either side."""
    group = Scaling.of(node.attrs).group
    columns = weight_block(node.attrs)[1]
    depths = (graph.type(node.inputs[4]).shape[2], graph.type(node.inputs[6]).shape[2])
    whole = all(columns >= _known(depth) for depth in depths)
    return group % size == 0 and (whole or columns % size == 0)


def _supports_group(inner: Dim, scaling: Scaling) -> str | None:
    group = scaling.group
    if group and (group & (group - 1) or group > 128):
        return f"scales: a group is a power of two up to 128, not {group}"
    if group and _known(inner) % group:
        return f"scales: the activated rows of {inner} are not whole groups of {group}"
    return None


def _supports_mxfp4(graph: Graph, node: Node, target: Target) -> str | None:
    scaled = bool_attr(node.attrs, "has_x_scale")
    inputs = node.inputs
    begin = 1 + scaled
    operands = (*inputs[begin : begin + 3], inputs[begin + 4], *inputs[begin + 6 :])
    reason = _routed(graph, node, operands)
    if reason is not None:
        return reason
    depths = [_known(graph.type(value).shape[2]) * 2 for value in operands[2:4]]
    if any(depth % MX_GROUP for depth in depths):
        return f"mxfp4.align: rows of {depths} elements are not whole groups of {MX_GROUP}"
    if not scaled:
        dtype = graph.type(inputs[0]).dtype
        return None if dtype in ("bf16", "f16") else f"it multiplies bf16 or f16, not {dtype}"
    if target.family == "amdgpu" and not target.native_mxfp4:
        return f"mxfp4.arch: native scaled MFMA needs gfx950; this is {target.name}"
    scaling = Scaling.of(node.attrs)
    if (scaling.dtype, scaling.scale_dtype, scaling.group) != ("f8e4m3fn", "e8m0", MX_GROUP):
        return f"scales: it takes f8e4m3fn with a scale for {MX_GROUP}, not {scaling.dtype}"
    return None


def _layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    """Unit stride along rows of tokens; weights are read by the strides of their storage."""
    rows: Layout = "rows"
    strided: Layout = "strided"
    scaled = node.op == "moe_fp8" or bool_attr(node.attrs, "has_x_scale")
    routes = 3 + scaled
    return (*(rows,) * routes, *(strided,) * (len(node.inputs) - routes), rows)


def _record(op: str, supports: Supports) -> Kernel:
    return Kernel(
        op=op,
        name=f"{op}.triton",
        provider="triton",
        families=FAMILIES,
        source="moe/triton_kernel.py",
        supports=supports,
        launch=_moe,
        layouts=_layouts,
        scalar_spills=SCALAR_SPILLS,
    )


TRITON = (
    _record("moe", _supports_moe),
    _record("moe_fp8", _supports_fp8),
    _record("moe_mxfp4", _supports_mxfp4),
)
