"""Predictions as rows of a table."""

import csv
import io
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from dswag.algorithms.prediction import Predictive


def as_rows(
    names: Sequence[str], predicted: Predictive, classes: Sequence[str], sets: Bool[Tensor, "n c"] | None = None
) -> list[dict[str, Any]]:
    """A row for each example: its name, its most probable class, its set if there are any, and entropies in nats."""
    found = [None] * len(names) if sets is None else sets.tolist()
    columns = zip(
        names,
        predicted.probabilities.argmax(1).tolist(),
        predicted.entropy.tolist(),
        predicted.mutual_information.tolist(),
        predicted.probabilities.tolist(),
        found,
        strict=True,
    )
    return [
        {
            "input": name,
            "class": classes[index],
            **({} if own is None else {"set": [name for name, inside in zip(classes, own, strict=True) if inside]}),
            "entropy": entropy,
            "mutual_information": information,
            "probabilities": dict(zip(classes, probabilities, strict=True)),
        }
        for name, index, entropy, information, probabilities, own in columns
    ]


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows with a column for each class."""
    text = io.StringIO()
    plain = ("input", "class", *(["set"] if "set" in rows[0] else []), "entropy", "mutual_information")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*plain, *(f"p_{name}" for name in rows[0]["probabilities"])])
    rows = [{**row, "set": " ".join(row["set"])} if "set" in row else row for row in rows]
    writer.writerows(chain((row[name] for name in plain), row["probabilities"].values()) for row in rows)
    return text.getvalue()
