"""Algorithm 2, Distributed SWAG testing: Bayesian model averaging; `# l.` names the lines of the paper."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dswag.algorithms.predictive import Average, Reading, joined
from dswag.algorithms.predictive import Predictive as Predictive
from dswag.client.replica import Workspace
from dswag.client.statistics import refresh
from dswag.core.links import Link
from dswag.core.normalization import normalizing
from dswag.core.parameters import Layout, parameters
from dswag.core.threads import default_workers, ordered_map
from dswag.data.batches import groups
from dswag.federation.contract import Engine, Payload
from dswag.federation.folds import prefixed
from dswag.federation.layouts import with_layout
from dswag.federation.local_update import Precision
from dswag.posterior.combining import MixturePosterior
from dswag.posterior.draws import Draws, Kind
from dswag.posterior.gaussian import GaussianPosterior

Posterior = GaussianPosterior | MixturePosterior

ROOM = 1 << 26
"""Bytes of the predictions for a tensor that are held at a time, beside the result itself."""


def predictive(
    model: nn.Module,
    posterior: Posterior,
    inputs: Tensor | Iterable[Any],
    *,
    samples: int = 30,
    seed: int = 0,
    kind: Kind | Literal["mean"] = "swag",
    scale: float = 1.0,
    engine: Engine | None = None,
    batch_norm_examples: int | None = None,
    precision: Precision = "float32",
    batch_size: int = 128,
    workers: int | None = None,
    link: Link | None = None,
    class_axis: int | None = None,
) -> Predictive:
    """Algorithm 2: the average over draws from the posterior of what the model predicts with them.

    Args:
        model: gives logits: of classes [b, c], [b, t, c] or [b, c, h, w], or of yes-or-no labels; it is copied, not
            changed.
        posterior: over the model's parameters, or a subset of them; the rest stays as it is in the model.
        inputs: a tensor or NumPy array [n, ...]; a Dataset of inputs or of (input, target) pairs; or an iterable of
            batches of either, such as a DataLoader. Of all but the first only a few batches are held at a time.
        samples: number of draws, S.
        seed: of the draws.
        kind: which part of the covariance draws use: "swag", "diagonal" or "low_rank"; "mean" predicts with the mean
            alone.
        scale: factor on the covariance.
        engine: its clients collect the BatchNorm statistics of each draw from their own data; needed by models with
            such layers that are not frozen.
        batch_norm_examples: how many examples each client uses for that at most, rounded up to whole batches; all if
            None.
        precision: of the forward passes, those for BatchNorm statistics included.
        batch_size: of the forward passes over inputs that are not batches already.
        workers: draws to predict with at a time; if None, as many as PyTorch uses threads. Results do not depend on it.
        link: "softmax" for classes that exclude one another, "sigmoid" if every output is the logit of a yes-or-no
            label of its own. If None, as the loss of training implies (`posterior.link`); where that is not known,
            several outputs are logits of classes.
        class_axis: of a softmax; if None, that of the loss where it is PyTorch's cross entropy, otherwise the last of
            [b, c] and [b, t, c], and axis 1 of [b, c, h, w].

    Raises:
        TypeError: no posterior, or inputs of another kind.
        ValueError: a posterior for another model, BatchNorm layers without an engine, outputs that are no logits or
            whose link is not known, or no inputs.
        FloatingPointError: a draw whose outputs are not finite, named.
    """
    reading = reading_of(posterior, engine, link, class_axis)
    members = draws_of(
        model,
        posterior,
        samples=samples,
        seed=seed,
        kind=kind,
        scale=scale,
        engine=engine,
        batch_norm_examples=batch_norm_examples,
        precision=precision,
        workers=workers,
    )  # l. 2-3
    averages = average(model, members, inputs, reading=reading, batch_size=batch_size)  # l. 1, 4-6
    return averages.tempered(posterior.temperature)


def predict(
    model: nn.Module, posterior: Posterior, inputs: Tensor | Iterable[Any], **options: Any
) -> Float[Tensor, "n c"]:
    """The mean probabilities p(y*|Data) [n, c]; takes what `predictive` takes."""
    return predictive(model, posterior, inputs, **options).probabilities


def predictive_stream(
    model: nn.Module,
    posterior: Posterior,
    inputs: Tensor | Iterable[Any],
    *,
    batch_size: int = 128,
    link: Link | None = None,
    class_axis: int | None = None,
    **options: Any,
) -> Iterator[Predictive]:
    """The predictive distribution of one batch after another, with only a few of them in memory.

    Takes what `predictive` takes. Batches are read eight at a time (`batches.AHEAD`), of a tensor as many as `ROOM` is
    enough for, and all draws are made anew for each such group. Keeping the draws would take memory for S times θ, and
    iterating over the batches once for each draw would need a source that yields the same batches every time, as a
    shuffled loader does not.
    """
    reading = reading_of(posterior, options.get("engine"), link, class_axis)
    members = draws_of(model, posterior, **options)
    return (
        Predictive(*of_batch, class_axis=averages.class_axis).tempered(posterior.temperature)
        for averages, sizes in _averages(model, members, inputs, batch_size, reading)
        for of_batch in zip(*(torch.split(tensor, sizes) for tensor in averages.tensors()), strict=True)
    )


def ensemble(
    model: nn.Module,
    thetas: Float[Tensor, "s d"],
    inputs: Tensor | Iterable[Any],
    *,
    engine: Engine | None = None,
    layout: Layout | None = None,
    batch_norm_examples: int | None = None,
    precision: Precision = "float32",
    batch_size: int = 128,
    workers: int | None = None,
    link: Link | None = None,
    class_axis: int | None = None,
) -> Predictive:
    """The average of what the model predicts with each of the given weights, their BatchNorm statistics refreshed.

    The weights are those of the parameters in `layout`; of all trainable ones if None. `link` and `class_axis` are
    those of `predictive`.
    """
    reading = Reading.of(link, class_axis, loss=getattr(engine, "loss", None))
    members = members_of(
        model,
        thetas,
        engine=engine,
        layout=layout,
        batch_norm_examples=batch_norm_examples,
        precision=precision,
        workers=workers,
    )
    return average(model, members, inputs, reading=reading, batch_size=batch_size)


@dataclass(frozen=True, eq=False)
class Members:
    """Weights to predict with, each with the buffers that belong to them."""

    layout: Layout
    count: int
    payload: Callable[[int], Payload]
    precision: Precision = "float32"
    """Of the passes that predict with them."""
    name: str = "member"
    """What errors call one of them, before its number."""
    workers: int | None = None
    """How many predict at a time; as many as PyTorch uses threads if None."""


def draws_of(
    model: nn.Module,
    posterior: Posterior,
    *,
    samples: int = 30,
    seed: int = 0,
    kind: Kind | Literal["mean"] = "swag",
    scale: float = 1.0,
    engine: Engine | None = None,
    batch_norm_examples: int | None = None,
    precision: Precision = "float32",
    workers: int | None = None,
) -> Members:
    """Lines 1 to 3: S draws, and their BatchNorm statistics; the mean is one draw that is known."""
    layout = _layout(model, posterior)
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if kind == "mean" or _has_no_spread(posterior, scale):
        (statistics,) = _refresh(model, layout, {"theta": posterior.mean}, engine, batch_norm_examples, precision)
        mean = {"theta": posterior.mean, **prefixed("buffer", statistics)}
        return Members(layout, 1, lambda _: mean, precision, "mean", workers)
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")

    def draw(i: int) -> Float[Tensor, "d"]:
        return posterior.sample(seed, first=i, kind=kind, scale=scale)[0]  # l. 2

    if isinstance(posterior, GaussianPosterior):  # clients make the draws themselves: one round trip for all
        draws = posterior.draws(seed, samples, kind=kind, scale=scale)
        refreshed = _refresh(model, layout, posterior.tensors(), engine, batch_norm_examples, precision, draws)
    elif normalizing(model, layout):
        refreshed = [
            _refresh(model, layout, {"theta": draw(i)}, engine, batch_norm_examples, precision)[0]
            for i in range(samples)
        ]
    else:
        refreshed = [{}] * samples

    def payload(i: int) -> Payload:
        return {"theta": draw(i), **prefixed("buffer", refreshed[i])}  # l. 3

    return Members(layout, samples, payload, precision, f"seed {seed}, draw", workers)


def _has_no_spread(posterior: Posterior, scale: float) -> bool:
    """Whether all draws are the mean, as where `calibrate` found that draws gain nothing."""
    return scale == 0 or (isinstance(posterior, GaussianPosterior) and posterior.is_point)


def members_of(
    model: nn.Module,
    thetas: Float[Tensor, "s d"],
    *,
    engine: Engine | None = None,
    layout: Layout | None = None,
    batch_norm_examples: int | None = None,
    precision: Precision = "float32",
    workers: int | None = None,
) -> Members:
    """Weights that are known, and their BatchNorm statistics."""
    layout = layout or Layout.of(model)
    statistics = [
        _refresh(model, layout, {"theta": theta}, engine, batch_norm_examples, precision)[0] for theta in thetas
    ]

    def payload(i: int) -> Payload:
        return {"theta": thetas[i], **prefixed("buffer", statistics[i])}

    return Members(layout, len(thetas), payload, precision, workers=workers)


def average(
    model: nn.Module,
    members: Members,
    inputs: Tensor | Iterable[Any],
    *,
    reading: Reading = Reading(),  # noqa: B008, it is frozen
    batch_size: int = 128,
) -> Predictive:
    """Lines 4 to 6: the average over the members of what the model predicts with them.

    Raises:
        ValueError: batches whose outputs differ in shape, as those of texts of several lengths.
    """
    averages = (each for each, _ in _averages(model, members, inputs, batch_size, reading))
    return joined(averages, len(inputs) if isinstance(inputs, Tensor | np.ndarray) else None)


def _averages(
    model: nn.Module, members: Members, inputs: Tensor | Iterable[Any], batch_size: int, reading: Reading
) -> Iterator[tuple[Predictive, list[int]]]:
    """Lines 4 to 6: averages over the members, in their order, for a few batches at a time; and the batches' sizes."""
    for outcomes in outputs(model, members, inputs, batch_size, lambda output: (reading.probabilities(output),)):
        averages: list[Average] = []
        for number, parts in enumerate(outcomes):
            blocks = _blocks([part for (part,) in parts])
            averages = averages or [Average(reading.axis(block[0].dim())) for block in blocks]
            for average, block in zip(averages, blocks, strict=True):
                probabilities = torch.cat(block)
                check_finite(probabilities, number, members)
                average.add(probabilities)
        for average, block in zip(averages, blocks, strict=True):
            yield average.result(), [len(part) for part in block]


