"""What a client does with a task: local SGD, BatchNorm statistics, evaluation, calibration."""

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dswag.client import batch_norm
from dswag.client.labels import summed
from dswag.client.local_optimizer import Step
from dswag.client.replica import Workspace
from dswag.client.stability import has_diverged
from dswag.core.outputs import mean_and_noise
from dswag.core.randomness import derive_seed
from dswag.data import holdout
from dswag.data.examples import Batch, ClientData
from dswag.evaluation.metrics import nll_of_rows
from dswag.evaluation.reliability import BINS, binned
from dswag.evaluation.temperature import temper
from dswag.federation.contract import (
    CalibrateResult,
    CalibrateTask,
    ClientError,
    ConformalResult,
    ConformalTask,
    Draws,
    EvaluateResult,
    EvaluateTask,
    LayerStatistics,
    Payload,
    StatisticsResult,
    StatisticsTask,
    Task,
    TrainResult,
    TrainTask,
)
from dswag.posterior.gaussian import GaussianPosterior
from dswag.posterior.sampling import GROUP


def run(
    task: Task, payload: Payload, data: ClientData, workspace: Workspace
) -> TrainResult | StatisticsResult | EvaluateResult | CalibrateResult | ConformalResult:
    """The client's answer to a task.

    Raises:
        ClientError: whatever went wrong, with client, occasion and cause.
    """
    workspace.deadline = math.inf if task.time_limit is None else time.monotonic() + task.time_limit
    try:
        data = _part(data, task)
        match task:
            case TrainTask():
                return train(task, payload, data, workspace)
            case StatisticsTask():
                return statistics(task, payload, data, workspace)
            case EvaluateTask():
                return evaluate(task, payload, data, workspace)
            case CalibrateTask():
                return calibrate(task, payload, data, workspace)
            case ConformalTask():
                return conformal(task, payload, data, workspace)
            case _:
                raise TypeError(f"a client knows no {type(task).__name__}")
    except ClientError:
        raise
    except Exception as error:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        raise ClientError(task, f"{type(error).__name__}: {error}{notes}") from error


def train(task: TrainTask, payload: Payload, data: ClientData, workspace: Workspace) -> TrainResult:
    """Local SGD from the payload's θ (Algorithm 1, lines 5-10 and 17-22): θ after the epochs that the task names."""
    workspace.load(payload)  # l. 5, 17
    workspace.train()
    generator = torch.Generator().manual_seed(task.seed)
    step = Step(task.update, workspace, generator)
    start = workspace.snapshot() if task.upload == "bfloat16" else None
    snapshots = []
    loss: float = math.nan
    first_loss = math.nan
    for epoch, rate in enumerate(task.learning_rates, start=1):  # l. 7, 19
        losses: list[tuple[int | Tensor, Tensor]] = []  # on the device until the end, so that it need not be waited for
        for inputs, targets in _pass(task, data, task.update.batch_size, generator, augment=True):
            workspace.check_time(task, epoch=epoch)
            losses.append((workspace.labels.weight(targets), step(inputs, targets, rate)))  # l. 8-9, 20-21
            if epoch == len(losses) == 1:
                workspace.state.check()
        workspace.state.check()
        loss_sum, weight = summed(losses)
        if not weight:
            raise ClientError(task, f"no label counts: all are {workspace.labels.ignored}, which the loss ignores")
        if epoch == 1:
            first_loss = next(float(batch_loss) for batch_weight, batch_loss in losses if float(batch_weight))
        loss = loss_sum / weight
        _check_course(task, workspace.weights.theta, loss, first_loss, epoch=epoch, rate=rate)
        if epoch in task.snapshots:
            theta = workspace.snapshot()
            snapshots.append(theta if start is None else (theta - start).bfloat16())
    return TrainResult(
        index=task.index, client=task.client, thetas=torch.stack(snapshots), num_examples=data.num_examples, loss=loss
    )


def _check_course(task: TrainTask, theta: Tensor, loss: float, first: float, *, epoch: int, rate: float) -> None:
    """Raises ClientError, with what to do, where an epoch's mean loss or θ is not finite, or training has diverged."""
    if not math.isfinite(first):
        cause = f"loss is {first:g} before the first step: look for NaN or infinity in the data"
    elif not (math.isfinite(loss) and torch.isfinite(theta.sum())):
        what = "weights are not finite" if math.isfinite(loss) else f"loss is {loss:g}"
        remedy = "lower the learning rate, set clip_gradient, or look for NaN or infinity in the data"
        cause = f"{what} (learning rate {rate:g}): {remedy}"
    elif has_diverged(loss, first, task.max_loss_growth):
        what = f"loss is {loss:g}, after {first:g} in the first minibatch"
        cause = f"{what} (learning rate {rate:g}): lower the learning rate, or set clip_gradient"
    else:
        return
    raise ClientError(task, cause, epoch=epoch)


