"""Mean-field variational inference by the reparametrised gradient (Graves 2011; Blundell et al. 2015)."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dswag.algorithms.server_update import Server
from dswag.client.calling import LossFunction
from dswag.lab.baselines.method import Method, Predictor, Trial
from dswag.lab.baselines.phases import further, last_round
from dswag.posterior.gaussian import GaussianPosterior

STEP = 0.005
"""How much the entropy alone raises log standard deviations in a step."""

LONGEST = 3.0
"""Norm to which gradients are shortened, where the settings ask for no other: standard deviations that run away would
make the next gradients longer still."""

START = math.log(0.01)
"""Log standard deviations at first."""


class MeanField(nn.Module):
    """A model with a diagonal Gaussian over its parameters: θ is their means, then where their deviations stand.

    A log standard deviation is start + stretch · θ's element: by `stretch` SGD moves it at a pace of its own. In
    training the model returns (outputs, KL(Gaussian ‖ prior) / n), the outputs with one draw's weights; otherwise with
    the means, and 0. The prior is N(0, 1 / precision).
    """

    def __init__(
        self, model: nn.Module, prior_precision: float, num_examples: int, *, stretch: float = 1.0, start: float = START
    ) -> None:
        super().__init__()
        self.mean = model
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.names = tuple(trainable)
        self.spread = nn.ParameterList(torch.zeros_like(p) for p in trainable.values())
        self.prior_precision, self.num_examples = prior_precision, num_examples
        self.stretch, self.start = stretch, start

    def log_std(self, spread: Tensor) -> Tensor:
        """Log standard deviations, from the second half of θ."""
        return self.start + self.stretch * spread

    def forward(self, inputs: Any) -> tuple[Any, Tensor]:
        """(outputs, KL / n)."""
        if not self.training:
            return self.mean(inputs), torch.zeros(())
        means = dict(self.mean.named_parameters())
        pairs = [(means[name], self.log_std(spread)) for name, spread in zip(self.names, self.spread, strict=True)]
        drawn = [mean + log_std.exp() * torch.randn_like(mean) for mean, log_std in pairs]
        outputs = functional_call(self.mean, dict(zip(self.names, drawn, strict=True)), (inputs,))
        return outputs, torch.stack([self._kl(*pair) for pair in pairs]).sum() / self.num_examples

    def _kl(self, mean: Tensor, log_std: Tensor) -> Tensor:
        """KL(N(m, s²) ‖ N(0, 1/τ)) = ½ Σ (τ (m² + s²) - 1 - ln τ - 2 ln s)."""
        tau = self.prior_precision
        squares = tau * (mean.square() + (2 * log_std).exp())
        return (squares - 1 - math.log(tau) - 2 * log_std).sum() / 2


def plus_kl(loss: LossFunction) -> LossFunction:
    """The negative evidence lower bound by examples, from the loss of the model within."""
    return lambda outputs, targets: loss(outputs[0], targets) + outputs[1]


def posterior(trial: Trial, *, step: float = STEP) -> GaussianPosterior:
    """The Gaussian after the rounds of the whole budget, in which the server averages all of θ.

    The prior is the one that weight decay stands for.
    """
    clip, n = trial.config.local.clip_gradient or LONGEST, trial.problem.num_examples
    config = trial.config.replaced(weight_decay=0.0, clip_gradient=clip)
    if not trial.config.local.weight_decay:
        raise ValueError("variational inference needs a prior: set weight_decay, such as 1e-4")
    # d log std / d step = stretch² · rate / (1 - momentum) / n for the entropy's part of the gradient
    stretch = math.sqrt(step * n * (1 - config.local.momentum) / config.train.learning_rate)
    model = MeanField(trial.model, n * trial.config.local.weight_decay, n, stretch=stretch)
    engine = trial.engine(model, loss=plus_kl(trial.problem.loss))
    first = last_round(engine, Server(torch.cat([trial.theta, torch.zeros_like(trial.theta)])), config)
    mean, spread = last_round(engine, Server(first, config.train.rounds), further(config)).chunk(2)
    return GaussianPosterior(
        mean=mean,
        variance=(2 * model.log_std(spread)).exp(),
        deviations=mean.new_empty(0, len(mean)),
        count=1,
        layout=trial.layout,
    )


def run(trial: Trial) -> Predictor:
    """Draws from q."""
    return trial.from_posterior(posterior(trial), "diagonal")


VI = Method("vi", "mean-field variational inference (Blundell et al. 2015)", run)
