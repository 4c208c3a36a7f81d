"""Scores of each client's own test examples, and how they spread over the clients."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from dswag.evaluation.alignment import aligned
from dswag.evaluation.metrics import accuracy, nll
from dswag.evaluation.reliability import expected_calibration_error

QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)


@dataclass(frozen=True)
class ClientScores:
    """Scores of one client's test examples."""

    client: int
    num_examples: int
    accuracy: float
    nll: float
    ece: float
    """In 20 bins of equal mass: with few examples mostly chance (`calibration_errors.chance_error`)."""


def by_client(
    probabilities: Float[Tensor, "n c"], targets: Int[Tensor, "n"], parts: Sequence[Int64[Tensor, "_"]]
) -> tuple[ClientScores, ...]:
    """The scores of each client that has test examples, in the order of their numbers.

    Raises:
        ValueError: predictions that `alignment.aligned` refuses, or targets that do not count, whose rows would move.
    """
    rows, labels = aligned(probabilities, targets, ignore_index=None)
    return tuple(
        ClientScores(
            client=client,
            num_examples=len(part),
            accuracy=accuracy(rows[part], labels[part]),
            nll=nll(rows[part], labels[part]),
            ece=expected_calibration_error(rows[part], labels[part]),
        )
        for client, part in enumerate(parts)
        if len(part)
    )


def quantiles(clients: Sequence[ClientScores], score: str) -> tuple[float, ...]:
    """The quantiles `QUANTILES` of a score over the clients, each client counted once, from the worst to the best."""
    values = torch.tensor([float(getattr(client, score)) for client in clients], dtype=torch.float64)
    found = values.quantile(torch.tensor(QUANTILES, dtype=torch.float64))
    return tuple((found if score == "accuracy" else found.flip(0)).tolist())
