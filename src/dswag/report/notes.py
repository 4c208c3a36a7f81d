"""What a reader of docs/results.md must know to judge a figure's numbers, below them."""

from collections.abc import Mapping, Sequence

from dswag.report.judgement import listed
from dswag.report.reproduced import Result, spread


def note(name: str, ran: Mapping[str, Sequence[Result]]) -> str:
    """Of a figure, from its results on each data set that it has run on; empty where there is nothing to say."""
    if not ran:
        return _NOT_RUN.get(name, "Has not run.")
    if name == "fig6":
        return _why_not_flat(ran)
    return _NOTES.get(name, "").strip()


def _why_not_flat(ran: Mapping[str, Sequence[Result]]) -> str:
    """How far 100 standard deviations are, and that the direction matters too."""
    lengths, left = [], []
    for dataset, runs in ran.items():
        ratios = [100 * run["measured"]["lengths"]["every element"] / run["measured"]["mean_norm"] for run in runs]
        lengths.append(f"{min(ratios):.1f} to {max(ratios):.1f} times on {dataset}")
        same, random = (_accuracy_at(runs, kind, 10) for kind in ("every element", "random signs"))
        left.append(f"{random:.3f} and {same:.3f} on {dataset}")
    return _WHY_NOT_FLAT.format(lengths=listed(lengths), left=listed(left)).strip()


def _accuracy_at(runs: Sequence[Result], kind: str, at: float) -> float:
    """Mean over all runs."""
    return float(
        spread([r["measured"]["directions"][kind]["accuracy"][r["measured"]["at"].index(at)] for r in runs])[0]
    )


_WHY_NOT_FLAT = """
The printed curve is flat up to 100. Here 100 standard deviations on every element are, against the length of the mean
itself, {lengths}: where that is more than once, the weights at that point are mostly not the model's. Smaller standard
deviations, as a phase 2 with smaller learning rates leaves them, make the curve flatter; the paper does not print its
rates. The direction counts as well: steps of the same length with random signs and to the same side on every element
leave, at 10 standard deviations, an accuracy of {left}.
"""

_NOT_RUN = {
    "table-cifar10": "Has not run: it needs a GPU, and none was at hand. The recipe is ready\n"
    "([cifar10.md](cifar10.md)): a round of it, two epochs of phase 2 and all of its methods were tried on the CPU\n"
    "with 256 images, and the tests run all that it asks for with a small model."
}
"""What is said of figures without results, where more is to be said than that."""

_OF_METHODS = """
Methods are in the order of their NLL; those marked * need all examples in one place. *Outside* are inputs of another
data set, told by the entropy of the predictions; *corrupted* is the mean over noise, blur, rotation and contrast at
five strengths each. *Seconds* are the least over the seeds, because the machine had other work to do; they and *MB
sent* count what a method shares with others, phase 1 above all. Differences are to the phase-1 model of the same seed:
*over seeds* is their mean, with a paired t interval where there are several seeds; *over test examples* is a paired
bootstrap, which needs the losses of both on every example: only methods measured in one run with phase 1 have it.
"""

_NOTES = {
    "fig8": """
Each marker is the mean over seeds, with their standard deviation; methods stand side by side. An arrow at the upper
edge is a method beyond it. What the figure says of DSWAG against phase 1, and what helps, is judged above.
""",
    "table-mnist": _OF_METHODS,
    "table-cifar10": _OF_METHODS,
}
