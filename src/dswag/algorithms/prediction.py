"""Algorithm 2, Distributed SWAG testing: Bayesian model averaging; `# l.` names the lines of the paper."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from dswag.client import batch_norm
from dswag.client.replica import Workspace
from dswag.core.parameters import Layout, parameters
from dswag.core.threads import default_workers, ordered_map
from dswag.data.batches import groups
from dswag.evaluation.temperature import temper
from dswag.federation.contract import Draws, Engine, Kind, Payload, Precision
from dswag.posterior.combining import MixturePosterior
from dswag.posterior.gaussian import GaussianPosterior

Posterior = GaussianPosterior | MixturePosterior


@dataclass(frozen=True, eq=False)
class Predictive:
    """The predictive distribution of each example, and its uncertainty. Entropies are in nats."""

    probabilities: Float[Tensor, "n c"]
    """Mean over the draws, p(y*|Data), tempered where the posterior has a temperature."""
    expected_entropy: Float[Tensor, "n"]
    """Mean entropy of the single draws: the uncertainty that would remain if the weights were known."""
    mutual_information: Float[Tensor, "n"]
    """Entropy of the draws' mean minus the mean of their entropies, at least 0: how much the draws disagree."""
    variance: Float[Tensor, "n c"]
    """Variance of each probability over the draws (divided by S), before tempering."""

    @property
    def entropy(self) -> Float[Tensor, "n"]:
        """Entropy of the probabilities, between 0 and ln c: the total uncertainty.

        It is the sum of the expected entropy and the mutual information, unless the probabilities were tempered.
        """
        return _entropy(self.probabilities)

    def tensors(self) -> tuple[Tensor, ...]:
        """Its four tensors, each with a row for every example."""
        return self.probabilities, self.expected_entropy, self.mutual_information, self.variance

    def tempered(self, temperature: float) -> "Predictive":
        """The same with softer (temperature above 1) or sharper (below 1) probabilities."""
        return replace(self, probabilities=temper(self.probabilities, temperature))


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
) -> Predictive:
    """Algorithm 2: the average over draws from the posterior of what the model predicts with them.

    Args:
        model: gives logits [b, c]; it is copied, not changed.
        posterior: over the model's parameters, or a subset of them; the rest stays as it is in the model.
        inputs: a tensor or NumPy array [n, ...]; a Dataset of inputs or of (input, target) pairs; or an iterable of
            batches of either, such as a DataLoader. Of all but the first only a few batches are held at a time.
        samples: number of draws, S.
        seed: of the draws.
        kind: which part of the covariance draws use: "swag", "diagonal" or "low_rank"; "mean" predicts with the mean
            alone.
        scale: factor on the covariance.
        engine: its clients collect the BatchNorm statistics of each draw from their own data; needed by models with
            such layers.
        batch_norm_examples: how many examples each client uses for that at most, rounded up to whole batches; all if
            None.
        precision: of the forward passes, those for BatchNorm statistics included.
        batch_size: of the forward passes over inputs that are not batches already.

    Raises:
        TypeError: no posterior, or inputs of another kind.
        ValueError: a posterior for another model, BatchNorm layers without an engine, outputs that are no logits of
            classes [b, c], or no inputs.
    """
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
    )  # l. 2-3
    return average(model, members, inputs, batch_size=batch_size).tempered(posterior.temperature)  # l. 1, 4-6


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
    **options: Any,
) -> Iterator[Predictive]:
    """The predictive distribution of one batch after another, with only a few of them in memory.

    Takes what `predictive` takes. Batches are read eight at a time (`batches.AHEAD`), and all draws are made anew for
    each such group. Keeping the draws would take memory for S times θ, and iterating over the batches once for each
    draw would need a source that yields the same batches every time, as a shuffled loader does not.
    """
    members = draws_of(model, posterior, **options)
    return (
        Predictive(*of_batch).tempered(posterior.temperature)
        for averages, sizes in _averages(model, members, inputs, batch_size)
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
) -> Predictive:
    """The average of what the model predicts with each of the given weights, their BatchNorm statistics refreshed.

    The weights are those of the parameters in `layout`; of all trainable ones if None.
    """
    members = members_of(
        model, thetas, engine=engine, layout=layout, batch_norm_examples=batch_norm_examples, precision=precision
    )
    return average(model, members, inputs, batch_size=batch_size)


@dataclass(frozen=True, eq=False)
class Members:
    """Weights to predict with, each with the buffers that belong to them."""

    layout: Layout
    count: int
    payload: Callable[[int], Payload]
    precision: Precision = "float32"
    """Of the passes that predict with them."""


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
) -> Members:
    """Lines 1 to 3: S draws, and their BatchNorm statistics; the mean is one draw that is known."""
    layout = _layout(model, posterior)
    if kind == "mean":
        (statistics,) = _refresh(model, {"theta": posterior.mean}, engine, batch_norm_examples, precision)
        return Members(layout, 1, lambda _: {"theta": posterior.mean, **statistics}, precision)
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")

    def draw(i: int) -> Float[Tensor, "d"]:
        return posterior.sample(seed, first=i, kind=kind, scale=scale)[0]  # l. 2

    if isinstance(posterior, GaussianPosterior):  # clients make the draws themselves: one exchange for all
        draws = posterior.draws(seed, samples, kind=kind, scale=scale)
        refreshed = _refresh(model, posterior.tensors(), engine, batch_norm_examples, precision, draws)
    else:
        refreshed = [
            _refresh(model, {"theta": draw(i)}, engine, batch_norm_examples, precision)[0] for i in range(samples)
        ]

    def payload(i: int) -> Payload:
        return {"theta": draw(i), **refreshed[i]}  # l. 3

    return Members(layout, samples, payload, precision)


