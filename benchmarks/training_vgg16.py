"""Speed of VGG16 with BatchNorm in bfloat16: a round of training against the usual way, and predictions with draws.

The usual way is a `DataLoader` with two workers that crop and flip image by image, a `torch.optim.SGD` and autocast for
each client, one after another. Both train on the same images in batches of 128. Runs are interleaved and the median of
the ratios counts. *Convolutions* is the share of a round that oneDNN's own convolutions would take, forward and
backward in bfloat16, layer by layer with all threads, measured in between: what is left is all a faster loop could win.

    python benchmarks/training_vgg16.py [--repeats 5] [--examples 1024]
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import dswag
from dswag.client.training import TrainTask
from dswag.core.randomness import generator_for
from dswag.data.augmentation import CropAndFlip
from dswag.data.examples import Examples
from dswag.federation.aggregation import Mean
from dswag.federation.local_update import ClientUpdate, Precision
from dswag.federation.round_trip import round_trip
from dswag.lab.models import build

BATCH, RATE, MOMENTUM = 128, 0.05, 0.9
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
DRAWS, IMAGES, REFRESHED = 30, 10_000, 2048
"""Of the predictions whose time is told."""
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


class Cropped(Dataset[tuple[Tensor, int]]):
    """Images as tutorials prepare them, one by one."""

    def __init__(self, pixels: Tensor, targets: Tensor) -> None:
        self.pixels, self.targets = pixels, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = (self.pixels[i] / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        row, column, flipped = torch.randint(9, (3,)).tolist()
        image = F.pad(image, (4, 4, 4, 4))[:, row : row + 32, column : column + 32]
        return (image.flip(2) if flipped > 4 else image), int(self.targets[i])


def seconds(function: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def usual_round(model: nn.Module, clients: list[DataLoader[tuple[Tensor, int]]]) -> None:
    """Local training of every client as tutorials write it."""
    for loader in clients:
        local = copy.deepcopy(model).train()
        optimizer = torch.optim.SGD(local.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=5e-4)
        for inputs, targets in loader:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(local(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def our_round(engine: dswag.InProcess, theta: Tensor) -> None:
    """The same with the in-process engine."""
    update = ClientUpdate(batch_size=BATCH, momentum=MOMENTUM, weight_decay=5e-4, precision="bfloat16")
    tasks = [
        TrainTask(index=c, client=c, occasion="round", learning_rates=(RATE,), snapshots=(1,), seed=c, update=update)
        for c in range(engine.num_clients)
    ]
    round_trip(engine, {"theta": theta}, tasks, Mean(theta))


def convolutions(network: nn.Module) -> float:
    """Seconds that the convolutions of one batch take alone, forward and backward."""
    shapes: list[tuple[nn.Conv2d, torch.Size]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda layer, given: shapes.append((layer, given[0].shape)))
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    with torch.no_grad():
        network(torch.zeros(2, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    total = 0.0
    for number, (layer, (_, *shape)) in enumerate(shapes):
        x = torch.randn(BATCH, *shape).bfloat16().contiguous(memory_format=torch.channels_last)
        x.requires_grad_(number > 0)  # the images need no gradient
        weight = layer.weight.detach().bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
        wanted = [weight] if number == 0 else [weight, x]

        def step(x: Tensor = x, weight: Tensor = weight, wanted: list[Tensor] = wanted) -> None:
            y = F.conv2d(x, weight, padding=1)
            torch.autograd.grad(y, wanted, torch.ones_like(y))

        step()
        total += min(seconds(step) for _ in range(3))
    return total


def compare(num_clients: int, n: int, repeats: int) -> str:
    """One row of the table of training."""
    model, pixels, targets = _problem(n)
    network, theta = model.get_submodule("1"), dswag.Layout.of(model).flatten(model)
    shares = torch.arange(n).chunk(num_clients)
    loaders = [DataLoader(Cropped(pixels[s], targets[s]), BATCH, shuffle=True, num_workers=2) for s in shares]
    engine = dswag.InProcess(model, [Examples(pixels[s], targets[s], CropAndFlip()) for s in shares])
    usual: list[float] = []
    ours: list[float] = []
    alone: list[float] = []
    for number in range(repeats + 1):
        times = (
            seconds(lambda: usual_round(network, loaders)),
            seconds(lambda: our_round(engine, theta)),
            convolutions(network) * n / BATCH,
        )
        if number:  # the first warms up
            for kept, value in zip((usual, ours, alone), times, strict=True):
                kept.append(value)
    ratio = statistics.median(a / b for a, b in zip(usual, ours, strict=True))
    share = statistics.median(a / b for a, b in zip(alone, ours, strict=True))
    rates = (n / statistics.median(usual), n / statistics.median(ours))
    return f"{num_clients:7} {rates[0]:12.0f} {rates[1]:12.0f} {ratio:8.2f} {share:13.0%}"


def predictions(n: int) -> str:
    """How long refreshing BatchNorm and predicting takes in both precisions, from two draws and some images."""
    model, pixels, targets = _problem(n)
    engine = dswag.InProcess(model, [Examples(pixels, targets)])
    layout = dswag.Layout.of(model)
    theta = layout.flatten(model)
    posterior = dswag.GaussianPosterior(theta, torch.full_like(theta, 1e-8), torch.zeros(0, len(theta)), 2, layout)
    lines = []
    for precision in PRECISIONS:
        started = time.perf_counter()
        dswag.predictive(model, posterior, pixels, samples=2, engine=engine, precision=precision)
        taken = time.perf_counter() - started
        each = taken / (2 * 2 * n)  # statistics and predictions, of two draws
        minutes = DRAWS * (IMAGES + REFRESHED) * each / 60
        lines.append(f"{precision:9} {1 / each:6.0f} passes a second: {minutes:.0f} minutes")
    return "\n".join(lines)


def _problem(n: int) -> tuple[nn.Module, Tensor, Tensor]:
    generator = generator_for(0)
    pixels = torch.randint(0, 256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8)
    targets = torch.randint(0, 10, (n,), generator=generator)
    return build("vgg16", (3, 32, 32), 10, mean=MEAN, std=STD, seed=0), pixels, targets


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--examples", type=int, default=1024)
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, batches of {BATCH}; images a second")
    print("clients        usual     bfloat16  x usual  convolutions")
    for num_clients in (1, 2):
        print(compare(num_clients, arguments.examples, arguments.repeats), flush=True)
    print(f"\n{DRAWS} draws: BatchNorm refreshed on {REFRESHED} images, {IMAGES} predicted")
    print(predictions(arguments.examples))


if __name__ == "__main__":
    main()
