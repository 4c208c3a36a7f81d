"""What a method spends: gradients, steps in a row, bytes, seconds and memory."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Self

import torch
from torch import Tensor

from dswag.federation.contract import Engine, FoldT, Payload, Result, Task, TrainResult, TrainTask, prefixed, within
from dswag.federation.fold_wrapper import Around
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

    def reduce(self, payload: Payload, tasks: Sequence[Task], fold: FoldT) -> FoldT:
        """What the engine within gives."""
        counted = _Counted(fold, tasks)
        self.engine.reduce(payload, tasks, counted)
        down = len(tasks) * num_bytes(payload) + sum(map(num_bytes, tasks))
        self.ledger.add(Cost(counted.examples, counted.steps, down + counted.bytes))
        return fold


class _Counted(Around[FoldT]):
    """A fold that counts what another one is given, in place."""

    def __init__(self, fold: FoldT, tasks: Sequence[Task]) -> None:
        super().__init__(fold)
        self.tasks = {task.index: task for task in tasks}
        self.examples = self.steps = self.bytes = 0

    def add(self, result: Result) -> None:
        """Counts the result and hands it on."""
        task = self.tasks[result.index]
        if isinstance(task, TrainTask) and isinstance(result, TrainResult):
            epochs = len(task.learning_rates)
            self.examples += epochs * result.num_examples
            self.steps = max(self.steps, epochs * math.ceil(result.num_examples / task.update.batch_size))
        self.bytes += num_bytes(result)
        super().add(result)

    def merge(self, other: Self) -> None:
        """Adds another one's counts, and merges the folds within."""
        super().merge(other)
        self.examples += other.examples
        self.steps = max(self.steps, other.steps)
        self.bytes += other.bytes

    def empty(self) -> Self:
        """Counts what an empty fold is given."""
        return type(self)(self.fold.empty(), tuple(self.tasks.values()))

    def state(self) -> dict[str, Tensor]:
        """The counts, and what the fold within took in."""
        counts = torch.tensor([self.examples, self.steps, self.bytes])
        return {**prefixed("fold", super().state()), "counts": counts}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes on the counts and the content of another."""
        super().load(within("fold", state))
        self.examples, self.steps, self.bytes = state["counts"].tolist()


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
