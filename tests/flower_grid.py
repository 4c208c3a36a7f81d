"""A federation inside the test process: Flower's messages, packed and unpacked, without its processes and ports."""

import itertools

import pytest
import torch

pytest.importorskip("flwr", reason="needs flwr: pip install 'dswag[flower]'")
pytest.importorskip("flwr.supercore.task_identity", reason="made for flwr 1.41")

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from dswag.engines.flower import Flower, Node, client_app

ERROR_OF_CLIENT_APP = 2


class InProcessGrid(Grid):
    """Calls the ClientApp when a message is sent; `spoil` may replace a reply, or drop it by None."""

    def __init__(self, app, nodes):
        # Message() reads whose task it is from here; Flower's own runtimes set it
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self.app = app
        self.contexts = {}
        self.spoil = lambda message, reply: reply
        self.sent = []
        self.replies = {}
        self.names = map(str, itertools.count())
        for number in range(nodes):
            self.join(1000 - 7 * number, {"partition-id": number, "num-partitions": nodes})

    def join(self, node, config):
        self.contexts[node] = Context(run_id=1, node_id=node, node_config=config, state=RecordDict(), run_config={})

    def get_node_ids(self):
        return list(self.contexts)

    def push_messages(self, messages):
        return [self.push(message) for message in messages]

    def push(self, message):
        if message.metadata.dst_node_id not in self.contexts:
            return None
        name = message.metadata.__dict__["_message_id"] = next(self.names)
        self.sent.append(message)
        try:
            with torch.inference_mode(False), torch.enable_grad():  # as in a process of its own
                reply = self.app(crossed(message), self.contexts[message.metadata.dst_node_id])
        except Exception as error:
            reply = Message(Error(ERROR_OF_CLIENT_APP, f"a traceback\n{error}"), reply_to=message)
        self.replies[name] = self.spoil(message, reply)
        return name

    def pull_messages(self, message_ids):
        pulled = [self.replies.pop(name) for name in message_ids if self.replies.get(name) is not None]
        return [crossed(reply) for reply in pulled]

    def send_and_receive(self, messages, *, timeout=None):
        return self.pull_messages(self.push_messages(messages))

    def set_run(self, run):
        raise NotImplementedError

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, *arguments, **options):
        raise NotImplementedError


def crossed(message):
    """The message as it is on the other side of a wire."""
    return message_from_proto(message_to_proto(message))


def federation(model, clients, *, nodes=2, mods=(), **options):
    """A grid whose nodes share the clients out, and do `local.run` with the options."""

    def make_node(context):
        number = context.node_config["partition-id"]
        return Node(model, {c: clients[c] for c in range(number, len(clients), nodes)}, **options)

    return InProcessGrid(client_app(make_node, mods=mods), nodes)


def on_flower(model, clients, *, workers=None, **options):
    """The engine of a federation with as many nodes as workers, two if None; a row of ENGINES."""
    grid = federation(model, clients, nodes=min(workers or 2, len(clients)), **options)
    return Flower(grid, model, len(clients), patience=0)
