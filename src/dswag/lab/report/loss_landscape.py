"""What the page says of the loss around the posterior's mean (Figure 4)."""

import math
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from dswag.evaluation.loss_landscape import Plane
from dswag.lab.report.svg import INK, MARKERS, PALETTE, style, to_svg
from dswag.runs.schema import Landscape

FLAT, STEEP = 0.05, 0.5
"""By how much the probability of the true class falls within two standard deviations: less is flat, more is steep."""

_BANDS = 8
_SMALLEST = 1e-12


def landscape_section(landscape: Landscape, number: int) -> dict[str, object]:
    """Two pictures, what they say in words, and a table of the eigenvectors; no second one without two eigenvectors.

    Args:
        landscape: what the run saved.
        number: of the run on the page, as figures of one page share no identifier.
    """
    around = landscape.surroundings
    lines = around.lines["train"]
    shares = [100 * value / around.total_variance for value in around.eigenvalues]
    return {
        "num_examples": landscape.num_examples,
        "eigenvectors": _eigenvectors(len(lines)),
        "lines": Markup(loss_along_lines(landscape, number)),
        "plane": Markup(loss_on_plane(landscape, around.planes[0], number)) if around.planes else "",
        "words": verdict(landscape),
        "rows": [
            (
                f"{share:.1f} %",
                f"{math.sqrt(value):.3g}",
                *(f"{loss:.4f}" for loss in np.interp((-2, 0, 2), around.at, line)),
            )
            for share, value, line in zip(shares, around.eigenvalues, lines, strict=True)
        ],
        "together": f"{sum(shares):.0f} %",
    }


def verdict(landscape: Landscape) -> str:
    """Sentences: the loss at the mean, two standard deviations from it, and where it is lowest; and whether it is flat.

    A loss that is higher by x goes with probabilities of the true class that are e^-x of what they were, in the
    geometric mean over the examples.
    """
    around = landscape.surroundings
    lines = around.lines["train"]
    away = [float(loss) for line in lines for loss in np.interp((-2, 2), around.at, line)]
    mean = float(np.interp(0, around.at, lines[0]))
    said = (
        f"The training loss is {mean:.4f} at the posterior's mean, and {min(away):.4f} to {max(away):.4f} two standard "
        f"deviations from it along {_eigenvectors(len(lines))}: {_judged(max(away) - mean)} the mean."
    )
    lowest, line, at = min(
        (loss, line, at) for line, row in enumerate(lines) for loss, at in zip(row, around.at, strict=True)
    )
    if round(lowest, 4) < round(mean, 4):
        place = f"{at:+g}".replace("-", "−")
        said += f" The lowest loss on these lines, {lowest:.4f}, is at {place} along eigenvector {line + 1}."
    return said


def loss_along_lines(landscape: Landscape, number: int = 0) -> str:
    """SVG of the loss against the distance from the mean, a line an eigenvector."""
    around = landscape.surroundings
    lines = around.lines["train"]
    with style(f"landscape lines {number} {landscape}"):
        figure = Figure(figsize=(4.8, 4.3))
        axes = figure.subplots()
        for index, line in enumerate(lines):
            axes.plot(around.at, line, markersize=4, label=f"eigenvector {index + 1}", **_look(index))
        axes.set_xlabel("standard deviations from the mean")
        axes.set_ylabel("training loss")
        figure.legend(loc="outside lower center", ncols=2)
        ends = "; ".join(
            f"eigenvector {index}: {line[0]:.4g} at {around.at[0]:g}, {line[-1]:.4g} at {around.at[-1]:g}"
            for index, line in enumerate(lines, 1)
        )
        return to_svg(figure, f"Training loss against standard deviations from the mean. {ends}.")


def loss_on_plane(landscape: Landscape, plane: Plane, number: int = 0) -> str:
    """SVG of the loss as bands of color with equal steps of its logarithm, circles of the density, and the places."""
    at = landscape.surroundings.at
    loss = np.maximum(plane.loss, _SMALLEST)
    levels = np.geomspace(0.999 * loss.min(), 1.001 * loss.max(), _BANDS + 1)
    with style(f"landscape plane {number} {landscape}"):
        figure = Figure(figsize=(4.8, 4.3))
        axes = figure.subplots()
        colors = [to_rgba(PALETTE[0], opacity) for opacity in np.linspace(0.06, 0.9, _BANDS)]
        bands = axes.contourf(at, at, loss, levels=levels, colors=colors)
        axes.contour(at, at, loss, levels=levels[1:-1], colors=INK, linewidths=0.5, alpha=0.5)
        turn = np.linspace(0, 2 * np.pi, 73)
        for radius in (1, 2, 3):
            label = "density at 1, 2, 3 sd" if radius == 1 else None
            axes.plot(radius * np.cos(turn), radius * np.sin(turn), "--", color=INK, linewidth=1, label=label)
        axes.plot(0, 0, "+", color=INK, markersize=9, label="mean")
        said = []
        for index, (name, places) in enumerate(landscape.places.items(), 1):
            x, y = (np.array([place[axis - 1] for place in places]) for axis in plane.axes)
            inside = (np.abs(x) <= at[-1]) & (np.abs(y) <= at[-1])
            outside = f" ({(~inside).sum()} outside)" if not inside.all() else ""
            look = {**_look(index), "markersize": 5.5, "markeredgecolor": INK, "markeredgewidth": 0.5}
            axes.plot(x[inside], y[inside], linestyle="", label=f"{name}{outside}", **look)
            said.append(f"{name} {', '.join(f'({a:.2g}, {b:.2g})' for a, b in zip(x, y, strict=True))}")
        axes.set(xlabel=f"eigenvector {plane.axes[0]}", ylabel=f"eigenvector {plane.axes[1]}", aspect="equal")
        axes.grid(visible=False)
        bar = figure.colorbar(bands, ticks=levels[::2], format="{x:.3g}")
        bar.set_label("training loss")
        bar.outline.set_linewidth(0.5)
        figure.legend(loc="outside lower center", ncols=2)
        described = (
            f"Training loss on the plane of eigenvectors {plane.axes[0]} and {plane.axes[1]}, {loss.min():.4g} to "
            f"{loss.max():.4g}, with circles of the posterior's density. In standard deviations: {'; '.join(said)}."
        )
        return to_svg(figure, described)


def _judged(rise: float) -> str:
    if rise <= 0:
        return "nowhere more. Over this distance the loss does not rise: weights there fit the training data as well as"
    fall = 1 - math.exp(-rise)
    fit = "flat: weights there fit the training data nearly as well as"
    if fall >= FLAT:
        fit = f"{'curved' if fall < STEEP else 'steep'}: weights there fit the training data worse than"
    return (
        f"up to {rise:.4f} more, by which the probability of the true class falls by {100 * fall:.1f} %. Over this "
        f"distance the loss is {fit}"
    )


def _look(index: int) -> dict[str, Any]:
    return {"color": PALETTE[index % len(PALETTE)], "marker": MARKERS[index % len(MARKERS)]}


def _eigenvectors(count: int) -> str:
    return "the leading eigenvector" if count == 1 else f"the {count} leading eigenvectors"
