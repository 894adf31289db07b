"""Operations of the models that GPU kernels are compiled for, at the sizes of the models.

`gpu_cases` is read by the tests that compile every record and by the table of `docs/kernels.md`; a
new kernel gets a case here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from fusec.formats import MX_GROUP, Scaling, fp8_scaling, mx_scaling
from fusec.ir import Graph, Node, TensorType
from fusec.ir.types import Attr
from fusec.kernels.launch import Call, Storage, dense_strides
from fusec.symbolic import Dim, symbol
from fusec.target import Target

ROWS = symbol("rows")
"""Tokens: known when the kernel is launched."""

NORM: dict[str, Attr] = {"eps": 1e-6, "weight_offset": 0}
GEMMA_NORM: dict[str, Attr] = {"eps": 1e-6, "weight_offset": 1}
DUAL_NORM: dict[str, Attr] = {"eps1": 1e-6, "eps2": 1e-6, "weight_offset": 0}
SWIGLU_OAI: dict[str, Attr] = {"alpha": 1.702, "limit": 7.0}
HEADS = 32


@dataclass(frozen=True)
class GpuCase:
    """One operation of a model.

    Attributes:
        op: the operation.
        label: the model, the sizes, and how the result is quantised.
        operands: types of the operands.
        attrs: of the operation.
        slices: by operand, the columns of the rows that it is a part of, and where it begins.
    """

    op: str
    label: str
    operands: tuple[TensorType, ...]
    attrs: Mapping[str, Attr]
    slices: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    def node(self) -> tuple[Graph, Node]:
        """A graph of this operation alone."""
        graph = Graph("case", {"rows": (1, None), "batch": (1, None)})
        names = [graph.add_input(f"x{i}", kind) for i, kind in enumerate(self.operands)]
        return graph, graph.add(self.op, names, dict(self.attrs))

    def call(self, graph: Graph, node: Node, target: Target) -> Call:
        """The operation with a place for each value; every intermediate buffer is a new one."""
        places: list[Storage] = []

        def place(dtype: str, shape: tuple[Dim, ...]) -> Storage:
            places.append(Storage(len(places), dtype, shape, dense_strides(shape)))
            return places[-1]

        for index, kind in enumerate(self.operands):
            if index in self.slices:
                width, begin = self.slices[index]
                strides = dense_strides((*kind.shape[:-1], width))
                places.append(Storage(len(places), kind.dtype, kind.shape, strides, begin))
            else:
                strides = dense_strides(kind.memory_shape)
                places.append(Storage(len(places), kind.dtype, kind.shape, strides))
        inputs = tuple(places)
        outputs = tuple(
            place(graph.type(value).dtype, graph.type(value).shape) for value in node.outputs
        )
        error = place("i64", (1,))
        return Call(graph, node, target, inputs, outputs, place, lambda: error)


def gpu_cases(target: Target) -> tuple[GpuCase, ...]:
    """Every case, with the formats of `target`."""
    groups = (
        _norms,
        _activations,
        _quantisation,
        _products,
        _dense_products,
        _convolutions,
        _routers,
        _experts,
        _rotations,
        _query_key_rotations,
        _attention,
        _row_norms,
        _indexing,
        _recurrences,
    )
    return tuple(case for group in groups for case in group(target.fp8 or "f8e4m3fn"))


def _rows(length: int, dtype: str = "bf16") -> TensorType:
    return TensorType(dtype, (ROWS, length))


def _vector(length: int) -> TensorType:
    return TensorType("bf16", (length,))


def _scalings(fp8: str) -> dict[str, Scaling]:
    """What results are quantised to, by the words of the table."""
    return {
        "fp8 token": fp8_scaling(fp8, "token"),
        "fp8 128": fp8_scaling(fp8, "group", group=128),
        "fp8 128 column": fp8_scaling(fp8, "group", group=128, layout="column"),
        "mxfp8": mx_scaling("f8e4m3fn"),
        "mxfp4": mx_scaling("f4e2m1x2"),
    }


def _quantised(fp8: str, case: GpuCase) -> Iterator[GpuCase]:
    """`case` with its result quantised in every way."""
    for words, scaling in _scalings(fp8).items():
        attrs = {**case.attrs, **scaling.attrs()}
        label = f"{case.label}, {words}"
        yield GpuCase(f"{case.op}_quant", label, case.operands, attrs, case.slices)
    static = {**case.attrs, **fp8_scaling(fp8, "tensor").attrs(), "has_scale": True}
    operands = (*case.operands, TensorType("f32", (1,)))
    yield GpuCase(f"{case.op}_quant", f"{case.label}, fp8 static", operands, static)


def _norms(fp8: str) -> Iterator[GpuCase]:
    weighted = {**NORM, "has_weight": True}
    for model, length, attrs in (
        ("Qwen3-Next", 2048, {**GEMMA_NORM, "has_weight": True}),
        ("gpt-oss", 2880, weighted),
        ("Llama-3-8B", 4096, weighted),
        ("DeepSeek-V3", 7168, weighted),
    ):
        rows, weight, label = _rows(length), _vector(length), f"{model} {length}"
        residual = {name: value for name, value in attrs.items() if name != "has_weight"}
        yield GpuCase("rms_norm", label, (rows, weight), attrs)
        yield GpuCase("add_rms_norm", label, (rows, rows, weight), residual)
        if model in ("Llama-3-8B", "DeepSeek-V3"):
            yield from _quantised(fp8, GpuCase("rms_norm", label, (rows, weight), attrs))
            fused = GpuCase("add_rms_norm", label, (rows, rows, weight), residual)
            yield from _quantised(fp8, fused)
    heads = TensorType("bf16", (ROWS, HEADS, 128))
    for model, activation in (("Qwen3-Next", "silu"), ("Kimi-Linear", "sigmoid")):
        gated = {**NORM, "activation": activation, "norm_before_gate": True}
        operands = (heads, _vector(128), heads)
        label = f"{model} {HEADS}x128 {activation}"
        yield GpuCase("gated_rms_norm", label, operands, gated)
        for words in ("fp8 token", "fp8 128"):
            attrs = {**gated, **_scalings(fp8)[words].attrs(), "shape": (ROWS, HEADS * 128)}
            yield GpuCase("gated_rms_norm_quant", f"{label}, {words}", operands, attrs)
    latent = (_rows(1536), _vector(1536), _rows(512), _vector(512))
    slices = {0: (2112, 0), 2: (2112, 1536)}
    label = "DeepSeek-V3 1536+512 of 2112"
    yield GpuCase("dual_rms_norm", label, latent, DUAL_NORM, slices)
    for words in ("fp8 token", "fp8 128"):
        attrs = {**DUAL_NORM, **_scalings(fp8)[words].attrs(), "quantises": "first"}
        yield GpuCase("dual_rms_norm_quant", f"{label}, {words}", latent, attrs, slices)


def _activations(fp8: str) -> Iterator[GpuCase]:
    for op, label, length, attrs in (
        ("silu_mul", "Llama-3-8B 14336", 14336, {}),
        ("silu_mul", "DeepSeek-V3 18432", 18432, {}),
        ("gelu_mul", "Gemma 24576", 24576, {"approximate": "tanh"}),
        ("swiglu_oai", "gpt-oss 2880", 2880, SWIGLU_OAI),
    ):
        slices = {0: (2 * length, 0), 1: (2 * length, length)}
        case = GpuCase(op, label, (_rows(length), _rows(length)), attrs, slices)
        yield case
        if length != 14336:
            yield from _quantised(fp8, case)


def _quantisation(fp8: str) -> Iterator[GpuCase]:
    for words, scaling in _scalings(fp8).items():
        label = f"Llama-3-8B 4096, {words}"
        case = GpuCase("quantize", label, (_rows(4096),), scaling.attrs())
        graph, node = case.node()
        yield case
        codes = tuple(graph.type(value) for value in node.outputs)
        yield GpuCase("dequantize", label, codes, {**scaling.attrs(), "dtype": "bf16"})


def _products(fp8: str) -> Iterator[GpuCase]:
    result: dict[str, Attr] = {"dtype": "bf16", "has_bias": False}
    columns, length = 4096, 7168
    scaling = fp8_scaling(fp8, "group", group=128)
    operands = (
        _rows(length, fp8),
        _rows(length // 128, "f32"),
        TensorType(fp8, (columns, length)),
        TensorType("f32", (columns // 128, length // 128)),
    )
    attrs = {**result, **scaling.attrs(), "weight_block": (128, 128)}
    yield GpuCase("fp8_linear", f"DeepSeek-V3 {columns}x{length}, 128x128", operands, attrs)
    token = (operands[0], _rows(1, "f32"), operands[2], TensorType("f32", (columns, 1)))
    attrs = {**result, **fp8_scaling(fp8, "token").attrs(), "weight_block": (1, length)}
    yield GpuCase("fp8_linear", f"Llama {columns}x{length}, token", token, attrs)
    scaling = mx_scaling("f8e4m3fn")
    operands = (
        _rows(length, "f8e4m3fn"),
        _rows(length // MX_GROUP, "e8m0"),
        TensorType("f8e4m3fn", (columns, length)),
        TensorType("e8m0", (columns, length // MX_GROUP)),
    )
    attrs = {**result, **scaling.attrs(), "weight_block": (1, MX_GROUP)}
    yield GpuCase("fp8_linear", f"{columns}x{length}, mxfp8", operands, attrs)
    weight = (
        TensorType("f4e2m1x2", (columns, length // 2)),
        TensorType("e8m0", (columns, length // MX_GROUP)),
    )
    floats = {**result, "has_x_scale": False}
    label = f"{columns}x{length}"
    yield GpuCase("mxfp4_linear", f"{label}, bf16", (_rows(length), *weight), floats)
    for words, dtype, width in (("mxfp8", "f8e4m3fn", 1), ("mxfp4", "f4e2m1x2", 2)):
        x = (_rows(length // width, dtype), _rows(length // MX_GROUP, "e8m0"))
        attrs = {**result, **mx_scaling(dtype).attrs(), "has_x_scale": True}
        yield GpuCase("mxfp4_linear", f"{label}, {words}", (*x, *weight), attrs)


def _dense_products(fp8: str) -> Iterator[GpuCase]:
    def weight(*shape: Dim) -> TensorType:
        return TensorType("bf16", shape)

    for words, columns, length in (("Llama-3", 6144, 4096), ("DeepSeek-V3 head", 129280, 7168)):
        operands = (_rows(length), weight(columns, length))
        yield GpuCase("linear", f"{words} {columns}x{length}", operands, {})
    biased = (_rows(2880), weight(5120, 2880), weight(5120))
    yield GpuCase("linear", "gpt-oss 5120x2880", biased, {})
    yield GpuCase("linear", "rows by rows of 128", (_rows(128), weight(ROWS, 128)), {})
    up: dict[str, Attr] = {"activation": "gelu_tanh", "has_bias": True, "has_residual": False}
    first = (_rows(1024), weight(4096, 1024), weight(4096))
    yield GpuCase("linear_epilogue", "ViT 4096x1024, gelu", first, up)
    down: dict[str, Attr] = {"activation": "none", "has_bias": True, "has_residual": True}
    second = (_rows(4096), weight(1024, 4096), weight(1024), _rows(1024))
    yield GpuCase("linear_epilogue", "ViT 1024x4096, residual", second, down)
    absorbed = (weight(128, ROWS, 128), weight(128, 128, 512))
    yield GpuCase("matmul", "DeepSeek-V3 128 heads of 128x512", absorbed, {})
    experts = (_rows(2048), weight(128, 2048, 1536), TensorType("i32", (128,)))
    yield GpuCase("grouped_mm", "Qwen3 128 of 2048x1536", experts, {})


def _convolutions(fp8: str) -> Iterator[GpuCase]:
    def case(
        words: str,
        x: tuple[Dim, ...],
        weight: tuple[int, ...],
        stride: tuple[int, ...],
        groups: int = 1,
    ) -> GpuCase:
        padding = tuple(
            size // 2 if step < size else 0 for size, step in zip(weight[2:], stride, strict=True)
        )
        ones = (1,) * len(stride)
        attrs: dict[str, Attr] = {"stride": stride, "padding": padding, "dilation": ones}
        operands = (TensorType("bf16", x), TensorType("bf16", weight), _vector(weight[0]))
        return GpuCase("conv", words, operands, {**attrs, "groups": groups})

    yield case("Qwen2-VL patches", (ROWS, 3, 2, 14, 14), (1280, 3, 2, 14, 14), (2, 14, 14))
    yield case("CLIP patches", (ROWS, 3, 224, 224), (768, 3, 16, 16), (16, 16))
    yield case("Whisper", (ROWS, 1280, 3000), (1280, 1280, 3), (2,))
    yield case("depthwise 7x7", (ROWS, 512, 56, 56), (512, 1, 7, 7), (1, 1), 512)

    def followed(words: str, channels: int, size: int, groups: int, activation: str) -> GpuCase:
        """3x3, a batch norm, an activation, and before that of a product a residual stream."""
        image: tuple[Dim, ...] = (ROWS, channels, size, size)
        plain = case(words, image, (channels, channels // groups, 3, 3), (1, 1), groups)
        norm = (TensorType("f32", (channels,)),) * 2
        residual = () if groups > 1 else (TensorType("bf16", image),)
        attrs: dict[str, Attr] = {
            **plain.attrs,
            "activation": activation,
            "has_scale": True,
            "has_bias": True,
            "has_residual": bool(residual),
        }
        return GpuCase("conv_epilogue", words, (*plain.operands[:2], *norm, *residual), attrs)

    yield followed("ResNet 3x3", 256, 14, 1, "relu")
    yield followed("MobileNet 3x3", 96, 56, 96, "hardswish")


def _routers(fp8: str) -> Iterator[GpuCase]:
    plain: dict[str, Attr] = {
        "dtype": "f32",
        "has_bias": False,
        "groups": 1,
        "groups_kept": 1,
        "group_best": 1,
        "renormalise": True,
        "fill": 0.0,
        "fill_weighs": False,
        "eps": 0.0,
        "least": -math.inf,
        "scale": 1.0,
    }
    qwen = {**plain, "scores": "softmax", "k": 10}
    yield GpuCase("router", "Qwen3-Next 10 of 512", (_rows(512, "f32"),), qwen)
    grouped = {
        "groups": 8,
        "groups_kept": 4,
        "group_best": 2,
        "has_bias": True,
        "eps": 1e-20,
        "scale": 2.5,
    }
    deepseek = {**plain, **grouped, "scores": "sigmoid", "k": 8}
    biased = (_rows(256, "f32"), TensorType("f32", (256,)))
    yield GpuCase("router", "DeepSeek-V3 8 of 256 in groups", biased, deepseek)
    oai = {**plain, "scores": "softmax_topk", "k": 4, "renormalise": False}
    yield GpuCase("router", "gpt-oss 4 of 128", (_rows(128, "f32"),), oai)


def _experts(fp8: str) -> Iterator[GpuCase]:
    yield _plain_experts()
    yield _plain_experts_of_gpt_oss()
    yield _fp8_experts(fp8)
    yield _fp8_experts_by_token(fp8)
    yield _mxfp4_experts(quantised=False)
    yield _mxfp4_experts(quantised=True)


def _routes(top_k: int) -> tuple[TensorType, TensorType]:
    return TensorType("f32", (ROWS, top_k)), TensorType("i64", (ROWS, top_k))


def _expert_attrs(**more: Attr) -> dict[str, Attr]:
    return {
        "activation": "silu",
        "gated": True,
        "gate_up_layout": "split",
        "transposed": False,
        "has_bias": False,
        **more,
    }


def _plain_experts() -> GpuCase:
    experts, hidden, inner, top_k = 512, 2048, 512, 10
    gate_up = TensorType("bf16", (experts, 2 * inner, hidden))
    down = TensorType("bf16", (experts, hidden, inner))
    operands = (_rows(hidden), *_routes(top_k), gate_up, down)
    return GpuCase("moe", f"Qwen3-Next {experts} of {inner}x{hidden}", operands, _expert_attrs())


def _plain_experts_of_gpt_oss() -> GpuCase:
    experts, size, top_k = 128, 2880, 4
    operands = (
        _rows(size),
        *_routes(top_k),
        TensorType("bf16", (experts, size, 2 * size)),
        TensorType("bf16", (experts, size, size)),
        TensorType("bf16", (experts, 2 * size)),
        TensorType("bf16", (experts, size)),
    )
    more: dict[str, Attr] = {"transposed": True, "gate_up_layout": "interleaved", "has_bias": True}
    attrs = _expert_attrs(**{**more, **SWIGLU_OAI, "activation": "swiglu_oai"})
    return GpuCase("moe", f"gpt-oss {experts} of {size}x{size}", operands, attrs)


def _fp8_experts_by_token(fp8: str) -> GpuCase:
    experts, hidden, inner, top_k = 128, 4096, 1536, 8
    operands = (
        _rows(hidden, fp8),
        _rows(1, "f32"),
        *_routes(top_k),
        TensorType(fp8, (experts, 2 * inner, hidden)),
        TensorType("f32", (experts, 2 * inner, 1)),
        TensorType(fp8, (experts, hidden, inner)),
        TensorType("f32", (experts, hidden, 1)),
    )
    more = {**fp8_scaling(fp8, "token").attrs(), "weight_block": (1, hidden), "dtype": "bf16"}
    label = f"Qwen3 {experts} of {inner}x{hidden}, token"
    return GpuCase("moe_fp8", label, operands, _expert_attrs(**more))


def _fp8_experts(fp8: str) -> GpuCase:
    experts, hidden, inner, top_k = 256, 7168, 2048, 8
    operands = (
        _rows(hidden, fp8),
        _rows(hidden // 128, "f32"),
        *_routes(top_k),
        TensorType(fp8, (experts, 2 * inner, hidden)),
        TensorType("f32", (experts, 2 * inner // 128, hidden // 128)),
        TensorType(fp8, (experts, hidden, inner)),
        TensorType("f32", (experts, hidden // 128, inner // 128)),
    )
    scaling = fp8_scaling(fp8, "group", group=128)
    more = {**scaling.attrs(), "weight_block": (128, 128), "dtype": "bf16"}
    label = f"DeepSeek-V3 {experts} of {inner}x{hidden}"
    return GpuCase("moe_fp8", label, operands, _expert_attrs(**more))


def _mxfp4_experts(*, quantised: bool) -> GpuCase:
    """Those of gpt-oss: rows of 2880 elements, in memory padded to 3072."""
    experts, size, memory, top_k = 128, 2880, 3072, 4

    def weight(rows: int) -> tuple[TensorType, TensorType]:
        scale = MX_GROUP
        wide = rows // size * memory
        return (
            TensorType("f4e2m1x2", (experts, rows, size // 2), (experts, wide, memory // 2)),
            TensorType("e8m0", (experts, rows, size // scale), (experts, wide, memory // scale)),
        )

    x: tuple[TensorType, ...] = (_rows(size),)
    more: dict[str, Attr] = {"has_x_scale": quantised, "dtype": "bf16", **SWIGLU_OAI}
    if quantised:
        x = (_rows(size, "f8e4m3fn"), _rows(size // MX_GROUP, "e8m0"))
        more |= mx_scaling("f8e4m3fn").attrs()
    operands = (
        *x,
        *_routes(top_k),
        *weight(2 * size),
        *weight(size),
        TensorType("bf16", (experts, 2 * size)),
        TensorType("bf16", (experts, size)),
    )
    more |= {"hidden_pad": memory - size, "intermediate_pad": memory - size}
    more |= {"activation": "swiglu_oai", "gate_up_layout": "interleaved", "has_bias": True}
    words = "mxfp8 tokens" if quantised else "bf16 tokens"
    label = f"gpt-oss {experts} of {size}x{size}, {words}"
    return GpuCase("moe_mxfp4", label, operands, _expert_attrs(**more))


BATCH = symbol("batch")
"""Sequences: known when the kernel is launched."""


def _heads(count: int, size: int) -> TensorType:
    return TensorType("bf16", (BATCH, count, ROWS, size))


def _rotation(style: str, rotary: int, *, deinterleave: bool = False) -> dict[str, Attr]:
    return {"style": style, "rotary_dim": rotary, "deinterleave": deinterleave}


def _rotations(fp8: str) -> Iterator[GpuCase]:
    for model, heads, size, rotary, dtype, attrs in (
        ("Llama-3-8B", 32, 128, 128, "bf16", _rotation("half", 128)),
        ("Qwen3-Next", 16, 256, 64, "f32", _rotation("half", 64)),
        ("Phi-3", 32, 96, 96, "f32", _rotation("half", 96)),
        ("GPT-J", 16, 256, 64, "f32", _rotation("interleaved", 64)),
        ("DeepSeek-V3", 128, 64, 64, "f32", _rotation("interleaved", 64, deinterleave=True)),
    ):
        table = TensorType(dtype, (1, 1, ROWS, rotary))
        label = f"{model} {heads} heads of {size}"
        yield GpuCase("rope", label, (_heads(heads, size), table, table), attrs)


def _query_key_rotations(fp8: str) -> Iterator[GpuCase]:
    """Heads of q and of k, normed or not, with the offset of the norms' weights."""
    for model, heads, size, rotary, offset in (
        ("Llama-3-8B", (32, 8), 128, 128, None),
        ("Qwen3-8B", (32, 8), 128, 128, 0),
        ("Qwen3-Next", (16, 2), 256, 64, 1),
    ):
        table = TensorType("bf16", (1, 1, ROWS, rotary))
        normed = offset is not None
        weights = (_vector(size),) * (2 * normed)
        operands = (*(_heads(count, size) for count in heads), *weights, table, table)
        flags: dict[str, Attr] = {"has_norm": normed, "has_weight": normed}
        attrs = {**_rotation("half", rotary), **flags, "eps": 1e-6, "weight_offset": offset or 0}
        yield GpuCase(
            "qk_norm_rope", f"{model} {heads[0]} and {heads[1]} of {size}", operands, attrs
        )


