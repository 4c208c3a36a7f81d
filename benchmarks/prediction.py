"""Speed of Bayesian model averaging: 30 draws on 10,000 images, against the usual loop.

The usual loop loads a draw into the model, iterates a `DataLoader`, and stacks the softmax outputs, with all of
PyTorch's threads. Runs are interleaved, the median of the ratios counts. Images are random: only their number matters.

    python benchmarks/prediction.py [--repeats 3] [--models mlp cnn]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import dswag
from dswag.core.randomness import generator_for
from dswag.lab.models import build

IMAGES, MEAN, STD = 10_000, (0.1307,), (0.3081,)


def seconds(function: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def usual_average(
    model: nn.Module, posterior: dswag.GaussianPosterior, loader: DataLoader[tuple[Tensor, ...]]
) -> Tensor:
    """One draw after the other, as examples for SWAG do it."""
    outputs = []
    model.eval()
    for number in range(30):
        with posterior.sampled(model, seed=0, number=number), torch.no_grad():
            outputs.append(torch.cat([model(inputs).softmax(1) for inputs, _ in loader]))
    return torch.stack(outputs).mean(0)


def compare(name: str, repeats: int) -> str:
    """One row of the table."""
    model = build(name, (1, 28, 28), 10, mean=MEAN, std=STD, seed=0)
    theta = dswag.Layout.of(model).flatten(model)
    columns = 0.01 * torch.randn(20, len(theta), generator=generator_for(0))
    posterior = dswag.GaussianPosterior(theta, 1e-4 * torch.ones_like(theta), columns, count=20)
    pixels = torch.randint(0, 256, (IMAGES, 1, 28, 28), generator=generator_for(1), dtype=torch.uint8)
    loader = DataLoader(TensorDataset(pixels, torch.zeros(IMAGES)), batch_size=128)
    ways = {
        "usual": lambda: usual_average(model, posterior, loader),
        "ours": lambda: dswag.predict(model, posterior, pixels, samples=30, seed=0),
    }
    times: dict[str, list[float]] = {label: [] for label in ways}
    for _ in range(repeats):
        for label, way in ways.items():
            times[label].append(seconds(way))
    ratio = statistics.median(a / b for a, b in zip(times["usual"], times["ours"], strict=True))
    usual, ours = (statistics.median(times[label]) for label in ways)
    return f"{name:5} {usual:9.2f} {ours:9.2f} {ratio:9.2f}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=("mlp", "cnn"), default=["mlp", "cnn"])
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, 30 draws, {IMAGES:,} images; seconds")
    print("model     usual      ours   x usual")
    for name in arguments.models:
        print(compare(name, arguments.repeats), flush=True)


if __name__ == "__main__":
    main()
