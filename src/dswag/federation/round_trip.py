"""One round trip to the clients: what comes back is checked, decoded and counted before it is folded."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Generic, Self

import torch
from torch import Tensor

from dswag.federation import failures
from dswag.federation.contract import ClientError, Engine, FoldT, Payload, Result, Task
from dswag.federation.result_validation import validate_result


@dataclass(frozen=True)
class Missing:
    """A client without a result, in a round trip that went on without it."""

    client: int
    cause: str


@dataclass(frozen=True, eq=False)
class RoundTrip(Generic[FoldT]):
    """The outcome of a round trip."""

    fold: FoldT
    """The fold given, with every result that was accepted."""
    clients: tuple[int, ...]
    """The clients asked, including any that are missing."""
    missing: tuple[Missing, ...]
    bytes_down: int
    """Bytes of tensors and numbers that went to all clients together."""
    bytes_up: int
    """Bytes of tensors and numbers that came back and were accepted."""


_REJECTED = "its answer was rejected"


class TooFewClientsError(RuntimeError):
    """Fewer clients answered than a round trip needs; those without a result are named."""


def round_trip(
    engine: Engine, payload: Payload, tasks: Sequence[Task], fold: FoldT, *, minimum: int | None = None
) -> RoundTrip[FoldT]:
    """The fold after the tasks' results; the one way in which the algorithms use an engine.

    Args:
        engine: where the clients are.
        payload: what goes to every client once.
        tasks: one for each client that takes part.
        fold: empty; takes in the results that fit their tasks, in task order. The others are rejected.
        minimum: how many results are enough. Clients without one are then left out and named; where fewer came, those
            missing are asked once more. If None, every client must answer.

    Raises:
        ClientError: a client failed or answered what does not fit, and every client must answer.
        TooFewClientsError: fewer than `minimum` results, also after asking again.
    """
    asked = list(tasks)
    attendance = _take_in(engine, payload, tasks, fold, tolerant=minimum is not None)
    if minimum is not None and len(attendance.accepted) < minimum:
        again = [error.task for error in attendance.missing()]
        asked += again
        attendance.merge(_take_in(engine, payload, again, fold, tolerant=True))
    missing = tuple(Missing(error.task.client, error.cause) for error in attendance.missing())
    if minimum is not None and len(attendance.accepted) < minimum:
        causes = "; ".join(f"client {client.client}: {client.cause}" for client in missing)
        raise TooFewClientsError(
            f"{tasks[0].occasion} needs the results of at least {minimum} clients, "
            f"got {len(attendance.accepted)} of {len(tasks)}: {causes}"
        )
    engine.combine(fold)
    bytes_down = len(asked) * num_bytes(payload) + sum(map(num_bytes, asked))
    return RoundTrip(fold, tuple(task.client for task in tasks), missing, bytes_down, attendance.bytes_up)


def _take_in(engine: Engine, payload: Payload, tasks: Sequence[Task], fold: FoldT, *, tolerant: bool) -> "Attendance":
    """Who answered, on all processes, after the fold took in this one's part."""
    attendance = Attendance(tasks)
    try:
        with closing(_closable(engine.answers(payload, tasks))) as answers:
            for answer in answers:
                try:
                    if isinstance(answer, ClientError):
                        raise answer
                    result = attendance.check(answer, payload)
                except ClientError as error:
                    if not tolerant:
                        raise
                    attendance.note(error)
                else:
                    fold.add(result)
                    attendance.add(answer)
                    del result
                del answer  # before the next one comes
    except Exception as error:
        engine.combine(attendance, error)  # other processes wait for what became of this one
        raise
    engine.combine(attendance)
    if not tolerant and (missing := attendance.missing()):
        raise missing[0]
    return attendance


def _closable(answers: Iterator[Result | ClientError]) -> Generator[Result | ClientError, None, None]:
    yield from answers


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


class Attendance:
    """Which tasks have an accepted result, and why the others have none: a fold of its own, in place."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = {task.index: task for task in tasks}
        self.accepted: set[int] = set()
        self.failed: dict[int, ClientError] = {}
        self.bytes_up = 0

    def check(self, answer: Result, payload: Payload) -> Result:
        """The result as it is to be folded. Raises ClientError where it does not fit."""
        task = self.tasks.get(answer.index)
        if task is None or answer.index in self.accepted:
            reason = f"there is no task {answer.index}" if task is None else "it had answered before"
            occasion = next(iter(self.tasks.values())).occasion
            raise ClientError(Task(index=-1, client=answer.client, occasion=occasion), f"{_REJECTED}: {reason}")
        try:
            return validate_result(task, answer, payload)
        except ValueError as error:
            raise ClientError(task, f"{_REJECTED}: {error}") from None

    def add(self, answer: Result) -> None:
        """Takes note of a result that was accepted."""
        self.accepted.add(answer.index)
        self.bytes_up += num_bytes(answer)

    def note(self, error: ClientError) -> None:
        """Takes note of a failure; that of an answer to no task, or of a second one, changes nothing."""
        if error.task.index in self.tasks:
            self.failed[error.task.index] = error

    def missing(self) -> list[ClientError]:
        """For each task without an accepted result why, in their order."""
        left = [task for index, task in self.tasks.items() if index not in self.accepted]
        return [self.failed.get(task.index) or ClientError(task, "no answer came") for task in left]

    def merge(self, other: Self) -> None:
        """Takes in another's."""
        self.accepted |= other.accepted
        self.failed |= other.failed
        self.bytes_up += other.bytes_up

    def result(self) -> int:
        """How many were accepted."""
        return len(self.accepted)

    def empty(self) -> Self:
        """Nobody answered."""
        return type(self)(tuple(self.tasks.values()))

    def state(self) -> dict[str, Tensor]:
        """Who was accepted, and who was not."""
        return {
            "accepted": torch.tensor(sorted(self.accepted), dtype=torch.int64),
            "bytes_up": torch.tensor(self.bytes_up),
            "failed": failures.packed(self.failed.values()),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Becomes the one whose state this is."""
        self.accepted = set(state["accepted"].tolist())
        self.bytes_up = int(state["bytes_up"])
        errors = failures.unpacked(state["failed"], tuple(self.tasks.values()))
        self.failed = {error.task.index: error for error in errors}
