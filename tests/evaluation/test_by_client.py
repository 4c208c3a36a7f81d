"""Scores of clients are those of their rows; quantiles run from the worst client to the best."""

import pytest
import torch

from dswag.evaluation.by_client import by_client, quantiles
from dswag.evaluation.metrics import score


def test_each_client_is_scored_on_its_own_rows():
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(60, 3, generator=generator).softmax(1)
    y = torch.randint(3, (60,), generator=generator)
    parts = [torch.arange(0, 40), torch.empty(0, dtype=torch.int64), torch.arange(40, 60)]
    found = by_client(p, y, parts)
    assert [client.client for client in found] == [0, 2]
    for client in found:
        own = score(p[parts[client.client]], y[parts[client.client]])
        assert (client.accuracy, client.nll, client.ece) == (own.accuracy, own.nll, own.ece_equal_mass)
        assert client.num_examples == own.num_examples
    values = sorted(client.nll for client in found)
    worst, *_, best = quantiles(found, "nll")
    assert (worst, best) == pytest.approx((values[1], values[0]))
    assert quantiles(found, "accuracy")[0] == pytest.approx(min(client.accuracy for client in found))
