"""Speed of a round of federated averaging on every engine, and growth with the number of clients.

A round: an MLP 784-200-10, 600 random examples a client, batches of 50, one local epoch of plain SGD, weighted mean;
two threads or processes, or one. Each row runs in processes of its own, in turns, since the machines are shared; the
first round of a process does not count. Ratios are of the medians within a turn, and the median of those is shown.

    python benchmarks/engines.py [--turns 5] [--rounds 7] [--clients 10 50] [--pfl PYTHON]
    python benchmarks/engines.py --growth [--virtual 10 100 1000 10000]
    python benchmarks/engines.py --merge [--parameters 5000000]

Rows of Flower are shown where it is installed with Ray. PYTHON is the interpreter of an environment in which Apple's
pfl is installed (0.6: it wants an older `packaging`).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

import dswag
from dswag.client.training import TrainTask
from dswag.core.randomness import DrawFrom, generator_for
from dswag.data.examples import Examples
from dswag.engines.distributed import Distributed, merge_over
from dswag.engines.ranks import joined
from dswag.federation.aggregation import Mean
from dswag.federation.client_results import TrainResult
from dswag.federation.contract import Engine
from dswag.federation.local_update import ClientUpdate
from dswag.federation.round_trip import round_trip
from dswag.posterior.moments import Moments

EXAMPLES, BATCH, RATE = 600, 50, 0.05
HERE = Path(__file__)
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--local-addr", "127.0.0.1")


class Clients(Sequence[Examples]):
    """Any number of clients, who share the examples of fifty."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, client: int) -> Examples:  # type: ignore[override]
        return _examples(client % 50)


@cache
def _examples(client: int) -> Examples:
    generator = generator_for(0, client)
    inputs = torch.randn(EXAMPLES, 784, generator=generator)
    return Examples(inputs, torch.randint(0, 10, (EXAMPLES,), generator=generator))


def network() -> nn.Module:
    """The MLP."""
    with DrawFrom(generator_for(0)):
        return nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))


def seconds_of_rounds(engine: Engine, rounds: int) -> list[float]:
    """What each round took, from the second on."""
    model = network()
    theta = dswag.Layout.of(model).flatten(model)
    update = ClientUpdate(batch_size=BATCH)
    tasks = [
        TrainTask(index=c, client=c, occasion="round", learning_rates=(RATE,), snapshots=(1,), seed=c, update=update)
        for c in range(engine.num_clients)
    ]
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        theta = round_trip(engine, {"theta": theta}, tasks, Mean(theta, weighted=True)).fold.result().theta
        taken.append(time.perf_counter() - start)
    return taken[1:]


def in_process(clients: int, rounds: int, *, workers: int) -> list[float] | None:
    """On threads of one process."""
    return seconds_of_rounds(dswag.InProcess(network(), Clients(clients), workers=workers), rounds)


def on_ranks(clients: int, rounds: int) -> list[float] | None:
    """On the processes that torchrun started, of which the first says what it took."""
    with joined() as ranks:
        taken = seconds_of_rounds(Distributed(network(), Clients(clients), ranks=ranks), rounds)
        return taken if ranks.rank == 0 else None


def merging(parameters: int, _: int) -> list[float] | None:
    """What taking in a client and merging two ranks cost, in ns a parameter: of a mean, and of moments of rank 20."""
    theta = torch.randn(parameters, generator=generator_for(0))
    result = TrainResult(index=0, client=0, thetas=theta[None] + 1e-3, num_examples=1, loss=1.0)
    mean, moments = Mean(theta), Moments(theta, rank=20)
    for index in range(20):
        moments.add(theta + index * 1e-3, index=index)
    with joined() as ranks:
        ranks.tell({})
        timed: list[Callable[[], object]] = [
            lambda: mean.add(result),
            lambda: merge_over(ranks, mean),
            lambda: merge_over(ranks, moments),
        ]
        taken = [min(_seconds(call) for _ in range(3)) / parameters * 1e9 for call in timed]
        return taken if ranks.rank == 0 else None


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


