"""What the page says of uncertainty: how much there is where, and how much of it is the model's own."""

import math

from markupsafe import Markup
from matplotlib.figure import Figure

from dswag.evaluation.uncertainty import FOREIGN, RIGHT, SHARES, WRONG, Uncertainty
from dswag.lab.report.axes import log_scale
from dswag.lab.report.examples import gallery
from dswag.lab.report.svg import PALETTE, style, to_svg
from dswag.runs.schema import Examined

_NAMES = {RIGHT: "test, right", WRONG: "test, wrong", FOREIGN: "foreign"}
_COLORS = {RIGHT: PALETTE[2], WRONG: PALETTE[1], FOREIGN: PALETTE[3]}
_LEAST = 1e-6


def uncertainty_section(examined: Examined, number: int) -> dict[str, object]:
    """A picture, what it says in words, and two galleries.

    Args:
        examined: what the run saved.
        number: of the run on the page, as figures of one page share no identifier.
    """
    return {
        "words": verdict(examined),
        "figure": Markup(quantile_bars(examined.uncertainty, number)),
        "foreign": examined.foreign,
        "galleries": {
            "The draws disagree most": gallery(examined.disagreed),
            "Foreign, and yet confident": gallery(examined.surest_foreign),
        },
    }


def verdict(examined: Examined) -> str:
    """Sentences: how uncertain predictions typically are, how well that tells them apart, and what the model's part is.

    The median of the mutual information over that of the entropy is the part that more knowledge of the weights could
    remove.
    """
    found = examined.uncertainty
    medians = {name: (_median(of.entropy), _median(of.mutual_information)) for name, of in found.groups.items()}
    typical = [f"{medians[name][0]:.3g} for {words}" for name, words in _SAID.items() if name in medians]
    entropy = found.auroc["entropy"]
    tells = [f"{words} with an AUROC of {entropy[name]:.3f}" for name, words in _TOLD.items() if name in entropy]
    said = (
        f"The median entropy of a prediction is {', '.join(typical)} ({examined.foreign}). It tells "
        f"{' and '.join(tells)}; 0.5 would be chance."
    )
    known = [(name, information / total) for name, (total, information) in medians.items() if total > 0]
    shares = [f"{100 * share:.0f} % of it for {_SAID[name]}" for name, share in known]
    if shares:
        said += f" The model's own part, the draws' disagreement, is {', '.join(shares)}."
    return said


_SAID = {RIGHT: "right predictions", WRONG: "wrong ones", FOREIGN: "foreign inputs"}
_TOLD = {WRONG: "wrong predictions from right ones", FOREIGN: "foreign inputs from test inputs"}


def quantile_bars(found: Uncertainty, number: int = 0) -> str:
    """SVG of both uncertainties, a bar for each group: thin for nine inputs in ten, thick for half, a dot for the
    median."""
    panels = {"entropy": "entropy", "mutual_information": "mutual information"}
    names = [name for name in _NAMES if name in found.groups]
    with style(f"uncertainty {number} {found}"):
        figure = Figure(figsize=(4.8, 3.2))
        column = figure.subplots(2, 1)
        said = []
        for axes, (attribute, title) in zip(column, panels.items(), strict=True):
            for row, name in enumerate(names):
                low, first, median, third, high = (max(v, _LEAST) for v in getattr(found.groups[name], attribute))
                axes.plot([low, high], [row, row], color=_COLORS[name], linewidth=1.5)
                axes.plot([first, third], [row, row], color=_COLORS[name], linewidth=7, alpha=0.55)
                axes.plot(median, row, "o", color=_COLORS[name], markersize=5)
                said.append(f"{title}, {_NAMES[name]}: median {median:.3g}")
            log_scale(axes, "x")
            axes.set_yticks(range(len(names)), [_NAMES[name] for name in names])
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.set_xlabel(f"{title} (nats)")
        return to_svg(figure, f"Uncertainty of groups of inputs, 5th to 95th percentile. {'; '.join(said)}.")


def _median(quantiles: tuple[float, ...]) -> float:
    value = quantiles[SHARES.index(0.5)]
    return value if math.isfinite(value) else 0.0