def _blocks(parts: Sequence[Tensor]) -> list[list[Tensor]]:
    """Batches that follow one another and have one shape beside their size, to be averaged at once."""
    return [list(group) for _, group in groupby(parts, lambda part: part.shape[1:])]


def check_finite(values: Tensor, number: int, members: Members) -> None:
    """Raises FloatingPointError, with the member's name, where one of its numbers is NaN or infinite."""
    if not torch.isfinite(values.sum()):
        broken = ~torch.isfinite(values)
        rows = broken.flatten(1).any(1) if broken.dim() > 1 else broken
        raise FloatingPointError(
            f"{members.name} {number} gives outputs that are not finite for {int(rows.sum())} of {len(rows)} examples: "
            "look for NaN in the inputs; if they are fine, predict in float32 (model.float()), or with a smaller scale"
        )


def outputs(
    model: nn.Module,
    members: Members,
    inputs: Tensor | Iterable[Any],
    batch_size: int,
    read: Callable[[Any], tuple[Tensor, ...]],
) -> Iterator[Iterator[list[tuple[Tensor, ...]]]]:
    """For a few batches at a time: what is read off the model's outputs for each with every member's weights in turn.

    Several members are at work at a time, but no more than two for each thread are held (lines 1 and 5).
    """
    number = min(members.count, members.workers or default_workers())
    workspaces = [Workspace(model, layout=members.layout, trains=False) for _ in range(number)]

    def room(batch: Any) -> int:
        """How many such batches may be predicted at a time: two results a thread wait, and the sums are a few more."""
        with torch.inference_mode(), workspaces[0].computing_in(members.precision):
            workspaces[0].eval()
            found = read(workspaces[0].outputs(batch))
        return ROOM // ((2 * number + 6) * max(1, sum(part.nbytes for part in found)))

    def of_members(batches: Sequence[Any]) -> Iterator[list[tuple[Tensor, ...]]]:
        def predict_with(workspace: Workspace, i: int) -> list[tuple[Tensor, ...]]:
            workspace.load(members.payload(i))
            workspace.eval()
            with torch.inference_mode(), workspace.computing_in(members.precision):
                return [read(workspace.outputs(batch)) for batch in batches]

        return ordered_map(predict_with, workspaces, range(members.count))

    for batches in groups(inputs, batch_size, room):  # they share the cost of making the draws
        yield of_members(batches)
        del batches  # before the next are read


