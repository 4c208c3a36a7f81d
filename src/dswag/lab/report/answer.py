"""The first sentence of a report: how DSWAG compares with the phase-1 model."""

import math
from collections.abc import Mapping
from typing import Literal

from dswag.evaluation.bootstrap import Interval
from dswag.evaluation.metrics import Scores

METHOD, BASELINE = "DSWAG", "phase-1 model"
"""The method that the first sentence of a report is about, and the one it is compared with."""


def answer(scores: Mapping[str, Scores], difference: Interval | None = None) -> str:
    """One sentence: how DSWAG compares with the phase-1 model, and which method is best if it is neither.

    The verdict is that of the negative log-likelihood, a proper score; if the interval of its `difference` is known,
    only an interval without 0 makes one better. Numbers that print alike are equal; accuracies less than one standard
    error apart are called about the same.
    """
    if not scores:
        return "No method has been evaluated yet."
    best = min(scores, key=lambda name: scores[name].nll)
    if METHOD not in scores or BASELINE not in scores:
        return (
            f"By negative log-likelihood the best method here is {best}, with {scores[best].nll:.4f} "
            f"and an accuracy of {_percent(scores[best].accuracy)}."
        )
    ours, theirs = scores[METHOD], scores[BASELINE]
    sign = side(ours.nll, theirs.nll)
    chance = difference is not None and difference.low <= 0 <= difference.high and sign != "equal"
    verdicts = {"lower": "better probabilities than", "higher": "worse probabilities than"}
    verdict = "probabilities as good as those of" if chance or sign == "equal" else verdicts[sign]
    sentence = (
        f"{METHOD} gives {verdict} the {BASELINE}: "
        f"its negative log-likelihood is {_against(ours.nll, theirs.nll, ', which may be chance' if chance else '')}, "
        f"its calibration error {_against(ours.ece_equal_mass, theirs.ece_equal_mass)} and "
        f"its accuracy {_percent(ours.accuracy)} against {_percent(theirs.accuracy)} ({_accuracies(ours, theirs)})"
    )
    if best != BASELINE and side(scores[best].nll, ours.nll) == "lower":
        sentence += f"; the lowest negative log-likelihood of all is {scores[best].nll:.4f} ({best})"
    return sentence + "."


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
