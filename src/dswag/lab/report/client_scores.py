"""What the page says of how each client fares: scores by client, and how often its conformal sets cover."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dswag.evaluation.by_client import ClientScores, quantiles
from dswag.lab.report.svg import INK, MARKERS, PALETTE, style, to_svg
from dswag.runs.schema import ConformalSets

_SCORES = {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE"}
_TITLES = ("Worst", "Median", "Best")


def client_scores_section(scores: Mapping[str, Sequence[ClientScores]], number: int) -> dict[str, object]:
    """A picture of the clients, and the quantiles of each score over them, by method.

    Args:
        scores: by method, of the same clients.
        number: of the run on the page.
    """
    return {
        "figure": Markup(clients_chart(scores, number)),
        "titles": _TITLES,
        "rows": {
            f"{said}, {method}": [
                f"{100 * value:.1f} %" if score == "accuracy" else f"{value:.3f}"
                for value in quantiles(clients, score)[::2]
            ]
            for score, said in _SCORES.items()
            for method, clients in scores.items()
        },
    }


def clients_chart(scores: Mapping[str, Sequence[ClientScores]], number: int = 0) -> str:
    """SVG of accuracy and NLL of every client, from the worst NLL of the last method to its best.

    Raises:
        ValueError: methods of different clients, or none.
    """
    clients = {tuple(each.client for each in group) for group in scores.values()}
    if len(clients) != 1:
        raise ValueError(f"a chart needs methods of the same clients, got {len(clients)} kinds")
    *_, method = scores
    order = sorted(range(len(scores[method])), key=lambda i: -scores[method][i].nll)
    with style(f"scores of clients {number} {scores}"):
        figure = Figure(figsize=(4.8, 4.4))
        panels = figure.subplots(2, 1, sharex=True)
        for axes, score in zip(panels, ("nll", "accuracy"), strict=True):
            for index, (name, group) in enumerate(scores.items()):
                values = [getattr(group[i], score) for i in order]
                _points(axes, values, index, name)
            axes.set_ylabel(_SCORES[score])
        panels[1].set_xlabel(f"clients, from the highest NLL of {method} to the lowest")
        panels[1].set_xticks([])
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
        said = "; ".join(
            f"{name}: NLL from {min(c.nll for c in group):.3g} to {max(c.nll for c in group):.3g}"
            for name, group in scores.items()
        )
        return to_svg(figure, f"Scores of {len(order)} clients on their own test examples. {said}.")


def sets_section(sets: ConformalSets, number: int) -> dict[str, object]:
    """Pictures of how large sets are and how often they cover, by client and class, and what that says."""
    total = sum(sets.sizes)
    mean = sum(size * count for size, count in enumerate(sets.sizes)) / total
    held_out = sum(count for _, count in sets.counts)
    clients = [share for share in sets.clients if share is not None]
    spread = (
        f" From client to client that is {100 * min(clients):.0f} to {100 * max(clients):.0f} %." if clients else ""
    )
    return {
        "words": (
            f"Sets of classes that should hold the right one for {100 * (1 - sets.alpha):.0f} % of the examples, from "
            f"{held_out:,} examples that the clients held out, hold it for {100 * sets.coverage:.1f} % of the test "
            f"examples, with {mean:.2f} classes on average.{spread}"
        ),
        "figure": Markup(coverage_chart(sets, number)),
    }


def coverage_chart(sets: ConformalSets, number: int = 0) -> str:
    """SVG of the sizes of sets, and of the share of sets that hold the right class, by class and by client."""
    with style(f"sets {number} {sets}"):
        figure = Figure(figsize=(4.8, 5.6))
        sizes, by_class, by_client = figure.subplots(3, 1)
        last = max(size for size, count in enumerate(sets.sizes) if count)
        shares = [100 * count / sum(sets.sizes) for count in sets.sizes[1 : last + 1]]
        sizes.bar(range(1, last + 1), shares, color=PALETTE[0])
        sizes.set_xlabel("classes in a set")
        sizes.set_ylabel("% of examples")
        sizes.set_xticks(range(1, last + 1))
        goal = 100 * (1 - sets.alpha)
        named = [(name, 100 * share) for name, share in sets.classes.items() if share is not None]
        clients = sorted(100 * share for share in sets.clients if share is not None)
        for axes, values, what in (
            (by_class, [share for _, share in named], "classes"),
            (by_client, clients, "clients, from the lowest coverage to the highest"),
        ):
            axes.axhline(goal, color=INK, linewidth=1, zorder=1)
            _points(axes, values, 0, "")
            axes.set_xlabel(what)
            axes.set_ylabel("coverage (%)")
            axes.set_xticks([])
        if len(named) <= 20:
            by_class.set_xticks(range(len(named)), [name if len(name) <= 6 else f"{name[:5]}…" for name, _ in named])
        said = ", ".join(f"{name} {share:.0f} %" for name, share in named)
        return to_svg(figure, f"Conformal sets: {100 * sets.coverage:.1f} % cover; by class: {said}.")


def _points(axes: Axes, values: Sequence[float], index: int, name: str) -> None:
    marker, color = MARKERS[index % len(MARKERS)], PALETTE[index % len(PALETTE)]
    axes.plot(range(len(values)), values, color=color, marker=marker, markersize=4, linestyle="none", label=name)
