"""The tables of docs/results.md: what a figure shows, in numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dswag.lab.baselines import METHODS
from dswag.lab.report.over_seeds import paired_difference, with_error
from dswag.lab.report.reproduced import Result, best_first, by_skew, by_value, methods_of, spread

REFERENCE = "phase-1"
Column = tuple[str, Callable[[Sequence[Result], str], str]]
"""Its name, and what it tells of a method in some runs, of which at least one has it."""


@dataclass(frozen=True)
class Table:
    """A table that a section folds away, or shows at once."""

    title: str
    make: Callable[[Sequence[Result]], str]
    """Markdown from the results of a figure, at least one; empty where they have nothing to show."""
    open: bool = False


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells hold no line breaks; empty without rows."""
    if not rows:
        return ""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '¦') for cell in line)} |" for line in lines)


def _by_method(columns: Sequence[Column]) -> Callable[[Sequence[Result]], str]:
    """A row a method, the lowest NLL first; workers in front where their number varies."""

    def make(runs: Sequence[Result]) -> str:
        groups = by_value(runs, "clients")
        several = len(groups) > 1
        rows = [
            [str(clients)] * several + [_marked(method), *(told(group, method) for _, told in columns)]
            for (clients,), group in groups.items()
            for method in best_first(group)
        ]
        return markdown_table(["W"] * several + ["method", *(name for name, _ in columns)], rows)

    return make


def _marked(method: str) -> str:
    pools = method in METHODS and METHODS[method].pools_data
    return f"{method} *" if pools else method


def _measured(runs: Sequence[Result], method: str) -> list[Mapping[str, Any]]:
    return [run["measured"][method] for run in runs if method in run["measured"]]


def _score(name: str, value: Callable[[Mapping[str, Any]], float | None], digits: int = 4) -> Column:
    """A column of means and deviations; a dash where a run lacks the value."""

    def told(runs: Sequence[Result], method: str) -> str:
        values = [value(measured) for measured in _measured(runs, method)]
        there = [number for number in values if number is not None]
        return with_error(there, digits) if len(there) == len(values) else "–"

    return name, told


