"""The contract: an engine has clients do tasks, each of a kind of work, and a fold takes the results in."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, Self, TypeVar

from torch import Tensor

Payload = Mapping[str, Tensor]
"""What every client is sent once, by name: θ [d] as "theta", a posterior's tensors, or what a kind of work needs.

Buffers of the model are called "buffer." and their name.
"""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a client's examples: the random `fraction` held out, chosen by `seed`, or all the others."""

    fraction: float
    seed: int
    held_out: bool


@dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """What a client answers to a task; a kind of work has a class of its own.

    Its fields are numbers, and what JSON has for them, and tensors. A class with others says how they cross a wire.
    """

    index: int
    client: int

    def to_wire(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """All fields but who answers what, as values for JSON and as tensors."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("index", "client")}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        return {name: value for name, value in values.items() if name not in tensors}, tensors

    @classmethod
    def from_wire(cls, task: "Task", values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The result of this task; an error of any kind where these are not its values and tensors."""
        return cls(index=task.index, client=task.client, **values, **tensors)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One client's part of one round trip; data only, so that any transport can carry it.

    A kind of work is a class of tasks: its fields are what the client is told, `run` is what the client does, `result`
    is the class of its results, and `validated` is what makes one valid. A fold for the results makes it complete; no
    engine knows of it.
    """

    result: ClassVar[type[Result]] = Result
    trains: ClassVar[bool] = False
    """Whether results hold weights trained on the client's data: mods of Flower see them, and `Recorded` saves them."""

    index: int
    """Position in the list of tasks, from 0; results are folded in this order."""
    client: int
    """The client's number, from 0 to W - 1."""
    occasion: str
    """What the task is for, as errors name it, such as "round 3"."""
    part: Part | None = None
    """The part of the client's examples to use; all if None."""
    time_limit: float | None = None
    """Seconds after which the client gives up; no limit if None."""

    @property
    def makes_draws(self) -> bool:
        """Whether the client makes draws from a posterior, which must be those that the server would make."""
        return False

    def run(self, payload: Payload, data: Any, workspace: Any) -> Result:
        """What the client does, with its `ClientData` and a `Workspace`; any error becomes a `ClientError`."""
        raise TypeError(f"a client knows no {type(self).__name__}")

    def validated(self, result: Any, payload: Payload) -> Any:
        """The result, of the class `result`, as it is to be folded. Raises ValueError that says what is wrong."""
        raise TypeError(f"{type(self).__name__} does not say what makes a result valid")


ResultT = TypeVar("ResultT", contravariant=True)
OutcomeT = TypeVar("OutcomeT", covariant=True)


class Fold(Protocol[ResultT, OutcomeT]):
    """An accumulator over client results; everything that a server computes is one of these.

    `add` changes it in place. Folding groups of results and merging the groups in order gives the same as folding all
    results in order, whatever the groups. `result` may be called at any time after the first `add`; it changes nothing.

    `empty`, `state` and `load` carry a fold's content to another process, or to disk.
    """

    def add(self, result: ResultT) -> None:
        """Take in one client's result."""

    def merge(self, other: Self) -> None:
        """Take in all that `other` took in, whose results come after this fold's own."""

    def result(self) -> OutcomeT:
        """The outcome so far. Raises ValueError if nothing was added."""

    def empty(self) -> Self:
        """A fold of the same kind and settings that has taken in nothing."""

    def state(self) -> dict[str, Tensor]:
        """Everything that was taken in, as named tensors, numbers too; only to be read, as they may be the fold's own.

        If a name ends in `coordinates.PER_COORDINATE`, the last axis of the tensor is that of θ. A state in which all
        such tensors are cut to the same range of coordinates is a state too, and merges in the same way.
        """

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Becomes, in place, the fold of the same kind and settings whose `state` this is; copies what it keeps."""


FoldT = TypeVar("FoldT", bound=Fold[Any, Any])


class Engine(Protocol):
    """Where clients run. An engine knows nothing of the algorithm."""

    @property
    def num_clients(self) -> int:
        """W; clients are numbered from 0."""

    @property
    def batch_norm_layers(self) -> Mapping[str, int]:
        """The layers of the clients' model whose running statistics belong to the weights, and their widths."""

    def answers(self, payload: Payload, tasks: Sequence[Task]) -> Iterator["Result | ClientError"]:
        """Each task's result, or why there is none, in task order; where processes share the clients, of its own part.

        The payload is only read. On one type of machine, the same payload and tasks give the same results, bit for bit,
        whatever else is running. Whoever stops early closes the iterator, which then stops the clients' work.

        Raises:
            ValueError: no tasks, or a client that does not exist; before any work.
        """

    def combine(self, fold: Fold[Any, Any], failure: Exception | None = None) -> None:
        """Makes the fold, in place, what the folds of all processes are together; does nothing where there is one.

        All processes call it together, each with a fold that was empty before it took in its own answers. A process
        whose part ended early says why: then this raises the failure in all of them.
        """


def check_tasks(tasks: Sequence[Task], num_clients: int) -> None:
    """Raises ValueError, before any work, if there are no tasks, or one for a client that does not exist."""
    if not tasks:
        raise ValueError("there are no tasks: sample at least one client")
    unknown = [task.client for task in tasks if not 0 <= task.client < num_clients]
    if unknown:
        raise ValueError(f"clients are numbered 0 to {num_clients - 1}, got tasks for {unknown}")


class ClientError(RuntimeError):
    """A client failed: the message names client, occasion, epoch (if there is one) and cause."""

    def __init__(self, task: Task, cause: str, *, epoch: int | None = None) -> None:
        when = task.occasion if epoch is None else f"{task.occasion}, epoch {epoch}"
        super().__init__(f"client {task.client} failed in {when}: {cause}")
        self.task = task
        self.cause = cause
        self.epoch = epoch
