"""Exact BatchNorm statistics, pooled over batches and clients (Algorithm 2, line 3).

Every batch and every client gives a count, a mean and a sum of squared distances per channel; two of these merge
exactly (Chan, Golub & LeVeque 1983), so that the variance between batches and between clients is kept. Only these sums
leave a client, never an example.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset

from dswag.core.randomness import derive_seed
from dswag.data.batches import inputs_of
from dswag.federation.contract import (
    Draws,
    Engine,
    LayerStatistics,
    Part,
    Payload,
    Precision,
    StatisticsResult,
    StatisticsTask,
)
from dswag.federation.round_trip import round_trip

BATCH_SIZE = 128
"""Examples that a layer normalizes together while statistics are collected."""


def layers(module: nn.Module) -> dict[str, _BatchNorm]:
    """The module's BatchNorm layers that keep running statistics, by name."""
    found = {name: m for name, m in module.named_modules() if isinstance(m, _BatchNorm)}
    return {name: layer for name, layer in found.items() if layer.running_mean is not None}


def refresh(
    engine: Engine,
    payload: Payload,
    *,
    seed: int,
    max_examples: int | None = None,
    draws: tuple[Draws, ...] = (),
    part: Part | None = None,
    minimum: int | None = None,
    precision: Precision = "float32",
) -> tuple[dict[str, Tensor], ...]:
    """For the payload's θ, or each draw from its posterior, the running statistics over all clients by buffer name.

    One round trip, however many draws. Each client passes at most `max_examples`, rounded up to whole batches. All
    clients must answer, or at least `minimum`.
    """
    tasks = [
        StatisticsTask(
            index=client,
            client=client,
            occasion="the BatchNorm refresh",
            part=part,
            batch_size=BATCH_SIZE,
            max_examples=max_examples,
            seed=derive_seed(seed, client),
            draws=draws,
            precision=precision,
        )
        for client in range(engine.num_clients)
    ]
    return round_trip(engine, payload, tasks, PooledStatistics(), minimum=minimum).fold.result()


def collect(module: nn.Module, batches: Iterable[Any]) -> dict[str, LayerStatistics]:
    """The statistics of each BatchNorm layer's inputs over the batches of model inputs.

    BatchNorm normalizes by each batch's own statistics meanwhile, all other layers are in evaluation mode (dropout is
    off). The module is left as it was found: its modes, buffers and hooks, also after an exception.

    Without BatchNorm layers there is nothing to collect, and the batches are left alone.

    Raises:
        ValueError: there are no batches.
    """
    watched = layers(module)
    if not watched:
        return {}
    statistics: dict[str, LayerStatistics] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            seen = _of_batch(arguments[0])
            statistics[name] = merge(statistics[name], seen) if name in statistics else seen

        return hook

    with _batch_normalizing(module), torch.no_grad():
        hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in watched.items()]
        try:
            for inputs in batches:
                module(inputs)
        finally:
            for hook in hooks:
                hook.remove()
    if not statistics:
        raise ValueError("BatchNorm statistics need at least one batch, got none")
    return statistics


def merge(first: LayerStatistics, second: LayerStatistics) -> LayerStatistics:
    """The statistics of both sets of values together."""
    count = first.count + second.count
    difference = second.mean - first.mean
    return LayerStatistics(
        count=count,
        mean=first.mean + difference * (second.count / count),
        scatter=first.scatter + second.scatter + difference.square() * (first.count * second.count / count),
    )


def buffers(statistics: Mapping[str, LayerStatistics]) -> dict[str, Tensor]:
    """The running statistics by buffer name: mean and unbiased variance, float32, as PyTorch keeps them.

    Raises:
        ValueError: a layer saw a single value per channel, which has no variance.
    """
    alone = [name for name, seen in statistics.items() if seen.count < 2]
    if alone:
        raise ValueError(f"BatchNorm layers {alone} saw one value per channel: give at least two examples")
    return {
        f"{name}.{buffer}".removeprefix("."): value.float()  # a layer that is itself the model has no name
        for name, seen in statistics.items()
        for buffer, value in (("running_mean", seen.mean), ("running_var", seen.scatter / (seen.count - 1)))
    }


def update(module: nn.Module, batches: Iterable[Any]) -> None:
    """Sets the module's BatchNorm statistics to those of its layers' inputs over the batches, in place.

    The mean and the unbiased variance over all examples are exact, whatever the sizes of the batches. A batch is what
    the module takes, or a tuple or list that begins with it. Nothing changes if it fails, or if there are no such
    layers.

    Raises:
        TypeError: a tensor or a data set, whose elements are examples.
        ValueError: no batches, or a layer that saw a single value per channel.
    """
    if isinstance(batches, Tensor | Dataset):
        raise TypeError(
            f"batches must be an iterable of batches, got {type(batches).__name__}: pass inputs.split({BATCH_SIZE}), "
            "or a DataLoader over the data set"
        )
    load(module, buffers(collect(module, inputs_of(batches))))


