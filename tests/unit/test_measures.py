"""What `fusec verify` measures, by arrays whose distances are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fusec.verify.measures import Array, measured
from fusec.verify.tolerances import narrowest

MEANT = np.array([[3.0, -4.0], [0.0, 5.0]])


def test_what_is_meant_is_at_no_distance() -> None:
    found = measured(MEANT, MEANT)
    assert (found.max_abs, found.max_relative, found.rms, found.rms_error) == (0, 0, 0, 0)
    assert (found.error, found.misplaced, found.nonfinite, found.differing) == (0, 0, 0, 0)
    assert found.cosine == pytest.approx(1) and not found.places.any()


def test_a_doubled_answer() -> None:
    found = measured(2 * MEANT, MEANT)
    assert (found.max_abs, found.max_relative, found.error) == (5, 1, 1)
    assert found.rms == pytest.approx(math.sqrt(12.5)) and found.rms_error == pytest.approx(1)
    assert found.cosine == pytest.approx(1) and found.differing == 0.75
    assert found.places == pytest.approx([1, 1])


def test_one_place_that_is_wrong() -> None:
    got = MEANT + np.array([[0, 0], [0, 2]])
    found = measured(got, MEANT)
    assert found.places == pytest.approx([0, 2 / 12.5])
    assert (found.max_abs, found.max_relative, found.error) == (2, 0.4, 0.4)
    assert measured(got[1], MEANT[1]).places == pytest.approx([0, 4 / 12.5])


def test_small_magnitudes_and_what_is_misplaced_do_not_set_the_scale() -> None:
    found = measured(np.array([0.02, np.nan]), np.array([0.01, 5.0]))
    assert found.error == pytest.approx(1) and found.max_relative == pytest.approx(1)
    assert found.rms_error == pytest.approx(1)


def test_places_are_all_axes_but_the_last() -> None:
    meant = np.ones((2, 3, 4))
    got = meant.copy()
    got[1, 2, 3] = 3
    assert measured(got, meant).places == pytest.approx([0, 0, 0, 0, 0, 1])


def test_the_opposite_has_the_opposite_cosine() -> None:
    assert measured(-MEANT, MEANT).cosine == pytest.approx(-1)


@pytest.mark.parametrize(
    ("got", "meant", "misplaced", "nonfinite"),
    [
        (np.nan, 1.0, 1, 1),
        (1.0, np.nan, 1, 0),
        (np.nan, np.nan, 0, 1),
        (np.inf, np.inf, 0, 1),
        (np.inf, -np.inf, 1, 1),
        (np.inf, np.nan, 1, 1),
        (3e38, np.inf, 1, 0),
    ],
)
def test_what_is_not_finite_counts_by_place(
    got: float, meant: float, misplaced: int, nonfinite: int
) -> None:
    found = measured(np.array([2.0, got]), np.array([2.0, meant]))
    assert (found.misplaced, found.nonfinite) == (misplaced, nonfinite)
    assert found.differing == misplaced / 2
    assert (found.max_abs, found.error) == (0, 0)


def test_something_where_nothing_is_meant() -> None:
    found = measured(np.array([0.0, 2.0]), np.zeros(2))
    assert (found.error, found.cosine) == (2, 0)
    assert found.rms_error == pytest.approx(math.sqrt(2))
    assert measured(np.zeros(2), np.zeros(2)).cosine == 1


def test_next_to_nothing_any_difference_is_large() -> None:
    assert measured(np.array([1e-3, 8.0]), np.array([1e-6, 8.0])).max_relative == 0


@pytest.mark.parametrize("array", [np.zeros((0, 3)), np.array(2.0), np.array([True, False])])
def test_other_shapes_and_dtypes(array: Array) -> None:
    found = measured(array, array)
    assert (found.max_abs, found.error, found.misplaced) == (0, 0, 0)


@pytest.mark.parametrize(
    ("dtypes", "name"),
    [
        ({"f32", "bf16", "i64"}, "bf16"),
        ({"f16", "bf16"}, "bf16"),
        ({"f8e4m3fnuz", "bf16"}, "f8"),
        ({"f4e2m1x2", "f8e4m3fn"}, "f4"),
        ({"i64"}, "f64"),
    ],
)
def test_the_narrowest_float(dtypes: set[str], name: str) -> None:
    assert narrowest(dtypes) == name
