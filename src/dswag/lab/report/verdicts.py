"""What results may say of a claim, and what they are held against."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from dswag.lab.report.reproduced import Result

Outcome = Literal["holds", "holds in part", "no difference", "does not hold", "has not run"]

LEAST = {"rounds": 1.0, "accuracy": 0.003, "NLL": 0.003, "calibration": 0.002}
"""The least difference that counts, about two standard errors over 10,000 test examples: seeds share the test set."""


@dataclass(frozen=True)
class Judgement:
    """What results say of a claim."""

    outcome: Outcome
    detail: str = ""
    """What follows the outcome in a sentence, with its punctuation."""
    numbers: str = ""
    certainty: str = ""
    """Such as "one seed", where that is less than the reader would expect."""

    @property
    def brief(self) -> str:
        """The outcome, and how certain it is."""
        return self._with_certainty(self.outcome)

    @property
    def verdict(self) -> str:
        """The outcome with its detail, and how certain it is."""
        return self._with_certainty(f"{self.outcome}{self.detail}")

    def _with_certainty(self, words: str) -> str:
        return f"{words} ({self.certainty})" if self.certainty else words


@dataclass(frozen=True)
class Standard:
    """What differences and accuracies on a data set are held against."""

    test_examples: int
    accuracy: float
    """One that training reaches with any number of workers."""

    def least(self, kind: str) -> float:
        """The least difference that counts."""
        return LEAST[kind] * (1.0 if kind == "rounds" else math.sqrt(10_000 / self.test_examples))


_CIFAR10 = Standard(10_000, 0.8)
STANDARDS = {
    "mnist": Standard(10_000, 0.98),
    "mnist5k": Standard(1000, 0.88),
    "cifar10-short": _CIFAR10,
    "cifar10-long": _CIFAR10,
    "cifar10": _CIFAR10,
}
"""By data set, and budget where there are several."""

Judge = Callable[[Sequence[Result], Standard], Judgement]
"""From the runs of one model, at least one, to what they say."""


def certainty(values: Iterable[Sequence[float]]) -> str:
    """What a reader must know where some numbers, or all, are of one seed."""
    single = [len(of_seeds) == 1 for of_seeds in values]
    return "one seed" if all(single) else "one seed in part" if any(single) else ""


def listed(words: Sequence[object]) -> str:
    """Such as "1, 2 and 3"."""
    *rest, last = map(str, words)
    return f"{', '.join(rest)} and {last}" if rest else last
