"""One exchange with the clients: what comes back is checked, decoded and counted before it is folded."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Generic, Self

import torch
from torch import Tensor

from dswag.core.serialization import as_bytes, as_text
from dswag.federation import failures, result_validation
from dswag.federation.contract import ClientError, Engine, FoldT, Payload, Result, Task, deliver, prefixed, within
from dswag.federation.fold_wrapper import Around


@dataclass(frozen=True)
class Missing:
    """A client without a result, in an exchange that went on without it."""

    client: int
    cause: str


@dataclass(frozen=True, eq=False)
class Exchange(Generic[FoldT]):
    """The outcome of an exchange."""

    fold: FoldT
    """The fold given, with every result that was let in."""
    clients: tuple[int, ...]
    """The clients asked, including any that are missing."""
    missing: tuple[Missing, ...]
    bytes_down: int
    """Bytes of tensors and numbers that went to all clients together."""
    bytes_up: int
    """Bytes of tensors and numbers that came back and were let in."""


class TooFewClientsError(RuntimeError):
    """Fewer clients answered than an exchange needs; those without a result are named."""


def exchange(
    engine: Engine, payload: Payload, tasks: Sequence[Task], fold: FoldT, *, minimum: int | None = None
) -> Exchange[FoldT]:
    """The fold after the tasks' results; the one way in which the algorithms use an engine.

    Args:
        engine: where the clients are.
        payload: what goes to every client once.
        tasks: one for each client that takes part.
        fold: takes in the results that fit their tasks; the others are refused.
        minimum: how many results are enough. Clients without one are then left out and named; where fewer came, those
            missing are asked once more. If None, every client must answer.

    Raises:
        ClientError: a client failed or answered what does not fit, and every client must answer.
        TooFewClientsError: fewer than `minimum` results, also after asking again.
    """
    door = _Door(fold, payload, tasks, tolerant=minimum is not None)
    engine.reduce(payload, tasks, door)
    attempts, errors = list(tasks), door.unanswered()
    if minimum is not None and door.count < minimum:
        again = [error.task for error in errors]
        engine.reduce(payload, again, door)
        attempts += again
        errors = door.unanswered()
    missing = tuple(Missing(error.task.client, error.cause) for error in errors)
    if minimum is not None and door.count < minimum:
        causes = "; ".join(f"client {client.client}: {client.cause}" for client in missing)
        raise TooFewClientsError(
            f"{tasks[0].occasion} needs the results of at least {minimum} clients, "
            f"got {door.count} of {len(tasks)}: {causes}"
        )
    bytes_down = len(attempts) * num_bytes(payload) + sum(map(num_bytes, attempts))
    return Exchange(fold, tuple(task.client for task in tasks), missing, bytes_down, door.bytes_up)


def num_bytes(value: Any) -> int:
    """Bytes of the tensors in a payload, task or result, and eight for every number in it."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(num_bytes, value.values()))
    if isinstance(value, tuple | list):
        return sum(map(num_bytes, value))
    if is_dataclass(value):
        return sum(num_bytes(getattr(value, field.name)) for field in fields(value))
    return 8 if isinstance(value, int | float) else 0


class _Door(Around[FoldT]):
    """A fold that lets fitting answers through to another, in place, and keeps or raises the faults of the rest."""

    def __init__(self, fold: FoldT, payload: Payload, tasks: Sequence[Task], *, tolerant: bool) -> None:
        super().__init__(fold)
        self.payload = payload
        self.tasks = {task.index: task for task in tasks}
        self.tolerant = tolerant
        self.let_in: set[int] = set()
        self.bytes_up = 0
        self.missing: dict[int, ClientError] = {}
        self.layers: Any = None  # of the answers let in

    @property
    def count(self) -> int:
        """How many answers were let in."""
        return len(self.let_in)

    def add(self, result: Result) -> None:
        """Lets an answer in, or refuses it."""
        task = self.tasks.get(result.index)
        if task is None or result.index in self.let_in:
            self._turn_away(result)
            return
        fault = result_validation.fault(task, result, self.payload)
        layers = None if fault else result_validation.layers_of(result)
        if self.layers is not None and layers != self.layers and not fault:
            fault = f"its BatchNorm layers are {layers}, those of the others {self.layers}"
        if fault is not None:
            deliver(self, ClientError(task, f"its answer was refused: {fault}"))
            return
        self.fold.add(result_validation.decoded(task, result, self.payload))
        self.layers = layers
        self.let_in.add(result.index)
        self.bytes_up += num_bytes(result)
        self.missing.pop(result.index, None)

    def miss(self, error: ClientError) -> None:
        """Takes note of a client without an answer."""
        if not self.tolerant:
            raise error
        self.missing[error.task.index] = error

    def merge(self, other: Self) -> None:
        """Takes in what another one let in. Raises ValueError where their answers are of different layers."""
        if None not in (self.layers, other.layers) and self.layers != other.layers:
            raise ValueError(f"BatchNorm layers must be the same everywhere, got {self.layers} and {other.layers}")
        super().merge(other)
        self.let_in |= other.let_in
        self.bytes_up += other.bytes_up
        missing = {**self.missing, **other.missing}
        self.missing = {index: error for index, error in missing.items() if index not in self.let_in}
        self.layers = self.layers or other.layers

    def empty(self) -> Self:
        """A door to an empty fold, through which nothing came."""
        return type(self)(self.fold.empty(), self.payload, tuple(self.tasks.values()), tolerant=self.tolerant)

    def state(self) -> dict[str, Tensor]:
        """What the fold within took in, and who came or did not."""
        return {
            **prefixed("fold", super().state()),
            "let_in": torch.tensor(sorted(self.let_in), dtype=torch.int64),
            "bytes_up": torch.tensor(self.bytes_up),
            "missing": failures.packed(self.missing.values()),
            "layers": as_bytes(json.dumps(self.layers)),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes on what came through another."""
        super().load(within("fold", state))
        self.let_in = set(state["let_in"].tolist())
        self.bytes_up = int(state["bytes_up"])
        errors = failures.unpacked(state["missing"], tuple(self.tasks.values()))
        self.missing = {error.task.index: error for error in errors}
        self.layers = json.loads(as_text(state["layers"]))

    def unanswered(self) -> list[ClientError]:
        """For each task without an answer why, in their order; none where every client must answer."""
        left = [task for index, task in self.tasks.items() if index not in self.let_in]
        errors = [self.missing.get(task.index) or ClientError(task, "no answer came") for task in left]
        if errors and not self.tolerant:
            raise errors[0]
        return errors

    def _turn_away(self, result: Result) -> None:
        """An answer to no task, or a second one to the same, changes nothing."""
        if self.tolerant:
            return
        reason = "it had answered before" if result.index in self.tasks else f"there is no task {result.index}"
        first = next(iter(self.tasks.values()))
        stray = Task(index=result.index, client=result.client, occasion=first.occasion)
        raise ClientError(stray, f"its answer was refused: {reason}")
