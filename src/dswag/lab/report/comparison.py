"""The page over a comparison of methods: one table, and a picture of what is compared first of all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from dswag.lab.report.page import TEMPLATES, setting_text
from dswag.lab.report.plots import points_by_method


@dataclass(frozen=True)
class Column:
    """What methods are compared in."""

    title: str
    better: Literal["higher", "lower"] | None = None
    plotted: bool = False
    cost: bool = False
    """Whether it is of what a method spends, and stands in a table of its own."""


@dataclass(frozen=True)
class Cell:
    """A method's value in a column."""

    text: str
    mean: float
    std: float | None = None
    contends: bool = True
    """Whether it may be the best of its column; not where it leaves out what the others count."""


def render_comparison(
    title: str,
    columns: Sequence[Column],
    rows: Mapping[str, Sequence[Cell]],
    *,
    described: Mapping[str, str],
    answer: str = "",
    notes: Sequence[str] = (),
    settings: Mapping[str, object] | None = None,
) -> str:
    """One HTML page that needs no other file and no network.

    Args:
        title: what was compared.
        columns: in the order in which they are shown.
        rows: for each method, a cell for every column.
        described: what each method is.
        answer: what the page says first.
        notes: sentences that the reader must know to judge the numbers.
        settings: of the run.

    Raises:
        ValueError: no method, or one with too few or too many cells.
    """
    wrong = [name for name, cells in rows.items() if len(cells) != len(columns)]
    if wrong or not rows:
        raise ValueError(f"a comparison needs methods with {len(columns)} cells each, got {wrong or 'none'}")
    best = [_best(column, [cells[index] for cells in rows.values()]) for index, column in enumerate(columns)]
    plotted = {
        column.title: {name: (cells[index].mean, cells[index].std) for name, cells in rows.items()}
        for index, column in enumerate(columns)
        if column.plotted
    }
    marked = {
        name: [(cell.text, cell.contends and cell.mean == mean) for cell, mean in zip(cells, best, strict=True)]
        for name, cells in rows.items()
    }
    tables = [
        (
            caption,
            [column for column in columns if column.cost == cost],
            {
                name: [cell for cell, column in zip(cells, columns, strict=True) if column.cost == cost]
                for name, cells in marked.items()
            },
        )
        for caption, cost in (("How good predictions are", False), ("What that costs", True))
    ]
    several = any(cell.std is not None for cells in rows.values() for cell in cells)
    return TEMPLATES.get_template("comparison.html.j2").render(
        heading=title,
        sections=[],
        tables=[table for table in tables if table[1]],
        answer=answer,
        several=several,
        any_best=any(mean is not None for mean in best),
        described=described,
        notes=notes,
        settings={name.replace("_", " "): setting_text(value) for name, value in (settings or {}).items()},
        picture=Markup(points_by_method(plotted)) if plotted else "",
    )


def _best(column: Column, cells: Sequence[Cell]) -> float | None:
    """The best mean; None where no value is better than another, or a single method contends."""
    means = [cell.mean for cell in cells if cell.contends]
    if column.better is None or len(means) < 2:
        return None
    return max(means) if column.better == "higher" else min(means)
