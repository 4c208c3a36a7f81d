"""What a figure shows, in numbers: all of them as comma-separated values, and a short table for the page."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dswag.lab.baselines import METHODS
from dswag.lab.report.over_seeds import paired_difference, with_error
from dswag.lab.report.reproduced import Result, best_first, by_skew, by_value, methods_of, partition_label, spread

REFERENCE = "phase-1"


@dataclass(frozen=True)
class Score:
    """What is told of a method in each run; None where a run lacks it."""

    name: str
    value: Callable[[Mapping[str, Any]], float | None]
    digits: int = 4


def _plain(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda measured: measured.get(name)


def _outside(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda measured: measured["outside"]["entropy"][name] if "outside" in measured else None


def _cost(name: str, factor: float = 1.0) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda measured: factor * measured["cost"][name] if "cost" in measured else None


def _corrupted(measured: Mapping[str, Any]) -> float | None:
    """Mean NLL over all corruptions and strengths."""
    if "shift" not in measured:
        return None
    values = [each["nll"] for strengths in measured["shift"].values() for each in strengths]
    return float(sum(values) / len(values))


SCORES = (
    Score("accuracy", _plain("accuracy")),
    Score("NLL", _plain("nll")),
    Score("NLL with a temperature", _plain("calibrated_nll")),
    Score("ECE", _plain("ece_equal_mass")),
    Score("ECE, equal width", _plain("ece_equal_width")),
    Score("Brier", _plain("brier")),
    Score("AUROC, OOD", _outside("auroc"), 3),
    Score("FPR95, OOD", _outside("fpr95"), 3),
    Score("NLL, corrupted", _corrupted, 3),
    Score("seconds", _cost("seconds"), 0),
    Score("MB sent", _cost("bytes", 1e-6), 0),
)
SHORT = ("accuracy", "NLL", "NLL with a temperature", "ECE", "AUROC, OOD", "NLL, corrupted", "MB sent")
"""Those that the page shows."""


def short_table(runs: Sequence[Result]) -> str:
    """Markdown with a row a method, the lowest NLL first; workers in front where their number varies."""
    groups = by_value(runs, "clients")
    several = len(groups) > 1
    shown = [score for score in SCORES if score.name in SHORT]
    rows = [
        [str(clients)] * several + [_marked(method), *(_told(group, method, score) for score in shown)]
        for (clients,), group in groups.items()
        for method in best_first(group)
    ]
    return markdown_table(["W"] * several + ["method", *(score.name for score in shown)], rows)


def comma_separated(name: str, runs: Sequence[Result]) -> str:
    """All numbers of a figure, a line for each setting and method, direction or eigenvector; empty without any."""
    header, *rows = {"fig4": _eigenvalues, "fig5-left": _rounds, "fig6": _distances}.get(name, _methods)(runs)
    return _written([header, *rows])


def claims_table(rows: Sequence[Sequence[str]]) -> str:
    """The claims with the numbers that they were judged on, as comma-separated values."""
    return _written([("subject", "claim", "in the paper", "here", "verdict", "numbers"), *rows])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells hold no line breaks; empty without rows."""
    if not rows:
        return ""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '¦') for cell in line)} |" for line in lines)


