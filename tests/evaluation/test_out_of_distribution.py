"""Detection of other inputs against scikit-learn, a slow loop over pairs, and what must hold for any scores."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from dswag.algorithms.prediction import Predictive
from dswag.core.randomness import generator_for
from dswag.evaluation.out_of_distribution import SCORES, Detection, auroc, detect, fpr_at_tpr

SCORE_LISTS = st.lists(st.integers(0, 6), min_size=1, max_size=25)


def tensors(*lists):
    return tuple(torch.tensor(values, dtype=torch.float32) for values in lists)


def as_scikit_learn_takes_it(inside, outside):
    """Labels and scores with inside as the positive class, which scores high there."""
    labels = np.concatenate([np.ones(len(inside)), np.zeros(len(outside))])
    return labels, -np.concatenate([inside.numpy(), outside.numpy()])


@given(inside=SCORE_LISTS, outside=SCORE_LISTS)
def test_area_and_rate_agree_with_scikit_learn_also_with_ties(inside, outside):
    inside, outside = tensors(inside, outside)
    labels, scores = as_scikit_learn_takes_it(inside, outside)
    assert auroc(inside, outside) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    rates, hits, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert fpr_at_tpr(inside, outside) == pytest.approx(rates[np.argmax(hits >= 0.95)], abs=1e-12)


@given(inside=SCORE_LISTS, outside=SCORE_LISTS)
def test_area_is_the_share_of_pairs_in_the_right_order(inside, outside):
    pairs = [(o > i) + (o == i) / 2 for i in inside for o in outside]
    assert auroc(*tensors(inside, outside)) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


@given(inside=SCORE_LISTS, outside=SCORE_LISTS)
def test_exchanging_the_sets_mirrors_the_area(inside, outside):
    inside, outside = tensors(inside, outside)
    assert auroc(inside, outside) + auroc(outside, inside) == pytest.approx(1, abs=1e-12)


def test_rate_of_known_numbers():
    """The 19th of 20 scores inside is the threshold: 95 % of them lie at or below it."""
    inside = torch.arange(20.0)
    outside = torch.tensor([17.5, 18.0, 18.5, 30.0])
    assert fpr_at_tpr(inside, outside) == 0.5
    assert fpr_at_tpr(inside, outside, tpr=1.0) == 0.75


def test_separate_sets_are_told_apart_and_equal_ones_are_not():
    apart = tensors([1, 2, 3], [4, 5])
    assert (auroc(*apart), fpr_at_tpr(*apart)) == (1.0, 0.0)
    alike = tensors([1, 2, 3], [1, 2, 3])
    assert (auroc(*alike), fpr_at_tpr(*alike)) == (0.5, 1.0)


def predictions(n, sharpness, seed):
    logits = sharpness * torch.randn(4, n, 3, generator=generator_for(seed))
    members = logits.softmax(2)
    entropies = torch.special.entr(members).sum(2).mean(0)
    mean = members.mean(0)
    disagreement = torch.special.entr(mean).sum(1) - entropies
    return Predictive(mean, entropies, disagreement, members.var(0, correction=0))


def test_each_score_is_higher_where_predictions_are_less_certain():
    sure, unsure = predictions(50, 0.3, 0), predictions(70, 6.0, 1)
    found = detect(sure, unsure)
    assert list(found) == list(SCORES)
    assert found["mutual information"].auroc > 0.9  # members that are sharp disagree
    expected = auroc(1 - sure.probabilities.max(1).values, 1 - unsure.probabilities.max(1).values)
    assert found["confidence"].auroc == expected
    assert found["entropy"] == Detection(
        auroc(sure.entropy, unsure.entropy), fpr_at_tpr(sure.entropy, unsure.entropy, 0.95)
    )


@pytest.mark.parametrize("function", [auroc, fpr_at_tpr])
@pytest.mark.parametrize(
    ("inside", "outside", "message"),
    [
        (torch.rand(3, 1), torch.rand(2), r"scores inside must be a vector of at least one, got shape \[3, 1\]"),
        (torch.rand(3), torch.rand(0), r"scores outside must be a vector of at least one, got shape \[0\]"),
        (torch.rand(3), torch.tensor([0.0, torch.nan]), "scores outside must be free of NaN, got one at 1"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(function, inside, outside, message):
    with pytest.raises(ValueError, match=message):
        function(inside, outside)


@pytest.mark.parametrize("tpr", [0.0, 1.1])
def test_a_rate_that_is_no_share_is_refused(tpr):
    with pytest.raises(ValueError, match=r"tpr must lie in \(0, 1\], got"):
        fpr_at_tpr(torch.rand(3), torch.rand(3), tpr)
