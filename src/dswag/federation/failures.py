"""Failed clients as a tensor, in which they can cross to another process that has the same tasks."""

import json
from collections.abc import Iterable, Sequence

from jaxtyping import UInt8
from torch import Tensor

from dswag.core.serialization import as_bytes, as_text
from dswag.federation.contract import ClientError, Task


def packed(errors: Iterable[ClientError]) -> UInt8[Tensor, "n"]:
    """The failures as the bytes of a JSON text."""
    return as_bytes(json.dumps([[error.task.index, error.cause, error.epoch] for error in errors]))


def unpacked(data: UInt8[Tensor, "n"], tasks: Sequence[Task]) -> list[ClientError]:
    """The failures that were `packed`, of some of these tasks."""
    by_index = {task.index: task for task in tasks}
    return [ClientError(by_index[index], cause, epoch=epoch) for index, cause, epoch in json.loads(as_text(data))]