def statistics(task: StatisticsTask, payload: Payload, data: ClientData, workspace: Workspace) -> StatisticsResult:
    """BatchNorm statistics of the payload's θ, or of each draw from its posterior (Algorithm 2, line 3)."""

    def inputs() -> Iterator[Any]:
        num_seen = 0
        generator = torch.Generator().manual_seed(task.seed)
        for batch, targets in _pass(task, data, task.batch_size, generator):
            workspace.check_time(task)
            yield workspace.place(batch)
            num_seen += len(targets)
            if task.max_examples is not None and num_seen >= task.max_examples:
                return

    def collect(theta: Tensor) -> dict[str, LayerStatistics]:
        workspace.load({"theta": theta})
        with workspace.computing_in(task.precision):
            collected = batch_norm.collect(workspace.module, inputs(), workspace.normalizing)
        broken = [name for name, seen in collected.items() if not torch.isfinite(seen.mean + seen.scatter).all()]
        if broken:
            raise ClientError(task, f"inputs of the BatchNorm layers {broken} are not finite")
        return collected

    return StatisticsResult(
        index=task.index, client=task.client, statistics=tuple(collect(theta) for theta in thetas(task.draws, payload))
    )


def evaluate(task: EvaluateTask, payload: Payload, data: ClientData, workspace: Workspace) -> EvaluateResult:
    """Sums of the payload's θ's loss and correct predictions over the client's examples."""
    workspace.load(payload)
    workspace.eval()
    sizes, losses, confidences, correct = [], [], [], []  # on the device until the end, as in training
    with torch.no_grad():
        for inputs, targets in _pass(task, data, task.batch_size):
            workspace.check_time(task)
            loss, outputs = workspace.loss_of(inputs, targets)
            sizes.append(len(targets))
            losses.append((workspace.labels.weight(targets), loss))
            if (classes := workspace.labels.classes(outputs, targets)) is not None:
                scores, labels = classes
                confidence, predicted = scores.softmax(1).max(1)
                confidences.append(confidence.where(labels != workspace.labels.ignored, torch.nan))
                correct.append(predicted == labels)
    loss_sum, weight = summed(losses)
    if not math.isfinite(loss_sum):
        raise ClientError(task, f"loss is {loss_sum:g}")
    who = {"index": task.index, "client": task.client}
    if len(correct) < len(sizes):
        return EvaluateResult(**who, num_examples=sum(sizes), loss_sum=loss_sum, loss_weight=weight)
    right, confidence = torch.cat(correct).cpu(), torch.cat(confidences).cpu()
    right, confidence = right[~confidence.isnan()], confidence[~confidence.isnan()]
    return EvaluateResult(
        **who,
        num_examples=len(right),
        loss_sum=loss_sum,
        loss_weight=weight,
        num_correct=int(right.sum()),
        calibration_error=binned(confidence, right, BINS, "equal-mass").error if len(right) else 0.0,
    )


def calibrate(task: CalibrateTask, payload: Payload, data: ClientData, workspace: Workspace) -> CalibrateResult:
    """What each group of draws, averaged (Algorithm 2, line 4), gains over the first one, and by each temperature."""
    workspace.eval()
    batches = list(_pass(task, data, task.batch_size))
    nll: list[list[Tensor]] = []
    first = 0
    for draws in task.draws:
        total = torch.zeros(())
        for _ in _drawn(task, payload, draws, workspace, first=first):
            with torch.inference_mode():
                scores, targets = _classes(workspace, batches)
            total = total + scores.double().softmax(1)
        first += draws.count
        averaged = total / draws.count
        nll.append([nll_of_rows(temper(averaged, temperature), targets) for temperature in task.temperatures])
    losses = torch.stack([torch.stack(of_group) for of_group in nll]).cpu()
    gains = losses[:, :1] - losses
    gains[:, 0] = losses[0, 0] - losses[:, 0]
    return CalibrateResult(
        index=task.index,
        client=task.client,
        num_examples=gains.shape[2],
        gains=gains.sum(2),
        squares=gains.square().sum(2),
    )


