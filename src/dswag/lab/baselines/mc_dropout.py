"""Dropout kept on at test time (Gal & Ghahramani 2016)."""

from copy import deepcopy
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dswag.algorithms.server_update import Server
from dswag.core.parameters import Layout
from dswag.core.randomness import generator_for
from dswag.lab.baselines.method import Method, Predictor, Trial
from dswag.lab.baselines.phases import further, last_round

PROBABILITY = 0.2
"""With which a unit is dropped; not tuned."""


def with_dropout(model: nn.Module, probability: float) -> nn.Module:
    """A copy of the model with dropout before every linear layer but one that reads the inputs themselves.

    Its parameters are those of the model, in the same order.

    Raises:
        ValueError: a model that has no such layer.
    """
    copy = deepcopy(model)
    names = dropped(copy)
    if not names:
        raise ValueError("mc-dropout needs a linear layer that another layer with weights comes before")
    for name in names:
        parent, _, child = name.rpartition(".")
        layer = copy.get_submodule(name)
        setattr(copy.get_submodule(parent), child, nn.Sequential(nn.Dropout(probability), layer))
    return copy


def dropped(model: nn.Module) -> list[str]:
    """The linear layers whose inputs are dropped: all that come after another layer with weights."""
    with_weights = [(name, m) for name, m in model.named_modules() if list(m.parameters(recurse=False))]
    return [name for name, module in with_weights[1:] if isinstance(module, nn.Linear)]


def thinned(
    model: nn.Module, theta: Float[Tensor, "d"], n: int, *, seed: int, probability: float
) -> Float[Tensor, "n d"]:
    """Draws from the distribution over weights that dropout stands for: θ with columns of its matrices set to 0.

    Dropping unit j before a linear layer and scaling the others by 1 / (1 - p) is the same as doing so to column j of
    its matrix (there, equation 8); every draw drops the same units for all inputs.
    """
    layout = Layout.of(model)
    thetas = theta.repeat(n, 1)
    for number, draw in enumerate(thetas):
        generator = generator_for(seed, number)
        views = layout.views(draw)
        for name in dropped(model):
            matrix = views[f"{name}.weight"]
            kept = torch.rand(matrix.shape[1], generator=generator) >= probability
            matrix.mul_(kept.to(matrix.dtype).to(matrix.device) / (1 - probability))
    return thetas


def run(trial: Trial, probability: float = PROBABILITY) -> Predictor:
    """Trains with dropout in rounds, and averages over thinned networks."""
    engine = trial.engine(with_dropout(trial.model, probability))
    first = last_round(engine, Server(trial.theta), trial.config)
    theta = last_round(engine, Server(first, trial.config.train.rounds), further(trial.config))
    draw = partial(thinned, trial.model, theta, trial.config.predict.samples, seed=trial.prediction_seed)
    return trial.from_weights(draw(probability=probability))


MC_DROPOUT = Method("mc-dropout", "dropout kept on at test time (Gal & Ghahramani 2016)", run)