def _attention(fp8: str) -> Iterator[GpuCase]:
    causal: dict[str, Attr] = {"causal": True}
    chunked: dict[str, Attr] = {"causal": True, "chunk": 8192}
    windowed: dict[str, Attr] = {"causal": True, "window": 128, "has_sinks": True}
    padded: dict[str, Attr] = {"has_key_padding": True}
    for model, heads, sizes, attrs, rest in (
        ("Llama-3-8B", (32, 8), (128, 128), causal, ()),
        ("Llama-4", (40, 8), (128, 128), chunked, ()),
        ("gpt-oss", (64, 8), (64, 64), windowed, (_vector(64),)),
        ("DeepSeek-V3", (128, 128), (192, 128), causal, ()),
        ("Qwen3-Next", (16, 2), (256, 256), causal, ()),
        ("BERT", (12, 12), (64, 64), padded, (TensorType("bool", (BATCH, ROWS)),)),
    ):
        queries, keys = heads
        operands = (_heads(queries, sizes[0]), *(_heads(keys, size) for size in sizes), *rest)
        label = f"{model} {queries} and {keys} of {'/'.join(map(str, dict.fromkeys(sizes)))}"
        yield GpuCase("attention", label, operands, {"scale": sizes[0] ** -0.5, **attrs})


