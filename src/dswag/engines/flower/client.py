"""A node of a federation: it does tasks on the data that it holds, by the same `work.run` as every engine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from torch import nn

from dswag.client import work
from dswag.client.calling import Loss
from dswag.client.replica import OptimizerFactory, Workspace
from dswag.core.parameters import Layout
from dswag.core.threads import default_workers, ordered_map
from dswag.data.examples import client_data
from dswag.engines.flower import census, records
from dswag.federation.contract import ClientError, Result, Task


@dataclass(frozen=True, eq=False)
class Node:
    """What a node has: a model and the data of its clients."""

    model: nn.Module
    """The same architecture as the server's; its parameters are overwritten."""
    clients: Mapping[int, Any]
    """The data of each client that lives here, in any form that `dswag.data.examples.client_data` takes.

    By number; clients are numbered 0 to W - 1 over the whole federation.
    """
    loss: Loss = F.cross_entropy
    """Mean loss of (outputs, targets), or "model"; see `InProcess`."""
    layout: Layout | None = None
    """The parameters in θ; all trainable ones if None."""
    optimizer: OptimizerFactory | None = None
    """Makes each client's optimizer; see `InProcess`."""
    workspaces: list[Workspace] = field(default_factory=list)
    """Copies of the model to work in, made when needed; nodes that `dataclasses.replace` makes share them."""


def client_app(make_node: Callable[[Context], Node], *, mods: Sequence[Mod] = ()) -> ClientApp:
    """The ClientApp whose nodes `make_node` makes from Flower's context, whose `node_config` says which node it is.

    Args:
        make_node: called for every message, as Flower handles each in a process of its own. In simulations, put
            expensive parts such as reading a data set behind a `functools.cache`.
        mods: Flower's mods for training messages, such as `LocalDpMod`.
    """
    app = ClientApp()

    def present(message: Message, context: Context) -> Message:
        return Message(census.answer(make_node(context).clients), reply_to=message)

    app.query(census.ACTION)(present)

    def train(message: Message, context: Context) -> Message:
        return Message(_answer(make_node(context), message.content, trains=True), reply_to=message)

    def other_work(message: Message, context: Context) -> Message:
        return Message(_answer(make_node(context), message.content, trains=False), reply_to=message)

    app.train(mods=list(mods))(train)
    app.query(records.OTHER_WORK)(other_work)
    return app


def _answer(node: Node, content: RecordDict, *, trains: bool) -> RecordDict:
    """The answers of the node's clients, several at work at a time as in `InProcess`.

    Raises:
        ValueError: training that would go by the mods for it; or the server takes this node for one with other clients:
            an error makes it ask again who has which.
    """
    payload, tasks = records.read_request(content)
    if any(task.trains != trains for task in tasks):
        raise ValueError(f"{type(tasks[0]).__name__} came in a message for other work")
    others = sorted({task.client for task in tasks} - node.clients.keys())
    if others:
        raise ValueError(f"this node has no clients {others}, only {sorted(node.clients)}")

    def answer(workspace: Workspace, task: Task) -> Result | ClientError:
        try:
            return work.run(task, payload, client_data(node.clients[task.client]), workspace)
        except ClientError as error:
            return error

    workers = default_workers() if next(node.model.parameters()).device.type == "cpu" else 1
    number = max(1, min(workers, len(tasks)))
    while len(node.workspaces) < number:
        first = Workspace(node.model, node.loss, node.layout, optimizer=node.optimizer)
        node.workspaces.append(node.workspaces[0].another() if node.workspaces else first)
    threads = max(1, default_workers() // len(node.clients))
    return records.reply(ordered_map(answer, node.workspaces[:number], tasks, intra_op_threads=threads))
