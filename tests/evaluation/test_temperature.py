"""Tempering is softmax of scaled log-probabilities, and leaves the order of the classes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dswag.evaluation.temperature import temper
from dswag.randomness import generator_for


@given(seed=st.integers(0, 99), temperature=st.floats(0.2, 5))
def test_tempering_is_scaling_of_logits(seed, temperature):
    logits = 3 * torch.randn(7, 4, generator=generator_for(seed), dtype=torch.float64)
    torch.testing.assert_close(temper(logits.softmax(1), temperature), (logits / temperature).softmax(1))


def test_temperature_one_changes_no_bit():
    probabilities = torch.rand(5, 3, generator=generator_for(0)).softmax(1)
    assert torch.equal(temper(probabilities, 1.0), probabilities)


@pytest.mark.parametrize("temperature", [0.1, 10.0])
def test_certainty_stays_finite(temperature):
    tempered = temper(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), temperature)
    assert torch.isfinite(tempered).all()
    assert tempered.argmax(1).tolist() == [0, 1]
