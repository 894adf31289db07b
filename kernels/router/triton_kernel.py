"""Routers on a GPU: one program a token, its scores in registers from the logits to the weights."""

import triton
import triton.language as tl


@triton.jit
def router_kernel(
    p_logits,
    p_bias,
    p_weights,
    p_experts,
    logits_stride,
    weights_stride,
    experts_stride,
    fill,
    eps,
    least,
    scale,
    SCORES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUPS_KEPT: tl.constexpr,
    GROUP_BEST: tl.constexpr,
    FILL_WEIGHS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    TOP_K: tl.constexpr,
    RENORMALISE: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    SIZE_BLOCK: tl.constexpr,
    SLOT_BLOCK: tl.constexpr,
):
    """Scores lie as [groups, experts of a group]; without groups there is one.

    SCORES is 0 for softmax, 1 for sigmoid, 2 and 3 for those of the chosen logits, 4 for scores
    as they are.  NaN is above every number, and where two scores are equal, the lower index comes
    first.
    """
    i_token = tl.program_id(0).to(tl.int64)
    o_group = tl.arange(0, GROUP_BLOCK)
    o_size = tl.arange(0, SIZE_BLOCK)
    o_expert = o_group[:, None] * GROUP_SIZE + o_size[None, :]
    m_expert = (o_group < GROUPS)[:, None] & (o_size < GROUP_SIZE)[None, :]
    lowest = float("-inf")
    p_row = p_logits + i_token * logits_stride
    scores = tl.load(p_row + o_expert, mask=m_expert, other=lowest).to(tl.float32)
    if SCORES == 0:
        scores = tl.exp(scores - tl.max(scores))
        scores = scores / tl.sum(scores)
    elif SCORES == 1:
        scores = tl.sigmoid(scores)
    choice = scores
    if HAS_BIAS:
        choice += tl.load(p_bias + o_expert, mask=m_expert, other=0.0).to(tl.float32)
    choice = tl.where(choice != choice, float("inf"), choice)
    if GROUPS > 1:
        choice = tl.where(m_expert, choice, lowest)
        sums = tl.zeros([GROUP_BLOCK], dtype=tl.float32)
        rest = choice
        for _ in tl.static_range(GROUP_BEST):
            best = tl.max(rest, axis=1)
            at = tl.min(tl.where(rest == best[:, None], o_size[None, :], SIZE_BLOCK), axis=1)
            rest = tl.where(o_size[None, :] == at[:, None], lowest, rest)
            sums += best
        dropped = tl.where(o_group < GROUPS, 1, 2)
        for _ in tl.static_range(GROUPS_KEPT):
            left = tl.where(dropped == 1, sums, lowest)
            best = (left == tl.max(left)) & (dropped == 1)
            i_group = tl.min(tl.where(best, o_group, GROUP_BLOCK))
            dropped = tl.where(o_group == i_group, 0, dropped)
        choice = tl.where((dropped == 0)[:, None], choice, fill)
        if FILL_WEIGHS:
            scores = tl.where((dropped == 0)[:, None], scores, fill)

    o_slot = tl.arange(0, SLOT_BLOCK)
    weights = tl.zeros([SLOT_BLOCK], dtype=tl.float32)
    if SCORES == 2:
        weights += lowest
    experts = tl.zeros([SLOT_BLOCK], dtype=tl.int32)
    free = m_expert.to(tl.int32)
    for slot in tl.static_range(TOP_K):
        left = tl.where(free == 1, choice, lowest)
        best = (left == tl.max(left)) & (free == 1)
        i_expert = tl.min(tl.where(best, o_expert, GROUP_BLOCK * SIZE_BLOCK))
        # Behind the experts of a group their numbers are those of the next group's.
        score = tl.sum(tl.where(m_expert & (o_expert == i_expert), scores, 0.0))
        weights = tl.where(o_slot == slot, score, weights)
        experts = tl.where(o_slot == slot, i_expert, experts)
        free = tl.where(o_expert == i_expert, 0, free)
    if SCORES == 2:
        weights = tl.exp(weights - tl.max(weights))
        weights = weights / tl.sum(weights)
    elif SCORES == 3:
        weights = tl.where(o_slot < TOP_K, tl.sigmoid(weights), 0.0)
    if RENORMALISE:
        total = tl.sum(weights) + eps
        weights = weights / tl.where(total < least, least, total)
    weights *= scale
    m_slot = o_slot < TOP_K
    p_row = p_weights + i_token * weights_stride
    tl.store(p_row + o_slot, weights.to(p_weights.dtype.element_ty), mask=m_slot)
    p_row = p_experts + i_token * experts_stride
    tl.store(p_row + o_slot, experts.to(tl.int64), mask=m_slot)
