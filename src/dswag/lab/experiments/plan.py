"""What a figure or table of the paper is measured on: the TOML files beside this module."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import product
from typing import Any

from dswag.config import PAPER
from dswag.lab.experiments.recipe import Recipe

NAMES = ("fig4", "fig5-left", "fig5-right", "fig6", "fig7", "fig8", "table-mnist", "table-cifar10")
"""Every figure and table, in the order in which they are shown."""


@dataclass(frozen=True)
class Case:
    """One run that is measured."""

    settings: Mapping[str, Any]
    """In what it differs from the other cases."""
    recipe: Recipe
    options: Mapping[str, Any]
    """Of the measure."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Of its name, such as "clients-10"."""
        return tuple(f"{name}-{value}" for name, value in self.settings.items())

    @property
    def name(self) -> str:
        """Of its file, such as "clients-10_seed-0"."""
        return "_".join(self.parts)


@dataclass(frozen=True)
class Plan:
    """The runs of one figure or table, and what is measured on each."""

    name: str
    title: str
    """What is shown, as a heading."""
    measure: str
    """By its name in `measurements.MEASURES`."""
    seconds: float
    """What a case takes on two cores, its training included."""
    cases: tuple[Case, ...]
    results_version: int = 1
    """What was measured by an older version (`provenance.RESULTS_VERSION`) is measured again."""


def load(name: str, *, quick: bool = False, dataset: str | None = None, budget: str | None = None) -> Plan:
    """The plan of a figure or table.

    Args:
        name: one of `NAMES`.
        quick: a few short runs on a small data set instead, for a minute.
        dataset: the same runs on another data set than the plan's; or, where the plan has a table of that name, those
            of the plan that it says the data set's runs are `like`.
        budget: the runs of this budget, where the plan has several; its own if None.

    Raises:
        ValueError: an unknown name, or a budget that the plan does not have.
        ConfigError: settings that cannot be.
    """
    if name not in NAMES:
        raise ValueError(f"there is no {name!r} to reproduce: choose one of {', '.join(NAMES)}, or all")
    table, other = _table(name), {}
    if budget is not None and budget not in table.get("budgets", {}):
        raise ValueError(f"{name} has no budget {budget!r}: {_budgets_known()}")
    if dataset is not None and dataset not in table:
        other = {"dataset": dataset}
    elif dataset is not None:
        like = _table(table[dataset]["like"])
        table |= {part: like[part] for part in ("settings", "cases", "seconds")}
    small = table["quick"] if quick else _budget(table["budgets"], budget) if budget else {}
    shared = {**table["settings"], **small.get("settings", {}), **other}
    options = {**table.get("options", {}), **small.get("options", {})}
    return Plan(
        name=name,
        title=table["title"],
        measure=table["measure"],
        seconds=small.get("seconds", table["seconds"]),
        results_version=table.get("results_version", 1),
        cases=tuple(
            _case(settings, shared, options, source=f"{name}.toml")
            for settings in _expanded(small.get("cases", table["cases"]))
        ),
    )


def _budget(budgets: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The table of a budget, with what it leaves as in the one that it is `like`."""
    own = budgets[name]
    other = budgets.get(own.get("like"), {})
    shared = {part: {**other.get(part, {}), **own.get(part, {})} for part in ("settings", "options")}
    return {**other, **own, **shared}


def _budgets_known() -> str:
    named = {name: ", ".join(_table(name).get("budgets", ())) for name in NAMES}
    return "; ".join(f"{name} has {budgets}" for name, budgets in named.items() if budgets)


def _table(name: str) -> dict[str, Any]:
    file = resources.files("dswag.lab.experiments").joinpath(f"{name}.toml")
    return tomllib.loads(file.read_text(encoding="utf-8"))


def _case(settings: Mapping[str, Any], shared: Mapping[str, Any], options: Mapping[str, Any], *, source: str) -> Case:
    """A case whose settings are those of its recipe, and perhaps the group of methods that it is about."""
    own = {name: value for name, value in settings.items() if name != "group"}
    groups = options.get("groups", {})
    chosen = {"methods": groups[settings["group"]]} if "group" in settings else {}
    rest = {name: value for name, value in options.items() if name != "groups"}
    return Case(settings, Recipe.checked({**PAPER, **shared, **own}, source=source), {**rest, **chosen})


def _expanded(tables: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of the values that a table lists."""
    for table in tables:
        listed = [value if isinstance(value, list) else [value] for value in table.values()]
        for values in product(*listed):
            yield dict(zip(table, values, strict=True))
