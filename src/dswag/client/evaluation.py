"""Evaluation on a client: loss and accuracy of θ on its own examples."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from dswag.client.labels import summed
from dswag.client.replica import Workspace
from dswag.client.work import examples_of
from dswag.data.examples import ClientData
from dswag.evaluation.reliability import BINS, binned
from dswag.federation.contract import ClientError, Payload, Result, Task
from dswag.federation.result_validation import check_count, check_number


@dataclass(frozen=True, kw_only=True)
class EvaluateResult(Result):
    """What a client answers to an `EvaluateTask`: sums over its examples."""

    num_examples: int
    """Examples; of a classification the labels that count, which are none where the loss ignores all."""
    loss_sum: float
    loss_weight: float
    """What the sum of losses is divided by: the number of targets, or the sum of the class weights of the labels."""
    num_correct: int | None = None
    """Number of correct predictions; None if outputs and targets are not those of a classification."""
    calibration_error: float | None = None
    """Expected calibration error of these predictions, in bins of equal mass; None where `num_correct` is."""


@dataclass(frozen=True, kw_only=True)
class EvaluateTask(Task):
    """Measure loss and accuracy of the payload's θ (and buffers, by name) on the client's data."""

    batch_size: int

    result: ClassVar[type[Result]] = EvaluateResult

    def run(self, payload: Payload, data: ClientData, workspace: Workspace) -> EvaluateResult:
        """Sums of the payload's θ's loss and correct predictions over the client's examples."""
        workspace.load(payload)
        workspace.eval()
        sizes, losses, confidences, correct = [], [], [], []  # on the device until the end, as in training
        with torch.no_grad():
            for inputs, targets in examples_of(self, data, self.batch_size):
                workspace.check_time(self)
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
            raise ClientError(self, f"loss is {loss_sum:g}")
        who = {"index": self.index, "client": self.client}
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

    def validated(self, result: Any, payload: Payload) -> Any:
        """Sums that can be, as they are."""
        check_count("num_examples", result.num_examples, least=0)
        check_number("loss_sum", result.loss_sum)
        check_number("loss_weight", result.loss_weight, least=0)
        if (result.num_correct is None) != (result.calibration_error is None):
            raise ValueError("num_correct and calibration_error go together")
        if result.num_correct is not None:
            check_number("calibration_error", result.calibration_error, least=0)
            if result.calibration_error > 1:
                raise ValueError(f"calibration_error must lie in 0 to 1, got {result.calibration_error:g}")
            check_count("num_correct", result.num_correct, least=0)
            if result.num_correct > result.num_examples:
                raise ValueError(f"num_correct is {result.num_correct} of {result.num_examples} examples")
        return result


@dataclass(frozen=True, kw_only=True)
class ClientEvaluation:
    """What one client measured on its own examples."""

    client: int
    loss: float | None
    """Mean over the client's examples; None where no label counts."""
    accuracy: float | None
    """None where no label counts, or the task is no classification."""
    calibration_error: float | None
    """Expected calibration error in 20 bins of equal mass; as `accuracy`."""
    num_examples: int
    """Of a classification, the labels that count."""


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and accuracy over all examples; accuracy is None where the task is no classification."""

    loss: float
    accuracy: float | None
    num_examples: int
    """Of a classification, the labels that count."""
    clients: tuple[ClientEvaluation, ...] = field(default=(), repr=False)
    """What each client measured, in the order of their numbers."""


class Tally:
    """The clients' sums of metrics, each kept; a few numbers for each client."""

    def __init__(self) -> None:
        self._sums: list[EvaluateResult] = []

    def add(self, result: EvaluateResult) -> None:
        """Takes in one client's sums."""
        self._sums.append(result)

    def merge(self, other: Self) -> None:
        """Takes in another fold's sums."""
        self._sums += other._sums

    def result(self) -> Evaluation:
        """The means so far."""
        if not self._sums:
            raise ValueError("there is nothing to average over: add a result first")
        sums = sorted(self._sums, key=lambda each: (each.client, each.index))
        weight = math.fsum(each.loss_weight for each in sums)
        if not weight:
            raise ValueError("there is nothing to average over: no client has a label that counts")
        classes = all(each.num_correct is not None for each in sums)
        num_examples = sum(each.num_examples for each in sums)
        return Evaluation(
            loss=math.fsum(each.loss_sum for each in sums) / weight,
            accuracy=sum(each.num_correct or 0 for each in sums) / num_examples if classes else None,
            num_examples=num_examples,
            clients=tuple(map(_of_client, sums)),
        )

    def empty(self) -> Self:
        """Sums of nothing."""
        return type(self)()

    def state(self) -> dict[str, Tensor]:
        """The sums of each client; -1 stands for what is no classification."""
        return {
            "counts": torch.tensor(
                [
                    (s.index, s.client, s.num_examples, -1 if s.num_correct is None else s.num_correct)
                    for s in self._sums
                ],
                dtype=torch.int64,
            ).reshape(-1, 4),
            "sums": torch.tensor(
                [
                    (s.loss_sum, s.loss_weight, -1.0 if s.calibration_error is None else s.calibration_error)
                    for s in self._sums
                ],
                dtype=torch.float64,
            ).reshape(-1, 3),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes on the sums of another."""
        self._sums = [
            EvaluateResult(
                index=index,
                client=client,
                num_examples=examples,
                loss_sum=loss_sum,
                loss_weight=weight,
                num_correct=None if correct < 0 else correct,
                calibration_error=None if correct < 0 else error,
            )
            for (index, client, examples, correct), (loss_sum, weight, error) in zip(
                state["counts"].tolist(), state["sums"].tolist(), strict=True
            )
        ]


def _of_client(sums: EvaluateResult) -> ClientEvaluation:
    classes = sums.num_correct is not None and sums.num_examples > 0
    return ClientEvaluation(
        client=sums.client,
        loss=sums.loss_sum / sums.loss_weight if sums.loss_weight else None,
        accuracy=(sums.num_correct or 0) / sums.num_examples if classes else None,
        calibration_error=sums.calibration_error if classes else None,
        num_examples=sums.num_examples,
    )
