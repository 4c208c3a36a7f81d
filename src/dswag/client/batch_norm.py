"""Running statistics of normalization layers, pooled over batches and clients (Algorithm 2, line 3).

Every batch and every client gives a count, a mean and a sum of squared distances per channel; two of these merge
exactly (Chan, Golub & LeVeque 1983), so that the variance between batches and between clients is kept. A tracked
InstanceNorm layer keeps the means over examples of each example's mean and variance: two such sums. Only these sums
leave a client, never an example.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset

from dswag.client.calling import called, placed
from dswag.client.running_state import load as load
from dswag.client.running_state import refresh_spectral_norms
from dswag.core.normalization import normalizing
from dswag.core.parameters import Layout, unwrapped
from dswag.data.batches import inputs_of

BATCH_SIZE = 128
"""Examples that a layer normalizes together while statistics are collected."""

SETTLED = 1e-6
"""Change of a layer's statistics, relative to the largest of them, that is left to rounding."""

MEANS = ("running_mean", "running_var")
"""The buffers of a layer; an entry of this name is of InstanceNorm, and its mean is the buffer."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerStatistics:
    """The inputs of one BatchNorm layer: per channel, their mean and the sum of squared distances from it."""

    count: int
    mean: Float64[Tensor, "c"]
    scatter: Float64[Tensor, "c"]


def widths(module: nn.Module, layout: Layout | None = None) -> dict[str, int]:
    """The number of channels of each entry that `collect` gives for the module."""
    return {
        entry: layer.num_features
        for name, layer in normalizing(module, layout).items()
        for entry in ([name] if isinstance(layer, _BatchNorm) else map(partial(_joined, name), MEANS))
    }


def collect(
    module: nn.Module,
    batches: Iterable[Any],
    layers: Mapping[str, nn.Module] | None = None,
    *,
    running: bool = False,
) -> dict[str, LayerStatistics]:
    """The statistics of each normalization layer's inputs over the batches of model inputs, by the layer's name.

    Those of InstanceNorm have an entry for each buffer, named as the buffer, whose mean it is. Layers normalize by each
    batch's or example's own statistics meanwhile, all others are in evaluation mode (dropout is off). The module is
    left as it was found: its modes, buffers and hooks, also after an exception.

    Without such layers there is nothing to collect, and the batches are left alone.

    Args:
        module: whatever the batches are for.
        batches: its inputs, where the module is.
        layers: of the module, by name; those that `normalizing` finds if None.
        running: whether layers normalize by their running statistics instead, as in evaluation mode.

    Raises:
        ValueError: there are no batches.
    """
    watched = normalizing(module) if layers is None else layers
    if not watched:
        return {}
    statistics: dict[str, LayerStatistics] = {}
    batches = iter(batches)
    first = tuple(islice(batches, 1))  # before anything is watched: a replica may try it

    def watch(name: str) -> Any:
        def hook(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            for entry, seen in _seen_by(name, layer, arguments[0]).items():
                statistics[entry] = merge(statistics[entry], seen) if entry in statistics else seen

        return hook

    with _own_statistics(module, {} if running else watched), torch.no_grad():
        hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in watched.items()]
        try:
            for inputs in chain(first, batches):
                called(module, inputs)
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
    means = {name: seen.mean.float() for name, seen in statistics.items() if name.rpartition(".")[2] in MEANS}
    of_batches = {name: seen for name, seen in statistics.items() if name not in means}
    alone = [name for name, seen in of_batches.items() if seen.count < 2]
    if alone:
        raise ValueError(f"BatchNorm layers {alone} saw one value per channel: give at least two examples")
    return means | {
        _joined(name, buffer): value.float()
        for name, seen in of_batches.items()
        for buffer, value in zip(MEANS, (seen.mean, seen.scatter / (seen.count - 1)), strict=True)
    }


def update(module: nn.Module, batches: Iterable[Any], *, exact: bool = False) -> None:
    """Sets the module's BatchNorm statistics to those of its layers' inputs over the batches, in place.

    They are the mean and the unbiased variance over all examples together. A layer behind another one sees what the
    other makes of each batch by the batch's own statistics, as in training, so that its inputs depend on which examples
    share a batch. With `exact`, further passes normalize by the statistics of the pass before until these no longer
    change: as many passes more as there are layers, at most. Then the statistics are those of the inputs in
    predictions, whatever the size and the order of the batches.

    A batch is what the module takes, or a tuple or list that begins with it; it is brought to the module's device.
    Frozen layers, in evaluation mode within a model in training mode or with parameters that require no gradient, stay
    as they are. The vectors of spectral normalization are computed from the weights. Nothing changes if it fails.

    Raises:
        TypeError: a tensor or a data set, whose elements are examples; or batches that can be passed over only once.
        ValueError: no batches, or a layer that saw a single value per channel.
    """
    if exact and isinstance(batches, Iterator):
        raise TypeError("exact statistics take several passes over the batches: give a list or a loader of them")
    if isinstance(batches, Tensor | Dataset):
        raise TypeError(
            f"batches must be an iterable of batches, got {type(batches).__name__}: pass inputs.split({BATCH_SIZE}), "
            "or a DataLoader over the data set"
        )
    module = unwrapped(module)
    device = next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}

    def collected(*, running: bool) -> dict[str, Tensor]:
        return buffers(collect(module, (placed(inputs, device) for inputs in inputs_of(batches)), running=running))

    refresh_spectral_norms(module)
    try:
        found = collected(running=False)
        load(module, found)
        for _ in normalizing(module) if exact else ():
            last, found = found, collected(running=True)
            load(module, found)
            if all((found[name] - last[name]).abs().max() <= SETTLED * found[name].abs().max() for name in found):
                break
    except BaseException:
        load(module, before)
        raise


def _seen_by(name: str, layer: nn.Module, inputs: Tensor) -> dict[str, LayerStatistics]:
    if isinstance(layer, _BatchNorm):
        return {name: _of_batch(inputs)}
    return {_joined(name, buffer): seen for buffer, seen in zip(MEANS, _of_instances(layer, inputs), strict=True)}


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


def _of_instances(layer: nn.Module, inputs: Tensor) -> tuple[LayerStatistics, LayerStatistics]:
    """Statistics of the means, and of the unbiased variances, of each example [c, ...] in a layer's inputs."""
    batched = inputs if inputs.dim() > layer._get_no_batch_dim() else inputs[None]  # type: ignore[operator]
    values = batched.flatten(2).double()
    variances, means = torch.var_mean(values, 2, correction=min(1, values.shape[2] - 1))

    def over_examples(rows: Tensor) -> LayerStatistics:
        mean = rows.mean(0)
        return LayerStatistics(count=len(rows), mean=mean, scatter=(rows - mean).square().sum(0))

    return over_examples(means), over_examples(variances)


def _joined(layer: str, buffer: str) -> str:
    return f"{layer}.{buffer}".removeprefix(".")  # a layer that is itself the model has no name


@contextmanager
def _own_statistics(module: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """These layers normalize by batch or example and keep their buffers; everything else evaluates."""
    modes = [(m, m.training) for m in module.modules()]
    tracking = [(layer, layer.track_running_stats) for layer in layers.values()]
    before = {name: buffer.clone() for name, buffer in module.named_buffers() if name.rpartition(".")[2] in MEANS}
    try:
        module.eval()
        for layer in layers.values():
            layer.train()
            layer.track_running_stats = False  # type: ignore[assignment]
        yield
    finally:
        for m, training in modes:
            m.training = training
        for layer, tracked in tracking:
            layer.track_running_stats = tracked
        load(module, before)  # into which InstanceNorm writes all the same
