"""Routed experts and routers, with random operands: for the interpreter, and for a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch

from fusec import symbolic
from fusec.formats import (
    MX_GROUP,
    Scaling,
    decode,
    encode,
    encode_e8m0,
    pack_e2m1,
)
from fusec.ir import OPS, Graph, TensorType
from fusec.ir.ops.base import Array
from fusec.ir.ops.quantised import quantised
from fusec.ir.types import Attr
from fusec.kernels.launch import Call, Launch, Storage, dense_strides
from fusec.kernels.moe.triton import TRITON as MOE_RECORDS
from fusec.kernels.router.triton import TRITON as ROUTER_RECORDS
from fusec.symbolic import Dim, symbol
from fusec.target import target_named

TORCH = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "i64": torch.int64,
    "i32": torch.int32,
    "f8e4m3fn": torch.float8_e4m3fn,
    "f8e4m3fnuz": torch.float8_e4m3fnuz,
    "f4e2m1x2": torch.uint8,
    "e8m0": torch.uint8,
}
TOLERANCE = {"bf16": 1.0 / 80, "f16": 1.0 / 400, "f32": 1e-5}
"""Relative to the largest value: rounding the activated rows, and then the result, once each."""

QUANTISED_TOLERANCE = 1.0 / 20
"""As above, where activated rows are codes: one that lies between two may become either."""

GUARD = 64
"""Elements behind every result that no kernel may touch."""


@dataclass(frozen=True)
class Value:
    """An operand: what the reference takes, and how it lies in memory.

    Attributes:
        type: dtype and sizes, padded ones too.
        seen: what the reference takes.
        memory: dense, in the padded sizes.
        tokens: the axis of tokens, if it has one.
    """

    type: TensorType
    seen: Array
    memory: torch.Tensor
    tokens: int | None = None

    def of_tokens(self, axis: int = 0) -> Value:
        """The same, with an axis of tokens."""
        return replace(self, tokens=axis)

    @property
    def kind(self) -> TensorType:
        """The type in a graph, where the number of tokens is a symbol."""
        if self.tokens is None:
            return self.type
        shape: list[Dim] = [*self.type.shape]
        shape[self.tokens] = symbol("tokens")
        return self.type.with_shape(tuple(shape))


def floats(array: Array, dtype: str, padded: tuple[int, ...] | None = None) -> Value:
    """Floats, rounded to `dtype`; padding is zeros."""
    tensor = _padded(torch.tensor(array).to(TORCH[dtype]), padded, 0)
    seen = tensor[tuple(slice(size) for size in array.shape)].double().numpy()
    return Value(TensorType(dtype, array.shape, padded), seen, tensor)


def integers(array: Array, dtype: str) -> Value:
    return Value(TensorType(dtype, array.shape), array, torch.tensor(array).to(TORCH[dtype]))


def codes(values: Array, dtype: str) -> Value:
    """8-bit floats, from the numbers they stand for."""
    bits = torch.tensor(encode(values, dtype)).view(TORCH[dtype])
    return Value(TensorType(dtype, values.shape), values, bits)


def packed(bytes_: Array, padded: tuple[int, ...] | None = None) -> Value:
    """Pairs of 4-bit floats; padding is zeros."""
    memory = _padded(torch.tensor(bytes_.astype(np.uint8)), padded, 0)
    return Value(TensorType("f4e2m1x2", bytes_.shape, padded), bytes_, memory)


def powers(values: Array, padded: tuple[int, ...] | None = None) -> Value:
    """Scales that are powers of two; padding is one."""
    memory = _padded(torch.tensor(encode_e8m0(values)), padded, 0x7F)
    return Value(TensorType("e8m0", values.shape, padded), values, memory)


def _padded(tensor: torch.Tensor, shape: tuple[int, ...] | None, fill: int) -> torch.Tensor:
    if shape is None:
        return tensor
    wide = torch.full(shape, fill, dtype=tensor.dtype)
    wide[tuple(slice(size) for size in tensor.shape)] = tensor
    return wide


Start: TypeAlias = Callable[[Launch, Sequence[torch.Tensor], Mapping[str, int]], None]
"""Runs one launch on buffers, with these values of symbols."""


def results(
    op: str,
    values: Sequence[Value],
    attrs: Mapping[str, Attr],
    target_name: str,
    start: Start,
    device: str = "cpu",
) -> tuple[list[Array], tuple[Array, ...]]:
    """Results of the kernel, and of the reference, of `op`.

    The number of tokens is a symbol, as in a model; only its upper bound is known.
    """
    tokens = values[0].type.shape[0]
    assert isinstance(tokens, int)
    graph, target = Graph("case", {"tokens": (1, tokens)}), target_named(target_name)
    sizes = {"tokens": tokens}
    kinds = [value.kind for value in values]
    names = [graph.add_input(f"x{i}", kind) for i, kind in enumerate(kinds)]
    node = graph.add(op, names, dict(attrs))
    (record,) = (each for each in (*MOE_RECORDS, *ROUTER_RECORDS) if each.op == op)
    assert record.supports(graph, node, target) is None, record.supports(graph, node, target)
    memory = [value.memory.reshape(-1).to(device) for value in values]

    def place(kind: TensorType) -> Storage:
        """Room full of what must not be read."""
        size = symbolic.evaluate(kind.elements, sizes)
        dtype = TORCH[kind.dtype]
        if dtype.is_floating_point and dtype.itemsize > 1:
            room = torch.full((size + GUARD,), torch.nan, dtype=dtype, device=device)
        else:
            room = torch.full(
                ((size + GUARD) * dtype.itemsize,), 0x7F, dtype=torch.uint8, device=device
            )
            room = room.view(dtype)
        memory.append(room)
        return Storage(len(memory) - 1, kind.dtype, kind.shape, dense_strides(kind.shape))

    inputs = tuple(
        Storage(i, kind.dtype, kind.shape, dense_strides(kind.memory_shape))
        for i, kind in enumerate(kinds)
    )
    outputs = tuple(place(graph.type(value)) for value in node.outputs)
    call = Call(
        graph,
        node,
        target,
        inputs,
        outputs,
        lambda dtype, shape: place(TensorType(dtype, shape)),
    )
    for launch in record.launches(call):
        start(launch, memory, sizes)
    types = tuple(graph.type(value) for value in node.outputs)
    wanted = OPS[op].reference([value.seen for value in values], attrs, types)
    for room in memory[len(values) :]:
        ends = room[-GUARD:]
        wide = room.is_floating_point() and room.itemsize > 1
        untouched = torch.isnan(ends) if wide else ends.view(torch.uint8) == 0x7F
        assert untouched.all(), "a kernel wrote behind its results"
    results = [
        memory[storage.buffer][:-GUARD].double().cpu().numpy().reshape(want.shape)
        for storage, want in zip(outputs, wanted, strict=True)
    ]
    return results, wanted


def agree(got: Array, want: Array, tolerance: float) -> None:
    largest = max(float(np.max(np.abs(want), initial=0)), 1e-6)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * largest)


ATTRS: dict[str, Attr] = {
    "activation": "silu",
    "alpha": None,
    "limit": None,
    "gated": True,
    "gate_up_layout": "split",
    "has_bias": False,
}
LIMITED: dict[str, Attr] = {**ATTRS, "activation": "swiglu_limit", "limit": 0.5}
OAI: dict[str, Attr] = {
    **ATTRS,
    "activation": "swiglu_oai",
    "alpha": 1.702,
    "limit": 2.0,
    "gate_up_layout": "interleaved",
    "has_bias": True,
}


@dataclass(frozen=True)
class Experts:
    """Random experts and routes.

    Attributes:
        rng: where numbers come from.
        tokens, count, k, hidden, inner: sizes.
        routes: `random`, `one` expert for all, or `some` indices that are none.
    """

    rng: np.random.Generator
    tokens: int
    count: int
    k: int
    hidden: int
    inner: int
    routes: str = "random"

    def x(self) -> Array:
        return self.rng.standard_normal((self.tokens, self.hidden))

    def weight(self, attrs: dict[str, Attr], *, down: bool) -> Array:
        inner = self.inner * (2 if attrs["gated"] and not down else 1)
        rows, columns = (self.hidden, inner) if down else (inner, self.hidden)
        values = self.rng.standard_normal((self.count, rows, columns))
        return np.asarray(values / np.sqrt(columns) * 2)

    def routed(self, indices: str = "i64", weights: str = "f32") -> tuple[Value, Value]:
        chosen = np.argsort(self.rng.random((self.tokens, self.count)), axis=1)[:, : self.k]
        if self.routes == "one":
            chosen = np.full_like(chosen, self.count - 1)
        if self.routes == "some":
            chosen[::2, 0] = -1
            chosen[1::3, -1] = self.count
        share = self.rng.random((self.tokens, self.k))
        return floats(share, weights).of_tokens(), integers(chosen, indices).of_tokens()

    def biases(self, attrs: dict[str, Attr], dtype: str) -> list[Value]:
        if not attrs["has_bias"]:
            return []
        rows = self.inner * (2 if attrs["gated"] else 1)
        sizes = ((self.count, rows), (self.count, self.hidden))
        return [floats(self.rng.standard_normal(size), dtype) for size in sizes]


def experts(
    tokens: int, count: int, k: int, hidden: int, inner: int, routes: str = "random"
) -> Experts:
    seed = hash((tokens, count, k, hidden, inner)) % 2**32
    return Experts(np.random.default_rng(seed), tokens, count, k, hidden, inner, routes)


def plain(case: Experts, attrs: dict[str, Attr], dtype: str, indices: str = "i64") -> list[Value]:
    """Operands of `moe`."""
    gate_up, down = (case.weight(attrs, down=down) for down in (False, True))
    if attrs["transposed"]:
        gate_up, down = gate_up.swapaxes(1, 2).copy(), down.swapaxes(1, 2).copy()
    routes = case.routed(indices, "f32" if indices == "i64" else dtype)
    weights = (floats(gate_up, dtype), floats(down, dtype))
    return [floats(case.x(), dtype).of_tokens(), *routes, *weights, *case.biases(attrs, dtype)]


def fp8(
    case: Experts, attrs: dict[str, Attr], scaling: Scaling, block: tuple[int, int]
) -> list[Value]:
    """Operands of `moe_fp8`; a block of zeros has as many rows, or columns, as there are."""
    x, x_scale = quantised(case.x(), scaling, *_static(scaling))
    weights: list[Value] = []
    for down in (False, True):
        weight = case.weight(attrs, down=down)
        rows, columns = (size or whole for size, whole in zip(block, weight.shape[1:], strict=True))
        blocks = (-(-weight.shape[1] // rows), -(-weight.shape[2] // columns))
        scale = case.rng.uniform(0.5, 2.0, (case.count, *blocks)).astype(np.float32) / 128
        wide = np.repeat(np.repeat(scale, rows, axis=1), columns, axis=2)
        held = weight / wide[:, : weight.shape[1], : weight.shape[2]]
        weights += [codes(decode(encode(held, scaling.dtype), scaling.dtype), scaling.dtype)]
        weights += [floats(scale.astype(np.float64), "f32")]
    routes = case.routed()
    scales = floats(x_scale, "f32")
    if scaling.granularity != "tensor":
        scales = scales.of_tokens(1 if scaling.layout == "column" else 0)
    return [
        codes(x, scaling.dtype).of_tokens(),
        scales,
        *routes,
        *weights,
        *case.biases(attrs, "bf16"),
    ]


def _static(scaling: Scaling) -> tuple[Array, ...]:
    return (np.full(1, 1.0 / 128),) if scaling.granularity == "tensor" else ()


def fp8_attrs(
    case: Experts, attrs: dict[str, Attr], scaling: Scaling, block: tuple[int, int]
) -> dict[str, Attr]:
    """Attributes of `moe_fp8`; a block of 0 rows or columns is as large as either weight."""
    whole = 2 * max(case.hidden, case.inner)
    sizes = tuple(size or whole for size in block)
    return {**attrs, **scaling.attrs(), "weight_block": sizes, "dtype": "bf16"}


def mxfp4(
    case: Experts,
    attrs: dict[str, Attr],
    dtype: str,
    scaling: Scaling | None = None,
    padded: tuple[int, int] | None = None,
) -> list[Value]:
    """Operands of `moe_mxfp4`; `padded` are H and I in memory."""
    scaled = scaling is not None
    x = floats(case.x(), dtype).of_tokens()
    given = [x]
    if scaling is not None:
        held, scale = quantised(x.seen, scaling)
        given = [codes(held, scaling.dtype).of_tokens(), powers(scale).of_tokens()]
    routes = case.routed()
    weights: list[Value] = []
    for down in (False, True):
        weight = case.weight(attrs, down=down)
        rows, columns = weight.shape[1:]
        scale = 2.0 ** case.rng.integers(-4, 1, (case.count, rows, columns // MX_GROUP))
        held = pack_e2m1(weight / np.repeat(scale, MX_GROUP, axis=2))
        memory: list[tuple[int, ...] | None] = [None, None]
        if padded is not None:
            wide = padded if down else (padded[1] * 2, padded[0])
            memory = [(case.count, wide[0], wide[1] // part) for part in (2, MX_GROUP)]
        weights += [packed(held, memory[0]), powers(scale, memory[1])]
    assert scaled == bool(attrs["has_x_scale"])
    return [*given, *routes, *weights, *case.biases(attrs, dtype)]


def mxfp4_attrs(
    attrs: dict[str, Attr], case: Experts, scaling: Scaling | None, padded: tuple[int, int] | None
) -> dict[str, Attr]:
    pads = (0, 0) if padded is None else (padded[0] - case.hidden, padded[1] - case.inner)
    return {
        **attrs,
        **({} if scaling is None else scaling.attrs()),
        "has_x_scale": scaling is not None,
        "hidden_pad": pads[0],
        "intermediate_pad": pads[1],
        "dtype": "bf16",
    }


ROUTER: dict[str, Attr] = {
    "scores": "softmax",
    "k": 3,
    "groups": 1,
    "groups_kept": 1,
    "group_best": 1,
    "fill": 0.0,
    "fill_weighs": False,
    "renormalise": True,
    "eps": 0.0,
    "least": -np.inf,
    "scale": 1.0,
    "has_bias": False,
    "dtype": "f32",
}
GROUPED: dict[str, Attr] = {
    **ROUTER,
    "scores": "sigmoid",
    "groups": 5,
    "groups_kept": 2,
    "group_best": 2,
    "fill": -np.inf,
    "eps": 1e-20,
    "scale": 2.5,
    "has_bias": True,
}
ROUTERS: list[tuple[int, dict[str, Attr]]] = [
    (8, ROUTER),
    (33, {**ROUTER, "renormalise": False, "k": 1, "scale": 0.5}),
    (512, {**ROUTER, "k": 10, "dtype": "bf16"}),
    (32, {**ROUTER, "scores": "softmax_topk", "renormalise": False, "k": 4, "dtype": "bf16"}),
    (3, {**ROUTER, "scores": "sigmoid", "has_bias": True}),
    (20, GROUPED),
    (20, {**GROUPED, "fill": 0.0, "k": 8, "has_bias": False}),
    (20, {**GROUPED, "scores": "softmax_topk", "groups": 4, "renormalise": False}),
    (
        15,
        {
            **GROUPED,
            "scores": "softmax",
            "group_best": 1,
            "fill": 0.0,
            "fill_weighs": True,
            "has_bias": False,
            "k": 7,
        },
    ),
    (9, {**ROUTER, "scores": "sigmoid_topk", "has_bias": True, "least": 1.5}),
    (9, {**ROUTER, "scores": "given", "has_bias": True, "renormalise": False}),
]
"""Numbers of experts, and attributes."""

SIZES = [(1, 4, 1, 64, 32), (3, 32, 8, 96, 64), (17, 5, 2, 65, 33), (130, 4, 2, 64, 48)]
"""Tokens, experts, experts of a token, H and I."""


def routed_logits(count: int, attrs: dict[str, Attr], dtype: str) -> list[Value]:
    """Operands of `router` for five tokens."""
    rng = np.random.default_rng(count)
    values = [floats(rng.standard_normal((5, count)) * 2, dtype).of_tokens()]
    if attrs["has_bias"]:
        values.append(floats(rng.standard_normal(count) / 4, "f32"))
    return values


def extreme_logits(attrs: dict[str, Attr]) -> list[Value]:
    """Logits of 20 experts that are equal, far apart, minus infinity or NaN; a bias of zeros."""
    logits = np.zeros((5, 20))
    logits[1, ::3] = 1.0
    logits[2, 7:] = 80.0
    logits[3, :12] = -np.inf
    logits[4, 13] = np.nan
    values = [floats(logits, "f32").of_tokens()]
    if attrs["has_bias"]:
        values.append(floats(np.zeros(20), "f32"))
    return values
