"""What a method is, what it is given, and the tools that it works with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, Literal, TypeVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dswag.algorithms.prediction import Members, Posterior, Predictive, average, draws_of, members_of
from dswag.client.calling import LossFunction
from dswag.config import Config
from dswag.core.parameters import Layout
from dswag.core.randomness import derive_seed
from dswag.data import holdout
from dswag.data.examples import ClientData, Examples
from dswag.engines.in_process import InProcess
from dswag.federation.contract import Engine
from dswag.lab.baselines.costs import Cost, Ledger, Metered, measured
from dswag.posterior.draws import Kind

ValueT = TypeVar("ValueT")

Predictor = Callable[[Tensor], Predictive]
"""The outcome of training: a function from inputs [n, ...] to their predictive distribution."""


@dataclass(frozen=True)
class Method:
    """A way to train on clients' data and to predict."""

    name: str
    """Its name on the command line."""
    description: str
    """What it does, and its source."""
    run: Callable[["Trial"], Predictor]
    """Trains, and returns what predicts."""
    pools_data: bool = False
    """Whether it needs all clients' examples in one place."""
    holdout: bool = False
    """Whether it fits something to held-out examples."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What every method is given: the same model, clients and settings.

    The budget is what Algorithm 1 spends with these settings: every method takes gradients of that many examples.
    """

    model: nn.Module
    """With its initial weights."""
    clients: Sequence[Examples]
    config: Config
    loss: LossFunction = F.cross_entropy
    """A function of (outputs, targets) that returns the mean loss of the batch."""
    workers: int | None = None
    """Clients trained at a time; the outcome does not depend on it."""
    done: dict[Callable[["Trial"], Any], "Done"] = field(default_factory=dict)
    """Parts of training that are already done, by the function that does them; methods that share them pay for them."""
    resumed: Callable[[Callable[["Trial"], Any]], "Done | None"] = lambda _: None
    """Does a part that is kept elsewhere, from where it stands there; None for one that is not."""

    @property
    def training_examples(self) -> list[ClientData]:
        """The training examples of each client: all but those held out."""
        return [training for training, _ in self._parts] if self._parts else list(self.clients)

    @property
    def held_out_examples(self) -> list[ClientData]:
        """The examples that each client held out; no clients' where none did."""
        return [held_out for _, held_out in self._parts]

    @cached_property
    def _parts(self) -> list[tuple[ClientData, ClientData]]:
        part = self.config.training_part
        if part is None:
            return []
        seeds = [derive_seed(part.seed, client) for client in range(len(self.clients))]
        return [holdout.split(data, part.fraction, seed) for data, seed in zip(self.clients, seeds, strict=True)]

    @property
    def num_examples(self) -> int:
        """Number of training examples of all clients together."""
        return sum(data.num_examples for data in self.training_examples)


@dataclass(frozen=True, eq=False)
class Done:
    """A part of training that several methods share."""

    value: Any
    cost: Cost
    """Without that of the parts it used itself."""
    used: frozenset[Callable[["Trial"], Any]]
    """Those, and those that they used."""


class Trial:
    """One method at work on a problem; `cost` grows as it spends."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.config = problem.config
        self.model = problem.model
        self.layout = Layout.of(problem.model)
        self.theta = self.layout.flatten(problem.model)
        self._ledger = Ledger()
        self._waited = Ledger()
        self._used: frozenset[Callable[[Trial], Any]] = frozenset()

    @property
    def cost(self) -> Cost:
        """What was spent so far, including every shared part that was used, whenever it was done."""
        return sum((self.problem.done[stage].cost for stage in self._used), self._ledger.cost)

    def engine(
        self,
        model: nn.Module | None = None,
        *,
        loss: LossFunction | None = None,
        clients: Sequence[Examples] | None = None,
    ) -> Engine:
        """An engine of the problem's clients and model, or of others; what they do is added to the cost."""
        problem = self.problem
        engine = InProcess(
            model or problem.model,
            problem.clients if clients is None else clients,
            loss=loss or problem.loss,
            workers=problem.workers,
        )
        return Metered(engine, self._ledger)

    def shared(self, stage: Callable[["Trial"], ValueT]) -> ValueT:
        """The result of this part of training, done once for a problem and paid for by every method that uses it."""
        done = self.problem.done
        if stage not in done:
            with measured(self._waited):
                done[stage] = self.problem.resumed(stage) or self._done(stage)
        self._used |= {stage, *done[stage].used}
        found: ValueT = done[stage].value
        return found

    def _done(self, stage: Callable[["Trial"], Any]) -> Done:
        part = Trial(self.problem)
        value = part.complete(stage)
        return Done(value, part._ledger.cost, part._used)

    def complete(self, work: Callable[["Trial"], ValueT]) -> ValueT:
        """The result of the work, whose seconds and memory are added to the cost."""
        own = Ledger()
        with measured(own):
            value = work(self)
        self._ledger.add(replace(own.cost, seconds=max(0.0, own.cost.seconds - self._waited.cost.seconds)))
        return value

    def from_posterior(
        self,
        posterior: Posterior,
        kind: Kind | Literal["mean"] = "swag",
        *,
        scale: float = 1.0,
        model: nn.Module | None = None,
    ) -> Predictor:
        """Predicts by averaging over draws from a posterior over the trainable parameters of a model.

        BatchNorm statistics are refreshed once, however many inputs are predicted.
        """
        network = model or self.model
        engine = self.engine(network)

        @cache
        def members() -> Members:
            return draws_of(
                network,
                posterior,
                samples=self.config.predict.samples,
                seed=self.prediction_seed,
                kind=kind,
                scale=scale,
                engine=engine,
                batch_norm_examples=self.config.predict.batch_norm_examples,
                precision=self.config.local.precision,
            )

        return lambda inputs: average(network, members(), inputs).tempered(posterior.temperature)

    def from_weights(self, thetas: Float[Tensor, "s d"]) -> Predictor:
        """Predicts by averaging over the given weights."""
        engine = self.engine()
        examples = self.config.predict.batch_norm_examples

        @cache
        def members() -> Members:
            return members_of(
                self.model, thetas, engine=engine, batch_norm_examples=examples, precision=self.config.local.precision
            )

        return lambda inputs: average(self.model, members(), inputs)

    @property
    def prediction_seed(self) -> int:
        """The seed of the draws for predictions."""
        return derive_seed(self.config.seed, 3)


def complete(method: Method, problem: Problem) -> tuple[Predictor, Cost]:
    """The predictor of the method, trained on the problem, and what that cost."""
    trial = Trial(problem)
    return trial.complete(method.run), trial.cost
