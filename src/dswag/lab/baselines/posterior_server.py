"""The posterior server with stochastic natural-gradient expectation propagation (Hasenclever et al. 2017).

Reference [16] of the paper, for diagonal Gaussians. The posterior is prior · Π t_i with a Gaussian factor t_i for the
likelihood of each client's examples, which the server keeps. A visited client gets the posterior q and its own cavity,
q without t_i, and improves an auxiliary Gaussian γ, the cavity at first, by steps in its mean parameters

    μ(γ) <- μ(γ) + ε (μ(q') - s(x)),    s(x) = (x, x²),    x ~ γ · likelihood of the client,

where x is the state of a Langevin chain, and q' = cavity · q / γ the posterior with the new factor t_i = q / γ. These
are natural-gradient steps on the objective of expectation propagation; at a fixed point of all visits γ is the cavity,
and posterior and tilted distributions agree in mean and variance.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dswag.client.calling import LossFunction
from dswag.client.training import TrainTask
from dswag.core.randomness import derive_seed
from dswag.federation.client_sampling import sample_clients
from dswag.federation.contract import Engine
from dswag.federation.folds import Snapshots, prefixed
from dswag.federation.round_trip import round_trip
from dswag.lab.baselines.method import Method, Predictor, Trial
from dswag.lab.baselines.phases import phase_1, plain_sgd
from dswag.posterior.gaussian import GaussianPosterior

STEP = 0.003
"""ε of the natural-gradient steps."""

CURVATURE = 0.2
"""Precision of the first factors together, per example."""


@dataclass(frozen=True, eq=False)
class Natural:
    """exp(linear · u - ½ precision · u²) up to a factor, coordinate by coordinate."""

    linear: Float[Tensor, "d"]
    precision: Float[Tensor, "d"]

    def __add__(self, other: "Natural") -> "Natural":
        return Natural(self.linear + other.linear, self.precision + other.precision)

    def __sub__(self, other: "Natural") -> "Natural":
        return Natural(self.linear - other.linear, self.precision - other.precision)

    def around(self, center: Float[Tensor, "d"]) -> "Natural":
        """The same distribution of u - center."""
        return Natural(self.linear - self.precision * center, self.precision)

    @property
    def moments(self) -> tuple[Float[Tensor, "d"], Float[Tensor, "d"]]:
        """(E u, E u²), the mean parameters."""
        mean = self.linear / self.precision
        return mean, mean.square() + 1 / self.precision

    @classmethod
    def of(cls, mean: Tensor, variance: Tensor) -> "Natural":
        """N(mean, variance)."""
        return cls(mean / variance, 1 / variance)


Visit = Callable[[int, Natural, Natural], Natural]
"""What a client makes of its cavity, for (client, cavity, posterior): its γ."""


def serve(prior: Natural, factors: Sequence[Natural], visit: Visit, order: Sequence[int]) -> Natural:
    """The posterior after visits to clients in this order, from first factors on."""
    factors = list(factors)
    posterior = sum(factors, prior)
    for client in order:
        gamma = visit(client, posterior - factors[client], posterior)
        factors[client] = posterior - gamma
        posterior = sum(factors, prior)  # anew, so that rounding does not add up
    return posterior


def auxiliary(first: Tensor, second: Tensor, least: Tensor, most: Tensor) -> Natural:
    """γ with the mean parameters E u and E u², its variance kept between `least` and `most`.

    The least is the posterior's, so that the client's factor is log-concave. The most is twice the prior's, so that a
    factor that noise took to nothing can come back.
    """
    variance = (second - first.square()).clamp(least, most)
    return Natural.of(first, variance)


class Tilted(nn.Module):
    """What a client trains in a visit, with plain SGD: μ(γ), and a chain that samples γ · likelihood.

    θ is E u [d] and E u² [d] of γ, then the model's parameters; u is the parameters less the anchor. In training it
    returns (outputs, share, penalty), for `energy` to make a loss of: its gradient is that of the tilted distribution's
    energy over n, plus noise, for the parameters, and the natural gradient for μ(γ).
    """

    anchor: Tensor
    linear: Tensor
    precision: Tensor
    least: Tensor
    share: Tensor
    most: Tensor

    def __init__(self, model: nn.Module, most: Float[Tensor, "d"], scales: "Scales") -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.zeros_like(most)) for _ in range(2))
        self.model = model
        self.scales = scales
        self.register_buffer("most", most)  # twice the prior's variance; all others come with the payload
        for name in ("anchor", "linear", "precision", "least"):  # cavity · q around the anchor, and the variance of q
            self.register_buffer(name, torch.zeros_like(most))
        self.register_buffer("share", torch.zeros_like(most[0]))  # n_i / n

    def forward(self, inputs: Any) -> tuple[Any, Tensor, Tensor]:
        """(outputs, n_i / n, penalty)."""
        outputs = self.model(inputs)
        u = torch.cat([p.reshape(-1) for p in self.model.parameters() if p.requires_grad]) - self.anchor
        x = u.detach()
        gamma = auxiliary(self.first.detach(), self.second.detach(), self.least, self.most)
        mean, square = (Natural(self.linear, self.precision) - gamma).moments
        pull = (gamma.precision * x - gamma.linear) / self.scales.num_examples
        noise = self.scales.noise * torch.randn_like(x)
        step = (self.first * (x - mean) + self.second * (x.square() - square)).sum()
        return outputs, self.share, ((pull + noise) * u).sum() + self.scales.step / self.scales.rate * step


def energy(loss: LossFunction) -> LossFunction:
    """The loss of a `Tilted` model, from that of the model within."""
    return lambda outputs, targets: outputs[1] * loss(outputs[0], targets) + outputs[2]


@dataclass(frozen=True)
class Scales:
    """Of a client's steps."""

    rate: float
    """Of SGD."""
    step: float
    """ε."""
    num_examples: int
    """n, of all clients."""

    @property
    def noise(self) -> float:
        """Of the gradient, by which SGD samples exp(-n · loss)."""
        return math.sqrt(2 / (self.rate * self.num_examples))