WORKERS: dict[str, Callable[[int, int], list[float] | None]] = {
    "one-thread": partial(in_process, workers=1),
    "threads": partial(in_process, workers=2),
    "ranks": on_ranks,
    "merging": merging,
}
"""What measures a row, in a process of its own."""


def rows(pfl: str | None) -> dict[str, list[str]]:
    """The commands of the rows, to which clients and rounds are added."""
    worker = [sys.executable, str(HERE), "--worker"]
    commands = {
        "one thread": [*worker, "one-thread"],
        "threads": [*worker, "threads"],
        "2 ranks": [sys.executable, *TORCHRUN, str(HERE), "--worker", "ranks"],
    }
    if find_spec("ray") is not None and find_spec("flwr") is not None:
        for way in ("adapter", "bare", "strategy"):
            commands[f"Flower, {way}"] = [sys.executable, str(HERE.with_name("flower_round.py")), "--way", way]
    if pfl is not None:
        commands["pfl"] = [pfl, str(HERE.with_name("pfl_round.py"))]
    return commands


def measured(command: list[str], clients: int, rounds: int) -> list[float]:
    """What a worker says."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    numbers = ["--clients", str(clients), "--rounds", str(rounds)]
    done = subprocess.run([*command, *numbers], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    taken: list[float] = json.loads(done.stdout.strip().splitlines()[-1])
    return taken


def compare(clients: int, turns: int, rounds: int, pfl: str | None) -> None:
    """Prints a row for each engine."""
    taken: dict[str, list[float]] = {name: [] for name in rows(pfl)}
    for _ in range(turns):
        for name, command in rows(pfl).items():
            taken[name].append(statistics.median(measured(command, clients, rounds)))
    print(f"\n{clients} clients{'':10} s a round   least   x one thread{'   x pfl' if pfl else ''}")
    for name, values in taken.items():
        ratios = {
            other: statistics.median(a / b for a, b in zip(taken[other], values, strict=True))
            for other in ("one thread", "pfl")
            if other in taken
        }
        numbers = f"{statistics.median(values):9.3f} {min(values):7.3f}"
        print(f"{name:20} {numbers} " + " ".join(f"{ratio:12.2f}" for ratio in ratios.values()), flush=True)


def growth(virtual: Sequence[int]) -> None:
    """Prints time and memory of a round in this process for each number of clients."""
    print("clients   s a round   ms a client   peak memory, MiB")
    for number in virtual:
        engine = dswag.InProcess(network(), Clients(number), workers=1)
        taken = statistics.median(seconds_of_rounds(engine, max(1, min(5, 1000 // number))))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{number:7} {taken:11.3f} {taken / number * 1e3:13.2f} {peak:18.0f}", flush=True)


def main() -> None:
    """Prints the tables, or measures one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clients", nargs="+", type=int, default=[10, 50])
    parser.add_argument("--pfl", metavar="PYTHON")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--virtual", nargs="+", type=int, default=[10, 100, 1000, 10_000])
    parser.add_argument("--merge", action="store_true")
    parser.add_argument("--parameters", type=int, default=5_000_000)
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        taken = WORKERS[arguments.worker](arguments.clients[0], arguments.rounds)
        if taken is not None:
            print(json.dumps(taken))
        return
    if arguments.merge:
        command = [sys.executable, *TORCHRUN, str(HERE), "--worker", "merging"]
        add, mean, moments = measured(command, arguments.parameters, 1)
        print(
            f"ns a parameter: a client into the mean {add:.1f}, a mean over 2 ranks {mean:.1f}, moments {moments:.1f}"
        )
        return
    if arguments.growth:
        growth(arguments.virtual)
        return
    for clients in arguments.clients:
        compare(clients, arguments.turns, arguments.rounds, arguments.pfl)


if __name__ == "__main__":
    main()
