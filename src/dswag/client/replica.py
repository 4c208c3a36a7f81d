"""Where a model is given weights, to train or to predict with them: a copy of it for each thread."""

import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import copy, deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dswag.client.calling import Loss, called, check_loss, described, placed, scores_of
from dswag.client.dropout import seed_dropout
from dswag.client.labels import Labels
from dswag.client.running_state import RunningState
from dswag.client.weights import Weights
from dswag.core.normalization import normalizing, training_modes
from dswag.core.parameters import Layout, unwrapped
from dswag.core.randomness import DrawFrom
from dswag.data.batches import LABELS
from dswag.federation.contract import ClientError, Payload, Task
from dswag.federation.folds import within
from dswag.federation.layouts import layout_of
from dswag.federation.local_update import Precision

OptimizerFactory = Callable[[list[nn.Parameter]], Optimizer | tuple[Optimizer, LRScheduler]]
"""Makes a client's optimizer, and where wanted its schedule, anew at the start of every task."""


class Workspace:
    """A copy of the model for one thread to work in; its parameters are views into θ, or casts, as are their gradients.

    It is the model itself, `unwrapped`: a client computes alone, also with BatchNorm that was synchronized. Given a
    layout, θ is those parameters alone, and the rest stays as it is in the model. Every task starts from the same
    state: `load` sets parameters and buffers, whatever the task before did to them.

    Args:
        model: copied, and not changed.
        loss: mean loss of (outputs, targets), or "model".
        layout: the parameters in θ, all trainable ones if None.
        optimizer: makes each task's optimizer; without it, the task's `ClientUpdate` says which.
        trains: whether there will be gradients. Predictions need none, and only as long as the model stays as it is:
            then parameters outside of θ share its memory.

    Raises:
        TypeError, ValueError: a model that cannot be copied, or is on a device that has no float64; or no mean loss.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss = F.cross_entropy,
        layout: Layout | None = None,
        *,
        optimizer: OptimizerFactory | None = None,
        trains: bool = True,
    ) -> None:
        check_loss(loss)
        self.layout = layout or Layout.of(model)
        _check_device(next(model.parameters()).device)
        self.loss = loss
        self.labels = Labels(loss)
        self.optimizer = optimizer
        self.trains = trains
        self._begin(_copy(unwrapped(model), self.layout, sharing=not trains))

    def _begin(self, module: nn.Module) -> None:
        self.module = module
        self.modes = training_modes(module, self.layout)
        self.normalizing = normalizing(module, self.layout)
        self.weights = Weights(self.layout, module, gradient=self.trains)
        self.state = RunningState(module, self.modes, self.layout)
        self.device = self.weights.theta.device
        self.dropout = seed_dropout(module)
        self.abort = threading.Event()
        self.deadline = math.inf
        self.draws_randomly = True  # until a first batch shows that no layer does
        self._settled = not self.weights.channels_last
        self._order: Int64[Tensor, d] | None = None  # of this θ in the payload's; None if it is the same

    def another(self) -> "Workspace":
        """A workspace like this one for another thread; parameters outside of θ share its memory."""
        self.state.load({})
        self.train()
        again = copy(self)
        again._begin(_copy(self.module, self.layout, sharing=True))
        return again

    def load(self, payload: Payload) -> None:
        """Sets θ, and the buffers: to those in the payload, otherwise to the model's own, or what θ makes of them."""
        theirs = layout_of(payload) or self.layout
        theirs.check(payload["theta"])
        self._order = None if theirs == self.layout else self._order_in(theirs)
        self.weights.load(payload["theta"] if self._order is None else payload["theta"][self._order])
        self.state.load(within("buffer", payload))

    def train(self) -> None:
        """Training mode, apart from what is frozen."""
        for name, module in self.module.named_modules():
            module.training = self.modes.get(name, True)

    def eval(self) -> None:
        """Evaluation mode."""
        self.module.eval()

    def snapshot(self) -> Float[Tensor, "d"]:
        """A copy of θ, in the layout in which it was loaded."""
        theta = self.weights.snapshot()
        return theta if self._order is None else torch.empty_like(theta).index_copy_(0, self._order, theta)

    def _order_in(self, theirs: Layout) -> Int64[Tensor, "d"]:
        """Where each coordinate of this replica's θ lies in a θ of another layout.

        Raises:
            ValueError: parameters that only one of the layouts has, named.
        """
        given = {id(parameter): name for name, parameter in zip(theirs.names, theirs.select(self.module), strict=True)}
        names = [given.pop(id(parameter), None) for parameter in self.weights.parameters]
        lacking = [name for name, found in zip(self.layout.names, names, strict=True) if found is None]
        if lacking or given:
            raise ValueError(
                f"θ and the client's model must be of the same parameters: θ lacks {lacking}, the model's own θ lacks "
                f"{list(given.values())}; give both sides the same layout"
            )
        places, slices = torch.arange(theirs.d, device=self.device), theirs.slices
        return torch.cat([places[slices[name]] for name in names if name is not None])

    def computing_in(self, precision: Precision) -> AbstractContextManager[None]:
        """Forward passes within compute in this precision; the weights stay as they are."""
        if precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def check_time(self, task: Task, *, epoch: int | None = None) -> None:
        """Raises ClientError when the run was stopped, or the task's time is over."""
        if self.abort.is_set():
            raise ClientError(task, "the run was stopped", epoch=epoch)
        if time.monotonic() > self.deadline:
            raise ClientError(task, f"it took longer than its time limit of {task.time_limit:g} s", epoch=epoch)

    def outputs(self, inputs: Any) -> Any:
        """What the module gives for a batch of inputs, which are brought to where it is: its scores, if it has such."""
        return scores_of(self._called(inputs))

    def loss_of(self, inputs: Any, targets: Tensor) -> tuple[Tensor, Any]:
        """The mean loss of a batch, and the outputs that it is of.

        Raises:
            TypeError, ValueError: the loss is no scalar, or would broadcast targets of another shape than the outputs';
                or it should be the model's own, and there is none.
        """
        targets = placed(targets, self.device)
        if self.loss == "model":
            outputs = self._called(_with_labels(inputs, targets))
            loss = getattr(outputs, "loss", None)
        else:
            outputs = self.outputs(inputs)
            self.labels.check(outputs, targets)
            targets = self.labels.fitted(outputs, targets)
            try:
                loss = self.loss(outputs, targets)
            except Exception as error:
                error.add_note(f"the loss was given outputs {described(outputs)} and targets {described(targets)}")
                raise
        if not isinstance(loss, Tensor) or loss.dim():
            found = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"the loss must be a scalar tensor, the mean over the batch, got {found}")
        return loss, scores_of(outputs)

    def settle(self, inputs: Any) -> None:
        """Finds out, by a pass over two examples of a first batch, whether the model takes channels last.

        What convolutions give has them last then too, and `view` refuses that; such a model gets its weights as they
        were. Their values are the same either way.
        """
        if self._settled:
            return
        self._settled = True
        batch = placed(inputs[:2] if isinstance(inputs, Tensor) else inputs, self.device)
        modes = [(module, module.training) for module in self.module.modules()]
        self.module.eval()
        try:
            with torch.no_grad(), DrawFrom(torch.Generator()):
                called(self.module, batch)
        except Exception:  # another cause is met again
            self.weights.make_contiguous()
        finally:
            for module, training in modes:
                module.training = training

    def place(self, inputs: Any) -> Any:
        """Inputs where the model is."""
        self.settle(inputs)
        return placed(inputs, self.device)

    def _called(self, inputs: Any) -> Any:
        inputs = self.place(inputs)
        try:
            return called(self.module, inputs)
        except Exception as error:
            error.add_note(f"the model was given {described(inputs)}")
            if isinstance(inputs, Tensor) and inputs.dtype == torch.float64 != self.weights.theta.dtype:
                error.add_note("its weights are not: give inputs as inputs.float(), or train model.double()")
            raise