def _row_norms(fp8: str) -> Iterator[GpuCase]:
    affine: dict[str, Attr] = {"eps": 1e-12, "has_weight": True, "has_bias": True}
    yield GpuCase("layer_norm", "BERT 768", (_rows(768), _vector(768), _vector(768)), affine)
    scale: dict[str, Attr] = {"eps": 1e-5, "has_weight": True, "has_bias": False}
    yield GpuCase("layer_norm", "ModernBERT 1024", (_rows(1024), _vector(1024)), scale)
    yield GpuCase("l2_norm", "Qwen3-Next 128", (_rows(128),), {"eps": 1e-6, "mode": "add"})


def _indexing(fp8: str) -> Iterator[GpuCase]:
    tokens = TensorType("i64", (ROWS,))
    for model, vocabulary, size in (("Llama-3-8B", 128256, 4096), ("gpt-oss", 201088, 2880)):
        table = TensorType("bf16", (vocabulary, size))
        yield GpuCase("take", f"{model} {vocabulary}x{size}", (table, tokens), {"axis": 0})
    mask, row = TensorType("bool", (8, ROWS)), TensorType("i64", (8, 1))
    yield GpuCase("index", "mask of 8 rows", (mask, row, tokens), {"axes": (0, 1)})
    scores, chosen = _rows(256, "f32"), TensorType("i64", (ROWS, 8))
    yield GpuCase("gather", "DeepSeek-V3 8 of 256", (scores, chosen), {"axis": 1})
    yield GpuCase("scatter", "DeepSeek-V3 8 of 256", (scores, chosen, _rows(8, "f32")), {"axis": 1})
    yield GpuCase("topk", "DeepSeek-V3 8 of 256", (scores,), {"axis": 1, "k": 8, "largest": True})
    experts = TensorType("i64", (65536,))
    yield GpuCase("sort", "8192 tokens of 8 experts", (experts,), {"axis": 0, "descending": False})
    order = TensorType("i64", (65536,))
    added: dict[str, Attr] = {"axes": (0,), "accumulate": True}
    yield GpuCase(
        "index_put",
        "8192 tokens of 8 experts",
        (_rows(4096), TensorType("bf16", (65536, 4096)), order),
        added,
    )
    bins: dict[str, Attr] = {"bins": 256, "low": 0.0, "high": 255.0}
    yield GpuCase("histogram", "8192 tokens of 8 experts", (TensorType("f32", (65536,)),), bins)