def load(module: nn.Module, named: Mapping[str, Tensor]) -> None:
    """Copies the named values into the module's buffers, in place.

    Raises:
        ValueError: the module has no such buffer, or one of another shape; nothing is copied then.
    """
    present = dict(module.named_buffers())
    unknown = [name for name in named if name not in present]
    if unknown:
        raise ValueError(f"the model has no buffers {unknown}: these statistics belong to another model")
    misshapen = [name for name, value in named.items() if value.shape != present[name].shape]
    if misshapen:
        raise ValueError(f"buffers {misshapen} differ in shape from the model's: these statistics belong to another")
    for name, value in named.items():
        present[name].copy_(value)


class PooledStatistics:
    """The statistics of every client together, for each draw."""

    def __init__(self) -> None:
        self._statistics: tuple[Mapping[str, LayerStatistics], ...] = ()

    def add(self, result: StatisticsResult) -> None:
        """Takes in one client's statistics."""
        self._take(result.statistics)

    def merge(self, other: Self) -> None:
        """Takes in another fold's statistics."""
        self._take(other._statistics)

    def result(self) -> tuple[dict[str, Tensor], ...]:
        """For each draw, the running statistics by buffer name."""
        if not self._statistics:
            raise ValueError("there are no BatchNorm statistics of no clients: add a result first")
        return tuple(buffers(statistics) for statistics in self._statistics)

    def empty(self) -> Self:
        """The statistics of no clients."""
        return type(self)()

    def state(self) -> dict[str, Tensor]:
        """How many draws there are, and for each layer counts [s], means [s, c] and scatters [s, c]."""
        draws = self._statistics
        state = {"draws": torch.tensor(len(draws))}
        for name in draws[0] if draws else ():
            seen = [statistics[name] for statistics in draws]
            state[f"count {name}"] = torch.tensor([one.count for one in seen])
            state[f"mean {name}"] = torch.stack([one.mean for one in seen])
            state[f"scatter {name}"] = torch.stack([one.scatter for one in seen])
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes on the statistics of another."""
        names = [name.removeprefix("count ") for name in state if name.startswith("count ")]
        values = {name: [state[f"{what} {name}"] for what in ("count", "mean", "scatter")] for name in names}
        self._statistics = tuple(
            {
                name: LayerStatistics(count=int(count[draw]), mean=mean[draw].clone(), scatter=scatter[draw].clone())
                for name, (count, mean, scatter) in values.items()
            }
            for draw in range(int(state["draws"]))
        )

    def _take(self, statistics: tuple[Mapping[str, LayerStatistics], ...]) -> None:
        if not self._statistics:
            self._statistics = statistics
        elif statistics:
            self._statistics = tuple(
                {**mine, **theirs, **{name: merge(mine[name], theirs[name]) for name in mine if name in theirs}}
                for mine, theirs in zip(self._statistics, statistics, strict=True)
            )


def _of_batch(inputs: Tensor) -> LayerStatistics:
    """Statistics of one batch of a layer's inputs [b, c, ...].

    By the corrected two-pass algorithm (Chan, Golub & LeVeque 1983, equation 1.7): the float32 mean is only a pivot,
    so that a mean far from zero takes no digits from the variance within a batch or between batches.
    """
    axes = [axis for axis in range(inputs.dim()) if axis != 1]
    if inputs.dtype != torch.float64:
        inputs = inputs.float()
    count = inputs.numel() // inputs.shape[1]
    pivot = inputs.mean(axes, keepdim=True)
    centered = inputs - pivot
    shift = centered.mean(axes).double()
    scatter = centered.square_().sum(axes).double() - count * shift.square()
    return LayerStatistics(count=count, mean=pivot.flatten().double() + shift, scatter=scatter.clamp_min(0))


@contextmanager
def _batch_normalizing(module: nn.Module) -> Iterator[None]:
    """BatchNorm layers use batch statistics and leave their buffers alone; everything else evaluates."""
    modes = [(m, m.training) for m in module.modules()]
    tracking = [(layer, layer.track_running_stats) for layer in layers(module).values()]
    try:
        module.eval()
        for layer, _ in tracking:
            layer.train()
            layer.track_running_stats = False
        yield
    finally:
        for m, training in modes:
            m.training = training
        for layer, tracked in tracking:
            layer.track_running_stats = tracked
