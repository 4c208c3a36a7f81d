"""A client's result as numbers, which travel as JSON, and tensors, which travel as arrays."""

from dataclasses import dataclass, fields
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter
from torch import Tensor

from dswag.federation.contract import (
    CalibrateResult,
    CalibrateTask,
    ConformalResult,
    ConformalTask,
    EvaluateResult,
    EvaluateTask,
    LayerStatistics,
    Result,
    StatisticsResult,
    StatisticsTask,
    Task,
    TrainResult,
    TrainTask,
)


def pack(result: Result) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The numbers and the tensors of a result; which task it answers, its place in the reply says."""
    match result:
        case TrainResult():
            # named like what came, so that Flower's mods know it for an update of that
            return {"num_examples": result.num_examples, "loss": result.loss}, {"theta": result.thetas}
        case StatisticsResult():
            counts, tensors = {}, {}
            for name in result.statistics[0]:  # few arrays with a row for each draw: each array is a trip of its own
                seen = [draw[name] for draw in result.statistics]
                counts[name] = [layer.count for layer in seen]
                tensors[f"{name}/mean"] = torch.stack([layer.mean for layer in seen])
                tensors[f"{name}/scatter"] = torch.stack([layer.scatter for layer in seen])
            return {"counts": counts}, tensors
        case EvaluateResult():
            return {field.name: getattr(result, field.name) for field in fields(_EvaluateNumbers)}, {}
        case CalibrateResult():
            return {"num_examples": result.num_examples}, {"gains": result.gains, "squares": result.squares}
        case ConformalResult():
            return {}, {"counts": result.counts}
        case _:
            raise TypeError(f"there is no record for a {type(result).__name__}")


def unpack(task: Task, said: dict[str, Any], tensors: dict[str, Tensor]) -> Result:
    """The result of a task; an error of any kind where numbers and tensors are not a result's."""
    numbers = vars(_NUMBERS[type(task)].validate_python(said))
    who: dict[str, int] = {"index": task.index, "client": task.client}
    match task:
        case TrainTask():
            return TrainResult(**who, **numbers, thetas=tensors["theta"])
        case StatisticsTask():
            number = sum(draws.count for draws in task.draws) or 1
            counts = numbers["counts"]
            means = {name: _rows(tensors[f"{name}/mean"], number) for name in counts}
            scatters = {name: _rows(tensors[f"{name}/scatter"], number) for name in counts}
            statistics = (
                {
                    name: LayerStatistics(count=counts[name][i], mean=means[name][i], scatter=scatters[name][i])
                    for name in counts
                }
                for i in range(number)
            )
            return StatisticsResult(**who, statistics=tuple(statistics))
        case EvaluateTask():
            return EvaluateResult(**who, **numbers)
        case ConformalTask():
            return ConformalResult(**who, counts=tensors["counts"])
        case _:
            return CalibrateResult(**who, **numbers, gains=tensors["gains"], squares=tensors["squares"])


def _rows(tensor: Tensor, number: int) -> Tensor:
    if tensor.dim() != 2 or len(tensor) != number or tensor.dtype != torch.float64:
        raise ValueError(f"expected {number} rows of float64, got {list(tensor.shape)} of {tensor.dtype}")
    return tensor


_Count = Annotated[int, Field(ge=1, strict=True)]
_CountOrNone = Annotated[int, Field(ge=0, strict=True)]


@dataclass
class _TrainNumbers:
    num_examples: _Count
    loss: float


@dataclass
class _StatisticsNumbers:
    counts: dict[str, list[_Count]]


@dataclass
class _EvaluateNumbers:
    num_examples: _CountOrNone
    loss_sum: float
    loss_weight: float
    num_correct: _CountOrNone | None
    calibration_error: float | None


@dataclass
class _CalibrateNumbers:
    num_examples: _CountOrNone


@dataclass
class _NoNumbers:
    """All that is said is in tensors."""


_NUMBERS: dict[type[Task], TypeAdapter[Any]] = {
    TrainTask: TypeAdapter(_TrainNumbers),
    StatisticsTask: TypeAdapter(_StatisticsNumbers),
    EvaluateTask: TypeAdapter(_EvaluateNumbers),
    CalibrateTask: TypeAdapter(_CalibrateNumbers),
    ConformalTask: TypeAdapter(_NoNumbers),
}