def posterior(
    trial: Trial, anchor: Float[Tensor, "d"], *, step: float = STEP, curvature: float = CURVATURE
) -> GaussianPosterior:
    """The posterior after visits to the explorers in turn, one epoch each, as many as phase 2 has epochs.

    It starts around the anchor. The prior is the one that weight decay stands for.
    """
    config, n = trial.config, trial.problem.num_examples
    if not config.local.weight_decay:
        raise ValueError("the posterior server needs a prior: set weight_decay, such as 1e-4")
    zero = torch.zeros_like(anchor, dtype=torch.float64)
    prior = Natural.of(-anchor.double(), zero + 1 / (n * config.local.weight_decay))
    # together with the prior around the anchor
    factor = Natural(-prior.linear / config.clients, zero + n * curvature / config.clients)
    most = (2 / prior.precision).to(anchor.dtype)
    tilted = Tilted(trial.model, most, Scales(plain_sgd(config).train.learning_rate, step, n))
    visits = _Visits(trial, trial.engine(tilted, loss=energy(trial.problem.loss)), tilted, anchor)
    clients = sample_clients(config.explore.explorers, config.clients, seed=config.seed, phase=2, round=0)
    found = serve(prior, [factor] * config.clients, visits, clients * config.explore.epochs)
    mean, _ = found.moments
    return GaussianPosterior(
        mean=(anchor + mean).to(anchor.dtype),
        variance=(1 / found.precision).to(anchor.dtype),
        deviations=anchor.new_empty(0, len(anchor)),
        count=1,
        layout=trial.layout,
    )


class _Visits:
    """Visits to clients by round trips of one task each; keeps where each client's chain is."""

    def __init__(self, trial: Trial, engine: Engine, tilted: Tilted, anchor: Float[Tensor, "d"]) -> None:
        self.trial = trial
        self.engine = engine
        self.tilted = tilted
        self.anchor = anchor
        self.chains = dict.fromkeys(range(trial.config.clients), anchor)
        self.number = 0

    def __call__(self, client: int, cavity: Natural, posterior: Natural) -> Natural:
        """γ after an epoch of natural-gradient steps from the cavity on, in numbers around the posterior's mean."""
        self.number += 1
        config, problem = self.trial.config, self.trial.problem
        center, _ = posterior.moments
        cavity, both = cavity.around(center), (cavity + posterior).around(center)
        state = {"anchor": self.anchor + center, "linear": both.linear, "precision": both.precision}
        state["least"] = 1 / posterior.precision
        share = problem.training_examples[client].num_examples / problem.num_examples
        state["share"] = self.anchor.new_tensor(share)
        theta = torch.cat([*cavity.moments, self.chains[client]]).to(self.anchor.dtype)
        buffers = {name: value.to(self.anchor.dtype) for name, value in state.items()}
        payload = {"theta": theta, **prefixed("buffer", buffers)}
        task = TrainTask(
            index=0,
            client=client,
            occasion=f"visit {self.number}",
            part=config.training_part,
            time_limit=config.faults.client_time_limit,
            learning_rates=(self.tilted.scales.rate,),
            snapshots=(1,),
            seed=derive_seed(config.seed, 5, self.number),
            update=plain_sgd(config).replaced(weight_decay=0.0).client_update,
        )
        theta = round_trip(self.engine, payload, [task], Snapshots()).fold.result()[0]
        first, second, self.chains[client] = theta.chunk(3)
        gamma = auxiliary(first.double(), second.double(), 1 / posterior.precision, self.tilted.most.double())
        return gamma.around(-center)


def run(trial: Trial) -> Predictor:
    """Draws from the posterior, which starts around the phase-1 model."""
    return trial.from_posterior(posterior(trial, trial.shared(phase_1)), "diagonal")


SNEP = Method("snep", "posterior server, natural-gradient expectation propagation (Hasenclever et al. 2017)", run)
