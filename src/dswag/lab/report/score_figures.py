"""Figures 7 and 8 and the tables: how good the methods are, against workers, skew and one another."""

from collections.abc import Sequence
from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dswag.lab.report.axes import log_scale, look, with_legend
from dswag.lab.report.reproduced import Result, best_first, by_skew, by_value, methods_of, spread
from dswag.lab.report.svg import INK, MARKERS, PALETTE


def against_workers(results: Sequence[Result]) -> Figure:
    """NLL of every method against the number of workers, with the standard deviation over seeds."""
    figure = Figure(figsize=(7.2, 4.6))
    axes = figure.subplots()
    groups = by_value(results, "clients")
    _score_lines(axes, {str(clients): runs for (clients,), runs in groups.items()}, methods_of(results))
    axes.set_xlabel("workers W")
    axes.set_ylabel("test NLL")
    return with_legend(figure)


def against_skew(results: Sequence[Result]) -> Figure:
    """NLL of every method for each partition; a row a number of workers, a column a length of phase 2."""
    workers, lengths = (sorted({run["config"][key] for run in results}) for key in ("clients", "explore_epochs"))
    figure = Figure(figsize=(3.5 * max(2, len(lengths)), 1.2 + 3.2 * len(workers)))
    panels = figure.subplots(len(workers), len(lengths), sharex=True, sharey=True, squeeze=False)
    names, groups = methods_of(results), by_value(results, "clients", "explore_epochs")
    partitions = list(by_skew(results))
    top = _top_of_scale(results, names)
    for (clients, epochs), runs in groups.items():
        axes = panels[workers.index(clients), lengths.index(epochs)]
        found = by_skew(runs)
        _score_lines(axes, {name: found.get(name, []) for name in partitions}, names, top=top)
    for axes, epochs in zip(panels[0], lengths, strict=True):
        axes.set_title(f"{epochs} epoch{'' if epochs == 1 else 's'} alone", fontsize=10)
    for row, clients in zip(panels, workers, strict=True):
        row[0].set_ylabel(f"test NLL, W = {clients}")
    for axes in panels[-1]:
        axes.tick_params(axis="x", rotation=35)
    panels[0, 0].set_ylim(0.94 * min(min(_nlls(results, name)) for name in names), top)
    log_scale(panels[0, 0], "y")
    if any(max(_nlls(results, name)) > top for name in names):
        panels[-1, -1].plot([], [], "^", color=INK, label="above the axis")
    return with_legend(figure)


def compared(results: Sequence[Result]) -> Figure:
    """NLL of every method, a dot a seed, as it is and with a temperature fitted on other examples; a panel a W."""
    names, groups = best_first(results), by_value(results, "clients")
    figure = Figure(figsize=(2.4 + max(4.4, 2.0 * len(groups)), 1.3 + 0.27 * len(names)))
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, ((clients,), runs) in zip(panels, groups.items(), strict=True):
        for index, (score, label) in enumerate((("nll", "NLL"), ("calibrated_nll", "NLL, calibrated"))):
            points = [(r["measured"][n][score], y) for r in runs for y, n in enumerate(names) if n in r["measured"]]
            x, y = zip(*points, strict=True)
            height = np.asarray(y) + 0.24 * (index - 0.5)
            axes.plot(x, height, MARKERS[index], color=PALETTE[index], markersize=4, alpha=0.85, label=label)
        log_scale(axes, "x")
        axes.set_xlabel("test NLL")
        if len(groups) > 1:
            axes.set_title(f"W = {clients}", fontsize=10)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    return with_legend(figure)


def _score_lines(
    axes: Axes, groups: dict[str, list[Result]], methods: Sequence[str], *, top: float = float("inf")
) -> None:
    """NLL of every method in each group, mean and standard deviation over seeds, side by side.

    What is above the top stands at its edge as an arrow.
    """
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_xlim(-0.5, len(groups) - 0.5)
    for index, method in enumerate(methods):
        beside = 0.5 * (index / max(1, len(methods) - 1) - 0.5)
        found = (_nlls(runs, method) for runs in groups.values())
        there = {x: values for x, values in enumerate(found) if values}
        x = np.asarray([*there]) + beside
        means, deviations = (np.asarray(each) for each in zip(*map(spread, there.values()), strict=True))
        drawn = look(index, method)
        axes.plot(x, means, color=drawn["color"], linestyle=drawn["linestyle"], linewidth=1, alpha=0.45)
        axes.errorbar(x, means, deviations, capsize=2, markersize=4.5, **{**drawn, "linestyle": "", "elinewidth": 1})
        for position in x[means > top]:
            axes.annotate("▲", (position, top), ha="center", va="top", color=drawn["color"], fontsize=8)


def _nlls(results: Sequence[Result], method: str) -> list[float]:
    """Of the results that have the method."""
    return [result["measured"][method]["nll"] for result in results if method in result["measured"]]


def _top_of_scale(results: Sequence[Result], methods: Sequence[str]) -> float:
    """Where the axis ends: above all methods but those that are somewhere far worse than half of them ever are."""
    worst = [max(_nlls(results, method)) for method in methods]
    return 1.1 * float(max(value for value in worst if value <= 3 * median(worst)))
