"""Classes against scikit-learn, and examples that tell what they should."""

import pytest
import torch
from sklearn.metrics import confusion_matrix, log_loss, precision_score, recall_score

from dswag.core.randomness import generator_for
from dswag.evaluation.inspection import inspect

NAMES = ("ant", "bee", "cat", "dog")


def predictions(n=200, seed=0):
    logits = 2 * torch.randn(n, 4, generator=generator_for(seed), dtype=torch.float64)
    noisy = logits + 2 * torch.randn(n, 4, generator=generator_for(seed, 1), dtype=torch.float64)
    return logits.softmax(1), noisy.argmax(1)


def test_classes_are_scored_as_scikit_learn_does():
    probabilities, targets = predictions()
    predicted = probabilities.argmax(1)
    found = inspect(probabilities, targets, NAMES).classes
    assert [each.name for each in found] == list(NAMES)
    assert [each.num_examples for each in found] == targets.bincount().tolist()
    assert [each.recall for each in found] == pytest.approx(recall_score(targets, predicted, average=None))
    assert [each.precision for each in found] == pytest.approx(precision_score(targets, predicted, average=None))
    matrix = confusion_matrix(targets, predicted)
    for number, each in enumerate(found):
        own = targets == number
        assert each.nll == pytest.approx(log_loss(targets[own], probabilities[own], labels=range(4)))
        others = {name: count for name, count in zip(NAMES, matrix[number], strict=True) if name != each.name}
        assert others[each.mistaken_for] == max(others.values())


def test_the_most_uncertain_have_the_highest_entropy_and_the_most_wrong_the_highest_confidence():
    probabilities, targets = predictions()
    found = inspect(probabilities, targets, NAMES, shown=7)
    entropy = torch.distributions.Categorical(probabilities).entropy()
    assert [each.index for each in found.most_uncertain] == entropy.topk(7).indices.tolist()
    confidences = [each.confidence for each in found.most_wrong]
    assert len(confidences) == 7
    assert confidences == sorted(confidences, reverse=True)
    assert all(each.target != each.predicted for each in found.most_wrong)
    wrong = probabilities.argmax(1) != targets
    assert confidences[0] == float(probabilities.amax(1)[wrong].max())
    first = found.most_wrong[0]
    assert first.predicted == NAMES[int(probabilities[first.index].argmax())]
    assert first.target == NAMES[int(targets[first.index])]


def test_a_class_without_examples_or_predictions_has_no_scores():
    probabilities = torch.tensor([[0.6, 0.4, 0.0, 0.0], [0.9, 0.1, 0.0, 0.0]])
    found = inspect(probabilities, torch.tensor([0, 1]), NAMES)
    ant, bee, cat, _ = found.classes
    assert (ant.recall, ant.precision, ant.mistaken_for) == (1.0, 0.5, None)
    assert (bee.recall, bee.precision, bee.mistaken_for) == (0.0, None, "ant")
    assert (cat.num_examples, cat.recall, cat.nll) == (0, None, None)
    assert [each.index for each in found.most_wrong] == [1]
