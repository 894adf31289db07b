"""Attention with random operands, laid out as kernels meet them, and the answers in f64.

The interpreter (`interpreted_attention_cases.py`) and a GPU (`tests/device`) solve the same
problems.  What lies between rows is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from row_problems import TORCH, Memory

from fusec import symbolic
from fusec.dtypes import DTYPES
from fusec.ir import OPS, Graph, Node, TensorType
from fusec.ir.ops.base import Array
from fusec.ir.types import Attr
from fusec.kernels.attention.triton import TRITON
from fusec.kernels.launch import Call, Launch, Storage, dense_strides
from fusec.symbolic import Dim, symbol
from fusec.target import target_named

ROUNDING = {"f32": 2.0**-19, "bf16": 2.0**-7, "f16": 2.0**-10}
"""What rounding a number costs, relative to it; Triton's interpreter truncates to bf16."""

SCORES = 2.0**-15
"""What f32 costs a weight of the softmax, relative to it."""

GAP = 16
"""Elements between what belongs to the rows of an operand."""

GUARD = 64
"""Elements before and behind each result."""

FILL = 0xFF
"""Every byte of memory that was not written: NaN in each float format."""


@dataclass(frozen=True)
class Problem:
    """Attention.

    Attributes:
        heads: query heads.
        kv_heads: key heads.
        queries: S.
        keys: T.
        depth: elements of a query and a key.
        value_depth: elements of a value; 0 for `depth`.
        batch: B.
        dtype: of q, k, v and the result.
        target: for what.
        causal: see the operation.
        window: see the operation.
        chunk: see the operation.
        softcap: see the operation.
        mask: dtype of a mask, `bool` or floats.
        mask_shape: its sizes; those of the scores if there are none.
        least: the mask hides by the least number there is, not by -inf.
        sinks: dtype of the sinks.
        padding: whether there are keys that do not count.
        layout: `dense`; `merged`: q, k and v are parts of one row; `tokens`: k and v are.
        named: whether S and T are known at run time only.
    """

    heads: int = 2
    kv_heads: int = 1
    queries: int = 33
    keys: int = 33
    depth: int = 16
    value_depth: int = 0
    batch: int = 1
    dtype: str = "f32"
    target: str = "gfx950"
    causal: bool = False
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    mask: str = ""
    mask_shape: tuple[int, ...] = ()
    least: bool = False
    sinks: str = ""
    padding: bool = False
    layout: str = "tokens"
    named: bool = False

    def __str__(self) -> str:
        """The name of its test: what is not as usual."""
        usual = Problem()
        told = [
            f"{name}={value}" for name, value in vars(self).items() if value != getattr(usual, name)
        ]
        return ",".join(told).replace(" ", "")

    @property
    def sizes(self) -> dict[str, int]:
        """Values of the symbols."""
        return {"queries": self.queries, "keys": self.keys}

    @property
    def types(self) -> list[TensorType]:
        """Those of the operands."""
        rows: Dim = symbol("queries") if self.named else self.queries
        keys: Dim = symbol("keys") if self.named and self.keys != self.queries else self.keys
        if self.named and self.keys == self.queries:
            keys = rows
        values = self.value_depth or self.depth
        kinds = [
            TensorType(self.dtype, (self.batch, self.heads, rows, self.depth)),
            TensorType(self.dtype, (self.batch, self.kv_heads, keys, self.depth)),
            TensorType(self.dtype, (self.batch, self.kv_heads, keys, values)),
        ]
        if self.mask:
            shape = self.mask_shape or (self.batch, self.heads, rows, keys)
            kinds.append(TensorType(self.mask, shape))
        if self.sinks:
            kinds.append(TensorType(self.sinks, (self.heads,)))
        if self.padding:
            kinds.append(TensorType("bool", (self.batch, keys)))
        return kinds

    @property
    def attrs(self) -> dict[str, Attr]:
        """Those of the operation."""
        return {
            "scale": 1.3 * self.depth**-0.5,
            "causal": self.causal,
            "window": self.window,
            "chunk": self.chunk,
            "softcap": self.softcap,
            "has_mask": bool(self.mask),
            "has_sinks": bool(self.sinks),
            "has_key_padding": self.padding,
        }


@dataclass
class Made:
    """A problem in memory.

    Attributes:
        problem: what was asked for.
        graph: with the node.
        node: the attention.
        inputs: where the operands are.
        result: where the result goes.
        memory: bytes by buffer.
        values: the operands in f64.
    """

    problem: Problem
    graph: Graph
    node: Node
    inputs: tuple[Storage, ...]
    result: Storage
    memory: Memory
    values: list[Array] = field(default_factory=list)

    def launches(self, scratch: Callable[[str, tuple[Dim, ...]], Storage]) -> tuple[Launch, ...]:
        """What runs."""
        target = target_named(self.problem.target)
        refused = TRITON.supports(self.graph, self.node, target)
        assert refused is None, refused
        call = Call(self.graph, self.node, target, self.inputs, (self.result,), scratch)
        return TRITON.launches(call)

    def wanted(self) -> tuple[Array, Array]:
        """The result in f64, and how far it may be off at each element."""
        dtype, attrs = self.problem.dtype, self.problem.attrs
        kinds = (self.graph.type(self.node.output),)
        q, k, v, *rest = self.values
        with np.errstate(all="ignore"):
            (wanted,) = OPS["attention"].reference([q, k, v, *rest], attrs, kinds)
            (size,) = OPS["attention"].reference([q, k, np.abs(v), *rest], attrs, kinds)
        return wanted, ROUNDING[dtype] * np.abs(wanted) + (ROUNDING[dtype] + SCORES) * size

    def check(self, memory: torch.Tensor, answer: float = 1.0) -> None:
        """Compare the memory of the result with what is wanted times `answer`."""
        written = strided(memory, self.result, self.problem.sizes)
        wanted, allowed = self.wanted()
        off = np.abs(written.double().cpu().numpy() - wanted * answer)
        assert (off <= allowed).all(), f"off by {np.nanmax(off)}, {np.isnan(off).sum()} NaN"
        rest = memory.clone()
        strided(rest, self.result, self.problem.sizes).fill_(float("nan"))
        assert strided(rest, self.result, self.problem.sizes).isnan().all()
        assert rest.view(TORCH[self.result.dtype]).isnan().all(), "it wrote beside its result"


