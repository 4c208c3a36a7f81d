"""Numbers over seeds, against SciPy."""

import numpy as np
import pytest
from scipy import stats

from dswag.lab.report.over_seeds import T_QUANTILES, direction, paired_difference, with_error


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1.0], [1.2], 1),
        ([1.0], [0.8], -1),
        ([1.0], [1.05], 0),
        ([1.0, 1.4], [1.3, 1.7], 0),
        ([1.0, 1.01], [1.3, 1.31], 1),
    ],
)
def test_a_difference_must_be_more_than_chance(first, second, expected):
    assert direction(first, second, 0.1) == expected


@pytest.mark.parametrize("sizes", [(2, 2), (2, 3), (3, 3), (3, 5), (1, 3), (1, 2), (8, 4)])
def test_chance_is_the_half_width_of_welch_s_t_interval(sizes):
    """By SciPy; a side with one value is a constant, and degrees of freedom that are not whole cost at most 3 %."""
    for seed in range(20):
        first, second = (list(np.random.default_rng((seed, size)).normal(0, 1 + size, size)) for size in sizes)
        if sizes[0] == 1:
            low, high = stats.ttest_1samp(second, first[0]).confidence_interval(0.95)
        else:
            low, high = stats.ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
        shift, half = np.mean(first) - np.mean(second), (high - low) / 2
        for factor, counts in ((0.999, 0), (1.03, 1)):
            for sign in (1, -1):
                moved = [value + shift + sign * factor * half for value in second]
                assert direction(first, moved, 0.0) == sign * counts


def test_numbers_are_told_with_their_error_where_there_is_one():
    assert with_error([0.5]) == "0.5000"
    assert with_error([0.4, 0.6], 2) == "0.50 ± 0.14"


def test_quantiles_are_those_of_student_s_t():
    assert pytest.approx(stats.t.ppf(0.975, range(1, 10)), abs=5e-4) == T_QUANTILES


def test_a_paired_difference_has_the_interval_of_the_t_test():
    values, reference = {0: 1.0, 1: 2.5, 2: 2.0, 3: 9.0}, {2: 1.8, 1: 2.0, 0: 0.9}
    interval = stats.ttest_rel([1.0, 2.5, 2.0], [0.9, 2.0, 1.8]).confidence_interval(0.95)
    mean, half = paired_difference(values, reference)
    assert (mean - half, mean + half) == pytest.approx((interval.low, interval.high), rel=1e-3)


def test_one_seed_has_a_difference_and_no_interval():
    assert paired_difference({4: 0.75}, {4: 0.5}) == (0.25, None)
    with pytest.raises(ValueError, match=r"needs a seed on both sides, got \[0\] and \[1\]"):
        paired_difference({0: 1.0}, {1: 1.0})