def members_of(
    model: nn.Module,
    thetas: Float[Tensor, "s d"],
    *,
    engine: Engine | None = None,
    layout: Layout | None = None,
    batch_norm_examples: int | None = None,
    precision: Precision = "float32",
) -> Members:
    """Weights that are known, and their BatchNorm statistics."""
    statistics = [_refresh(model, {"theta": theta}, engine, batch_norm_examples, precision)[0] for theta in thetas]

    def payload(i: int) -> Payload:
        return {"theta": thetas[i], **statistics[i]}

    return Members(layout or Layout.of(model), len(thetas), payload, precision)


def average(model: nn.Module, members: Members, inputs: Tensor | Iterable[Any], *, batch_size: int = 128) -> Predictive:
    """Lines 4 to 6: the average over the members of what the model predicts with them."""
    averages = _averages(model, members, inputs, batch_size)
    return Predictive(*map(torch.cat, zip(*(each.tensors() for each, _ in averages), strict=True)))


def _averages(
    model: nn.Module, members: Members, inputs: Tensor | Iterable[Any], batch_size: int
) -> Iterator[tuple[Predictive, list[int]]]:
    """Lines 4 to 6 for a few batches at a time: averages over the members, in their order; and the batches' sizes."""
    for outcomes in outputs(model, members, inputs, batch_size, lambda logits: (_probabilities(logits),)):
        # a number on the CPU goes with tensors of any device, whatever the default one is
        total = total_entropy = squares = torch.zeros((), dtype=torch.float64, device="cpu")
        sizes: list[int] = []
        for parts in outcomes:
            sizes = [len(part) for (part,) in parts]
            probabilities = torch.cat([part for (part,) in parts])
            total = total + probabilities  # l. 4
            total_entropy = total_entropy + _entropy(probabilities)
            squares = squares + probabilities.square()
        mean, expected_entropy = total / members.count, total_entropy / members.count
        # differences of nearly equal numbers where draws agree: float32 would leave none of their digits
        variance = (squares / members.count - mean.square()).clamp_min(0)
        mutual_information = (_entropy(mean) - expected_entropy).clamp_min(0)
        averages = (mean, expected_entropy, mutual_information, variance)
        yield Predictive(*(average.float() for average in averages)), sizes  # l. 6


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
    workspaces = [Workspace(model, layout=members.layout) for _ in range(min(members.count, default_workers()))]

    def of_members(batches: Sequence[Any]) -> Iterator[list[tuple[Tensor, ...]]]:
        def predict_with(workspace: Workspace, i: int) -> list[tuple[Tensor, ...]]:
            workspace.load(members.payload(i))
            workspace.module.eval()
            with torch.inference_mode(), workspace.computing_in(members.precision):
                return [read(workspace.outputs(batch)) for batch in batches]

        return ordered_map(predict_with, workspaces, range(members.count))

    for batches in groups(inputs, batch_size):  # they share the cost of making the draws
        yield of_members(batches)
        del batches  # before the next are read


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
    payload: Payload,
    engine: Engine | None,
    max_examples: int | None,
    precision: Precision,
    draws: Draws | None = None,
) -> Sequence[Mapping[str, Tensor]]:
    """For each draw, the BatchNorm statistics pooled over all clients; nothing to do without such layers."""
    if not batch_norm.layers(model):
        return [{}] * (1 if draws is None else draws.count)
    if engine is None:
        raise ValueError(
            "the model has BatchNorm layers, whose statistics belong to the weights: pass engine=... so that the "
            "clients refresh them for every draw (Algorithm 2, line 3)"
        )
    seed, asked = (0, ()) if draws is None else (draws.seed, (draws,))
    return batch_norm.refresh(engine, payload, seed=seed, max_examples=max_examples, draws=asked, precision=precision)


def _probabilities(logits: Any) -> Float64[Tensor, "b c"]:
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        found = f"shape {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"the model must return logits [b, c] to predict classes, got {found}: average other outputs over "
            "posterior.sampled(model, seed=0, number=i)"
        )
    if logits.shape[1] == 1:
        raise ValueError(
            "the model must return a logit for each class, got one in all, whose probability would always be 1: "
            "give two classes two outputs, and for a regression use dswag.regression"
        )
    return logits.double().softmax(1)


def _entropy(probabilities: Float[Tensor, "n c"]) -> Float[Tensor, "n"]:
    entropy: Tensor = torch.special.entr(probabilities).sum(1)
    return entropy
