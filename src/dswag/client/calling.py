"""How a batch is given to a model, and what is read off its outputs."""

import copy
import inspect
from collections import UserDict
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

LossFunction = Callable[[Any, Tensor], Tensor]
"""Mean loss over a batch of a model's outputs and the targets; a scalar."""

Loss = LossFunction | Literal["model"]
"""Mean loss over a batch of a model's outputs and the targets, a scalar; "model": the `loss` of its own outputs."""


def placed(batch: Any, device: torch.device) -> Any:
    """A batch on a device: its tensors, whatever holds them; all else as it is. The batch given is not changed.

    Mappings, tuples, lists and dataclasses by their parts; a packed sequence, a graph and the like by their own `to`.
    """
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict | UserDict):
        mapping = copy.copy(batch)
        for name, part in batch.items():
            mapping[name] = placed(part, device)
        return mapping
    if not isinstance(batch, nn.Module) and callable(getattr(batch, "to", None)):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: placed(part, device) for name, part in batch.items()}
    if isinstance(batch, tuple | list):
        parts = [placed(part, device) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    if is_dataclass(batch) and not isinstance(batch, type):
        record = copy.copy(batch)
        for each in fields(batch):
            object.__setattr__(record, each.name, placed(getattr(batch, each.name), device))
        return record
    return batch


def called(module: nn.Module, batch: Any) -> Any:
    """What the module gives for a batch: a mapping goes in by keyword where `forward` has parameters of its names.

    Otherwise, as anything else, it is the one argument.
    """
    if isinstance(batch, Mapping) and _takes_keywords(module.forward, batch):
        return module(**batch)
    return module(batch)


def scores_of(outputs: Any) -> Any:
    """The `logits` of an output that has such, as those of Hugging Face's models do; otherwise the output itself."""
    logits = getattr(outputs, "logits", None)
    return logits if isinstance(logits, Tensor) and not isinstance(outputs, Tensor) else outputs


def _takes_keywords(forward: Callable[..., Any], batch: Mapping[Any, Any]) -> bool:
    if not all(isinstance(name, str) for name in batch):
        return False
    try:
        inspect.signature(forward).bind(**batch)
    except (TypeError, ValueError):
        return False
    return True


def check_loss(loss: Any) -> None:
    """Raises TypeError or ValueError for what is no mean loss of (outputs, targets)."""
    if loss == "model":
        return
    name = getattr(loss, "__name__", type(loss).__name__)
    if isinstance(loss, type):
        raise TypeError(f"loss must be a function or an instance, got the class {name}: use loss={name}()")
    if not callable(loss):
        raise TypeError(f'loss must be a function of (outputs, targets), or "model", got {loss!r}')
    given = loss.keywords if isinstance(loss, partial) else {}
    reduction = given.get("reduction", getattr(loss, "reduction", "mean"))
    if reduction not in ("mean", "batchmean"):
        raise ValueError(
            f"the loss must be the mean over the batch, got reduction={reduction!r}, with which learning rates would "
            "depend on the size of the batch: use reduction='mean'"
        )


def described(value: Any) -> str:
    """Type and shape, and between which numbers classes and tokens lie."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    text = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if value.dtype == torch.int64 and value.numel() and value.device.type == "cpu":
        text += f" from {value.min()} to {value.max()}"
    return text
