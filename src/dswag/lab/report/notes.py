"""What a reader of docs/results.md must know to judge a figure's numbers, below them."""

from collections.abc import Mapping, Sequence

from dswag.lab.report.reproduced import Result, spread
from dswag.lab.report.verdicts import listed


def note(name: str, ran: Mapping[str, Sequence[Result]]) -> str:
    """Of a figure, from its results on each data set that it has run on; empty where there is nothing to say."""
    if not ran:
        return _NOT_RUN.get(name, "This has not been run.")
    if name == "fig6":
        return _why_not_flat(ran)
    return _NOTES.get(name, "").strip()


def _why_not_flat(ran: Mapping[str, Sequence[Result]]) -> str:
    """How far 100 standard deviations are, and that the direction matters too."""
    lengths, left_random, left_same = [], [], []
    for dataset, runs in ran.items():
        ratios = [100 * run["measured"]["lengths"]["every element"] / run["measured"]["mean_norm"] for run in runs]
        lengths.append(f"{min(ratios):.1f} to {max(ratios):.1f} times as long on {dataset}")
        same, random = (_accuracy_at(runs, kind, 10) for kind in ("every element", "random signs"))
        left_random.append(f"{random:.3f} on {dataset}")
        left_same.append(f"{same:.3f} on {dataset}")
    left = {"left_random": listed(left_random), "left_same": listed(left_same)}
    return _WHY_NOT_FLAT.format(lengths=listed(lengths), **left).strip()


def _accuracy_at(runs: Sequence[Result], kind: str, at: float) -> float:
    """Mean over all runs."""
    return float(
        spread([r["measured"]["directions"][kind]["accuracy"][r["measured"]["at"].index(at)] for r in runs])[0]
    )


_WHY_NOT_FLAT = """
In the paper the curve is flat up to 100 standard deviations. Here a step of 100 standard deviations on every element
is, compared with the mean itself, {lengths}.
A step longer than the mean leaves little of the model. Smaller standard deviations, as smaller learning rates in phase
2 give, make the curve flatter; the paper does not state its rates. The direction matters as well. At 10 standard
deviations, steps with random signs leave an accuracy of {left_random};
steps of the same length with the same sign on every element, {left_same}.
"""

_NOT_RUN: Mapping[str, str] = {}
"""What is said of figures without results, where more is to be said than that."""

_OF_METHODS = """
Methods are in the order of their NLL; those marked * need all examples in one place. *With a temperature* is the NLL
after one was fitted to the other half of the test examples. AUROC measures how well the entropy of the predictions
tells test inputs from out-of-distribution (OOD) inputs, which come from another data set. *Corrupted* is the mean over
noise, blur, rotation and contrast at five strengths each. *MB sent* includes the parts of training that a method shares
with others, above all phase 1. The file with all numbers has the differences in NLL from the phase-1 model too, with
paired intervals over seeds and over test examples.
"""

_NOTES = {
    "fig8": """
Each marker is the mean over seeds, with their standard deviation. *Epochs alone* is the length of phase 2. An arrow at
the upper edge stands for a method beyond it. [In short](#in-short) says how DSWAG compares with phase 1 here, and what
helps.
""",
    "table-mnist": _OF_METHODS,
    "table-cifar10": _OF_METHODS,
}
