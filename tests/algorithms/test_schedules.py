"""Learning rates against the formulas of the paper's Section 6."""

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dswag.algorithms.schedules import constant, cycle_snapshots, cyclic, linear

rates = st.floats(1e-6, 10)


@st.composite
def cycles(draw):
    period = draw(st.integers(1, 12))
    return period, period * draw(st.integers(1, 5))


def test_constant_is_one_rate_for_each_epoch():
    assert constant(0.3, 4) == (0.3, 0.3, 0.3, 0.3)


def test_linear_reaches_both_ends():
    assert linear(0.1, 0.02, 5) == pytest.approx((0.1, 0.08, 0.06, 0.04, 0.02))


def test_linear_of_one_epoch_is_the_first_rate():
    assert linear(0.1, 0.02, 1) == (0.1,)


@given(rates, st.integers(1, 20))
def test_linear_between_equal_rates_is_constant_bit_for_bit(rate, epochs):
    assert linear(rate, rate, epochs) == constant(rate, epochs)


def test_cyclic_with_one_cycle_is_the_printed_ramp():
    # alpha(t) = (1 - t/c) alpha_1 + t/c alpha_2 with c = M = 5, by hand
    assert cyclic(0.1, 0.0, 5, 5) == pytest.approx((0.1, 0.08, 0.06, 0.04, 0.02))


def test_cyclic_starts_every_cycle_anew():
    assert cyclic(0.9, 0.3, 6, 3) == pytest.approx((0.9, 0.7, 0.5) * 2)
    assert cyclic(0.9, 0.3, 3, 1) == (0.9, 0.9, 0.9)


@given(rates, rates, cycles())
def test_cyclic_equals_the_formula_in_exact_arithmetic(first, last, cycle):
    period, epochs = cycle
    a1, a2 = Fraction(first), Fraction(last)
    expected = [(1 - Fraction(t % period, period)) * a1 + Fraction(t % period, period) * a2 for t in range(epochs)]
    # four roundings of positive terms: 4 x 2^-53 relative
    assert cyclic(first, last, epochs, period) == pytest.approx([float(e) for e in expected], rel=5e-16, abs=0)


@pytest.mark.parametrize("period", [0, -2, 3, 20])
def test_a_period_that_does_not_divide_the_epochs_is_refused(period):
    with pytest.raises(ValueError, match=f"period must divide the number of epochs, got period {period} for 10 epochs"):
        cyclic(0.1, 0.01, 10, period)


@pytest.mark.parametrize(
    ("epochs", "period", "per_cycle", "expected"),
    [
        (10, 10, 1, (10,)),
        (10, 5, 1, (5, 10)),
        (10, 10, 2, (5, 10)),
        (10, 10, 3, (3, 6, 10)),
        (8, 4, 4, (1, 2, 3, 4, 5, 6, 7, 8)),
        (14, 7, 3, (2, 4, 7, 9, 11, 14)),
        (1, 1, 1, (1,)),
    ],
)
def test_snapshots_are_taken_after_these_epochs(epochs, period, per_cycle, expected):
    assert cycle_snapshots(epochs, period, per_cycle) == expected


@given(cycles(), st.data())
def test_snapshots_end_every_cycle_and_are_evenly_spaced(cycle, data):
    period, epochs = cycle
    per_cycle = data.draw(st.integers(1, period))
    snapshots = cycle_snapshots(epochs, period, per_cycle)
    assert len(snapshots) == per_cycle * (epochs // period)
    assert set(range(period, epochs + 1, period)) <= set(snapshots)
    gaps = {b - a for a, b in pairwise((0, *snapshots))}
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("per_cycle", [0, -1, 6])
def test_more_snapshots_than_epochs_in_a_cycle_are_refused(per_cycle):
    with pytest.raises(ValueError, match=f"between 1 and the 5 epochs of a cycle, got {per_cycle}"):
        cycle_snapshots(10, 5, per_cycle)
