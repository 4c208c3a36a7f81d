"""Predictive distributions: from a model's outputs to probabilities, and their average over draws (l. 4-6)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dswag.core.links import Learned, Link, default_axis, learned
from dswag.evaluation.temperature import temper


@dataclass(frozen=True, eq=False)
class Predictive:
    """The predictive distribution of each example, and its uncertainty. Entropies are in nats.

    Shapes are given for classes [n, c]. For outputs [n, t, c] or [n, c, h, w], probabilities and variance have the
    shape of the outputs, the others that without the classes. For yes-or-no labels, all have the outputs' shape.
    """

    probabilities: Float[Tensor, "n c"]
    """Mean over the draws, p(y*|Data), tempered where the posterior has a temperature."""
    expected_entropy: Float[Tensor, "n"]
    """Mean entropy of the single draws: the uncertainty that would remain if the weights were known."""
    mutual_information: Float[Tensor, "n"]
    """Entropy of the draws' mean minus the mean of their entropies, at least 0: how much the draws disagree."""
    variance: Float[Tensor, "n c"]
    """Variance of each probability over the draws (divided by S), before tempering."""
    class_axis: int | None = field(default=1, kw_only=True)
    """The axis of the classes in `probabilities`; None where each is of a yes-or-no label of its own."""

    @property
    def entropy(self) -> Float[Tensor, "n"]:
        """Entropy of the probabilities, between 0 and ln c: the total uncertainty.

        It is the sum of the expected entropy and the mutual information, unless the probabilities were tempered.
        """
        return _entropy(self.probabilities, self.class_axis)

    def tensors(self) -> tuple[Tensor, ...]:
        """Its four tensors, each with a row for every example."""
        return self.probabilities, self.expected_entropy, self.mutual_information, self.variance

    def tempered(self, temperature: float) -> "Predictive":
        """The same with softer (temperature above 1) or sharper (below 1) probabilities."""
        return replace(self, probabilities=temper(self.probabilities, temperature, self.class_axis))


@dataclass(frozen=True)
class Reading:
    """How outputs are read: by a softmax over an axis, or by a sigmoid of each."""

    link: Link = "softmax"
    class_axis: int | None = None
    """Of a softmax; if None, the last of [n, c] and [n, t, c], and axis 1 of [n, c, h, w]."""

    @classmethod
    def of(
        cls,
        link: Link | None,
        class_axis: int | None,
        *,
        known: Learned | None = None,
        loss: Callable[..., Any] | None = None,
    ) -> "Reading":
        """As the caller says; otherwise as the posterior knows from its training, or as the loss at hand implies.

        Raises:
            ValueError: outputs that are no logits, or a loss that does not tell.
        """
        if link is None and known is None and loss is not None:
            known = learned(loss)
        said = link or known or "softmax"
        if said not in ("softmax", "sigmoid"):
            raise ValueError(_NO_LINK.get(said, f'link must be "softmax" or "sigmoid", got {said!r}'))
        if said == "sigmoid" and class_axis is not None:
            raise ValueError(f"a sigmoid reads every output alone and has no class_axis, got {class_axis}")
        if known == "softmax" and class_axis is None:
            class_axis = 1  # PyTorch's cross entropy
        return cls(said, class_axis)

    def axis(self, dim: int) -> int | None:
        """The axis of the classes in outputs of so many axes; None for a sigmoid."""
        if self.link == "sigmoid":
            return None
        return default_axis(dim) if self.class_axis is None else self.class_axis % dim

    def probabilities(self, outputs: Any) -> Float64[Tensor, "b *rest"]:
        """Probabilities of what the model returned, or of the `logits` in it.

        Raises:
            ValueError: it is no tensor, or none of the shape that is read.
        """
        logits = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", outputs)
        if not isinstance(logits, Tensor) or not logits.dim() or not logits.is_floating_point():
            found = f"{logits.dtype} {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"the model must return logits [b, c] to predict classes, got {found}: average other outputs over "
                "posterior.sampled(model, seed=0, number=i)"
            )
        if self.link == "sigmoid":
            return logits.double().sigmoid()
        axis = self.axis(logits.dim()) if logits.dim() > 1 else None
        if axis is None or logits.shape[axis] == 1:
            raise ValueError(
                f"the model returned a single logit for each example, {list(logits.shape)}, of which no softmax over "
                'classes can be taken: for a yes-or-no question pass link="sigmoid", and for a regression use '
                "dswag.regression"
            )
        return logits.double().softmax(axis)


def joined(pieces: Iterable[Predictive], count: int | None = None) -> Predictive:
    """The predictions for some examples after another as one; for `count` in all, if that is known.

    Raises:
        ValueError: pieces that differ in shape.
    """
    kept: list[tuple[Tensor, ...]] = []
    whole: tuple[Tensor, ...] = ()
    end, axis = 0, None
    first: torch.Size | None = None
    for piece in pieces:
        axis, shape = piece.class_axis, piece.probabilities.shape[1:]
        first = shape if first is None else first
        if shape != first:
            found = " and ".join(str(list(each)) for each in sorted((first, shape)))
            raise ValueError(
                f"outputs of all batches must have one shape to be put together, got {found} beside the batch: use "
                "dswag.predictive_stream, which yields batch after batch"
            )
        start, end = end, end + len(piece.probabilities)
        if count is None or (end == count and not whole):
            kept.append(piece.tensors())
            continue
        whole = whole or tuple(tensor.new_empty((count, *tensor.shape[1:])) for tensor in piece.tensors())
        for all_of_them, tensor in zip(whole, piece.tensors(), strict=True):
            all_of_them[start:end] = tensor
    return Predictive(*(whole or map(torch.cat, zip(*kept, strict=True))), class_axis=axis)


_NO_LINK = {
    "identity": "the model was trained with a loss that takes its outputs as they are, so that they are no logits: use "
    'dswag.regression, or pass link="softmax" or link="sigmoid" if they are',
    "unknown": "the model was trained with a loss of its own, which does not tell how outputs become probabilities: "
    'pass link="softmax" for classes that exclude one another, or link="sigmoid" for yes-or-no labels',
}


class Average:
    """The running average over draws of what some examples are predicted; changed in place."""

    def __init__(self, axis: int | None) -> None:
        # a number on the CPU goes with tensors of any device, whatever the default one is
        self.axis = axis
        self.count = 0
        self.total = self.entropy = self.squares = torch.zeros((), dtype=torch.float64, device="cpu")

    def add(self, probabilities: Float64[Tensor, "n *rest"]) -> None:
        """One draw more."""
        self.count += 1
        self.total = self.total + probabilities  # l. 4
        self.entropy = self.entropy + _entropy(probabilities, self.axis)
        self.squares = self.squares + probabilities.square()

    def result(self) -> Predictive:
        """The averages so far."""
        mean, expected_entropy = self.total / self.count, self.entropy / self.count
        # differences of nearly equal numbers where draws agree: float32 would leave none of their digits
        variance = (self.squares / self.count - mean.square()).clamp_min(0)
        mutual_information = (_entropy(mean, self.axis) - expected_entropy).clamp_min(0)
        averages = (mean, expected_entropy, mutual_information, variance)
        return Predictive(*(average.float() for average in averages), class_axis=self.axis)  # l. 6


def _entropy(probabilities: Float[Tensor, "n *rest"], axis: int | None) -> Tensor:
    entropy: Tensor = torch.special.entr(probabilities)
    return entropy + torch.special.entr(1 - probabilities) if axis is None else entropy.sum(axis)
