"""Uncertainties of right, wrong and foreign predictions against numbers that are known."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from dswag.evaluation.uncertainty import uncertainty


@dataclass
class Predicted:
    """What uncertainty is asked of."""

    probabilities: Tensor
    entropy: Tensor
    mutual_information: Tensor


def predicted(labels, entropy):
    """Two classes; the mutual information is a tenth of the entropy."""
    rows = torch.nn.functional.one_hot(torch.tensor(labels), 2).float()
    values = torch.tensor(entropy)
    return Predicted(rows, values, values / 10)


def test_groups_have_their_quantiles_and_are_told_apart():
    found = uncertainty(
        predicted([0, 1, 0, 1, 0], [0.0, 0.1, 0.2, 0.3, 0.5]),
        torch.tensor([0, 1, 0, 0, 1]),  # the last two are wrong
        predicted([0, 0], [0.4, 0.6]),
    )
    assert {name: of.num_inputs for name, of in found.groups.items()} == {"right": 3, "wrong": 2, "foreign": 2}
    right = found.groups["right"]
    assert right.entropy == pytest.approx([0.01, 0.05, 0.1, 0.15, 0.19])  # between 0, 0.1 and 0.2, linearly
    assert right.mutual_information == pytest.approx([0.001, 0.005, 0.01, 0.015, 0.019])
    assert found.groups["wrong"].entropy[2] == pytest.approx(0.4)
    assert found.auroc["entropy"] == {"foreign": pytest.approx(0.9), "wrong": 1.0}  # one of ten pairs is reversed
    assert found.auroc["mutual information"] == found.auroc["entropy"]


def test_a_group_without_inputs_is_left_out_and_nothing_is_told_from_it():
    found = uncertainty(predicted([0, 1], [0.1, 0.2]), torch.tensor([0, 1]), predicted([0], [0.15]))
    assert list(found.groups) == ["right", "foreign"]
    assert found.auroc["entropy"] == {"foreign": 0.5}
