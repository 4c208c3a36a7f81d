"""How a client does its work: any task's, on its part of the client's data, in its time."""

import math
import time
from collections.abc import Iterator

import torch

from dswag.client.replica import Workspace
from dswag.core.randomness import derive_seed
from dswag.data import holdout
from dswag.data.examples import Batch, ClientData
from dswag.federation.contract import ClientError, Payload, Result, Task


def run(task: Task, payload: Payload, data: ClientData, workspace: Workspace) -> Result:
    """The client's answer to a task.

    Raises:
        ClientError: whatever went wrong, with client, occasion and cause.
    """
    workspace.deadline = math.inf if task.time_limit is None else time.monotonic() + task.time_limit
    try:
        return task.run(payload, _part(data, task), workspace)
    except ClientError:
        raise
    except Exception as error:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        raise ClientError(task, f"{type(error).__name__}: {error}{notes}") from error


def examples_of(
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
