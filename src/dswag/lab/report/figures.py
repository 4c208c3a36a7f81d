"""The paper's figures and tables as pictures, drawn from the files of results."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from matplotlib.figure import Figure

from dswag.lab.report.courses import distance, progress, reliability, surroundings
from dswag.lab.report.reproduced import Result
from dswag.lab.report.score_figures import against_skew, against_workers, compared
from dswag.lab.report.svg import standing_alone, style, to_svg


def draw(name: str, title: str, results: Sequence[Result]) -> str:
    """SVG of a figure from the results that there are, as a file of its own.

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
        runs = f"{len(results)} run{'' if len(results) == 1 else 's'}"
        return standing_alone(to_svg(figure, f"{title}: {runs}, {seeds} seed{'' if seeds == 1 else 's'}."))


def draw_reliability(name: str, title: str, results: Sequence[Result]) -> str:
    """SVG of the reliability curves that methods were measured with."""
    with style(f"{name} reliability {results}"):
        figure = reliability(
            results, [method for method in ("phase-1", "fedavg", "dswag") if _has_band(results, method)]
        )
        return standing_alone(to_svg(figure, f"{title}: reliability of some methods."))


def _has_band(results: Sequence[Result], method: str) -> bool:
    return any("band" in result["measured"].get(method, {}) for result in results)


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
