"""What stands in Flower's records: tensors as arrays, tasks and the numbers of results as JSON; nothing is pickled.

One message carries a payload and all tasks of one kind that a node's clients have in an exchange; its reply carries an
answer to each of them, in the same order.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from dswag.tasks import (
    CalibrateResult,
    CalibrateTask,
    ClientError,
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

MESSAGE_TYPES: dict[type[Task], str] = {
    TrainTask: "train",
    StatisticsTask: "query.statistics",
    EvaluateTask: "evaluate",
    CalibrateTask: "query.calibrate",
}
"""As which type of message each kind of task travels."""

_BFLOAT16 = ":bfloat16"
"""Ends the name of an array that holds the bits of bfloat16, which NumPy has not."""


class RecordError(ValueError):
    """Records that are not what was to come."""


def to_arrays(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """The tensors by name, as they leave this process."""
    arrays = {}
    for name, tensor in tensors.items():
        values = tensor.detach().cpu()
        half = values.dtype == torch.bfloat16
        bits = values.view(torch.int16) if half else values
        arrays[name + _BFLOAT16 if half else name] = Array(bits.numpy())
    return ArrayRecord(arrays)


def to_tensors(record: ArrayRecord) -> dict[str, Tensor]:
    """The tensors by name that came in a record. Raises RecordError where they cannot be read."""
    tensors = {}
    for name, array in record.items():
        with _reading(f"the array {name}"):
            tensor = torch.from_numpy(array.numpy())
            if name.endswith(_BFLOAT16):
                name, tensor = name.removesuffix(_BFLOAT16), tensor.view(torch.bfloat16)
        tensors[name] = tensor
    return tensors


def request(payload: ArrayRecord, tasks: Sequence[Task]) -> RecordDict:
    """What a node is sent: the payload, and tasks of one kind."""
    (kind,) = {type(task) for task in tasks}
    texts = [_TASKS[kind].dump_json(task).decode() for task in tasks]
    return RecordDict({"payload": payload, "request": ConfigRecord({"tasks": texts})})


def read_request(content: RecordDict, kind: type[Task]) -> tuple[Payload, list[Task]]:
    """The payload and the tasks. Raises RecordError, also for a task that says what this version does not know."""
    with _reading("the request"):
        texts = [str(text) for text in _list(content.config_records["request"]["tasks"])]
        adapter = _TASKS[kind]
        tasks = [adapter.validate_json(text) for text in texts]
    foreign = [text for text, task in zip(texts, tasks, strict=True) if adapter.dump_json(task).decode() != text]
    if foreign:
        raise RecordError(f"this node's dswag is another version than the server's, it does not know {foreign[0]}")
    return to_tensors(content.array_records["payload"]), tasks


def reply(answers: Iterable[Result | ClientError]) -> RecordDict:
    """What a node sends back: one answer to each task, in order."""
    content, texts = RecordDict(), []
    for position, answer in enumerate(answers):
        if isinstance(answer, ClientError):
            texts.append(json.dumps({"cause": answer.cause, "epoch": answer.epoch}))
            continue
        numbers, tensors = _pack(answer)
        texts.append(json.dumps({"numbers": numbers}))
        if tensors:
            content[f"answer {position}"] = to_arrays(tensors)
    content["reply"] = ConfigRecord({"answers": texts})
    return content


def read_reply(content: RecordDict, tasks: Sequence[Task]) -> Iterator[Result | ClientError]:
    """The answer to each task, read when its turn comes; one that cannot be read is a ClientError that says why."""
    try:
        with _reading("its node's reply"):
            texts = _list(content.config_records["reply"]["answers"])
            if len(texts) != len(tasks):
                raise ValueError(f"{len(texts)} answers to {len(tasks)} tasks")
    except RecordError as error:
        yield from (ClientError(task, str(error)) for task in tasks)
        return
    for position, (text, task) in enumerate(zip(texts, tasks, strict=True)):
        arrays = content.array_records.get(f"answer {position}", ArrayRecord())
        content.pop(f"answer {position}", None)  # so that only what was not read yet takes memory
        try:
            with _reading("its answer"):
                yield _read_answer(str(text), arrays, task)
        except RecordError as error:
            yield ClientError(task, str(error))


def _read_answer(text: str, arrays: ArrayRecord, task: Task) -> Result | ClientError:
    said = _ANSWER.validate_json(text)
    if isinstance(said, _Failure):
        return ClientError(task, said.cause, epoch=said.epoch)
    numbers = _NUMBERS[type(task)].validate_python(said.numbers)
    return _unpack(task, vars(numbers), to_tensors(arrays))


def _pack(result: Result) -> tuple[dict[str, Any], dict[str, Tensor]]:
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
            return {name: getattr(result, name) for name in ("num_examples", "loss_sum", "num_correct")}, {}
        case CalibrateResult():
            return {"num_examples": result.num_examples}, {"gains": result.gains, "squares": result.squares}
        case _:
            raise TypeError(f"there is no record for a {type(result).__name__}")


def _unpack(task: Task, numbers: dict[str, Any], tensors: dict[str, Tensor]) -> Result:
    """The result of a task; an error of any kind where numbers and tensors are not a result's."""
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
        case _:
            return CalibrateResult(**who, **numbers, gains=tensors["gains"], squares=tensors["squares"])


def _rows(tensor: Tensor, number: int) -> Tensor:
    if tensor.dim() != 2 or len(tensor) != number or tensor.dtype != torch.float64:
        raise ValueError(f"expected {number} rows of float64, got {list(tensor.shape)} of {tensor.dtype}")
    return tensor


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, got {type(value).__name__}")
    return value


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Whatever another process may have sent, reading it raises RecordError alone."""
    try:
        yield
    except RecordError:
        raise
    except ValidationError as error:
        fault = error.errors()[0]
        raise RecordError(f"{what} cannot be read: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from error
    except Exception as error:
        raise RecordError(f"{what} cannot be read: {type(error).__name__}: {error}") from error


_Count = Annotated[int, Field(ge=1, strict=True)]


@dataclass
class _Failure:
    cause: str
    epoch: int | None


@dataclass
class _Success:
    numbers: dict[str, Any]


@dataclass
class _TrainNumbers:
    num_examples: _Count
    loss: float


@dataclass
class _StatisticsNumbers:
    counts: dict[str, list[_Count]]


@dataclass
class _EvaluateNumbers:
    num_examples: _Count
    loss_sum: float
    num_correct: Annotated[int, Field(ge=0, strict=True)] | None


@dataclass
class _CalibrateNumbers:
    num_examples: _Count


_TASKS: dict[type[Task], TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in MESSAGE_TYPES}
_ANSWER: TypeAdapter[Any] = TypeAdapter(_Success | _Failure)
_NUMBERS: dict[type[Task], TypeAdapter[Any]] = {
    TrainTask: TypeAdapter(_TrainNumbers),
    StatisticsTask: TypeAdapter(_StatisticsNumbers),
    EvaluateTask: TypeAdapter(_EvaluateNumbers),
    CalibrateTask: TypeAdapter(_CalibrateNumbers),
}