def strided(memory: torch.Tensor, storage: Storage, sizes: dict[str, int]) -> torch.Tensor:
    """The elements of `storage` in the bytes of its buffer."""
    dtype = torch.bool if storage.dtype == "bool" else TORCH[storage.dtype]
    shape = [symbolic.evaluate(dim, sizes) for dim in storage.shape]
    steps = [symbolic.evaluate(step, sizes) for step in storage.strides]
    return memory.view(dtype).as_strided(shape, steps, symbolic.evaluate(storage.offset, sizes))


def make(problem: Problem, seed: int = 0) -> Made:
    """Random operands for `problem`."""
    print(f"{problem}, seed {seed}")
    rng = np.random.default_rng([seed, problem.queries, problem.keys, problem.depth])
    graph = Graph("case", {"queries": (1, 4096), "keys": (1, 1024)})
    kinds = problem.types
    names = [graph.add_input(f"x{i}", kind) for i, kind in enumerate(kinds)]
    node = graph.add("attention", names, problem.attrs)
    memory: Memory = {}

    def buffer(dtype: str, shape: tuple[Dim, ...], guard: int = 0) -> int:
        count = symbolic.evaluate(symbolic.product(shape), problem.sizes) + 2 * guard
        memory[len(memory)] = torch.full((count * DTYPES[dtype].itemsize,), FILL, dtype=torch.uint8)
        return len(memory) - 1

    inputs = [*_rows(problem, kinds, buffer)]
    for kind in kinds[3:]:
        place = buffer(kind.dtype, kind.shape)
        inputs.append(Storage(place, kind.dtype, kind.shape, dense_strides(kind.shape)))
    made = Made(problem, graph, node, tuple(inputs), inputs[0], memory)
    for index, storage in enumerate(inputs):
        _fill(made, index, strided(memory[storage.buffer], storage, problem.sizes), rng)
        place_of = strided(memory[storage.buffer], storage, problem.sizes)
        values = place_of.numpy() if storage.dtype == "bool" else place_of.double().numpy()
        made.values.append(values)
    batch, heads, queries, size = graph.type(node.output).shape
    shape = (batch, queries, heads, size + GAP)
    place = buffer(problem.dtype, shape, GUARD)
    made.result = _by_token(place, problem.dtype, (batch, heads, queries, size), shape, GUARD)
    return made


def _rows(
    problem: Problem, kinds: list[TensorType], buffer: Callable[[str, tuple[Dim, ...]], int]
) -> list[Storage]:
    """Places of q, k and v."""
    shapes = [kind.shape for kind in kinds[:3]]
    dtype, (batch, heads, queries, depth), (_, kv_heads, keys, _) = problem.dtype, *shapes[:2]
    if problem.layout == "dense":
        return [Storage(buffer(dtype, each), dtype, each, dense_strides(each)) for each in shapes]
    if problem.layout == "merged":
        begins = [0, heads * depth, (heads + kv_heads) * depth]
        width = begins[-1] + kv_heads * shapes[2][3] + GAP
        place = buffer(dtype, (batch, queries, width))
        return [
            Storage(place, dtype, each, (queries * width, each[3], width, 1), begin)
            for each, begin in zip(shapes, begins, strict=True)
        ]
    wide = (batch, queries, heads, depth + GAP)
    q = _by_token(buffer(dtype, wide), dtype, shapes[0], wide)
    wide = (batch, keys, kv_heads, depth + shapes[2][3] + GAP)
    place = buffer(dtype, wide)
    k, v = (
        _by_token(place, dtype, each, wide, begin)
        for each, begin in zip(shapes[1:], (0, depth), strict=True)
    )
    return [q, k, v]


def _by_token(
    place: int, dtype: str, shape: tuple[Dim, ...], memory: tuple[Dim, ...], begin: Dim = 0
) -> Storage:
    """A storage whose rows are those of `memory`, [batch, rows, heads, width]."""
    batch, rows, heads, step = dense_strides(memory)
    return Storage(place, dtype, shape, (batch, heads, rows, step), begin)


def _fill(made: Made, index: int, place: torch.Tensor, rng: np.random.Generator) -> None:
    problem, shape = made.problem, tuple(place.shape)
    if place.dtype == torch.bool:
        keep = rng.random(shape) < 0.6
        if keep.ndim == 2 and shape[0] > 1:
            keep[1] = False
        elif keep.ndim > 2 and shape[-2] > 2:
            keep[..., 2, :] = False
        place.copy_(torch.from_numpy(keep))
        return
    values = rng.standard_normal(shape)
    if index == 3 and problem.mask:
        hidden = torch.finfo(place.dtype).min if problem.least else -np.inf
        values[rng.random(shape) < 0.3] = hidden
        if shape[-2] > 2:
            values[..., 2, :] = hidden
    place.copy_(torch.from_numpy(values).to(place.dtype))
