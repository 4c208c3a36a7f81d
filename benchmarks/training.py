"""Speed of one round of local training: the in-process engine against the usual way, for 1, 10 and 50 clients.

The usual way is a `DataLoader(TensorDataset)` and a `torch.optim.SGD` for each client, one after another, with all of
PyTorch's threads. Both train on the same number of examples in batches of 50. Runs are interleaved and the median of
the ratios counts, since the machines are shared. The peak is that of float32 matrix products of 1024 x 1024 with all
threads, measured in between.

    python benchmarks/training.py [--repeats 5] [--models mlp cnn]
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

import dswag
from dswag.client.training import TrainTask
from dswag.core.randomness import generator_for
from dswag.data.examples import Examples
from dswag.federation.aggregation import Mean
from dswag.federation.local_update import ClientUpdate
from dswag.federation.round_trip import round_trip
from dswag.lab.models import build

EXAMPLES = {"mlp": 30_000, "cnn": 3_000}
BATCH, RATE, MOMENTUM = 50, 0.05, 0.9
MEAN, STD = (0.1307,), (0.3081,)


def seconds(function: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def usual_round(model: nn.Module, clients: list[DataLoader[tuple[Tensor, ...]]]) -> dict[str, Tensor]:
    """Federated averaging as tutorials write it."""
    states = []
    for loader in clients:
        local = copy.deepcopy(model)
        local.train()
        optimizer = torch.optim.SGD(local.parameters(), lr=RATE, momentum=MOMENTUM)
        for inputs, targets in loader:
            optimizer.zero_grad()
            F.cross_entropy(local(inputs), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        states.append(local.state_dict())
    return {name: sum(state[name] for state in states) / len(states) for name in states[0]}


def our_round(engine: dswag.InProcess, theta: Tensor, precision: str) -> Tensor:
    """The same with the in-process engine."""
    update = ClientUpdate(batch_size=BATCH, momentum=MOMENTUM, precision=precision)  # type: ignore[arg-type]
    tasks = [
        TrainTask(index=c, client=c, occasion="round", learning_rates=(RATE,), snapshots=(1,), seed=c, update=update)
        for c in range(engine.num_clients)
    ]
    return round_trip(engine, {"theta": theta}, tasks, Mean(theta)).fold.result().theta


def training_flops(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Floating point operations of forward and backward, for one example."""
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops()) / len(inputs)


def matmul_peak() -> float:
    """Floating point operations a second of large float32 matrix products."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    torch.mm(a, b)
    return 2 * 1024**3 / statistics.median(seconds(lambda: torch.mm(a, b)) for _ in range(15))


def compare(name: str, num_clients: int, repeats: int) -> str:
    """One row of the table."""
    n = EXAMPLES[name]
    generator = generator_for(0)
    pixels = torch.randint(0, 256, (n, 1, 28, 28), generator=generator, dtype=torch.uint8)
    targets = torch.randint(0, 10, (n,), generator=generator)
    model = build(name, (1, 28, 28), 10, mean=MEAN, std=STD, seed=0)
    network, theta = model[1], dswag.Layout.of(model).flatten(model)
    floats = (pixels / 255 - MEAN[0]) / STD[0]
    shares = torch.arange(n).chunk(num_clients)
    loaders = [DataLoader(TensorDataset(floats[s], targets[s]), BATCH, shuffle=True) for s in shares]
    engine = dswag.InProcess(model, [Examples(pixels[s], targets[s]) for s in shares])
    rounds: dict[str, Callable[[], object]] = {
        "usual": lambda: usual_round(network, loaders),
        "float32": lambda: our_round(engine, theta, "float32"),
        "bfloat16": lambda: our_round(engine, theta, "bfloat16"),
    }
    for run in rounds.values():
        run()
    times: dict[str, list[float]] = {label: [] for label in rounds}
    peaks = []
    for _ in range(repeats):
        for label, run in rounds.items():
            times[label].append(seconds(run))
        peaks.append(matmul_peak())
    usual, single, half = (statistics.median(times[label]) for label in rounds)
    ratio = statistics.median(a / b for a, b in zip(times["usual"], times["float32"], strict=True))
    half_ratio = statistics.median(a / b for a, b in zip(times["usual"], times["bfloat16"], strict=True))
    share = training_flops(network, floats[:BATCH], targets[:BATCH]) * n / single / statistics.median(peaks)
    return (
        f"{name:5} {num_clients:7} {usual:9.3f} {single:9.3f} {half:10.3f} {ratio:9.2f} {half_ratio:10.2f} {share:9.0%}"
        f" {statistics.median(peaks) / 1e9:9.0f}"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", nargs="+", choices=EXAMPLES, default=list(EXAMPLES))
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 10, 50])
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, batches of {BATCH}; seconds a round of {EXAMPLES} examples")
    print("model clients     usual   float32   bfloat16   x usual   x usual/16  of peak  GFLOP/s")
    for name in arguments.models:
        for num_clients in arguments.clients:
            print(compare(name, num_clients, arguments.repeats), flush=True)


if __name__ == "__main__":
    main()