def reading_of(posterior: Posterior, engine: Engine | None, link: Link | None, class_axis: int | None) -> Reading:
    """How outputs are read: as the caller says, the posterior knows, or the engine's loss implies."""
    known = getattr(posterior, "link", None)
    return Reading.of(link, class_axis, known=known, loss=getattr(engine, "loss", None))


def _layout(model: nn.Module, posterior: Posterior) -> Layout:
    """The parameters that the posterior is over."""
    if not isinstance(posterior, Posterior):
        raise TypeError(f"predictions need a posterior, such as run.posterior, got {type(posterior).__name__}")
    if posterior.layout is None:
        return Layout.of(model)
    known = parameters(model)
    if not all(name in known for name in posterior.layout.names):
        Layout.of(model).check(posterior.mean)  # for another model, sizes that differ say more than names
    return posterior.layout


def _refresh(
    model: nn.Module,
    layout: Layout,
    payload: Payload,
    engine: Engine | None,
    max_examples: int | None,
    precision: Precision,
    draws: Draws | None = None,
) -> Sequence[Mapping[str, Tensor]]:
    """For each draw, the BatchNorm statistics pooled over all clients; nothing to do without such layers."""
    if not normalizing(model, layout):
        return [{}] * (1 if draws is None else draws.count)
    if engine is None:
        raise ValueError(
            "the model has layers with running statistics, such as BatchNorm, which belong to the weights: pass "
            "engine=..., so that the clients refresh them for every draw (Algorithm 2, line 3)"
        )
    seed, asked = (0, ()) if draws is None else (draws.seed, (draws,))
    payload = with_layout(payload, layout)
    return refresh(engine, payload, seed=seed, max_examples=max_examples, draws=asked, precision=precision)
