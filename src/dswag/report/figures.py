"""The paper's figures and tables as pictures, drawn from the files of results."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from dswag.report.reproduced import Result, by_value, case_label, methods_of, spread
from dswag.report.svg import INK, MARKERS, PALETTE, style, to_svg


def draw(name: str, title: str, results: Sequence[Result]) -> str:
    """SVG of a figure from the results that there are.

    Raises:
        ValueError: no result, or a figure that cannot be drawn.
    """
    if not results:
        raise ValueError(f"{name} has no results to draw: run dswag reproduce {name}")
    if name not in FIGURES:
        raise ValueError(f"there is no picture {name!r}: choose one of {', '.join(FIGURES)}")
    with style(f"{name} {results}"):
        figure = FIGURES[name](results)
        seeds = len({result["config"]["seed"] for result in results})
        return to_svg(figure, f"{title}: {len(results)} runs, {seeds} seed{'' if seeds == 1 else 's'}.")


def progress(results: Sequence[Result]) -> Figure:
    """Test accuracy of phase 1 against rounds, gradient steps and bytes; a line a number of workers, its seeds thin."""
    figure = Figure(figsize=(9.6, 3.8))
    panels = figure.subplots(1, 3, sharey=True)
    for index, ((model, clients), runs) in enumerate(by_value(results, "model", "clients").items()):
        look = _look(index, f"{model}, W = {clients}")
        for number, run in enumerate(runs):
            rounds = run["measured"]["rounds"]
            accuracy = [each["test_accuracy"] for each in rounds]
            count = np.arange(1, len(rounds) + 1)
            steps = count * run["measured"]["steps_per_round"]
            megabytes = np.cumsum([each["bytes"] for each in rounds]) / 1e6
            for axes, x in zip(panels, (count, steps, megabytes), strict=True):
                label = look["label"] if number == 0 else None
                axes.plot(x, accuracy, color=look["color"], linewidth=1.1, alpha=0.8, label=label)
    for axes, name in zip(panels, ("global round", "gradient steps of a client", "megabytes, both ways"), strict=True):
        axes.set_xlabel(name)
    _log(panels[1], "x")
    _log(panels[2], "x")
    panels[0].set_ylabel("test accuracy")
    best = max(each["test_accuracy"] for result in results for each in result["measured"]["rounds"])
    panels[0].set_ylim(best - 0.06, best + 0.004)
    return _with_legend(figure, panels[0])


def reliability(results: Sequence[Result]) -> Figure:
    """Confidence less accuracy of each method, a panel each; bands of the lowest seed."""
    names = methods_of(results)
    figure = Figure(figsize=(4.8 * len(names), 3.9))
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, method in zip(panels, names, strict=True):
        for index, ((clients,), runs) in enumerate(by_value(results, "clients").items()):
            look, band = _look(index, f"W = {clients}"), runs[0]["measured"][method]["band"]
            confidence, accuracy = (np.asarray(band["curve"][key]) for key in ("confidence", "accuracy"))
            nines = -np.log10(np.clip(1 - confidence, 1e-4, 1))
            axes.plot(nines, confidence - accuracy, markersize=3, **look)
            axes.fill_between(nines, band["low"], band["high"], color=look["color"], alpha=0.12, linewidth=0)
        axes.axhline(0, color=INK, linewidth=1)
        axes.set_title(method, fontsize=10)
        ticks = (0.5, 0.9, 0.99, 0.999, 0.9999)
        axes.set_xticks(-np.log10(1 - np.asarray(ticks)), [f"{tick:g}" for tick in ticks])
        axes.set_xlabel("confidence")
    panels[0].set_ylabel("confidence − accuracy\n(above 0: overconfident)")
    return _with_legend(figure, panels[0])


def distance(results: Sequence[Result]) -> Figure:
    """Accuracy and NLL against the distance from the mean in standard deviations, a column a kind of direction."""
    kinds = list(dict.fromkeys(kind for result in results for kind in result["measured"]["directions"]))
    figure = Figure(figsize=(2.6 * len(kinds), 5.2))
    panels = figure.subplots(2, len(kinds), sharex=True, sharey="row", squeeze=False)
    for column, kind in enumerate(kinds):
        for index, ((clients,), runs) in enumerate(by_value(results, "clients").items()):
            look = _look(index, f"W = {clients}")
            for row, score in enumerate(("accuracy", "nll")):
                lines = [r["measured"]["directions"][kind][score] for r in runs if kind in r["measured"]["directions"]]
                if lines:
                    mean, deviation = spread(lines)
                    axes = panels[row, column]
                    axes.plot(runs[0]["measured"]["at"], mean, markersize=3, **look)
                    low, high = mean - deviation, mean + deviation
                    axes.fill_between(
                        runs[0]["measured"]["at"], low, high, color=look["color"], alpha=0.15, linewidth=0
                    )
        panels[0, column].set_title(kind, fontsize=10)
        panels[1, column].set_xlabel("standard deviations")
        _log(panels[1, column], "y")
    panels[0, 0].set_ylabel("test accuracy")
    panels[1, 0].set_ylabel("NLL")
    return _with_legend(figure, panels[0, 0])


def against_workers(results: Sequence[Result]) -> Figure:
    """NLL of every method against the number of workers, with the standard deviation over seeds."""
    figure = Figure(figsize=(6.4, 4.6))
    axes = figure.subplots()
    _score_lines(axes, results, "clients")
    axes.set_xlabel("workers W")
    return _with_legend(figure, axes)


def against_skew(results: Sequence[Result]) -> Figure:
    """NLL of every method for each partition; a row a number of workers, a column a length of phase 2."""
    groups = by_value(results, "clients", "explore_epochs")
    figure = Figure(figsize=(3.6 * max(2, len(groups)), 4.4))
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, ((clients, epochs), runs) in zip(panels, groups.items(), strict=True):
        labeled = [{**run, "case": {**run["case"], "skew": case_label(run)}} for run in runs]
        _score_lines(axes, labeled, "skew")
        axes.tick_params(axis="x", rotation=30)
        axes.set_title(f"W = {clients}, {epochs} epochs alone", fontsize=10)
        _log(axes, "y")
    for axes in panels[1:]:
        axes.set_ylabel("")
    return _with_legend(figure, panels[0])


def surroundings(results: Sequence[Result]) -> Figure:
    """Loss along the eigenvectors, and the planes of two of them with the density's contours; a row a run."""
    figure = Figure(figsize=(11.4, 3.6 * len(results)))
    panels = figure.subplots(len(results), 4, squeeze=False)
    for row, result in zip(panels, results, strict=True):
        measured = result["measured"]
        for axes, part in zip(row[:2], measured["lines"], strict=True):
            for index, line in enumerate(measured["lines"][part]):
                axes.plot(measured["at"], line, markersize=2.5, **_look(index, f"eigenvector {index + 1}"))
            axes.set_title(f"{part} loss, W = {result['config']['clients']}", fontsize=10)
            axes.set_xlabel("standard deviations")
        for axes, plane in zip(row[2:], measured["planes"], strict=True):
            loss = np.asarray(plane["loss"])
            axes.contourf(measured["at"], measured["at"], np.log(loss), levels=12, cmap="viridis", alpha=0.85)
            density = np.asarray(plane["log_density"])
            axes.contour(
                measured["at"], measured["at"], density, levels=[-8, -4.5, -2, -0.5], colors="w", linestyles="-"
            )
            axes.set_title("log training loss; density at 1 to 4 sd", fontsize=9)
            axes.set_xlabel(f"eigenvector {plane['axes'][0]}")
            axes.set_ylabel(f"eigenvector {plane['axes'][1]}")
            axes.set_aspect("equal")
    return _with_legend(figure, panels[0, 0])


