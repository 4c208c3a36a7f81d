"""What a client's answer must be to fit its task; answers come from elsewhere, so nothing of them is taken on trust."""

from typing import Any

import torch
from torch import Tensor

from dswag.federation.contract import Payload, Result, Task

MOST, LARGEST = 1 << 48, 1e280
"""Far beyond what any client counts and measures, and so small that sums and products of them keep to 64 bits."""


def validate_result(task: Task, result: Result, payload: Payload) -> Result:
    """The result as it is to be folded.

    Raises:
        ValueError: what is wrong with it, the first thing found.
    """
    if result.client != task.client:
        raise ValueError(f"it is client {result.client}'s")
    if not isinstance(result, task.result):
        raise ValueError(f"a {type(task).__name__} was answered by a {type(result).__name__}")
    accepted: Result = task.validated(result, payload)
    return accepted


def check_tensor(
    name: str, value: Any, shape: tuple[int, ...] | None, dtype: torch.dtype, *, least: float | None = None
) -> None:
    """Raises ValueError unless it is of this shape, or of one axis if None, of this type, and finite."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(value).__name__}")
    if shape is None and value.dim() != 1:
        raise ValueError(f"{name} must have one axis, got shape {list(value.shape)}")
    if shape is not None and value.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(value.shape)}")
    if value.dtype != dtype or value.layout != torch.strided:
        raise ValueError(f"{name} must be dense {dtype}, got {value.layout} {value.dtype}")
    if not (torch.isfinite(value.sum()) or torch.isfinite(value).all()):  # a sum of finite numbers may overflow
        raise ValueError(f"it is not finite: {name}")
    if least is not None and (value < least).any():
        raise ValueError(f"{name} must be at least {least:g}, got {value.min():g}")


def check_count(name: str, value: Any, *, least: int = 1) -> None:
    """Raises ValueError unless it is a whole number that a client can count."""
    if type(value) is not int or not least <= value <= MOST:
        raise ValueError(f"{name} must be a whole number from {least} to 2^48, got {value!r}")


def check_number(name: str, value: Any, *, least: float | None = None) -> None:
    """Raises ValueError unless it is a finite number that a client can measure."""
    if type(value) not in (int, float) or not abs(value) <= LARGEST:  # false for NaN
        raise ValueError(f"{name} must be a finite number up to {LARGEST:g}, got {value!r}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least:g}, got {value:g}")
