"""Which labels of a batch count, and for how much: what a loss ignores, its class weights, and classes as rows."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dswag.core.links import IGNORED, class_axis, known_link, pairs_elements, rows, setting, takes_classes_at_axis_1


class Labels:
    """How a loss reads labels. It is not called: one of the user's own may count its calls."""

    def __init__(self, loss: Any) -> None:
        self.loss = loss
        self.link = known_link(self.loss)
        self.ignored = int(setting(self.loss, "ignore_index", IGNORED))

    def weight(self, targets: Any) -> int | Tensor:
        """What the loss of a batch, a mean, is multiplied by so that the losses of all batches add up.

        For whole numbers, the number of labels that are not ignored, or the sum of their class weights; for others the
        number of targets.
        """
        if not isinstance(targets, Tensor):
            return len(targets)
        if self.link not in ("softmax", None) or not _whole(targets):
            return targets.numel() if self.link in ("sigmoid", "identity") else len(targets)
        counts = targets != self.ignored
        weights = setting(self.loss, "weight") if self.link else None
        if weights is None:
            return counts.sum()
        return torch.where(counts, weights.to(targets.device)[targets.where(counts, 0).long()], 0.0).sum()

    def fitted(self, outputs: Any, targets: Any) -> Any:
        """Targets of the type that the loss takes: booleans and whole numbers of any size stand for classes or labels.

        Other losses get whole numbers as int64, and booleans as they are.
        """
        if not isinstance(targets, Tensor) or not _whole(targets):
            return targets
        if self.link in ("sigmoid", "identity"):
            return targets.to(outputs.dtype if isinstance(outputs, Tensor) else torch.get_default_dtype())
        return targets if targets.dtype == torch.bool and self.link is None else targets.long()

    def check(self, outputs: Any, targets: Any) -> None:
        """Raises ValueError where a loss of equal shapes is given two that differ, which it would broadcast."""
        if not pairs_elements(self.loss) or not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
            return
        if outputs.shape != targets.shape:
            raise ValueError(
                f"outputs and targets must have one shape for this loss, got {list(outputs.shape)} and "
                f"{list(targets.shape)}, which would be broadcast: reshape the targets, as by targets[:, None]"
            )

    def classes(self, outputs: Any, targets: Any) -> tuple[Float[Tensor, "m c"], Int64[Tensor, "m"]] | None:
        """Logits and class of each label, a row each, also of those `ignored`; None if these are no classes or labels.

        Nothing waits for a device that the outputs are on.
        """
        logits = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
        if not isinstance(logits, Tensor) or not isinstance(targets, Tensor) or self.link == "identity":
            return None
        if self.link == "sigmoid":
            fit = logits.shape == targets.shape and bool(((targets == 0) | (targets == 1)).all())
            return rows(logits, targets.to(logits.device), None) if fit else None
        if not _whole(targets):
            return None
        given = 1 if takes_classes_at_axis_1(self.loss) and logits.dim() > 1 else None
        axis = class_axis(logits.shape, targets.shape, given)
        return None if axis is None else rows(logits, targets.to(logits.device), axis)


def _whole(targets: Tensor) -> bool:
    return not (targets.is_floating_point() or targets.is_complex())


def summed(losses: Sequence[tuple[int | Tensor, Tensor]]) -> tuple[float, float]:
    """Sum of the losses of some batches times their weights, and the sum of the weights."""
    weights = torch.stack([torch.as_tensor(weight, dtype=torch.float64) for weight, _ in losses]).cpu()
    values = torch.stack([loss for _, loss in losses]).double().cpu()
    # the mean over no label is NaN
    return float(torch.where(weights > 0, weights * values, 0.0).sum()), float(weights.sum())
