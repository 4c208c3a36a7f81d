"""What stands in Flower's records: tensors as arrays, tasks and the numbers of results as JSON; nothing is pickled.

One message carries a payload and all tasks of one kind that a node's clients have in a round trip; its reply carries an
answer to each of them, in the same order.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from dswag.core.serialization import as_bytes, as_text
from dswag.federation.contract import ClientError, Payload, Result, Task
from dswag.federation.layouts import LAYOUT

OTHER_WORK = "work"
"""The action of messages with tasks that do not train; tasks that do are Flower's training messages."""

_BFLOAT16 = ":bfloat16"
"""Ends the name of an array that holds the bits of bfloat16, which NumPy has not."""


Given = tuple[ArrayRecord, str]
"""A payload: its arrays, and the text of its layout."""

_LONGEST = 1000
"""Characters of what a node says that errors, histories and reports repeat."""


class RecordError(ValueError):
    """Records that are not what was to come."""

    def __init__(self, text: str) -> None:
        super().__init__(words(text))


def words(text: str) -> str:
    """What a node said in one line, no longer than somebody reads, whose characters do nothing to a terminal."""
    line = "".join(character if character.isprintable() else " " for character in text[: _LONGEST + 1])
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."


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


def to_records(payload: Payload) -> Given:
    """The payload as arrays, and its layout: that stands apart, as mods compare the arrays with what comes back."""
    arrays = to_arrays({name: tensor for name, tensor in payload.items() if name != LAYOUT})
    return arrays, as_text(payload[LAYOUT]) if LAYOUT in payload else ""


def request(payload: Given, tasks: Sequence[Task]) -> RecordDict:
    """What a node is sent: the payload, and tasks of one kind."""
    arrays, layout = payload
    (kind,) = {type(task) for task in tasks}
    texts = [_in_json(kind).dump_json(task).decode() for task in tasks]
    asked = ConfigRecord({"kind": _name(kind), "tasks": texts, "layout": layout})
    return RecordDict({"payload": arrays, "request": asked})


def read_request(content: RecordDict) -> tuple[Payload, list[Task]]:
    """The payload and the tasks. Raises RecordError, also for a task that says what this version does not know."""
    with _reading("the request"):
        request = content.config_records["request"]
        texts = [str(text) for text in _list(request["tasks"])]
        adapter = _in_json(_kind(str(request["kind"])))
        tasks = [adapter.validate_json(text) for text in texts]
    foreign = [text for text, task in zip(texts, tasks, strict=True) if adapter.dump_json(task).decode() != text]
    if foreign:
        raise RecordError(f"this node's dswag is another version than the server's, it does not know {foreign[0]}")
    layout = {LAYOUT: as_bytes(str(request["layout"]))} if request["layout"] else {}
    return {**to_tensors(content.array_records["payload"]), **layout}, tasks


def reply(answers: Iterable[Result | ClientError]) -> RecordDict:
    """What a node sends back: one answer to each task, in order."""
    content, texts = RecordDict(), []
    for position, answer in enumerate(answers):
        if isinstance(answer, ClientError):
            texts.append(json.dumps({"cause": answer.cause, "epoch": answer.epoch}))
            continue
        values, tensors = answer.to_wire()
        texts.append(json.dumps({"values": values}))
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
        try:
            with _reading("its answer"):  # taken out, so that only what was not read yet takes memory
                yield _read_answer(str(text), content.pop(f"answer {position}", None), task)
        except RecordError as error:
            yield ClientError(task, str(error))


def _read_answer(text: str, arrays: ArrayRecord | None, task: Task) -> Result | ClientError:
    said = _ANSWER.validate_json(text)
    if isinstance(said, _Failure):
        return ClientError(task, words(said.cause), epoch=said.epoch)
    return task.result.from_wire(task, said.values, {} if arrays is None else to_tensors(arrays))


def _name(kind: type[Task]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _kind(name: str) -> type[Task]:
    """The kind of work of this name, among those that this process has imported: none is imported for a message."""
    kinds = [Task]
    for kind in kinds:
        kinds += kind.__subclasses__()
    found = next((kind for kind in kinds if _name(kind) == name), None)
    if found is None:
        raise RecordError(f"this node knows no work {name}: import the module that defines it where the node is made")
    return found


def _in_json(kind: type[Task]) -> TypeAdapter[Any]:
    if kind not in _TASKS:
        _TASKS[kind] = TypeAdapter(kind)
    return _TASKS[kind]


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


@dataclass
class _Failure:
    cause: str
    epoch: int | None


@dataclass
class _Success:
    values: dict[str, Any]


_TASKS: dict[type[Task], TypeAdapter[Any]] = {}
_ANSWER: TypeAdapter[Any] = TypeAdapter(_Success | _Failure)
