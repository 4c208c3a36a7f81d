"""Predictions as rows of a table."""

import csv
import io
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from dswag.algorithms.prediction import Predictive


def as_rows(names: Sequence[str], predicted: Predictive, classes: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each example, with its name, its most probable class, and its entropies in nats."""
    columns = zip(
        names,
        predicted.probabilities.argmax(1).tolist(),
        predicted.entropy.tolist(),
        predicted.mutual_information.tolist(),
        predicted.probabilities.tolist(),
        strict=True,
    )
    return [
        {
            "input": name,
            "class": classes[index],
            "entropy": entropy,
            "mutual_information": information,
            "probabilities": dict(zip(classes, probabilities, strict=True)),
        }
        for name, index, entropy, information, probabilities in columns
    ]


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows with a column for each class."""
    text = io.StringIO()
    plain = ("input", "class", "entropy", "mutual_information")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*plain, *(f"p_{name}" for name in rows[0]["probabilities"])])
    writer.writerows(chain((row[name] for name in plain), row["probabilities"].values()) for row in rows)
    return text.getvalue()
