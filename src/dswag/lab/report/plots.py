"""Figures as SVG text: the reliability diagram, the course of phase 1 (Figure 5), and what the clients have."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from dswag.data.class_counts import ClassCounts
from dswag.evaluation.bootstrap import ReliabilityBand
from dswag.evaluation.reliability import Reliability
from dswag.lab.report.svg import INK, MARKERS, PALETTE, style, to_svg

MOST_ROWS = 50
"""Clients, or classes, that a figure or a table shows one by one."""

_NEAREST_TO_ONE = 1e-4


def reliability_diagram(curves: Mapping[str, Reliability], bands: Mapping[str, ReliabilityBand] | None = None) -> str:
    """SVG of confidence - accuracy against confidence, one line per named curve, within its band.

    Where there are bands, only curves that have one are drawn: five zig-zag lines tell nothing. The horizontal axis is
    log(1 - confidence), as in Maddox et al. 2019, which gives every step from 0.9 to 0.99 to 0.999 the same width. Bins
    above 0.9999 are drawn at 0.9999, whose tick then says "at least".

    Raises:
        ValueError: no curve.
    """
    bands = bands or {}
    curves = {name: band.curve for name, band in bands.items()} or curves
    if not curves:
        raise ValueError("a reliability diagram needs at least one curve, got none")
    with style(f"reliability {dict(curves)}"):
        figure = Figure(figsize=(4.8, 3.7))
        axes = figure.subplots()
        axes.axhline(0, color=INK, linewidth=1, zorder=1)
        lines = []
        for index, (name, curve) in enumerate(curves.items()):
            color, at = PALETTE[index % len(PALETTE)], _spread(curve.confidence)
            if name in bands:
                axes.fill_between(at, bands[name].low, bands[name].high, color=color, alpha=0.2, linewidth=0, zorder=0)
            marker = MARKERS[index % len(MARKERS)]
            lines += axes.plot(at, curve.gap, color=color, marker=marker, markersize=4, zorder=2)
        axes.set_xlabel("confidence")
        axes.set_ylabel("confidence − accuracy\n(above 0: overconfident)")
        _confidence_ticks(axes, most=max(max(curve.confidence) for curve in curves.values()))
        figure.legend(lines, list(curves), loc="outside lower center", ncols=2)
        described = " ".join(_described(name, curve) for name, curve in curves.items())
        return to_svg(figure, f"Reliability diagram: confidence minus accuracy against confidence. {described}")


def training_curve(history: Sequence[Mapping[str, object]]) -> str:
    """SVG of loss, and of test accuracy in the rounds that have one, against the global round.

    Each round is a mapping with `round`, `loss` and, where it was measured, `test_accuracy` in [0, 1].

    Raises:
        ValueError: no round, or a round without a number where one is needed.
    """
    if not history:
        raise ValueError("a training curve needs at least one round, got none")
    measured = [entry for entry in history if entry.get("test_accuracy") is not None]
    panels = [("loss", "training loss", history), ("test_accuracy", "test accuracy", measured)][: 2 if measured else 1]
    with style(f"training {history}"):
        figure = Figure(figsize=(4.8, 3.7))
        column = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        sentences = []
        for axes, (key, name, entries) in zip(column, panels, strict=True):
            rounds = [_number(entry, "round") for entry in entries]
            values = [_number(entry, key) for entry in entries]
            axes.plot(rounds, values, color=PALETTE[0], marker="o" if len(rounds) <= 40 else "", markersize=3.5)
            axes.set_ylabel(name)
            sentences.append(f"{name} {values[0]:.4g} in round {rounds[0]:g}, {values[-1]:.4g} in round {rounds[-1]:g}")
        column[-1].set_xlabel("global round")
        column[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        figure.align_ylabels(column)
        return to_svg(figure, f"Phase 1 against the global round: {'; '.join(sentences)}.")


def examples_of_clients(table: ClassCounts, number: int = 0) -> str:
    """SVG of the examples of each client by class, and of all it has; beyond `MOST_ROWS` clients or classes, of how
    many clients have how many examples and how many classes.

    Runs often share a partition, so figures on one page need a `number` each to share no identifier.
    """
    counts = np.array(table.counts)
    sizes, present = counts.sum(1), (counts > 0).sum(1)
    said = (
        f"{_span(sizes)} examples of {_span(present)} of {counts.shape[1]} classes for each of {len(counts)} clients."
    )
    with style(f"clients {number} {table}"):
        if max(counts.shape) > MOST_ROWS:
            figure = _histograms({"examples of a client": sizes, "classes of a client": present})
            return to_svg(figure, f"Histograms of the numbers of examples and of classes of a client: {said}")
        figure = _heat_map(counts, table.class_names)
        return to_svg(figure, f"Heat map of the examples of each client by class, and bars of all it has: {said}")


def points_by_method(panels: Mapping[str, Mapping[str, tuple[float, float | None]]]) -> str:
    """SVG of a panel for each measure, in which every method has a point at its mean, and a bar of one std each way.

    Raises:
        ValueError: no panel, or panels of different methods.
    """
    methods = {tuple(points) for points in panels.values()}
    if len(methods) != 1:
        raise ValueError(f"every panel must have the same methods, got {sorted(methods) or 'no panel'}")
    (names,) = methods
    with style(f"methods {panels}"):
        figure = Figure(figsize=(2.6 + 2.0 * len(panels), 0.8 + 0.22 * len(names)))
        for axes, (measure, points) in zip(
            figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
        ):
            means, stds = zip(*((mean, std or 0.0) for mean, std in points.values()), strict=True)
            axes.errorbar(means, range(len(names)), xerr=stds, fmt="o", markersize=4, color=PALETTE[0])
            axes.set_xlabel(measure)
            axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)  # the first on top, none on the edge
        described = "; ".join(
            f"{measure}: {', '.join(f'{name} {mean:.4g}' for name, (mean, _) in points.items())}"
            for measure, points in panels.items()
        )
        return to_svg(figure, f"Methods compared. {described}.")


def _heat_map(counts: Int[np.ndarray, "clients classes"], class_names: Sequence[str]) -> Figure:
    """A cell for each client and class that has examples, more opaque the more there are, and a bar for each client."""
    names = [name if len(name) <= 14 else f"{name[:13]}…" for name in class_names]
    longest = max(map(len, names))
    upright = longest <= 3
    figure = Figure(figsize=(4.8, 1.3 + min(0.24 * len(counts), 5.5) + (0 if upright else 0.06 * longest)))
    axes, bars = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    filled, largest = np.argwhere(counts), counts.max()
    cells = [Rectangle((label - 0.46, client - 0.46), 0.92, 0.92) for client, label in filled]
    colors = [to_rgba(PALETTE[0], _opacity(counts[client, label], largest)) for client, label in filled]
    axes.add_collection(PatchCollection(cells, facecolors=colors, linewidths=0))
    axes.set(xlim=(-0.5, counts.shape[1] - 0.5), ylim=(len(counts) - 0.5, -0.5), xlabel="class", ylabel="client")
    axes.set_xticks(range(len(names)), names, rotation=0 if upright else 40, ha="center" if upright else "right")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=min(len(counts), 25), integer=True, min_n_ticks=1))
    axes.grid(visible=False)
    bars.barh(range(len(counts)), counts.sum(1), color=PALETTE[0])
    bars.set_xlabel("examples")
    bars.xaxis.set_major_locator(MaxNLocator(3, integer=True, min_n_ticks=1))
    steps = np.unique((np.linspace(0, 1, 4) ** 2 * largest).clip(1).round().astype(int))
    handles = [Patch(color=PALETTE[0], alpha=_opacity(step, largest), linewidth=0) for step in steps]
    labels = [f"{step:,}{' examples' if step == largest else ''}" for step in steps]
    figure.legend(handles, labels, loc="outside lower center", ncols=len(steps))
    return figure


def _histograms(values: Mapping[str, Int[np.ndarray, "clients"]]) -> Figure:
    """How many clients have which number, in a panel for each."""
    figure = Figure(figsize=(4.8, 2.6))
    row = figure.subplots(1, len(values), sharey=True)
    for axes, (name, numbers) in zip(row, values.items(), strict=True):
        few = numbers.max() - numbers.min() < 20
        axes.hist(
            numbers, np.arange(numbers.min(), numbers.max() + 2) - 0.5 if few else 20, rwidth=0.9, color=PALETTE[0]
        )
        axes.set_xlabel(name)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    row[0].set_ylabel("clients")
    return figure


def _opacity(count: int, largest: int) -> float:
    """From just visible to opaque for the largest count; the root sets small counts apart."""
    return float(0.12 + 0.88 * np.sqrt(count / largest))


def _span(values: Int[np.ndarray, "clients"]) -> str:
    return f"{values.min():,} to {values.max():,}" if values.min() < values.max() else f"{values.min():,}"


def _spread(confidence: Sequence[float]) -> Float[np.ndarray, "bins"]:
    """Number of nines: -log10(1 - confidence), up to `_NEAREST_TO_ONE`."""
    return np.asarray(-np.log10(np.clip(1 - np.asarray(confidence), _NEAREST_TO_ONE, 1)))


def _confidence_ticks(axes: Axes, most: float) -> None:
    left, right = axes.get_xlim()
    within_two_nines = (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
    ticks = within_two_nines if right < 2.2 else (0.0, 0.5, 0.9, 0.99, 0.999, 1 - _NEAREST_TO_ONE)
    axes.set_xticks(_spread(ticks), [f"{'≥ ' * (tick == ticks[-1] and most > tick)}{tick:g}" for tick in ticks])
    axes.set_xlim(max(left, -0.05), right)


def _described(name: str, curve: Reliability) -> str:
    gap, confidence = max(zip(curve.gap, curve.confidence, strict=True), key=lambda bin_: abs(bin_[0]))
    return f"{name}: {len(curve.gap)} {curve.binning} bins, largest gap {gap:+.3f} at confidence {confidence:.3f}."


def _number(entry: Mapping[str, object], key: str) -> float:
    value = entry.get(key)
    if not isinstance(value, int | float):
        raise ValueError(f"every round of a history must have a number as {key!r}, got {value!r} in {dict(entry)}")
    return float(value)
