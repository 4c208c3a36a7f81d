"""The server's side of a federation: an engine whose clients live on the nodes of Flower's grid."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import torch
from flwr.serverapp import Grid
from torch import nn

from dswag.client import batch_norm
from dswag.engines.flower import census, records
from dswag.engines.flower.post import Fetch, Post
from dswag.federation.contract import ClientError, Fold, Payload, Result, Task, check_tasks

PRESENTATION = 120.0
"""Seconds that a node which appears during a run may take to say who it is, while the others wait."""


class NoNodesError(RuntimeError):
    """Clients of a federation did not appear in time."""


class Flower:
    """Clients on the nodes of a federation, or of its simulation; results come in task order.

    In a round trip each node gets one message with the tasks of all its clients (one for each kind of task), because a
    round trip through Flower takes seconds, whatever it carries. Replies are fetched one at a time, in the order of the
    tasks: those that come early wait at Flower's SuperLink, not in this process.

    Every node that appears is asked which clients it has, and again after it did not answer. A client whose node has
    left, or has not answered in time, fails and is named; if its node comes back, it takes part again. A node that
    claims a client of another node gets it only if that one is asked and does not answer.

    Args:
        grid: what Flower passes to the main function of a ServerApp.
        model: what the clients train; it is neither changed nor sent.
        num_clients: W.
        timeout: seconds that a round trip waits for replies; as long as Flower does (12 hours) if None.
        patience: seconds that the clients may take to appear at the start.
        enough: number of clients that suffices to begin; all W if None.

    Raises:
        NoNodesError: too few clients appeared; the missing are named, with what their nodes said instead.
        ValueError: two nodes that have the same client.
    """

    def __init__(
        self,
        grid: Grid,
        model: nn.Module,
        num_clients: int,
        *,
        timeout: float | None = None,
        patience: float = 600.0,
        enough: int | None = None,
    ) -> None:
        self.num_clients = num_clients
        self._grid = grid
        self.batch_norm_layers = batch_norm.widths(model)
        self._timeout = timeout
        self._presentation = PRESENTATION if timeout is None else min(timeout, PRESENTATION)
        self._residents: dict[int, census.Resident] = {}
        self._refusals: dict[int, str] = {}
        self._await_clients(num_clients if enough is None else enough, patience)

    def answers(self, payload: Payload, tasks: Sequence[Task]) -> Iterator[Result | ClientError]:
        """Each client's result, or why there is none, in task order."""
        check_tasks(tasks, self.num_clients)
        return self._in_order(payload, tasks)

    def combine(self, fold: Fold[Any, Any], failure: Exception | None = None) -> None:
        """Nothing: the server takes in all answers."""

    def _in_order(self, payload: Payload, tasks: Sequence[Task]) -> Iterator[Result | ClientError]:
        homes = self._homes(Post(self._grid, self._presentation), {task.client for task in tasks})
        groups: dict[tuple[census.Resident | None, type[Task]], list[Task]] = defaultdict(list)
        for task in tasks:
            groups[homes.get(task.client), type(task)].append(task)
        given, post = records.to_records(payload), Post(self._grid, self._timeout)
        answers = {
            (home, kind): self._answers(home, group, _ask(post, home, group, given))
            for (home, kind), group in groups.items()
        }
        for task in tasks:
            yield next(answers[homes.get(task.client), type(task)])

    def _homes(self, post: Post, wanted: set[int]) -> dict[int, census.Resident]:
        """On which node each client is; of two that have it, on the one that appeared first, if it answers still."""
        online = set(self._grid.get_node_ids())
        known = {node: resident for node, resident in self._residents.items() if node in online}
        if not wanted <= {client for resident in known.values() for client in resident.clients}:
            self._refusals.clear()  # what had failed may work by now
        found = self._meet(post, sorted(online - known.keys() - self._refusals.keys()))
        claimed = {client for resident in found.values() for client in resident.clients}
        contested = [node for node, resident in known.items() if claimed & set(resident.clients)]
        still = self._meet(post, contested)
        kept = {node: resident for node, resident in known.items() if node not in contested}
        self._residents = {**kept, **still, **found}
        return {client: home for home in reversed(self._residents.values()) for client in home.clients}

    def _meet(self, post: Post, nodes: Sequence[int]) -> dict[int, census.Resident]:
        """The nodes that present themselves when asked who they are."""
        found: dict[int, census.Resident] = {}
        for node, fetch in [(node, post.send(node, census.MESSAGE_TYPE, census.question())) for node in nodes]:
            reply = fetch()
            try:
                if isinstance(reply, str):
                    raise records.RecordError(reply)
                found[node] = census.read_answer(node, reply.content)
            except records.RecordError as error:
                self._refusals[node] = str(error)
        return found

    def _await_clients(self, enough: int, patience: float) -> None:
        """Returns once so many clients have a node."""
        post, everybody = Post(self._grid, patience), set(range(self.num_clients))
        for _ in post.looks():
            present = everybody & self._homes(post, everybody).keys()
            if len(present) >= enough:
                self._check_residents()
                return
        refusals = "".join(f"; node {node}: {cause}" for node, cause in self._refusals.items())
        raise NoNodesError(
            f"{enough} of {self.num_clients} clients must appear, after {patience:g} s there were {len(present)}, "
            f"without {sorted(everybody - present)}{refusals}"
        )

    def _check_residents(self) -> None:
        """Raises ValueError where two nodes have the same client, which at the start is no node that came back."""
        for one, other in combinations(self._residents.values(), 2):
            if both := set(one.clients) & set(other.clients):
                raise ValueError(
                    f"nodes {one.node} and {other.node} both have the clients {sorted(both)}: "
                    "start each node with numbers of its own, such as --node-config 'partition-id=3'"
                )

    def _answers(
        self, home: census.Resident | None, tasks: Sequence[Task], fetch: Fetch
    ) -> Iterator[Result | ClientError]:
        """The answers of one node's clients; its reply is fetched when the first is asked for."""
        reply = fetch()
        if isinstance(reply, str):
            if home is not None:  # it may be another when it answers again: it has to present itself anew
                self._residents.pop(home.node, None)
            yield from (ClientError(task, reply) for task in tasks)
            return
        yield from records.read_reply(reply.content, tasks)


def _ask(post: Post, home: census.Resident | None, tasks: Sequence[Task], payload: records.Given) -> Fetch:
    """Sends a node the tasks of its clients, unless there is a reason why it could not do them."""
    if home is None:
        return lambda: "no node has it"
    if home.stranger is not None and any(task.makes_draws for task in tasks):
        return lambda: (
            f"its node has {home.stranger}, whose draws from a posterior are not those of the server's "
            f"torch {torch.__version__}: install the same releases on both"
        )
    message_type = "train" if tasks[0].trains else f"query.{records.OTHER_WORK}"
    return post.send(home.node, message_type, records.request(payload, tasks))
