"""The table of docs/when.md: what a user gets from each way to probabilities, and what it costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dswag.lab.report.over_seeds import with_error
from dswag.lab.report.reproduced import Result
from dswag.lab.report.result_tables import markdown_table


@dataclass(frozen=True)
class Choice:
    """A way to probabilities."""

    name: str
    method: str
    """Whose results these are."""
    keeps: str
    """What has to be kept to predict, in sets of weights."""
    passes: str
    """Forward passes for an input."""
    score: str = "nll"
    """Which of its scores is the NLL."""


CHOICES = (
    Choice("FedAvg alone", "fedavg", "1", "1"),
    Choice("FedAvg, and a temperature", "fedavg", "1", "1", "calibrated_nll"),
    Choice("the posterior's mean", "dswag-mean", "1", "1"),
    Choice("DSWAG", "dswag", "2 + K", "S"),
    Choice("DSWAG, calibrated on the clients", "dswag-calibrated", "2 + K", "S"),
    Choice("the ensemble of the explorers' snapshots", "ensemble", "one each", "one each"),
    Choice("MC dropout", "mc-dropout", "1", "S"),
    Choice("last-layer Laplace", "laplace", "1, and a matrix", "1, and S last layers"),
    Choice("SWAG on pooled data *", "swag", "2 + K", "S"),
)
"""In the order in which they are shown."""


def choices_table(runs: Sequence[Result]) -> str:
    """Markdown, from the results of `table-mnist`: means over the seeds."""
    rows = []
    for choice in CHOICES:
        measured = [run["measured"][choice.method] for run in runs if choice.method in run["measured"]]
        if not measured:
            continue
        tempered = choice.score != "nll"
        rows.append(
            [
                choice.name,
                f"{_mean(measured, 'cost', 'steps'):,.0f}",
                f"{_mean(measured, 'cost', 'bytes') / 1e6:,.0f}",
                choice.keeps,
                choice.passes,
                with_error([each[choice.score] for each in measured]),
                "–" if tempered else with_error([each["ece_equal_mass"] for each in measured]),
                "–" if tempered else with_error([each["outside"]["entropy"]["auroc"] for each in measured], 3),
            ]
        )
    header = ["way", "steps in a row", "MB sent", "weights kept", "passes to predict", "NLL", "ECE", "AUROC"]
    return markdown_table(header, rows)


def _mean(measured: Sequence[Mapping[str, Any]], *path: str) -> float:
    values = []
    for each in measured:
        value: Any = each
        for name in path:
            value = value[name]
        values.append(float(value))
    return sum(values) / len(values)
