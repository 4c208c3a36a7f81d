"""How lines look in all figures of results, and what is told below them."""

from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from dswag.lab.report.svg import MARKERS, PALETTE


def look(index: int, label: str) -> dict[str, Any]:
    """Color, marker and dash of the line with this number, and its name in the legend."""
    return {
        "color": PALETTE[index % len(PALETTE)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": "-" if index < len(PALETTE) else "--",
        "label": label,
    }


def log_scale(axes: Axes, which: Literal["x", "y"]) -> None:
    """A logarithmic scale for what is drawn already, with plain numbers: mathematical text is not drawn."""
    axes.set(**{f"{which}scale": "log"})
    low, high = getattr(axes, f"get_{which}lim")()
    axis = axes.xaxis if which == "x" else axes.yaxis
    if high < 4 * low:
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    else:
        subs = (1, 2, 3, 5, 7) if high < 20 * low else (1, 2, 5) if high < 200 * low else (1,)
        axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def with_legend(figure: Figure) -> Figure:
    """The figure with one entry for each name that a line of any panel has."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    columns = max(2, int(figure.get_figwidth() / 1.7))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)
    return figure
