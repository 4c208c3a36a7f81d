"""Figures 4 to 6: what is measured along rounds, confidence, and ways through the space of weights."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from dswag.lab.report.axes import log_scale, look, with_legend
from dswag.lab.report.reproduced import Result, by_value, methods_of, spread
from dswag.lab.report.svg import INK


def progress(results: Sequence[Result]) -> Figure:
    """Test accuracy of phase 1 against rounds, gradient steps and bytes; a row a model, a line a run."""
    models = by_value(results, "model")
    figure = Figure(figsize=(9.6, 0.8 + 2.9 * len(models)))
    panels = figure.subplots(len(models), 3, sharex="col", sharey="row", squeeze=False)
    workers = sorted({result["config"]["clients"] for result in results})
    for row, ((model,), runs) in zip(panels, models.items(), strict=True):
        best = 0.0
        for run in runs:
            clients, rounds = run["config"]["clients"], run["measured"]["rounds"]
            accuracy = np.asarray([each["test_accuracy"] for each in rounds], dtype=float)  # nan where it is None
            best = max([best, *accuracy[np.isfinite(accuracy)]])
            count = np.arange(1, len(rounds) + 1)
            megabytes = np.cumsum([each["bytes"] for each in rounds]) / 1e6
            drawn = {**look(workers.index(clients), f"W = {clients}"), "marker": "", "linewidth": 1.2, "alpha": 0.85}
            for axes, x in zip(row, (count, count * run["measured"]["steps_per_round"], megabytes), strict=True):
                axes.plot(x, accuracy, **drawn)
        row[0].set_ylabel(f"test accuracy, {model.upper()}")
        row[0].set_ylim(best - 0.06, best + 0.004)
        log_scale(row[1], "x")
        log_scale(row[2], "x")
    for axes, name in zip(
        panels[-1], ("global round", "gradient steps of a client", "megabytes, both ways"), strict=True
    ):
        axes.set_xlabel(name)
    return with_legend(figure)


def reliability(results: Sequence[Result], methods: Sequence[str] = ()) -> Figure:
    """Confidence less accuracy of each method, a panel each; bands of the lowest seed."""
    names = methods or methods_of(results)
    figure = Figure(figsize=(4.8 * len(names), 3.9))
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, method in zip(panels, names, strict=True):
        having = [run for run in results if method in run["measured"]]
        for index, ((clients,), runs) in enumerate(by_value(having, "clients").items()):
            lowest = min(runs, key=lambda run: run["config"]["seed"])
            drawn, band = look(index, f"W = {clients}"), lowest["measured"][method]["band"]
            confidence, accuracy = (np.asarray(band["curve"][key]) for key in ("confidence", "accuracy"))
            nines = -np.log10(np.clip(1 - confidence, 1e-4, 1))
            axes.plot(nines, confidence - accuracy, markersize=3, **drawn)
            axes.fill_between(nines, band["low"], band["high"], color=drawn["color"], alpha=0.12, linewidth=0)
        axes.axhline(0, color=INK, linewidth=1)
        axes.set_title(method, fontsize=10)
        ticks = (0.5, 0.9, 0.99, 0.999, 0.9999)
        axes.set_xticks(-np.log10(1 - np.asarray(ticks)), [f"{tick:g}" for tick in ticks])
        axes.set_xlabel("confidence")
    panels[0].set_ylabel("confidence − accuracy\n(above 0: overconfident)")
    return with_legend(figure)


def distance(results: Sequence[Result]) -> Figure:
    """Accuracy and NLL against the distance from the mean in standard deviations, a column a kind of direction."""
    kinds = list(dict.fromkeys(kind for result in results for kind in result["measured"]["directions"]))
    figure = Figure(figsize=(2.6 * len(kinds), 5.2))
    panels = figure.subplots(2, len(kinds), sharex=True, sharey="row", squeeze=False)
    for column, kind in enumerate(kinds):
        for index, ((clients,), runs) in enumerate(by_value(results, "clients").items()):
            drawn, at = look(index, f"W = {clients}"), runs[0]["measured"]["at"]
            for axes, score in zip(panels[:, column], ("accuracy", "nll"), strict=True):
                lines = [r["measured"]["directions"][kind][score] for r in runs if kind in r["measured"]["directions"]]
                if lines:
                    mean, deviation = spread(lines)
                    low = np.maximum(mean - deviation, mean.min() / 2)  # a logarithmic scale has no zero
                    axes.plot(at, mean, markersize=3, **drawn)
                    axes.fill_between(at, low, mean + deviation, color=drawn["color"], alpha=0.15, linewidth=0)
        panels[0, column].set_title(kind, fontsize=10)
        panels[1, column].set_xlabel("standard deviations")
        log_scale(panels[1, column], "y")
    panels[0, 0].set_ylabel("test accuracy")
    panels[1, 0].set_ylabel("NLL")
    return with_legend(figure)


def surroundings(results: Sequence[Result]) -> Figure:
    """Loss along the eigenvectors, and the planes of two of them with the density's contours; a row a run."""
    figure = Figure(figsize=(11.4, 3.6 * len(results)))
    panels = figure.subplots(len(results), 4, squeeze=False)
    for row, result in zip(panels, results, strict=True):
        measured = result["measured"]
        for axes, part in zip(row[:2], measured["lines"], strict=True):
            for index, line in enumerate(measured["lines"][part]):
                axes.plot(measured["at"], line, markersize=2.5, **look(index, f"eigenvector {index + 1}"))
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
    return with_legend(figure)
