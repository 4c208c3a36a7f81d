"""Stochastic gradient Langevin dynamics (Welling & Teh 2011), federated as in Deng et al. 2021."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dswag.algorithms.server_update import Server
from dswag.algorithms.training import synchronize
from dswag.client.calling import LossFunction
from dswag.federation.client_sampling import cohort_size
from dswag.lab.baselines.method import Method, Predictor, Trial
from dswag.lab.baselines.phases import further, phase_1, plain_sgd


class Langevin(nn.Module):
    """A model whose every gradient in training has Gaussian noise of its own, for plain SGD to step with.

    Returns (outputs, 0), where the 0 has a new ξ ~ N(0, noise² I) for its gradient at every call in training: added to
    the loss, it adds ξ to the gradient. The parameters are those of the model, in the same order.
    """

    def __init__(self, model: nn.Module, noise: float) -> None:
        super().__init__()
        self.model = model
        self.noise = noise

    def forward(self, inputs: Any) -> tuple[Any, Tensor]:
        """(outputs, ξᵀθ less its own value)."""
        outputs = self.model(inputs)
        if not self.training:
            return outputs, torch.zeros(())
        terms = [(self.noise * torch.randn_like(p) * p).sum() for p in self.model.parameters() if p.requires_grad]
        noise = torch.stack(terms).sum()
        return outputs, noise - noise.detach()


def plus_noise(loss: LossFunction) -> LossFunction:
    """The loss of a `Langevin` model, from that of the model within."""
    return lambda outputs, targets: loss(outputs[0], targets) + outputs[1]


def gradient_noise(rate: float, num_examples: int, clients: int = 1, temperature: float = 1.0) -> float:
    """The standard deviation of ξ by which SGD at this rate samples exp(-n · mean loss / temperature).

    θ - η (∇ mean loss + ξ) is a Langevin step of size ε = 2 η T / n (Welling & Teh 2011, equation 4) where η ξ has the
    variance ε. The server's mean of W clients has 1 / W of each one's noise, so theirs is √W as large (Deng et al.
    2021, Section 4).
    """
    return math.sqrt(2 * temperature * clients / (rate * num_examples))


def samples(trial: Trial, theta: Float[Tensor, "d"]) -> Float[Tensor, "s d"]:
    """The server's θ after each further round of SGLD from θ on.

    The prior is the one that weight decay stands for.
    """
    config = plain_sgd(further(trial.config))
    participating = cohort_size(config.train.clients_per_round, config.clients)
    noise = gradient_noise(config.train.learning_rate, trial.problem.num_examples, participating)
    engine = trial.engine(Langevin(trial.model, noise), loss=plus_noise(trial.problem.loss))
    return torch.stack([done.theta for done in synchronize(engine, Server(theta, trial.config.train.rounds), config)])


def run(trial: Trial) -> Predictor:
    """Averages over the chain that starts at the phase-1 model."""
    return trial.from_weights(samples(trial, trial.shared(phase_1)))


SGLD = Method("sgld", "stochastic gradient Langevin dynamics from the phase-1 model on (Welling & Teh 2011)", run)