def _recurrences(fp8: str) -> Iterator[GpuCase]:
    filtered: dict[str, Attr] = {"activation": "silu", "has_bias": False}
    x, weight = TensorType("bf16", (1, 8192, ROWS)), TensorType("bf16", (8192, 4))
    yield GpuCase("causal_conv1d", "Qwen3-Next 8192 by 4", (x, weight), filtered)
    attrs: dict[str, Attr] = {"scale": 128**-0.5, "eps": 1e-6, "qk_l2_norm": True}
    for label, key_heads, gate in (
        ("Qwen3-Next 32 of 16 heads of 128", 16, ()),
        ("Kimi-Linear 32 heads of 128, gates by channel", 32, (128,)),
    ):
        keys = TensorType("bf16", (1, ROWS, key_heads, 128))
        values = TensorType("bf16", (1, ROWS, 32, 128))
        gates, beta = TensorType("f32", (1, ROWS, 32, *gate)), TensorType("bf16", (1, ROWS, 32))
        yield GpuCase("gated_delta_rule", label, (keys, keys, values, gates, beta), attrs)
    for label, heads, decays, groups, states in (
        ("Falcon-Mamba 8192 of 16 states", 8192, 16, 1, 16),
        ("Codestral-Mamba 128 heads of 64 by 128 states", 128, 1, 8, 128),
    ):
        u, dt = TensorType("bf16", (1, ROWS, 8192)), TensorType("f32", (1, ROWS, heads))
        a, b = TensorType("f32", (heads, decays)), TensorType("bf16", (1, ROWS, groups, states))
        yield GpuCase("selective_scan", label, (u, dt, a, b, b), {})
    system, right = TensorType("f32", (ROWS, 64, 64)), TensorType("f32", (ROWS, 64, 128))
    triangle: dict[str, Attr] = {"upper": False, "unit_diagonal": True, "left": True}
    yield GpuCase("solve_triangular", "chunks of 64", (system, right), triangle)
