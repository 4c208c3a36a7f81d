"""What a client's answer must be to fit its task; answers come from elsewhere, so nothing of them is taken on trust."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dswag.federation.contract import (
    CalibrateResult,
    CalibrateTask,
    ConformalResult,
    ConformalTask,
    EvaluateResult,
    EvaluateTask,
    LayerStatistics,
    Payload,
    Result,
    StatisticsResult,
    StatisticsTask,
    Task,
    TrainResult,
    TrainTask,
)

MOST, LARGEST = 1 << 48, 1e280
"""Far beyond what any client counts and measures, and so small that sums and products of them keep to 64 bits."""


def fault(task: Task, result: Result, payload: Payload) -> str | None:
    """What is wrong with an answer, the first thing found; None where it fits its task."""
    return next(_faults(task, result, payload), None)


def decoded(task: Task, result: Result, payload: Payload) -> Result:
    """A fitting answer with the snapshots themselves, where differences to the payload's θ came."""
    if isinstance(task, TrainTask) and isinstance(result, TrainResult) and task.upload == "bfloat16":
        theta = payload["theta"]
        return replace(result, thetas=theta + result.thetas.to(theta.dtype))
    return result


def layers_of(result: Result) -> Any:
    """Names and widths of the BatchNorm layers in a fitting answer, in which the answers to one payload agree."""
    if not isinstance(result, StatisticsResult):
        return None
    return [{name: len(seen.mean) for name, seen in draw.items()} for draw in result.statistics]


def _faults(task: Task, result: Result, payload: Payload) -> Iterator[str]:
    """The faults; what follows one may rest on its absence."""
    if result.client != task.client:
        yield f"it is client {result.client}'s"
    match task, result:
        case TrainTask(), TrainResult():
            theta = payload["theta"]
            dtype = torch.bfloat16 if task.upload == "bfloat16" else theta.dtype
            yield from _tensor("snapshots", result.thetas, (len(task.snapshots), *theta.shape), dtype)
            yield from _count("num_examples", result.num_examples)
            yield from _number("loss", result.loss)
        case StatisticsTask(), StatisticsResult():
            yield from _statistics(task, result)
        case EvaluateTask(), EvaluateResult():
            yield from _count("num_examples", result.num_examples, least=0)
            yield from _number("loss_sum", result.loss_sum)
            yield from _number("loss_weight", result.loss_weight)
            if result.loss_weight < 0:
                yield f"loss_weight must be at least 0, got {result.loss_weight:g}"
            if (result.num_correct is None) != (result.calibration_error is None):
                yield "num_correct and calibration_error go together"
            if result.calibration_error is not None:
                yield from _number("calibration_error", result.calibration_error)
                if not 0 <= result.calibration_error <= 1:
                    yield f"calibration_error must lie in 0 to 1, got {result.calibration_error:g}"
            if result.num_correct is not None:
                yield from _count("num_correct", result.num_correct, least=0)
                if result.num_correct > result.num_examples:
                    yield f"num_correct is {result.num_correct} of {result.num_examples} examples"
        case CalibrateTask(), CalibrateResult():
            grid = (len(task.draws), len(task.temperatures))
            yield from _count("num_examples", result.num_examples, least=0)
            yield from _tensor("gains", result.gains, grid, torch.float64)
            yield from _tensor("squares", result.squares, grid, torch.float64, least=0)
        case ConformalTask(), ConformalResult():
            yield from _tensor("counts", result.counts, None, torch.int64, least=0)
            if len(result.counts) > task.scoring.most_bins or int(result.counts.sum()) > MOST:
                yield f"counts must be of at most {task.scoring.most_bins} bins and 2^48 examples"
        case _:
            yield f"a {type(task).__name__} was answered by a {type(result).__name__}"


def _statistics(task: StatisticsTask, result: StatisticsResult) -> Iterator[str]:
    expected = sum(draws.count for draws in task.draws) or 1
    draws: Any = result.statistics
    if not isinstance(draws, tuple) or not all(isinstance(draw, Mapping) for draw in draws):
        yield "statistics must be a tuple of mappings"
    if len(draws) != expected:
        yield f"statistics must be of {expected} draws, got {len(draws)}"
    for name, seen in (item for draw in draws for item in draw.items()):
        if not isinstance(name, str) or not isinstance(seen, LayerStatistics):
            yield "statistics must be LayerStatistics by the layer's name"
        yield from _count(f"count of layer {name!r}", seen.count)
        yield from _tensor(f"mean of layer {name!r}", seen.mean, None, torch.float64)
        yield from _tensor(f"scatter of layer {name!r}", seen.scatter, tuple(seen.mean.shape), torch.float64, least=0)


def _tensor(
    name: str, value: Any, shape: tuple[int, ...] | None, dtype: torch.dtype, *, least: float | None = None
) -> Iterator[str]:
    """Of this shape, or of one axis if None, and of this type, with finite values only."""
    if not isinstance(value, Tensor):
        yield f"{name} must be a tensor, got {type(value).__name__}"
    if shape is None and value.dim() != 1:
        yield f"{name} must have one axis, got shape {list(value.shape)}"
    if shape is not None and value.shape != shape:
        yield f"{name} must have shape {list(shape)}, got {list(value.shape)}"
    if value.dtype != dtype or value.layout != torch.strided:
        yield f"{name} must be dense {dtype}, got {value.layout} {value.dtype}"
    if not (torch.isfinite(value.sum()) or torch.isfinite(value).all()):  # a sum of finite numbers may overflow
        yield f"it is not finite: {name}"
    if least is not None and (value < least).any():
        yield f"{name} must be at least {least:g}, got {value.min():g}"


def _count(name: str, value: Any, *, least: int = 1) -> Iterator[str]:
    if type(value) is not int or not least <= value <= MOST:
        yield f"{name} must be a whole number from {least} to 2^48, got {value!r}"


def _number(name: str, value: Any) -> Iterator[str]:
    if type(value) not in (int, float) or not abs(value) <= LARGEST:  # false for NaN
        yield f"{name} must be a finite number up to {LARGEST:g}, got {value!r}"
