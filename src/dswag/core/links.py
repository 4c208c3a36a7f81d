"""How a model's outputs become probabilities: the link, which its loss implies, and the axis of the classes.

- "softmax": logits of classes that exclude one another, [n, c], [n, t, c] or [n, c, h, w];
- "sigmoid": every logit is a yes-or-no question of its own, [n], [n, 1] or [n, labels];
- "identity": outputs are used as they are, as in a regression: they are no logits.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Link = Literal["softmax", "sigmoid", "identity"]
Learned = Literal["softmax", "sigmoid", "identity", "unknown"]
"""What the loss of training says to those who predict later.

"softmax" stands for logits of classes at axis 1, "unknown" for a loss of one's own that does not tell.
"""

IGNORED = -100
"""The label that does not count unless a loss names another one, as in PyTorch."""

_LINKS: dict[Any, Link] = {
    F.cross_entropy: "softmax",
    nn.CrossEntropyLoss: "softmax",
    F.nll_loss: "softmax",  # of log probabilities, whose softmax are the probabilities
    nn.NLLLoss: "softmax",
    F.binary_cross_entropy_with_logits: "sigmoid",
    nn.BCEWithLogitsLoss: "sigmoid",
    F.multilabel_soft_margin_loss: "sigmoid",
    nn.MultiLabelSoftMarginLoss: "sigmoid",
    F.binary_cross_entropy: "identity",  # of probabilities
    nn.BCELoss: "identity",
    F.mse_loss: "identity",
    nn.MSELoss: "identity",
    F.l1_loss: "identity",
    nn.L1Loss: "identity",
    F.smooth_l1_loss: "identity",
    nn.SmoothL1Loss: "identity",
    F.huber_loss: "identity",
    nn.HuberLoss: "identity",
    F.gaussian_nll_loss: "identity",
    nn.GaussianNLLLoss: "identity",
    F.poisson_nll_loss: "identity",
    nn.PoissonNLLLoss: "identity",
}
_OF_CLASSES: tuple[Any, ...] = (F.cross_entropy, nn.CrossEntropyLoss, F.nll_loss, nn.NLLLoss)
_OF_ELEMENTS: tuple[Any, ...] = (
    *(F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy),
    *(nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss),
)


def link_of(loss: Callable[..., Any]) -> Link | None:
    """The link that a loss implies; None for a loss of one's own that does not behave like a known one.

    A loss of one's own is tried on a few made-up logits. If it takes classes and does not change when a constant is
    added to all logits, only their softmax can matter to it; if it equals PyTorch's binary cross entropy with logits,
    the link is a sigmoid.
    """
    kind = _kind(loss)
    if getattr(kind, "__module__", None) is not None and kind.__module__.split(".")[0] == "torch":
        return known_link(loss)
    return _tried(loss)


def known_link(loss: Callable[..., Any]) -> Link | None:
    """The link of one of PyTorch's losses; None for others, which are not called."""
    return _LINKS.get(_kind(loss))


def learned(loss: Callable[..., Any]) -> Learned | None:
    """What is kept with a posterior; None for a loss of classes at another axis than 1, such as the last of tokens."""
    found = link_of(loss)
    if found == "softmax" and not takes_classes_at_axis_1(loss) and not _tried_on_classes(loss, *_AT_AXIS_1):
        return None
    return found or "unknown"


def takes_classes_at_axis_1(loss: Callable[..., Any]) -> bool:
    """Whether it is one of PyTorch's losses of logits [n, c, ...] and labels [n, ...]."""
    return _kind(loss) in _OF_CLASSES


def pairs_elements(loss: Callable[..., Any]) -> bool:
    """Whether it is one of PyTorch's losses of outputs and targets of one shape, which broadcast those that differ."""
    return _kind(loss) in _OF_ELEMENTS


def setting(loss: Callable[..., Any], name: str, default: Any = None) -> Any:
    """A setting such as `weight` or `ignore_index`, of a loss that is a module or a `functools.partial`."""
    if isinstance(loss, partial):
        return loss.keywords.get(name, default)
    return getattr(loss, name, default) if isinstance(loss, nn.Module) else default


def default_axis(dim: int) -> int:
    """The axis of the classes where nothing says which: the last of [n, c] and [n, t, c], axis 1 of [n, c, h, w]."""
    return 1 if dim == 2 or dim > 3 else dim - 1


def class_axis(outputs: Sequence[int], targets: Sequence[int], given: int | None = None) -> int | None:
    """The axis of the classes in outputs of one shape, given that of the labels; None where the shapes do not fit.

    Where the labels leave a choice, as for [n, t, t] and [n, t], it is `default_axis`.
    """
    dim = len(outputs)
    if dim != len(targets) + 1 or dim < 2:
        return None
    candidates = (default_axis(dim), 1, dim - 1) if given is None else (given % dim,)
    return next((axis for axis in candidates if (*outputs[:axis], *outputs[axis + 1 :]) == tuple(targets)), None)


def rows(outputs: Float[Tensor, "n *rest"], labels: Tensor, axis: int | None) -> tuple[Tensor, Tensor]:
    """Logits of classes [m, c] and labels [m], a row for each label, also for those that do not count.

    Without an axis every output is the logit z of a label of its own, 0 or 1: its row is (0, z), whose softmax is
    (1 - sigmoid(z), sigmoid(z)).
    """
    if axis is not None:
        return outputs.movedim(axis, -1).reshape(-1, outputs.shape[axis]), labels.reshape(-1).long()
    z = outputs.reshape(-1)
    return torch.stack([torch.zeros_like(z), z], 1), labels.reshape(-1).long()


def _kind(loss: Any) -> Any:
    """The function or class behind a loss."""
    while isinstance(loss, partial):
        loss = loss.func
    return type(loss) if isinstance(loss, nn.Module) else loss if inspect.isroutine(loss) else None


# made up without a generator, so that no random numbers are used up
_LOGITS = torch.tensor([[0.3, -1.2, 0.8], [-0.4, 0.9, 0.1], [1.1, 0.2, -0.7], [0.5, -0.6, 1.3]])
_CLASSES = torch.tensor([0, 2, 1, 2])
_YES_OR_NO = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
_EXAMPLES = _LOGITS, _CLASSES
_TOKENS = _LOGITS.reshape(2, 2, 3), _CLASSES.reshape(2, 2)
_AT_AXIS_1 = _LOGITS.reshape(2, 2, 3).movedim(2, 1), _CLASSES.reshape(2, 2)


def _tried(loss: Callable[..., Any]) -> Link | None:
    if any(_tried_on_classes(loss, *given) for given in (_EXAMPLES, _TOKENS, _AT_AXIS_1)):
        return "softmax"
    binary = _value(loss, _LOGITS, _YES_OR_NO)
    if binary is not None and abs(binary - float(F.binary_cross_entropy_with_logits(_LOGITS, _YES_OR_NO))) < 1e-5:
        return "sigmoid"
    return None


def _tried_on_classes(loss: Callable[..., Any], logits: Tensor, labels: Tensor) -> bool:
    """Whether it takes them, and does not change when a constant is added to all logits."""
    before, after = _value(loss, logits.clone(), labels.clone()), _value(loss, logits + 2.0, labels.clone())
    return before is not None and after is not None and abs(after - before) < 1e-5


def _value(loss: Callable[..., Any], outputs: Tensor, targets: Tensor) -> float | None:
    try:
        with torch.no_grad():
            found = loss(outputs, targets)
        return float(found) if isinstance(found, Tensor) and not found.dim() else None
    except Exception:  # a loss for other outputs
        return None
