"""Class probabilities made softer or sharper (Guo et al. 2017, applied to averaged predictions)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dswag.core.randomness import generator_for
from dswag.evaluation.alignment import aligned
from dswag.evaluation.metrics import nll_of_each

HOTTEST = 20.0
"""Fitted temperatures lie between this and its inverse."""


def temper(
    probabilities: Float[Tensor, "n *rest"], temperature: float, axis: int | None = 1
) -> Float[Tensor, "n *rest"]:
    """softmax(ln p / T): softer for T above 1, sharper below, unchanged at 1; the order of the classes stays the same.

    A probability of 0 counts as the smallest normal number of its dtype. `axis` is that of the classes; if None, every
    probability is that of a yes-or-no label of its own.
    """
    if temperature == 1:
        return probabilities
    tiny = torch.finfo(probabilities.dtype).tiny
    if axis is None:
        return (
            (probabilities.clamp_min(tiny).log() - (1 - probabilities).clamp_min(tiny).log()) / temperature
        ).sigmoid()
    return (probabilities.clamp_min(tiny).log() / temperature).softmax(axis)


def fit_temperature(probabilities: Float[Tensor, "n c"], targets: Int[Tensor, "n"]) -> float:
    """The temperature at which the probabilities, tempered, have the lowest NLL of the targets.

    The NLL is convex in 1/T; its derivative there, mean(E[ln p] - ln p_y) with the expectation under the tempered
    probabilities, rises, so bisection finds its root.

    Raises:
        ValueError: predictions that `alignment.aligned` refuses.
    """
    probabilities, targets = aligned(probabilities, targets)
    tiny = torch.finfo(probabilities.dtype).tiny
    logs = probabilities.clamp_min(tiny).log().double()
    right = float(logs.gather(1, targets[:, None]).mean())
    low, high = -math.log(HOTTEST), math.log(HOTTEST)
    while high - low > 1e-4:
        middle = (low + high) / 2
        expected = float(((math.exp(middle) * logs).softmax(1) * logs).sum(1).mean())
        low, high = (low, middle) if expected > right else (middle, high)
    return math.exp(-(low + high) / 2)


def calibrated_nll(
    probabilities: Float[Tensor, "n c"], targets: Int[Tensor, "n"], *, seed: int = 0, splits: int = 5
) -> float:
    """The NLL after tempering with a temperature fitted on other examples, so that plain overconfidence does not count.

    Each random half of the examples gets the temperature that fits the other half; mean over several such splits
    (Ashukha et al. 2020, Section 4).

    Raises:
        ValueError: fewer than two examples.
    """
    probabilities, targets = aligned(probabilities, targets)
    n = len(targets)
    if n < 2:
        raise ValueError(f"fitting on one half and scoring the other takes at least 2 examples, got {n}")
    total = 0.0
    for split in range(splits):
        order = torch.randperm(n, generator=generator_for(seed, split))
        halves = order[: n // 2], order[n // 2 :]
        for fitted, scored in (halves, halves[::-1]):
            temperature = fit_temperature(probabilities[fitted], targets[fitted])
            total += float(nll_of_each(temper(probabilities[scored], temperature), targets[scored]).sum())
    return total / (n * splits)
