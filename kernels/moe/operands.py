"""The operands of routed experts, the order of their rows, and how their kernels are launched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fusec.formats import Scaling
from fusec.ir import Graph, Node
from fusec.ir.ops.quantised import weight_block
from fusec.ir.types import bool_attr, str_attr
from fusec.kernels.launch import Call, Launch, Param, Storage
from fusec.kernels.triton_gemm import known
from fusec.kernels.triton_launch import triton_launch
from fusec.symbolic import Dim

PLAIN, FP8, MXFP4_WIDENED, MXFP4_NATIVE = range(4)
"""Formats of `moe_product_kernel`."""

NO_BOUND = 3.4e38
"""Above every scale."""


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
        return known(self.indices.shape[1])

    @property
    def pairs(self) -> Dim:
        """Tokens times experts of each."""
        return self.tokens * self.top_k

    @property
    def count(self) -> int:
        """E."""
        return known(self.gate_up.shape[0])

    @property
    def hidden(self) -> int:
        """H."""
        return known(self.call.output_type().shape[1])

    @property
    def inner(self) -> int:
        """I."""
        axis = 1 if self.transposed else 2
        return known(self.down.shape[axis]) * (2 if self.down.dtype == "f4e2m1x2" else 1)

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


def launch(
    file: str,
    function: str,
    operands: Mapping[str, Storage],
    params: Mapping[str, Param],
    constants: Mapping[str, int],
    grid: tuple[Dim, Dim],
    *,
    warps: int = 4,
) -> Launch:
    """A launch with a software pipeline of two stages; see `triton_launch`.

    Args:
        file: of the kernel, in this folder.
        function: in it.
        operands: storages by the names of the pointers, in order.
        params: integers are i64 and numbers f32, in order.
        constants: compile-time arguments.
        grid: work groups along the first two axes.
        warps: waves or warps of a work group.
    """
    return triton_launch(
        f"fusec.kernels.moe.{file}",
        function,
        operands,
        params=params,
        constants=constants,
        grid=(*grid, 1),
        warps=warps,
        options=(("num_stages", 2),),
    )


def scale_limits(scaling: Scaling | None) -> dict[str, Param]:
    """The largest value and the largest scale of what is quantised; 0 where nothing is."""
    if scaling is None:
        return {"maximum": 0.0, "upper_bound": 0.0}
    bound = scaling.upper_bound
    return {
        "maximum": float(scaling.maximum),
        "upper_bound": NO_BOUND if bound is None else bound,
    }


def even_groups(graph: Graph, node: Node, size: int) -> bool:
    """Whether `size` columns of K, from a multiple of it, have one scale on either side."""
    group = Scaling.of(node.attrs).group
    columns = weight_block(node.attrs)[1]
    depths = (graph.type(node.inputs[4]).shape[2], graph.type(node.inputs[6]).shape[2])
    whole = all(columns >= known(depth) for depth in depths)
    return group % size == 0 and (whole or columns % size == 0)