def conformal(task: ConformalTask, payload: Payload, data: ClientData, workspace: Workspace) -> ConformalResult:
    """Counts of the conformal scores that the draws' averaged predictions have (Algorithm 2, line 4)."""
    workspace.module.eval()
    batches = list(_pass(task, data, task.batch_size))
    drawn = _drawn(task, payload, task.draws, workspace)
    if task.scoring.of_classes:
        total = torch.zeros(())
        for _ in drawn:
            with torch.inference_mode():
                logits, labels = _classes(workspace, batches)
            total = total + logits.double().softmax(1)
        probabilities = temper(total / task.draws.count, task.temperature)
        scores = task.scoring.classes(probabilities).gather(1, labels[:, None])
    else:
        targets = torch.cat([targets for _, targets in batches]).to(workspace.device)
        scores = task.scoring.residuals(*_moments(task, workspace, batches, targets, drawn), targets)
    if not bool(torch.isfinite(scores).all()):
        raise ClientError(task, "conformal scores are not finite: look for NaN in the data, or for variances of 0")
    return ConformalResult(index=task.index, client=task.client, counts=task.scoring.counts(scores))


def _moments(
    task: ConformalTask, workspace: Workspace, batches: Sequence[Batch], targets: Tensor, drawn: Iterator[None]
) -> tuple[Tensor, Tensor]:
    """Predictive mean and variance by the law of total variance."""
    means, variances = [], []
    for _ in drawn:
        with torch.inference_mode():
            parts = [mean_and_noise(workspace.outputs(inputs), task.noise) for inputs, _ in batches]
        mean, variance = map(torch.cat, zip(*parts, strict=True))
        if mean.shape != targets.shape:
            raise ValueError(f"means must have the targets' shape {list(targets.shape)}, got {list(mean.shape)}")
        means.append(mean)
        variances.append(variance)
    stacked = torch.stack(means)
    return stacked.mean(0), torch.stack(variances).mean(0) + stacked.var(0, correction=0)


def _drawn(
    task: CalibrateTask | ConformalTask, payload: Payload, draws: Draws, workspace: Workspace, *, first: int = 0
) -> Iterator[None]:
    """Loads one draw after the other, with its own row of the payload's buffers, of which `first` is the first's."""
    rows = {name: payload[name] for name in workspace.buffer_names if name in payload}
    for number, theta in enumerate(thetas((draws,), payload), start=first):
        workspace.check_time(task)
        workspace.load({"theta": theta, **{name: values[number] for name, values in rows.items()}})
        yield


def _classes(workspace: Workspace, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """Logits of the model as it is loaded, and the class, for each label in the batches that counts.

    Raises:
        ValueError: outputs and targets that are not those of classes or of yes-or-no labels.
    """
    found = []
    for inputs, targets in batches:
        classes = workspace.labels.classes(workspace.outputs(inputs), targets)
        if classes is None:
            raise ValueError("calibration takes scores [b, c] and the class of each example: set calibrate=False")
        found.append(classes)
    scores, labels = torch.cat([scores for scores, _ in found]), torch.cat([labels for _, labels in found])
    counts = labels != workspace.labels.ignored
    return scores[counts], labels[counts]


def thetas(groups: tuple[Draws, ...], payload: Payload) -> Iterator[Tensor]:
    """The payload's θ, or the draws from its posterior, of which a few are held at a time."""
    if not groups:
        yield payload["theta"]
    for draws in groups:
        scales = {"within_scale": draws.within_scale, "between_scale": draws.between_scale}
        posterior = GaussianPosterior.from_tensors(payload, **scales)
        end = draws.first + draws.count
        for first in range(draws.first, end, GROUP):  # as fast as one of them alone
            yield from posterior.sample(
                draws.seed, min(GROUP, end - first), first=first, kind=draws.kind, scale=draws.scale
            )


def _pass(
    task: Task, data: ClientData, batch_size: int, generator: torch.Generator | None = None, *, augment: bool = False
) -> Iterator[Batch]:
    """One pass over the client's examples. Raises ClientError where there are none, which data of a user's can have."""
    empty = True
    for batch in data.batches(batch_size, generator=generator, augment=augment):
        empty = False
        yield batch
    if empty:
        raise ClientError(task, "its data gave no batch: `batches` must start a new pass whenever it is called")


def _part(data: ClientData, task: Task) -> ClientData:
    """The examples that the task is about."""
    if task.part is None:
        return data
    rest, held_out = holdout.split(data, task.part.fraction, derive_seed(task.part.seed, task.client))
    return held_out if task.part.held_out else rest