def _written(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _marked(method: str) -> str:
    pools = method in METHODS and METHODS[method].pools_data
    return f"{method} *" if pools else method


def _values(runs: Sequence[Result], method: str, score: Score) -> list[float]:
    """Over the seeds; none where a run lacks the value."""
    found = [score.value(run["measured"][method]) for run in runs if method in run["measured"]]
    there = [value for value in found if value is not None]
    return there if len(there) == len(found) else []


def _told(runs: Sequence[Result], method: str, score: Score) -> str:
    values = _values(runs, method, score)
    if not values:
        return "–"
    return with_error(values, score.digits) if score.digits else f"{float(spread(values)[0]):,.0f}"


def _methods(runs: Sequence[Result]) -> list[list[object]]:
    """Means and standard deviations over the seeds, and the differences in NLL with their 95 % intervals."""
    header: list[object] = ["workers", "epochs of phase 2", "partition", "method", "seeds"]
    for score in SCORES:
        header += [score.name, f"{score.name} (sd)"]
    for what in ("phase-1, over seeds", "phase-1, over examples", "fedavg, over examples"):
        header += [f"NLL less {what}", "low", "high"]
    rows = [header]
    for group in _alike(runs):
        config = group[0]["config"]
        for method in methods_of(group):
            seeds = len({run["config"]["seed"] for run in group if method in run["measured"]})
            row = [config["clients"], config["explore_epochs"], partition_label(group[0]), method, seeds]
            for score in SCORES:
                values = _values(group, method, score)
                mean, deviation = map(float, spread(values)) if values else (None, None)
                row += [_number(mean), _number(deviation if len(values) > 1 else None)]
            row += [*_over_seeds(group, method), *_over_examples(group, method, "nll_difference")]
            rows.append([*row, *_over_examples(group, method, "nll_difference_to_rival")])
    return rows


def _alike(runs: Sequence[Result]) -> list[list[Result]]:
    """The runs that differ in nothing but their seed and their methods, from the fewest workers and least skew on."""
    return [
        of_partition
        for _, group in sorted(by_value(runs, "clients", "explore_epochs").items())
        for of_partition in by_skew(group).values()
    ]


def _over_seeds(runs: Sequence[Result], method: str) -> list[object]:
    """Difference in NLL to the reference of the same seed, whichever file holds it, with its t interval."""
    values, reference = (
        {run["config"]["seed"]: run["measured"][name]["nll"] for run in runs if name in run["measured"]}
        for name in (method, REFERENCE)
    )
    if method == REFERENCE or not set(values) & set(reference):
        return ["", "", ""]
    mean, half = paired_difference(values, reference)
    return [_number(mean), *((_number(mean - half), _number(mean + half)) if half is not None else ("", ""))]


def _over_examples(runs: Sequence[Result], method: str, key: str) -> list[object]:
    """The bootstrap interval of the lowest seed, where both were measured on the same examples."""
    together = [run for run in runs if key in run["measured"].get(method, {})]
    if not together:
        return ["", "", ""]
    found = min(together, key=lambda run: run["config"]["seed"])["measured"][method][key]
    return [_number(found[name]) for name in ("estimate", "low", "high")]


def _rounds(runs: Sequence[Result]) -> list[list[object]]:
    rows: list[list[object]] = [["model", "workers", "seed", "rounds", "best test accuracy", "last test accuracy"]]
    for run in runs:
        config, rounds = run["config"], run["measured"]["rounds"]
        accuracies = [each["test_accuracy"] for each in rounds if each["test_accuracy"] is not None]
        ends = [_number(accuracy) for accuracy in (max(accuracies), accuracies[-1])] if accuracies else ["", ""]
        rows.append([config["model"], config["clients"], config["seed"], len(rounds), *ends])
    return rows


def _distances(runs: Sequence[Result]) -> list[list[object]]:
    rows: list[list[object]] = [["workers", "direction", "standard deviations", "accuracy", "accuracy (sd)", "NLL"]]
    for (clients,), group in by_value(runs, "clients").items():
        for kind in group[0]["measured"]["directions"]:
            accuracy, nll = (
                spread([run["measured"]["directions"][kind][score] for run in group]) for score in ("accuracy", "nll")
            )
            for number, at in enumerate(group[0]["measured"]["at"]):
                values = (accuracy[0][number], accuracy[1][number], nll[0][number])
                rows.append([clients, kind, at, *(_number(float(value)) for value in values)])
    return rows


def _eigenvalues(runs: Sequence[Result]) -> list[list[object]]:
    rows: list[list[object]] = [["workers", "seed", "eigenvector", "share of the variance"]]
    for run in runs:
        for number, value in enumerate(run["measured"]["eigenvalues"], 1):
            share = _number(value / run["measured"]["total_variance"])
            rows.append([run["config"]["clients"], run["config"]["seed"], number, share])
    return rows


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