def _with_labels(inputs: Any, targets: Tensor) -> Any:
    if not isinstance(inputs, Mapping):
        raise TypeError(f"the model's own loss needs inputs by name, with which labels go, got {described(inputs)}")
    return {**inputs, LABELS[0]: targets}


def _check_device(device: torch.device) -> None:
    """Raises ValueError for a device, such as mps, that cannot sum in float64."""
    try:
        torch.zeros((), dtype=torch.float64, device=device)
    except (TypeError, RuntimeError) as error:
        message = f"the model is on {device}, which has no float64, in which sums are taken: use model.to('cpu')"
        raise ValueError(message) from error


def _copy(model: nn.Module, layout: Layout, *, sharing: bool) -> nn.Module:
    """A copy that normalizes without other processes; `sharing` the memory of parameters outside of θ, or not."""
    theta = set(map(id, layout.select(model)))
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False)
        for p in model.parameters()
        if sharing and id(p) not in theta and type(p) is nn.Parameter
    }
    computed = [value for part in model.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    memo |= {id(value): value.detach().clone() for value in computed if not value.is_leaf}  # such as old weight norm's
    try:
        module = deepcopy(model, memo)
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"the model cannot be copied, and every thread works on a copy of its own: {error}") from error
    for layer in module.modules():
        if isinstance(layer, nn.SyncBatchNorm):
            layer.__class__ = _BatchNormAlone  # type: ignore[assignment]
    return module


class _BatchNormAlone(_BatchNorm):
    """What SyncBatchNorm is within one process: BatchNorm over inputs of any number of axes."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 axes, got {input.dim()}")
