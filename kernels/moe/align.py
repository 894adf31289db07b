"""Puts pairs of tokens and slots in the order of their experts, whole blocks for each expert."""

from __future__ import annotations

from fusec import symbolic
from fusec.kernels.launch import Launch
from fusec.kernels.moe.operands import Experts, Order, launch

CHUNK = 512
"""Pairs that one program counts and puts in order."""

STEP = 8
"""Pairs of a chunk that are compared with all others at a time."""


def block_rows(experts: Experts) -> int:
    """Rows of a block: about as many as an expert has when most tokens come at once."""
    ranges = experts.call.graph.symbols
    _, most = symbolic.bounds(experts.pairs, ranges)
    for rows in (16, 32):
        if most <= rows * experts.count:
            return rows
    return 64


def order_rows(experts: Experts) -> tuple[Order, tuple[Launch, ...]]:
    """The order of all rows, and the launches that find it."""
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
    counts, before = (call.scratch("i32", (chunks, count)) for _ in range(2))
    bins = 1 << count.bit_length()
    indices, stride = experts.indices, experts.indices.strides[0]
    shape = {"E": count, "TOP_K": experts.top_k, "CHUNK": CHUNK}
    params = {"experts_stride": stride, "pairs": pairs}
    return order, (
        launch(
            "triton_align_kernel",
            "moe_count_kernel",
            {"p_experts": indices, "p_counts": counts},
            params,
            {**shape, "BINS": bins},
            (chunks, 1),
        ),
        launch(
            "triton_align_kernel",
            "moe_offsets_kernel",
            {"p_counts": counts, "p_before": before, "p_extents": order.extents},
            {"chunks": chunks},
            {"E": count, "BLOCK_M": block, "BINS": bins},
            (1, 1),
        ),
        launch(
            "triton_align_kernel",
            "moe_place_kernel",
            {
                "p_experts": indices,
                "p_before": before,
                "p_extents": order.extents,
                "p_pairs": order.pairs,
                "p_block_expert": order.block_expert,
            },
            params,
            {**shape, "STEP": STEP, "BLOCK_M": block},
            (chunks, 1),
        ),
    )
