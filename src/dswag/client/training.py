"""Training on a client: local SGD (Algorithm 1, lines 5-10 and 17-22)."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from dswag.client.labels import summed
from dswag.client.local_optimizer import Step
from dswag.client.replica import Workspace
from dswag.client.stability import has_diverged
from dswag.client.work import examples_of
from dswag.data.examples import ClientData
from dswag.federation.client_results import TrainResult
from dswag.federation.contract import ClientError, Payload, Result, Task
from dswag.federation.local_update import ClientUpdate
from dswag.federation.result_validation import check_count, check_number, check_tensor


@dataclass(frozen=True, kw_only=True)
class TrainTask(Task):
    """Train from the payload's θ on the client's data (Algorithm 1, lines 7-10 and 19-22)."""

    learning_rates: tuple[float, ...]
    """One learning rate for each local epoch."""
    snapshots: tuple[int, ...]
    """After how many epochs snapshots of θ are taken; ascending."""
    seed: int
    update: ClientUpdate
    upload: Literal["float32", "bfloat16"] = "float32"
    """How snapshots are sent back: as they are, or as bfloat16 differences from the payload's θ, in half the bytes."""
    max_loss_growth: float = 10.0
    """Training has diverged if an epoch's loss exceeds this many times the first minibatch's, taken as at least 1."""

    result: ClassVar[type[Result]] = TrainResult
    trains: ClassVar[bool] = True

    def run(self, payload: Payload, data: ClientData, workspace: Workspace) -> TrainResult:
        """Local SGD from the payload's θ (Algorithm 1, lines 5-10, 17-22): θ after the epochs that the task names."""
        workspace.load(payload)  # l. 5, 17
        workspace.train()
        generator = torch.Generator().manual_seed(self.seed)
        step = Step(self.update, workspace, generator)
        start = workspace.snapshot() if self.upload == "bfloat16" else None
        snapshots = []
        loss: float = math.nan
        first_loss = math.nan
        for epoch, rate in enumerate(self.learning_rates, start=1):  # l. 7, 19
            losses: list[
                tuple[int | Tensor, Tensor]
            ] = []  # on the device until the end, so that it need not be waited for
            for inputs, targets in examples_of(self, data, self.update.batch_size, generator, augment=True):
                workspace.check_time(self, epoch=epoch)
                losses.append((workspace.labels.weight(targets), step(inputs, targets, rate)))  # l. 8-9, 20-21
                if epoch == len(losses) == 1:
                    workspace.state.check()
            workspace.state.check()
            loss_sum, weight = summed(losses)
            if not weight:
                raise ClientError(self, f"no label counts: all are {workspace.labels.ignored}, which the loss ignores")
            if epoch == 1:
                first_loss = next(float(batch_loss) for batch_weight, batch_loss in losses if float(batch_weight))
            loss = loss_sum / weight
            self._check_course(workspace.weights.theta, loss, first_loss, epoch=epoch, rate=rate)
            if epoch in self.snapshots:
                theta = workspace.snapshot()
                snapshots.append(theta if start is None else (theta - start).bfloat16())
        return TrainResult(
            index=self.index,
            client=self.client,
            thetas=torch.stack(snapshots),
            num_examples=data.num_examples,
            loss=loss,
        )

    def validated(self, result: Any, payload: Payload) -> Any:
        """The snapshots themselves, on θ's device, where differences to the payload's θ came."""
        theta = payload["theta"]
        dtype = torch.bfloat16 if self.upload == "bfloat16" else theta.dtype
        check_tensor("snapshots", result.thetas, (len(self.snapshots), *theta.shape), dtype)
        check_count("num_examples", result.num_examples)
        check_number("loss", result.loss)
        thetas = result.thetas.to(theta.device)
        return replace(result, thetas=theta + thetas.to(theta.dtype) if self.upload == "bfloat16" else thetas)

    def _check_course(self, theta: Tensor, loss: float, first: float, *, epoch: int, rate: float) -> None:
        """Raises ClientError, with what to do, where an epoch's loss or θ is not finite, or training has diverged."""
        if not math.isfinite(first):
            cause = f"loss is {first:g} before the first step: look for NaN or infinity in the data"
        elif not (math.isfinite(loss) and torch.isfinite(theta.sum())):
            what = "weights are not finite" if math.isfinite(loss) else f"loss is {loss:g}"
            remedy = "lower the learning rate, set clip_gradient, or look for NaN or infinity in the data"
            cause = f"{what} (learning rate {rate:g}): {remedy}"
        elif has_diverged(loss, first, self.max_loss_growth):
            what = f"loss is {loss:g}, after {first:g} in the first minibatch"
            cause = f"{what} (learning rate {rate:g}): lower the learning rate, or set clip_gradient"
        else:
            return
        raise ClientError(self, cause, epoch=epoch)