def _plain(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda measured: measured[name]


def _outside(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda measured: measured["outside"]["entropy"][name] if "outside" in measured else None


def _shifted(measured: Mapping[str, Any]) -> float | None:
    """Mean NLL over all corruptions and strengths."""
    if "shift" not in measured:
        return None
    values = [each["nll"] for strengths in measured["shift"].values() for each in strengths]
    return float(sum(values) / len(values))


def _least_seconds(runs: Sequence[Result], method: str) -> str:
    """Of the seeds: other work on the machine only adds."""
    return f"{min(measured['cost']['seconds'] for measured in _measured(runs, method)):,.0f}"


def _megabytes(runs: Sequence[Result], method: str) -> str:
    return f"{float(spread([measured['cost']['bytes'] / 1e6 for measured in _measured(runs, method)])[0]):,.0f}"


def _over_seeds(runs: Sequence[Result], method: str) -> str:
    """Difference in NLL to the reference of the same seed, whichever file holds it, with its t interval."""
    values, reference = (
        {run["config"]["seed"]: run["measured"][name]["nll"] for run in runs if name in run["measured"]}
        for name in (method, REFERENCE)
    )
    if method == REFERENCE or not set(values) & set(reference):
        return "–"
    mean, half = paired_difference(values, reference)
    return f"{mean:+.4f}" + ("" if half is None else f" [{mean - half:+.4f}, {mean + half:+.4f}]")


def _over_examples(runs: Sequence[Result], method: str) -> str:
    """The bootstrap interval of the lowest seed, where the method was measured together with the reference."""
    together = [run for run in runs if "nll_difference" in run["measured"].get(method, {})]
    if not together:
        return "–"
    found = min(together, key=lambda run: run["config"]["seed"])["measured"][method]["nll_difference"]
    return f"{found['estimate']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"


def _across(score: str) -> Callable[[Sequence[Result]], str]:
    """A row a setting and a column a method, the best of each row bold."""

    def make(runs: Sequence[Result]) -> str:
        names = methods_of(runs)
        rows = []
        for settings, group in _settings(runs):
            values = {n: [run["measured"][n][score] for run in group if n in run["measured"]] for n in names}
            means = {name: float(spread(each)[0]) for name, each in values.items() if each}
            best = (max if score == "accuracy" else min)(means, key=lambda name: means[name])
            cells = [with_error(values[name]) if name in means else "–" for name in names]
            rows.append([*settings, *(f"**{c}**" if n == best else c for n, c in zip(names, cells, strict=True))])
        return markdown_table([*_setting_names(runs), *names], rows)

    return make


def _differences_across(runs: Sequence[Result]) -> str:
    names = [name for name in methods_of(runs) if name != REFERENCE]
    rows = [[*settings, *(_over_examples(group, name) for name in names)] for settings, group in _settings(runs)]
    return markdown_table([*_setting_names(runs), *names], rows)


def _setting_names(runs: Sequence[Result]) -> list[str]:
    return ["W", "epochs alone", "partition"] if len(by_skew(runs)) > 1 else ["W"]


def _settings(runs: Sequence[Result]) -> list[tuple[list[str], list[Result]]]:
    """The runs that differ in nothing but their seed, from the fewest workers and the least skew on."""
    if len(by_skew(runs)) == 1:
        return [([str(clients)], group) for (clients,), group in by_value(runs, "clients").items()]
    return [
        ([str(clients), str(epochs), partition], of_partition)
        for (clients, epochs), group in sorted(by_value(runs, "clients", "explore_epochs").items())
        for partition, of_partition in by_skew(group).items()
    ]


def _distances(runs: Sequence[Result]) -> str:
    shown = [0, 1, 10, 50, 100]
    rows = []
    for (clients,), group in by_value(runs, "clients").items():
        at = group[0]["measured"]["at"]
        for kind in group[0]["measured"]["directions"]:
            lines = [run["measured"]["directions"][kind]["accuracy"] for run in group]
            rows.append([str(clients), kind, *(with_error([line[at.index(x)] for line in lines]) for x in shown)])
    return markdown_table(["W", "direction", *(f"accuracy at {x}" for x in shown)], rows)


def _eigenvalues(runs: Sequence[Result]) -> str:
    rows = []
    for run in runs:
        values, total = run["measured"]["eigenvalues"], run["measured"]["total_variance"]
        rows.append([str(run["config"]["clients"]), *(f"{value / total:.3f}" for value in values)])
    return markdown_table(["W", *(f"eigenvalue {i + 1}" for i in range(len(rows[0]) - 1))], rows)


_SCORES = (
    _score("accuracy", _plain("accuracy")),
    _score("NLL", _plain("nll")),
    _score("calibrated NLL", _plain("calibrated_nll")),
    _score("ECE", _plain("ece_equal_mass")),
    _score("ECE, equal width", _plain("ece_equal_width")),
    _score("Brier", _plain("brier")),
)
_ELSEWHERE = (
    _score("AUROC, OOD", _outside("auroc"), 3),
    _score("FPR95, OOD", _outside("fpr95"), 3),
    _score("NLL, corrupted", _shifted, 3),
    ("seconds", _least_seconds),
    ("MB sent", _megabytes),
)
_DIFFERENCES = (("over seeds [95 %]", _over_seeds), ("over test examples, lowest seed [95 %]", _over_examples))
_OF_METHODS = (
    Table("Scores on the test set", _by_method(_SCORES), open=True),
    Table("Out-of-distribution inputs, corrupted inputs, and cost", _by_method(_ELSEWHERE), open=True),
    Table(f"Difference in NLL from {REFERENCE}", _by_method(_DIFFERENCES)),
)
_ACROSS = (
    Table("NLL", _across("nll")),
    Table("ECE", _across("ece_equal_mass")),
    Table("Accuracy", _across("accuracy")),
    Table(f"Difference in NLL from {REFERENCE}, lowest seed, with 95 % interval over examples", _differences_across),
)

TABLES: Mapping[str, Sequence[Table]] = {
    "fig4": (Table("Leading eigenvalues, as shares of the trace of the covariance", _eigenvalues),),
    "fig6": (Table("Accuracy at some distances", _distances),),
    "fig7": _ACROSS,
    "fig8": _ACROSS[:3],
    "table-mnist": _OF_METHODS,
    "table-cifar10": _OF_METHODS,
}
"""The tables of each figure that has any."""
