"""Probabilities and targets in whatever form they come, brought to rows: a distribution over classes and a class."""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dswag.core.arrays import as_tensor
from dswag.core.links import IGNORED, class_axis


def aligned(
    probabilities: Any, targets: Any, *, axis: int | None = None, ignore_index: int | None = IGNORED
) -> tuple[Float[Tensor, "m c"], Int64[Tensor, "m"]]:
    """A row for each target that counts: the probabilities of its classes, and the class that it is.

    Tensors, NumPy arrays or lists:

    - classes: probabilities [n, c] and targets [n]; for tokens [n, t, c] and [n, t], for pixels [n, c, h, w] and
      [n, h, w], for which every target is an example. Targets are integers of any type, or booleans for two classes.
    - yes or no: probabilities and targets of one shape, such as [n] or [n, labels], or [n, 1] and [n]. A probability
      is that of 1; every label is an example of two classes.

    Args:
        probabilities: as above.
        targets: as above, on any device.
        axis: of the classes, where the shapes leave a choice and it is not the last of three or axis 1 of more.
        ignore_index: targets of this number do not count; all count if None.

    Raises:
        ValueError: shapes or types that do not fit, nothing that counts, probabilities that are NaN, negative or do
            not sum to 1, or targets out of range.
    """
    values, labels = as_tensor(probabilities), as_tensor(targets)
    if not values.is_floating_point() or not values.dim():
        raise ValueError(f"probabilities must be floating with shape [n, c], got {values.dtype} {list(values.shape)}")
    labels = labels.to(values.device)
    binary = values.dim() > 1 and values.shape[-1] == 1 and labels.shape == values.shape[:-1]
    if binary or labels.shape == values.shape:
        values, labels = _yes_or_no(values, labels)
    else:
        if labels.is_floating_point() or labels.is_complex():
            raise ValueError(f"targets must be whole numbers, got {labels.dtype} {list(labels.shape)}")
        found = class_axis(values.shape, labels.shape, axis)
        if found is None:
            raise ValueError(_unpaired(values, labels))
        if not values.numel():
            raise ValueError(
                f"probabilities must hold at least one example and one class, got shape {list(values.shape)}"
            )
        values = values.movedim(found, -1).reshape(-1, values.shape[found])
        labels = labels.reshape(-1).long()
    if ignore_index is not None and bool((ignored := labels == ignore_index).any()):
        values, labels = values[~ignored], labels[~ignored]
        if not len(labels):
            raise ValueError(f"there is nothing to score: every target is {ignore_index}, which does not count")
    check_predictions(values, labels)
    return values, labels


def check_predictions(probabilities: Float[Tensor, "n c"], targets: Int64[Tensor, "n"]) -> None:
    """Refuse what is not one distribution over classes and one class per example.

    A row may miss the sum 1 by 1e-3, or by the spacing of its dtype at 1 where that is wider (bfloat16).

    Raises:
        ValueError: shapes or dtypes that do not fit, no example, probabilities that are NaN, negative or do not sum to
            1, or targets out of range.
    """
    if probabilities.ndim != 2 or not probabilities.is_floating_point():
        raise ValueError(
            f"probabilities must be floating with shape [n, c], got {probabilities.dtype} {list(probabilities.shape)}"
        )
    if targets.ndim != 1 or targets.dtype != torch.int64:
        raise ValueError(f"targets must be int64 with shape [n], got {targets.dtype} {list(targets.shape)}")
    n, c = probabilities.shape
    if len(targets) != n:
        raise ValueError(f"probabilities and targets must pair up, got {n} rows and {len(targets)} targets")
    if n == 0 or c == 0:
        raise ValueError(f"probabilities must hold at least one example and one class, got shape {[n, c]}")
    sums = probabilities.sum(dim=1, dtype=torch.float64)
    tolerance = max(1e-3, torch.finfo(probabilities.dtype).eps)
    for wrong, expected in (
        (sums.isnan(), "be free of NaN"),
        (probabilities.amin(dim=1) < 0, "not be negative"),
        ((sums - 1).abs() > tolerance, f"sum to 1 in every row (within {tolerance:.2g}); logits need a softmax first"),
    ):
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"probabilities must {expected}: row {row} is {_shortened(probabilities[row])} with sum {sums[row]:.6g}"
            )
    if targets.amin() < 0 or targets.amax() >= c:
        row = int(((targets < 0) | (targets >= c)).nonzero()[0])
        raise ValueError(f"targets must lie in 0 to {c - 1} for {c} classes, got {int(targets[row])} in example {row}")


def _yes_or_no(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Every probability as a row of two."""
    if values.dim() == 2 and values.shape[1] > 1 and _one_hot(values, labels):
        raise ValueError(
            "targets look like classes in one-hot form, and the probabilities of a row sum to 1: pass "
            "targets.argmax(1); labels that exclude one another are no yes-or-no questions of their own"
        )
    flat, answers = values.reshape(-1), labels.reshape(-1)
    outside = ~((flat >= 0) & (flat <= 1))
    if bool(outside.any()):
        at = int(outside.nonzero()[0])
        raise ValueError(
            f"a probability must lie in 0 to 1, got {float(flat[at]):.4g} at {at}: logits need a sigmoid first"
        )
    whole = answers.double()
    if bool((whole != whole.round()).any()):
        raise ValueError("targets of yes-or-no labels must be 0 or 1, got shares between")
    return torch.stack([1 - flat, flat], 1), answers.long()


def _one_hot(values: Tensor, labels: Tensor) -> bool:
    if not len(values) or bool((labels.long() == IGNORED).any()):
        return False
    rows, sums = labels.double(), values.sum(1, dtype=torch.float64)
    hot = ((rows == 0) | (rows == 1)).all() and (rows.sum(1) == 1).all()
    return bool(hot) and bool(((sums - 1).abs() <= max(1e-3, torch.finfo(values.dtype).eps)).all())


def _unpaired(values: Tensor, labels: Tensor) -> str:
    if values.dim() == 2 and labels.dim() == 1:
        return f"probabilities and targets must pair up, got {len(values)} rows and {len(labels)} targets"
    return (
        "probabilities [n, c] go with targets [n], [n, t, c] with [n, t], [n, c, h, w] with [n, h, w], and yes-or-no "
        f"labels with targets of their own shape, got {list(values.shape)} and {list(labels.shape)}"
    )


def _shortened(row: Float[Tensor, "c"]) -> str:
    shown = ", ".join(f"{value:.4g}" for value in row[:5].tolist())
    return f"[{shown}{', ...' if len(row) > 5 else ''}]"
