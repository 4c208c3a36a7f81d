"""The first sentence of a report, how DSWAG compares with a single set of weights; and what to do next."""

import math
from collections.abc import Mapping
from typing import Literal

from dswag.evaluation.bootstrap import Interval
from dswag.evaluation.metrics import Scores
from dswag.lab.report.verdicts import LEAST

METHOD, BASELINE = "DSWAG", "phase-1 model"
"""The method that the first sentence of a report is about, and the one it is compared with if no other is named."""


def answer(scores: Mapping[str, Scores], difference: Interval | None = None, baseline: str = BASELINE) -> str:
    """One sentence: how DSWAG compares with the baseline, and which method is best if it is neither.

    The verdict weighs the negative log-likelihood, a proper score, and the calibration error. If the interval of the
    former's `difference` is known, only an interval without 0 counts; of the latter, what may not be chance. Numbers
    that print alike are equal; accuracies less than one standard error apart are called about the same.
    """
    if not scores:
        return "No method has been evaluated yet."
    best = min(scores, key=lambda name: scores[name].nll)
    if METHOD not in scores or baseline not in scores:
        return (
            f"By negative log-likelihood the best method here is {best}, with {scores[best].nll:.4f} "
            f"and an accuracy of {_percent(scores[best].accuracy)}."
        )
    ours, theirs = scores[METHOD], scores[baseline]
    sign = side(ours.nll, theirs.nll)
    chance = difference is not None and difference.low <= 0 <= difference.high and sign != "equal"
    sentence = (
        f"{METHOD} {_VERDICTS['equal' if chance else sign, calibrated(ours, theirs)].format(named(baseline))}: "
        f"its negative log-likelihood is {_against(ours.nll, theirs.nll, ', which may be chance' if chance else '')}, "
        f"its calibration error {_against(ours.ece_equal_mass, theirs.ece_equal_mass)} and "
        f"its accuracy {_percent(ours.accuracy)} against {_percent(theirs.accuracy)} ({_accuracies(ours, theirs)})"
    )
    if best != baseline and side(scores[best].nll, ours.nll) == "lower":
        sentence += f"; the lowest negative log-likelihood of all is {scores[best].nll:.4f} ({best})"
    return sentence + "."


_VERDICTS = {
    ("lower", "higher"): "has a lower negative log-likelihood than {}, but is worse calibrated",
    ("lower", "equal"): "gives better probabilities than {}",
    ("lower", "lower"): "gives better probabilities than {}",
    ("equal", "higher"): "has about the negative log-likelihood of {}, but is worse calibrated",
    ("equal", "equal"): "gives probabilities as good as those of {}",
    ("equal", "lower"): "has about the negative log-likelihood of {}, and is better calibrated",
    ("higher", "higher"): "gives worse probabilities than {}",
    ("higher", "equal"): "gives worse probabilities than {}",
    ("higher", "lower"): "has a higher negative log-likelihood than {}, but is better calibrated",
}
"""By how our negative log-likelihood and our calibration error compare with those of the baseline."""


def named(baseline: str) -> str:
    """A baseline in a sentence."""
    return f"the {baseline}" if baseline == BASELINE else baseline.replace(", ", " on the ")


def next_steps(
    scores: Mapping[str, Scores], difference: Interval | None, baseline: str, *, skewed: bool, tuned: bool
) -> list[str]:
    """What somebody may do after reading this outcome, in sentences.

    Args:
        scores: by method.
        difference: in NLL between DSWAG and the baseline, if it is known.
        baseline: the method that DSWAG is compared with.
        skewed: whether clients differ.
        tuned: whether the posterior was fitted to held-out examples.
    """
    if METHOD not in scores or baseline not in scores:
        return []
    ours, theirs = scores[METHOD], scores[baseline]
    steps = []
    if difference is not None and difference.low > 0 and skewed:
        steps.append(
            "The clients differ, and drifted apart in phase 2: make it shorter (--explore-epochs 2)"
            + ("." if tuned else ", or fit the posterior to held-out examples (train with --holdout 0.1 --calibrate).")
        )
    elif difference is not None and difference.low > 0:
        steps.append(
            "The posterior is too wide: try a smaller scale (dswag evaluate RUN --scale 0.3), or a lower learning rate "
            "in phase 2 (--explore-learning-rate)."
        )
    elif difference is not None and difference.high >= 0:
        steps.append(
            "The interval of the difference includes 0, so it may be chance: several seeds say more "
            "(dswag compare --methods dswag fedavg --seeds 5), and so do more test examples."
        )
    if calibrated(ours, theirs) == "higher" and not tuned:
        steps.append("Against the calibration error, fit a temperature (train with --holdout 0.1 --calibrate).")
    if baseline == BASELINE:
        steps.append(
            f"The {BASELINE} was trained for fewer epochs, without those of phase 2: --equal-budget compares with one "
            "that was trained for as many."
        )
    return steps


def calibrated(ours: Scores, theirs: Scores) -> Literal["lower", "equal", "higher"]:
    """How our calibration error compares; equal where the difference may be chance, at about two standard errors."""
    change = ours.ece_equal_mass - theirs.ece_equal_mass
    if abs(change) <= LEAST["calibration"] * math.sqrt(10_000 / ours.num_examples):
        return "equal"
    return "lower" if change < 0 else "higher"


def side(ours: float, theirs: float) -> Literal["lower", "equal", "higher"]:
    """Of our value; values that print alike are equal."""
    if f"{ours:.4f}" == f"{theirs:.4f}":
        return "equal"
    return "lower" if ours < theirs else "higher"


def _against(ours: float, theirs: float, remark: str = "") -> str:
    sign = side(ours, theirs)
    change = 100 * abs(ours - theirs) / theirs if theirs > 0 else math.inf
    amount = f"{change:.{0 if change >= 10 else 1}f} % " if sign != "equal" and change < math.inf else ""
    return f"{ours:.4f} against {theirs:.4f} ({amount}{sign}{remark})"


def _accuracies(ours: Scores, theirs: Scores) -> str:
    points = 100 * (ours.accuracy - theirs.accuracy)
    if _percent(ours.accuracy) == _percent(theirs.accuracy):
        return "equal"
    if abs(points) < 100 * max(standard_error(ours), standard_error(theirs)):
        return "about the same: less than one standard error apart"
    return f"{abs(points):.2f} points {'higher' if points > 0 else 'lower'}"


def standard_error(scores: Scores) -> float:
    """Of the accuracy, as a share of independent examples."""
    return math.sqrt(scores.accuracy * (1 - scores.accuracy) / scores.num_examples)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
