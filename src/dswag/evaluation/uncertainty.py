"""How uncertain predictions are where they are right, where they are wrong, and on inputs that are none of the kind."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from dswag.evaluation.out_of_distribution import Uncertain, auroc

SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of inputs that are at most as uncertain as each of the quantiles."""

RIGHT, WRONG, FOREIGN = "right", "wrong", "foreign"


@dataclass(frozen=True)
class Quantiles:
    """Of the two uncertainties over a group of inputs, in nats, at `SHARES`."""

    num_inputs: int
    entropy: tuple[float, ...]
    """Of the mean probabilities: all uncertainty."""
    mutual_information: tuple[float, ...]
    """How much the draws disagree: the part that is the model's own."""


@dataclass(frozen=True)
class Uncertainty:
    """The uncertainties of groups of inputs, and how well they tell the groups apart."""

    groups: Mapping[str, Quantiles]
    """Of test inputs predicted right and wrong, and of foreign inputs; those without inputs are left out."""
    auroc: Mapping[str, Mapping[str, float]]
    """Of "entropy" and "mutual information", how well each tells "wrong" from right and "foreign" from test inputs:
    areas under the ROC curve."""


def uncertainty(predicted: Uncertain, targets: Int[Tensor, "n"], foreign: Uncertain) -> Uncertainty:
    """The uncertainties of predictions for test inputs with these targets, and for foreign ones.

    Raises:
        ValueError: no inputs.
    """
    right = predicted.probabilities.argmax(1).cpu() == targets.cpu()
    test, other = _of(predicted), _of(foreign)
    groups = {
        RIGHT: {name: values[right] for name, values in test.items()},
        WRONG: {name: values[~right] for name, values in test.items()},
        FOREIGN: other,
    }
    found: dict[str, dict[str, float]] = {}
    for name in test:
        tells = {FOREIGN: auroc(test[name], other[name])}
        if bool(right.any()) and not bool(right.all()):
            tells[WRONG] = auroc(groups[RIGHT][name], groups[WRONG][name])
        found[name] = tells
    return Uncertainty(
        groups={name: _quantiles(values) for name, values in groups.items() if len(values["entropy"])}, auroc=found
    )


def _of(predicted: Uncertain) -> dict[str, Tensor]:
    return {
        "entropy": predicted.entropy.double().cpu(),
        "mutual information": predicted.mutual_information.double().cpu(),
    }


def _quantiles(values: Mapping[str, Tensor]) -> Quantiles:
    at = torch.tensor(SHARES, dtype=torch.float64)
    entropy, information = (tuple(each.quantile(at).tolist()) for each in values.values())
    return Quantiles(len(values["entropy"]), entropy, information)
