"""The memory plan: no two buffers that live together overlap, for any sizes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusec import symbolic
from fusec.lower.memory_plan import Lifetime, plan_memory
from fusec.symbolic import Dim

BATCH, SEQ = symbolic.symbol("batch"), symbolic.symbol("seq")
RANGES = {"batch": (1, 8), "seq": (1, 128)}
SIZES: list[Dim] = [
    0,
    64,
    100,
    4096,
    BATCH,
    4 * BATCH * SEQ,
    64 * SEQ,
    SEQ * SEQ,
    BATCH * SEQ + 7,
]


@st.composite
def lifetimes(draw: st.DrawFn) -> list[Lifetime]:
    count = draw(st.integers(0, 30))
    lives: list[Lifetime] = []
    for buffer in range(count):
        first = draw(st.integers(0, 20))
        last = draw(st.integers(first, 24))
        over = [life.buffer for life in lives if life.first < first <= life.last]
        chosen = draw(st.sampled_from([None, *over]))
        lives.append(Lifetime(buffer, draw(st.sampled_from(SIZES)), first, last, chosen))
    return lives


@settings(deadline=None, max_examples=200)
@given(lifetimes())
def test_buffers_that_live_together_have_their_own_slots(lives: list[Lifetime]) -> None:
    plan = plan_memory(lives, RANGES)
    assert set(plan.slot_of) == {life.buffer for life in lives}
    for one, other in itertools.combinations(lives, 2):
        lies_upon = other.over == one.buffer and other.first == one.last
        if one.first <= other.last and other.first <= one.last and not lies_upon:
            assert plan.slot_of[one.buffer] != plan.slot_of[other.buffer]
    for values in ({"batch": 1, "seq": 1}, {"batch": 8, "seq": 3}, {"batch": 2, "seq": 128}):
        for life in lives:
            sizes = plan.slots[plan.slot_of[life.buffer]]
            held = max(symbolic.evaluate(size, values) for size in sizes)
            assert held >= symbolic.evaluate(life.bytes, values)


@settings(deadline=None, max_examples=50)
@given(lifetimes(), st.randoms())
def test_the_plan_depends_on_lifetimes_alone(lives: list[Lifetime], random: object) -> None:
    shuffled = list(lives)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert plan_memory(shuffled, RANGES) == plan_memory(lives, RANGES)


def test_a_chain_needs_two_slots() -> None:
    size = 4 * BATCH * SEQ
    lives = [Lifetime(number, size, number, number + 1) for number in range(10)]
    plan = plan_memory(lives, RANGES)
    assert plan.slots == ((size,), (size,))
    assert plan.bytes_at({"batch": 8, "seq": 128}) == 2 * 4 * 8 * 128


def test_results_lie_upon_operands_where_they_may() -> None:
    chain = [
        Lifetime(number, 64 * SEQ, number, number + 1, number - 1 if number else None)
        for number in range(20)
    ]
    assert len(plan_memory(chain, RANGES).slots) == 1


def test_equal_sizes_are_reused_before_larger_ones_and_smaller_slots_before_larger() -> None:
    lives = [
        Lifetime(0, 4096, 0, 1),
        Lifetime(1, 4 * SEQ, 0, 1),
        Lifetime(2, 4 * SEQ, 2, 3),
        Lifetime(3, 64, 4, 5),
    ]
    plan = plan_memory(lives, RANGES)
    assert plan.slot_of[3] == plan.slot_of[2] == plan.slot_of[1]
    assert plan.slots == ((4096,), (64, 4 * SEQ))


def test_what_has_no_bound_counts_as_large_and_all_else_at_its_largest() -> None:
    sizes = [4096, 4 * SEQ, symbolic.symbol("rows")]
    lives = [Lifetime(number, size, 0, 0) for number, size in enumerate(sizes)]
    assert plan_memory(lives, {**RANGES, "rows": (1, None)}).slot_of == {2: 0, 0: 1, 1: 2}


@pytest.mark.parametrize("early", [0, 2])
def test_a_slot_serves_what_lives_before_and_after_what_it_was_made_for(early: int) -> None:
    """And it is as large as the largest of them at the sizes of a run."""
    lives = [Lifetime(0, 64 * SEQ, 1, 1), Lifetime(1, 4096, early, early)]
    plan = plan_memory(lives, RANGES)
    assert len(plan.slots) == 1
    assert plan.bytes_at({"seq": 3}) == 4096
    assert plan.bytes_at({"seq": 128}) == 64 * 128


@pytest.mark.parametrize("threads", [1, 64])
def test_scratch_may_depend_on_threads(threads: int) -> None:
    plan = plan_memory([Lifetime(0, 128 * symbolic.symbol("threads"), 0, 0)], {})
    assert symbolic.evaluate(plan.slots[0][0], {"threads": threads}) == 128 * threads