def compared(results: Sequence[Result]) -> Figure:
    """NLL of every method, a dot a seed, as it is and with a temperature fitted on other examples."""
    names = methods_of(results)
    figure = Figure(figsize=(6.4, 1.2 + 0.32 * len(names)))
    axes = figure.subplots()
    for score, index in (("nll", 0), ("calibrated_nll", 1)):
        points = [(r["measured"][n][score], y) for r in results for y, n in enumerate(names) if n in r["measured"]]
        x, y = zip(*points, strict=True)
        label = {"nll": "NLL", "calibrated_nll": "NLL, calibrated"}[score]
        axes.plot(x, np.asarray(y) + 0.15 * index, MARKERS[index], color=PALETTE[index], markersize=4, label=label)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    _log(axes, "x")
    axes.set_xlabel("test NLL")
    return _with_legend(figure, axes)


FIGURES: Mapping[str, Callable[[Sequence[Result]], Figure]] = MappingProxyType(
    {
        "fig4": surroundings,
        "fig5-left": progress,
        "fig5-right": reliability,
        "fig6": distance,
        "fig7": against_workers,
        "fig8": against_skew,
        "table-mnist": compared,
        "table-cifar10": compared,
    }
)
"""How each figure or table is drawn."""


def _score_lines(axes: Axes, results: Sequence[Result], key: str) -> None:
    """NLL of every method against a setting, mean and standard deviation over seeds."""
    groups = by_value(results, key)
    labels = [str(value) for (value,) in groups]
    for index, method in enumerate(methods_of(results)):
        scores = [[run["measured"][method]["nll"] for run in runs] for runs in groups.values()]
        means, deviations = zip(*(spread(values) for values in scores), strict=True)
        axes.errorbar(labels, means, deviations, capsize=2, markersize=4, **_look(index, method))
    axes.set_ylabel("test NLL")


def _log(axes: Axes, which: Literal["x", "y"]) -> None:
    """A logarithmic scale with plain numbers: mathematical text is not drawn."""
    if which == "x":
        axes.set_xscale("log")
    else:
        axes.set_yscale("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _look(index: int, label: str) -> dict[str, Any]:
    return {
        "color": PALETTE[index % len(PALETTE)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": "-" if index < len(PALETTE) else "--",
        "label": label,
    }


def _with_legend(figure: Figure, axes: Axes) -> Figure:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(2, int(figure.get_figwidth() / 1.7)))
    return figure
