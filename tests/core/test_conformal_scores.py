"""Conformal scores, their counts, thresholds and coverage, against slow loops and the guarantee."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dswag.core.conformal_scores import Scoring, covered, threshold


def example():
    return torch.tensor([[0.5, 0.1, 0.4], [0.2, 0.2, 0.6], [1.0, 0.0, 0.0]], dtype=torch.float64)


def test_scores_of_classes_are_those_of_the_papers():
    p = example()
    torch.testing.assert_close(Scoring(score="thr").classes(p), 1 - p)
    aps = torch.tensor([[0.5, 1.0, 0.9], [0.8, 1.0, 0.6], [1.0, 1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(Scoring(score="aps").classes(p), aps)
    ranks = torch.tensor([[1, 3, 2], [2, 3, 1], [1, 2, 3]])
    raps = Scoring(score="raps", penalty=0.25, free_ranks=1).classes(p)
    torch.testing.assert_close(raps, aps + 0.25 * (ranks - 1))


def test_residuals_are_absolute_or_in_standard_deviations():
    mean, variance, y = torch.tensor([1.0, -1.0]), torch.tensor([4.0, 0.25]), torch.tensor([2.0, 0.0])
    assert Scoring(score="absolute").residuals(mean, variance, y).tolist() == [1.0, 1.0]
    assert Scoring(score="normalized").residuals(mean, variance, y).tolist() == [0.5, 2.0]


@pytest.mark.parametrize("score", ["thr", "raps", "absolute", "normalized"])
@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 60), alpha=st.sampled_from([0.05, 0.1, 0.3, 0.5]), seed=st.integers(0, 1000))
def test_the_threshold_is_the_order_statistic_up_to_one_bin(score, n, alpha, seed):
    generator = torch.Generator().manual_seed(seed)
    scoring = Scoring(score=score, resolution=2.0**-10)
    scores = torch.rand(n, generator=generator, dtype=torch.float64)
    if not scoring.of_classes:
        scores = (1 / (1 - scores)) ** 3  # heavy tails
    found = threshold(scoring, scoring.counts(scores), alpha)
    rank = math.ceil(round((n + 1) * (1 - alpha), 9))
    if rank > n:
        assert found == math.inf
        return
    exact = float(scores.sort().values[rank - 1])
    width = scoring.resolution * (1 if scoring.of_classes else exact)
    assert exact <= found * (1 + 1e-12) <= exact + 1.001 * width


def test_counts_of_parts_add_up_to_those_of_the_whole():
    scoring = Scoring(score="thr", resolution=0.125)
    assert scoring.counts(torch.tensor([0.0, 0.1, 0.3, 0.99, 1.0])).tolist() == [2, 0, 1, 0, 0, 0, 0, 1, 1]
    assert scoring.counts(torch.empty(0)).tolist() == []
    residuals = Scoring(score="absolute", resolution=0.5)
    assert residuals.counts(torch.tensor([0.0, 1e-30])).tolist() == [2]
    assert len(residuals.counts(torch.tensor([1e30]))) <= residuals.most_bins


def test_thresholds_of_too_few_examples_are_infinite():
    scoring = Scoring()
    assert threshold(scoring, scoring.counts(torch.rand(8)), 0.1) == math.inf  # 9 are needed
    assert threshold(scoring, scoring.counts(torch.rand(9)), 0.1) < math.inf
    assert threshold(scoring, torch.zeros(0, dtype=torch.int64), 0.1) == math.inf


def predictions(n, seed):
    """Probabilities that are too sharp, so that confidences would not cover, and the true classes."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, 10, generator=generator, dtype=torch.float64)
    return (2 * logits).softmax(1), logits.softmax(1).multinomial(1, generator=generator)[:, 0]


@pytest.mark.parametrize("score", ["thr", "aps", "raps"])
@pytest.mark.parametrize("alpha", [0.1, 0.3])
def test_sets_cover_as_often_as_promised_and_hardly_more(score, alpha):
    """Over 100 splits of 100 held-out and 100 new examples.

    The coverage given the held-out ones is Beta(n + 1 - l, l) with l = ⌊(n + 1)α⌋ for scores without ties, so that its
    mean is 1 - l / (n + 1), above 1 - α by less than 1 / (n + 1); a share of 100 adds a binomial deviation. Bins and
    the ties of certain predictions raise coverage, which is left 0.02.
    """
    scoring, n, m, trials = Scoring(score=score), 100, 100, 100
    shares = []
    for seed in range(trials):
        p, y = predictions(n + m, seed)
        scores = scoring.classes(p)
        held_out = scores[:n].gather(1, y[:n, None])
        sets = scores[n:] <= threshold(scoring, scoring.counts(held_out), alpha)
        shares.append(float(covered(sets, y[n:]).double().mean()))
    share = alpha * (1 - alpha)
    error = 5 * math.sqrt((share / (n + 2) + share / m) / trials)
    mean = sum(shares) / trials
    assert mean >= 1 - alpha - error
    assert mean <= 1 - alpha + 1 / (n + 1) + 0.02 + error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "margin"}, "score must be one of thr, aps, raps, absolute, normalized, got 'margin'"),
        ({"resolution": 1e-9}, "resolution must lie in"),
        ({"penalty": -0.1}, "penalty must lie in 0 to 1"),
    ],
)
def test_scorings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Scoring(**options)


def test_an_alpha_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1, got 1"):
        threshold(Scoring(), torch.ones(3, dtype=torch.int64), 1)
