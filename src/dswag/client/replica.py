"""Where a model is given weights, to train or to predict with them: a copy of it for each thread."""

import math
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dswag.client import batch_norm
from dswag.client.labels import Labels
from dswag.core.parameters import Layout, unwrapped
from dswag.federation.contract import ClientError, Payload, Precision, Task

Loss = Callable[[Any, Tensor], Tensor]
"""Mean loss over a batch of a model's outputs and the targets; a scalar."""


class Workspace:
    """A copy of the model for one thread to work in; its parameters are views into `theta`, as are their gradients.

    It is the model itself, `unwrapped`: a client computes alone. Given a layout, θ is those parameters alone, and the
    rest stays as it is in the model. Every task starts from the same state: `load` sets parameters and buffers,
    whatever the task before did to them.

    Raises:
        ValueError: the model is on a device that has no float64.
    """

    def __init__(self, model: nn.Module, loss: Loss = F.cross_entropy, layout: Layout | None = None) -> None:
        self.layout = layout or Layout.of(model)
        _check_device(next(model.parameters()).device)
        self.module = _copy(unwrapped(model))
        self.theta, self.gradient = self.layout.bind(self.module)
        self.loss = loss
        self.labels = Labels(loss)
        self.device = self.theta.device
        self.abort = threading.Event()
        self.deadline = math.inf
        self.draws_randomly = True  # until a first batch shows that no layer does
        self._buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}

    def load(self, payload: Payload) -> None:
        """Sets θ, and the buffers: to those in the payload, otherwise to the model's own."""
        self.layout.check(payload["theta"])
        self.theta.copy_(payload["theta"].detach())
        given = {name: payload[name] for name in self._buffers if name in payload and name != "theta"}
        batch_norm.load(self.module, {**self._buffers, **given})

    @property
    def buffer_names(self) -> tuple[str, ...]:
        """The model's buffers that a payload may set."""
        return tuple(self._buffers)

    def check_time(self, task: Task, *, epoch: int | None = None) -> None:
        """Raises ClientError when the run was stopped, or the task's time is over."""
        if self.abort.is_set():
            raise ClientError(task, "the run was stopped", epoch=epoch)
        if time.monotonic() > self.deadline:
            raise ClientError(task, f"it took longer than its time limit of {task.time_limit:g} s", epoch=epoch)

    def computing_in(self, precision: Precision) -> AbstractContextManager[None]:
        """Forward passes within compute in this precision; the weights stay as they are."""
        if precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def outputs(self, inputs: Any) -> Any:
        """What the module gives for a batch of inputs, which are brought to where it is."""
        placed = self.place(inputs)
        try:
            return self.module(placed)
        except Exception as error:
            error.add_note(f"the model was given {_described(placed)}")
            raise

    def mean_loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """The loss of a batch.

        Raises:
            ValueError: it is no scalar, or would broadcast targets of another shape than the outputs'.
        """
        self.labels.check(outputs, targets)
        targets = self.labels.fitted(outputs, targets)
        try:
            loss = self.loss(outputs, targets)
        except Exception as error:
            error.add_note(f"the loss was given outputs {_described(outputs)} and targets {_described(targets)}")
            raise
        if not isinstance(loss, Tensor) or loss.dim():
            found = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"the loss must be a scalar tensor, the mean over the batch, got {found}")
        return loss

    def place(self, inputs: Any) -> Any:
        """Inputs where the model is: tensors, also those within tuples, lists and dictionaries; others as they are."""
        if isinstance(inputs, Tensor):
            return inputs.to(self.device, non_blocking=True)
        if isinstance(inputs, dict):
            return {name: self.place(part) for name, part in inputs.items()}
        if isinstance(inputs, tuple | list):
            parts = map(self.place, inputs)
            return type(inputs)(*parts) if hasattr(inputs, "_fields") else type(inputs)(parts)
        return inputs


def _check_device(device: torch.device) -> None:
    """Raises ValueError for a device, such as mps, that cannot sum in float64."""
    try:
        torch.zeros((), dtype=torch.float64, device=device)
    except (TypeError, RuntimeError) as error:
        message = f"the model is on {device}, which has no float64, in which sums are taken: use model.to('cpu')"
        raise ValueError(message) from error


def _copy(model: nn.Module) -> nn.Module:
    try:
        return deepcopy(model)
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"the model cannot be copied, and every thread works on a copy of its own: {error}") from error


def _described(value: Any) -> str:
    """Type and shape, and between which numbers classes and tokens lie."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    text = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if value.dtype == torch.int64 and value.numel() and value.device.type == "cpu":
        text += f" from {value.min()} to {value.max()}"
    return text
