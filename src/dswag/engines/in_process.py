"""All clients in this process, several at a time on a pool of threads: the reference for every other engine."""

import threading
from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dswag.client import batch_norm, work
from dswag.client.calling import Loss
from dswag.client.replica import OptimizerFactory, Workspace
from dswag.core.parameters import Layout, unwrapped
from dswag.core.threads import default_workers, ordered_map
from dswag.data.examples import ClientData, client_data
from dswag.federation.contract import ClientError, Fold, Payload, Result, Task, check_tasks


class InProcess:
    """Runs each client on one worker, several at a time, and yields their answers in task order.

    Each worker has its own copy of the model; the model given is not changed. At most two results per worker wait to be
    taken, whatever the number of clients. A worker computes with one intra-op thread, or with several if there are
    fewer clients than PyTorch has threads. Their number never depends on the number of workers, so that answers do not
    either.

    Args:
        model: any module with trainable parameters; the clients work on copies, on its device.
        clients: each client's data, in any form that `dswag.data.examples.client_data` takes. A list or tuple is
            checked at once. Any other sequence is asked for a client's data whenever the client has a task, and nothing
            is kept, so that there may be more data than fit in memory.
        loss: a function of (outputs, targets) that returns the mean loss of the batch; of outputs with `logits` it
            gets these. "model" stands for the loss that the model itself computes from the labels in its batch.
        workers: clients at a time; if None, as many as PyTorch uses threads, or one on a GPU.
        layout: the parameters in θ, all trainable ones if None; the others stay as they are in the model.
        optimizer: a function of a client's parameters that returns a `torch.optim` optimizer, or a pair of one and its
            schedule, which is stepped after every minibatch. It replaces the config's optimizer with its momentum and
            weight decay. Without a schedule, the config's learning rate is that of the first group of parameters, and
            the others keep their ratio to it.

    Raises:
        TypeError: the data of one client instead of a sequence.
        ValueError: no clients, or a client in a list or tuple without examples, named.
    """

    def __init__(
        self,
        model: nn.Module,
        clients: Sequence[Any],
        *,
        loss: Loss = F.cross_entropy,
        workers: int | None = None,
        layout: Layout | None = None,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        if isinstance(clients, DataLoader | Dataset | Tensor | np.ndarray | Mapping) or not isinstance(clients, Sized):
            raise TypeError(
                f"clients must be a sequence with the data of each client, got one {type(clients).__name__}: "
                "split the data, and pass a list, of one element where there is one client"
            )
        if not len(clients):
            raise ValueError("an engine needs the data of at least one client, got none")
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        listed = isinstance(clients, list | tuple)
        self._clients = [_named(number, data) for number, data in enumerate(clients)] if listed else clients
        first = Workspace(model, loss, layout, optimizer=optimizer)
        self.batch_norm_layers = batch_norm.widths(unwrapped(model), first.layout)
        default = default_workers() if first.device.type == "cpu" else 1
        number = min(workers or default, len(clients))
        self._intra_op_threads = max(1, default_workers() // len(clients))
        self._at_work = threading.Lock()  # the workspaces serve one round trip at a time
        self._workspaces = [first, *(first.another() for _ in range(number - 1))]

    @property
    def num_clients(self) -> int:
        """W."""
        return len(self._clients)

    @property
    def loss(self) -> Loss:
        """The loss that clients train with."""
        return self._workspaces[0].loss

    def answers(self, payload: Payload, tasks: Sequence[Task]) -> Iterator[Result | ClientError]:
        """Each task's result, or why there is none, in task order.

        Raises:
            RuntimeError: another thread, or whoever iterates, is asking this engine's clients already.
        """
        check_tasks(tasks, self.num_clients)
        return self._answers(payload, tasks)

    def combine(self, fold: Fold[Any, Any], failure: Exception | None = None) -> None:
        """Nothing: one process takes in all answers."""

    def _answers(self, payload: Payload, tasks: Sequence[Task]) -> Iterator[Result | ClientError]:
        abort = threading.Event()

        def answer(workspace: Workspace, task: Task) -> Result | ClientError:
            workspace.abort = abort
            try:
                return work.run(task, payload, self._data(task), workspace)
            except ClientError as error:
                return error

        if not self._at_work.acquire(blocking=False):
            raise RuntimeError(
                "this engine is at work already: give each thread that asks clients an engine of its own"
            )
        try:
            yield from ordered_map(
                answer, self._workspaces, tasks, abort=abort, intra_op_threads=self._intra_op_threads
            )
        finally:
            self._at_work.release()

    def _data(self, task: Task) -> ClientData:
        try:
            return client_data(self._clients[task.client])
        except Exception as error:
            raise ClientError(task, f"{type(error).__name__}: {error}") from error


def _named(number: int, data: Any) -> Any:
    try:
        return client_data(data)
    except (TypeError, ValueError) as error:
        raise type(error)(f"client {number}: {error}") from error
