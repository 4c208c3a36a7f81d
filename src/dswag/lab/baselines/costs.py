"""What a method spends: gradients, steps in a row, bytes, seconds and memory."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from dswag.client.training import TrainTask
from dswag.federation.client_results import TrainResult
from dswag.federation.contract import ClientError, Engine, Fold, Payload, Result, Task
from dswag.federation.round_trip import num_bytes


@dataclass(frozen=True)
class Cost:
    """The cost of something; costs of parts add up."""

    examples: int = 0
    """Number of examples whose gradient was taken, each as often as it was used: the budget that methods share."""
    steps: int = 0
    """Gradient steps that must be done one after another if every client has a machine of its own."""
    bytes: int = 0
    """Bytes of tensors and numbers between server and clients, both ways."""
    seconds: float = 0.0
    memory: int = 0
    """Bytes by which the process grew at its peak; 0 if the system does not tell."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.examples + other.examples,
            self.steps + other.steps,
            self.bytes + other.bytes,
            self.seconds + other.seconds,
            max(self.memory, other.memory),
        )


class Ledger:
    """The cost so far, in place."""

    def __init__(self) -> None:
        self.cost = Cost()

    def add(self, cost: Cost) -> None:
        """Adds the cost of a part."""
        self.cost += cost


class Metered:
    """An engine that enters in a ledger what passes through another one."""

    def __init__(self, engine: Engine, ledger: Ledger) -> None:
        self.engine = engine
        self.ledger = ledger

    @property
    def num_clients(self) -> int:
        """W."""
        return self.engine.num_clients

    @property
    def batch_norm_layers(self) -> Mapping[str, int]:
        """Those of the engine within."""
        return self.engine.batch_norm_layers

    def answers(self, payload: Payload, tasks: Sequence[Task]) -> Iterator[Result | ClientError]:
        """What the engine within answers, counted."""
        self.ledger.add(Cost(bytes=len(tasks) * num_bytes(payload) + sum(map(num_bytes, tasks))))
        by_index = {task.index: task for task in tasks}
        steps = 0
        for answer in self.engine.answers(payload, tasks):
            if not isinstance(answer, ClientError):
                spent = _spent(by_index[answer.index], answer)
                self.ledger.add(replace(spent, steps=max(0, spent.steps - steps)))  # clients work at the same time
                steps = max(steps, spent.steps)
            yield answer
            del answer

    def combine(self, fold: Fold[Any, Any], failure: Exception | None = None) -> None:
        """What the engine within does."""
        self.engine.combine(fold, failure)


def _spent(task: Task, result: Result) -> Cost:
    """By one client."""
    if not (isinstance(task, TrainTask) and isinstance(result, TrainResult)):
        return Cost(bytes=num_bytes(result))
    epochs = len(task.learning_rates)
    steps = epochs * math.ceil(result.num_examples / task.update.batch_size)
    return Cost(epochs * result.num_examples, steps, num_bytes(result))


@contextmanager
def measured(ledger: Ledger) -> Iterator[None]:
    """Enters the seconds and the growth of the process within this context."""
    before = _resident_peak(forget=True)
    started = perf_counter()
    yield
    seconds = perf_counter() - started
    ledger.add(Cost(seconds=seconds, memory=max(0, _resident_peak() - before)))


_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _resident_peak(*, forget: bool = False) -> int:
    """The most memory that the process held, in bytes; with `forget`, from now on. 0 where the system is no Linux."""
    try:
        if forget:
            _FORGET.write_text("5", encoding="ascii")  # proc(5): the peak becomes what is held now
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
