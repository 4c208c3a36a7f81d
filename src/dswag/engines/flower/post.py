"""Messages to nodes, and the wait for their replies."""

import math
import time
from collections.abc import Callable, Iterator

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from dswag.engines.flower.records import words

Fetch = Callable[[], Message | str]
"""Waits for the reply to a message: it, or why there is none."""

FIRST_PAUSE, LONGEST_PAUSE = 0.005, 1.0
"""Seconds between two looks for a reply, which grow from the first to the second."""


class Post:
    """Sends messages and waits for their replies, to one deadline for all."""

    def __init__(self, grid: Grid, timeout: float | None) -> None:
        self.grid = grid
        self.timeout = timeout
        self.deadline = math.inf if timeout is None else time.monotonic() + timeout

    def send(self, node: int, message_type: str, content: RecordDict) -> Fetch:
        """Sends a message; its reply is to be fetched once."""
        # replies are fetched in order, so one that came in time may have to wait until the deadline itself
        ttl = None if self.timeout is None else 2 * self.timeout
        message = Message(content, dst_node_id=node, message_type=message_type, ttl=ttl)
        sent = [name for name in self.grid.push_messages([message]) if name]
        return lambda: self._fetch(sent)

    def looks(self) -> Iterator[None]:
        """One look, and more until the deadline, with pauses between them."""
        pause = FIRST_PAUSE
        while True:
            yield
            left = self.deadline - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE)

    def _fetch(self, sent: list[str]) -> Message | str:
        if not sent:
            return "its node could not be sent a message"
        for _ in self.looks():
            for reply in self.grid.pull_messages(sent):
                if not reply.has_error():
                    return reply
                last = (reply.error.reason or "no reason given").strip().splitlines()[-1]
                return f"its node answered with error {reply.error.code}: {words(last)}"
        return f"its node did not answer within {self.timeout:g} s"
