"""Where predictions are good and where not: class by class, and the most telling examples."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from dswag.evaluation.alignment import aligned
from dswag.evaluation.metrics import nll_of_each


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class."""

    name: str
    num_examples: int
    recall: float | None
    """Share of its examples that are recognized; None if it has no examples."""
    precision: float | None
    """Share of the predictions of this class that are right; None if it is never predicted."""
    nll: float | None
    """Mean over its examples."""
    mistaken_for: str | None
    """The class that its unrecognized examples are most often taken for; None if all are recognized."""


@dataclass(frozen=True)
class Telling:
    """One example and its prediction."""

    index: int
    """In the test set, from 0."""
    target: str
    predicted: str
    confidence: float
    """The probability of the predicted class."""
    picture: str = ""
    """The image as a data URI; empty where there is none."""


@dataclass(frozen=True)
class Inspection:
    """What is worth looking at in predictions."""

    classes: tuple[ClassScores, ...]
    most_uncertain: tuple[Telling, ...]
    """The examples with the highest entropy, highest first."""
    most_wrong: tuple[Telling, ...]
    """The wrongly predicted examples with the highest confidence, highest first."""


def inspect(
    probabilities: Float[Tensor, "n c"], targets: Int[Tensor, "n"], class_names: Sequence[str], *, shown: int = 10
) -> Inspection:
    """Scores of each class, and the most uncertain and the most confidently wrong examples, `shown` of each at most.

    Of equal ones the first come first.

    Raises:
        ValueError: predictions that `alignment.aligned` refuses.
    """
    probabilities, targets = aligned(probabilities, targets)
    losses = nll_of_each(probabilities, targets)
    confidence, predicted = (values.cpu() for values in probabilities.max(1))
    targets = targets.cpu()
    counts = torch.zeros(2 * [len(class_names)], dtype=torch.int64)
    counts.index_put_((targets, predicted), torch.ones_like(targets), accumulate=True)
    entropy = torch.special.entr(probabilities.double()).sum(1).cpu()
    wrong = torch.where(predicted == targets, -1.0, confidence.double())

    def first(values: Tensor, count: int) -> tuple[Telling, ...]:
        order = values.sort(descending=True, stable=True).indices[:count]
        return tuple(
            Telling(i, class_names[int(targets[i])], class_names[int(predicted[i])], float(confidence[i]))
            for i in order.tolist()
        )

    return Inspection(
        classes=tuple(
            _of_class(number, class_names, counts, losses[targets == number]) for number in range(len(class_names))
        ),
        most_uncertain=first(entropy, shown),
        most_wrong=first(wrong, min(shown, int((predicted != targets).sum()))),
    )


def _of_class(
    number: int, names: Sequence[str], counts: Int64[Tensor, "c c"], losses: Float[Tensor, "m"]
) -> ClassScores:
    """From the confusion matrix, targets down and predictions across."""
    own, taken = int(counts[number].sum()), int(counts[:, number].sum())
    right = int(counts[number, number])
    mistakes = counts[number].clone()
    mistakes[number] = 0
    return ClassScores(
        name=names[number],
        num_examples=own,
        recall=right / own if own else None,
        precision=right / taken if taken else None,
        nll=float(losses.mean()) if own else None,
        mistaken_for=names[int(mistakes.argmax())] if int(mistakes.sum()) else None,
    )
