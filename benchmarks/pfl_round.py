"""The round of `benchmarks/engines.py` in Apple's pfl, in whose environment it runs; it needs nothing of dswag.

PYTHON benchmarks/pfl_round.py --clients 50 --rounds 7
"""

import argparse
import json
import time
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

EXAMPLES, BATCH, RATE = 600, 50, 0.05


class Network(nn.Sequential):
    """The MLP, with the loss that pfl asks for."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))

    def loss(self, inputs: Tensor, targets: Tensor, eval: bool = False) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(self(inputs), targets)

    def metrics(self, inputs: Tensor, targets: Tensor, eval: bool = True) -> dict[str, Any]:
        """What pfl measures when it evaluates."""
        return {"loss": Weighted(F.cross_entropy(self(inputs), targets, reduction="sum").item(), len(inputs))}


class Clock(TrainingProcessCallback):
    """Seconds from round to round."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.taken: list[float] = []

    def after_central_iteration(self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int) -> Any:
        """Notes one, and goes on."""
        now = time.perf_counter()
        self.taken.append(now - self.last)
        self.last = now
        return False, Metrics()


def main() -> None:
    """Prints the seconds of each round after the first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = [Dataset((torch.randn(EXAMPLES, 784), torch.randint(0, 10, (EXAMPLES,)))) for _ in range(arguments.clients)]
    users = count()
    dataset = FederatedDataset(lambda user: data[user], lambda: next(users) % arguments.clients)
    network = Network()
    clock = Clock()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=arguments.rounds + 1,
            evaluation_frequency=10**9,
            train_cohort_size=arguments.clients,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=dataset, val_data=dataset),
        model=PyTorchModel(
            model=network,
            local_optimizer_create=torch.optim.SGD,
            central_optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        ),
        model_train_params=NNTrainHyperParams(
            local_batch_size=BATCH, local_num_epochs=1, local_learning_rate=RATE, local_max_grad_norm=None
        ),
        callbacks=[clock],
        send_metrics_to_platform=False,
    )
    print(json.dumps(clock.taken[1:]))


if __name__ == "__main__":
    main()
