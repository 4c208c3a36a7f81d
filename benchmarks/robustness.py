"""Accuracy of robust rules under attack, where clients are alike and where they differ (docs/updates.md).

Ten clients of `mnist5k`, of whom f lie in every round and know what the honest ones answer; a network of 784-20-10
units, six rounds. Each table has a row for each rule and a column for each attack.

    python benchmarks/robustness.py [--malicious 2] [--alpha 0.3] [--seeds 1] [--rules mean median ...]

Without --alpha the clients are alike.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import dswag
from dswag.core.randomness import DrawFrom, generator_for
from dswag.data import datasets
from dswag.data.examples import Examples
from dswag.data.partition import dirichlet, iid
from dswag.evaluation.metrics import score
from dswag.federation.aggregation import ROBUST
from dswag.federation.client_results import TrainResult
from dswag.federation.contract import ClientError, Engine, Fold, Payload, Result, Task

CLIENTS = 10

Lie = Callable[[Tensor, Tensor], Tensor]
"""Of the honest clients' steps [h, d] and the attacker's own step [d]."""


def alie(honest: Tensor, own: Tensor) -> Tensor:
    """A little is enough (Baruch et al. 2019), against the step: 1.5 standard deviations off the honest mean."""
    return honest.mean(0) - 1.5 * honest.std(0) * honest.mean(0).sign()


def ipm(honest: Tensor, own: Tensor) -> Tensor:
    """Inner product manipulation (Xie et al. 2020): half the honest mean step, backwards."""
    return -0.5 * honest.mean(0)


def mimic(honest: Tensor, own: Tensor) -> Tensor:
    """All say what one honest client says (Karimireddy et al. 2022)."""
    return honest[0]


def sign_flip(honest: Tensor, own: Tensor) -> Tensor:
    """Its own step, backwards."""
    return -own


LIES: Mapping[str, Lie | None] = {
    "no attack": None,
    "ALIE": alie,
    "IPM": ipm,
    "mimic": mimic,
    "sign flip": sign_flip,
    "label flip": None,
}


class Attacked:
    """An engine whose first f clients lie when they train."""

    def __init__(self, engine: Engine, malicious: int, lie: Lie) -> None:
        self.engine = engine
        self.malicious = malicious
        self.lie = lie

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def answers(self, payload: Payload, tasks: Sequence[Task]) -> Iterator[Result | ClientError]:
        """The answers, of which some are lies."""
        answers = list(self.engine.answers(payload, tasks))
        theta = payload["theta"]
        honest = [a.thetas[-1] - theta for a in answers if isinstance(a, TrainResult) and a.client >= self.malicious]
        for answer in answers:
            if isinstance(answer, TrainResult) and answer.client < self.malicious:
                step = self.lie(torch.stack(honest), answer.thetas[-1] - theta)
                answer = replace(answer, thetas=(theta + step)[None])
            yield answer

    def combine(self, fold: Fold[Any, Any], failure: Exception | None = None) -> None:
        """As the engine."""
        self.engine.combine(fold, failure)


def accuracy(rule: str, attack: str, malicious: int, alpha: float | None, seed: int, *, honest_only: bool) -> float:
    """After six rounds."""
    digits = datasets.load("mnist5k")
    train, test = (
        Examples((part.inputs.flatten(1) / 255 - 0.13) / 0.31, part.targets) for part in (digits.train, digits.test)
    )
    split: Any = iid if alpha is None else partial(dirichlet, concentration=alpha)
    parts = split(train.targets, CLIENTS, seed)
    clients = [train[torch.as_tensor(part)] for part in parts]
    if attack == "label flip":
        clients[:malicious] = [Examples(data.inputs, 9 - data.targets) for data in clients[:malicious]]
    if honest_only:
        clients = clients[malicious:]
    with DrawFrom(generator_for(seed)):
        model = nn.Sequential(nn.Linear(784, 20), nn.ReLU(), nn.Linear(20, 10))
    engine: Any = dswag.InProcess(model, clients, workers=1)
    lie = LIES[attack]
    aggregation: Any = rule
    config = dswag.Config(
        clients=len(clients),
        rounds=6,
        learning_rate=0.03,
        seed=seed,
        aggregation=aggregation,
        byzantine=malicious,
        max_loss_growth=1e9,
    )
    start = dswag.Server(dswag.Layout.of(model).flatten(model))
    *_, last = dswag.synchronize(engine if lie is None else Attacked(engine, malicious, lie), start, config)
    return score(dswag.ensemble(model, last.theta[None], test.inputs).probabilities, test.targets).accuracy


def main() -> None:
    """Prints a table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--malicious", type=int, default=2)
    parser.add_argument("--alpha", type=float, help="of the Dirichlet distribution of labels over clients")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rules", nargs="+", default=["mean", *ROBUST])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    options = (arguments.malicious, arguments.alpha)

    def mean_of(rule: str, attack: str, honest_only: bool = False) -> float:
        found = [accuracy(rule, attack, *options, seed, honest_only=honest_only) for seed in range(arguments.seeds)]
        return sum(found) / len(found)

    print(f"honest clients alone, mean: {mean_of('mean', 'no attack', honest_only=True):.3f}", flush=True)
    print("| | " + " | ".join(LIES) + " |\n|" + " --- |" * (len(LIES) + 1))
    for rule in arguments.rules:
        print(f"| {rule} | " + " | ".join(f"{mean_of(rule, attack):.3f}" for attack in LIES) + " |", flush=True)


if __name__ == "__main__":
    main()
