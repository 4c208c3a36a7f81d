"""One exchange with the clients: what comes back is checked, decoded and counted before it is folded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Generic, Self

import torch
from torch import Tensor

from dswag import failures
from dswag.tasks import (
    CalibrateResult,
    CalibrateTask,
    ClientError,
    Coordinates,
    Engine,
    EvaluateResult,
    EvaluateTask,
    FoldT,
    Payload,
    Result,
    StatisticsResult,
    StatisticsTask,
    Task,
    TrainResult,
    TrainTask,
    deliver,
    prefixed,
    spread,
    within,
)


@dataclass(frozen=True)
class Missing:
    """A client without a result in an exchange that went on without it."""

    client: int
    cause: str


@dataclass(frozen=True, eq=False)
class Exchange(Generic[FoldT]):
    """What an exchange came to."""

    fold: FoldT
    """The fold given, with every result that was let in."""
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
    attempts = list(tasks)
    if minimum is not None and door.count < minimum:
        again = [task for task in tasks if task.index in door.missing]
        engine.reduce(payload, again, door)
        attempts += again
    missing = tuple(Missing(error.task.client, error.cause) for _, error in sorted(door.missing.items()))
    if minimum is not None and door.count < minimum:
        causes = "; ".join(f"client {client.client}: {client.cause}" for client in missing)
        raise TooFewClientsError(
            f"{tasks[0].occasion} needs the results of at least {minimum} clients, got {door.count} of {len(tasks)}: "
            f"{causes}"
        )
    bytes_down = len(attempts) * num_bytes(payload) + sum(map(num_bytes, attempts))
    return Exchange(fold, missing, bytes_down, door.bytes_up)


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


class _Door(Generic[FoldT]):
    """A fold that lets fitting results through to another, and keeps or raises what is wrong with the others."""

    def __init__(self, fold: FoldT, payload: Payload, tasks: Sequence[Task], *, tolerant: bool) -> None:
        self.fold = fold
        self.payload = payload
        self.tasks = {task.index: task for task in tasks}
        self.tolerant = tolerant
        self.let_in: set[int] = set()
        self.bytes_up = 0
        self.missing: dict[int, ClientError] = {}

    @property
    def count(self) -> int:
        """How many results were let in."""
        return len(self.let_in)

    def add(self, result: Result) -> None:
        """Lets a result in, or refuses it."""
        task = self.tasks[result.index]
        fault = _fault(task, result, self.payload)
        if fault is not None:
            deliver(self, ClientError(task, f"its answer was refused: {fault}"))
            return
        self.fold.add(_decoded(task, result, self.payload))
        self.let_in.add(result.index)
        self.bytes_up += num_bytes(result)
        self.missing.pop(result.index, None)

    def miss(self, error: ClientError) -> None:
        """Takes note of a client without a result."""
        if not self.tolerant:
            raise error
        self.missing[error.task.index] = error

    def merge(self, other: Self) -> None:
        """Takes in what another one let in."""
        self.fold.merge(other.fold)
        self.let_in |= other.let_in
        self.bytes_up += other.bytes_up
        missing = {**self.missing, **other.missing}
        self.missing = {index: error for index, error in missing.items() if index not in self.let_in}

    def result(self) -> Any:
        """What the fold within came to."""
        return self.fold.result()

    def empty(self) -> Self:
        """A door to an empty fold, through which nothing came."""
        return type(self)(self.fold.empty(), self.payload, tuple(self.tasks.values()), tolerant=self.tolerant)

    def state(self) -> dict[str, Tensor]:
        """What the fold within took in, and who came or did not."""
        return {
            **prefixed("fold", self.fold.state()),
            "let_in": torch.tensor(sorted(self.let_in), dtype=torch.int64),
            "bytes_up": torch.tensor(self.bytes_up),
            "missing": failures.packed(self.missing.values()),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes on what came through another."""
        self.fold.load(within("fold", state))
        self.let_in = set(state["let_in"].tolist())
        self.bytes_up = int(state["bytes_up"])
        errors = failures.unpacked(state["missing"], tuple(self.tasks.values()))
        self.missing = {error.task.index: error for error in errors}

    def spread(self, coordinates: Coordinates) -> None:
        """Tells the fold within."""
        spread(self.fold, coordinates)


def _fault(task: Task, result: Result, payload: Payload) -> str | None:
    """What is wrong with a result; None where it fits its task."""
    if result.client != task.client:
        return f"it is client {result.client}'s"
    match task, result:
        case TrainTask(), TrainResult():
            shape = (len(task.snapshots), *payload["theta"].shape)
            if result.thetas.shape != shape:
                return f"snapshots must have shape {list(shape)}, got {list(result.thetas.shape)}"
            numbers = [result.thetas, result.loss]
            if result.num_examples < 1:
                return f"it counts {result.num_examples} examples"
        case StatisticsTask(), StatisticsResult():
            expected = sum(draws.count for draws in task.draws) or 1
            if len(result.statistics) != expected:
                return f"expected statistics of {expected} draws, got {len(result.statistics)}"
            numbers = [s for draw in result.statistics for seen in draw.values() for s in (seen.mean, seen.scatter)]
        case EvaluateTask(), EvaluateResult():
            numbers = [result.loss_sum]
        case CalibrateTask(), CalibrateResult():
            grid = (len(task.draws), len(task.temperatures))
            if result.gains.shape != grid or result.squares.shape != grid:
                return f"gains must have shape {list(grid)}, got {list(result.gains.shape)}"
            numbers = [result.gains, result.squares]
        case _:
            return f"a {type(task).__name__} was answered by a {type(result).__name__}"
    if not all(torch.isfinite(torch.as_tensor(number).sum()) for number in numbers):
        return "it is not finite"
    return None


def _decoded(task: Task, result: Result, payload: Payload) -> Result:
    """The result with the snapshots themselves, where differences to the payload's θ came."""
    if isinstance(task, TrainTask) and isinstance(result, TrainResult) and task.upload == "bfloat16":
        theta = payload["theta"]
        return replace(result, thetas=theta + result.thetas.to(theta.dtype))
    return result
