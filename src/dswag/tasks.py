"""The contract between the algorithms and the engines: tasks go out, results come back, folds take them in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, TypeVar, runtime_checkable

from jaxtyping import Float, Float64
from torch import Tensor

Payload = Mapping[str, Tensor]
"""What goes to every client once: θ [d] under "theta" or a posterior's tensors, and the model's buffers, by name."""

Kind = Literal["swag", "diagonal", "low_rank"]
"""Which covariance a draw uses: both halves, Σ_diag alone, or the columns alone."""


@dataclass(frozen=True, kw_only=True)
class ClientUpdate:
    """How a client turns minibatch gradients into steps (Algorithm 1, lines 8-9 and 20-21)."""

    batch_size: int
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.0
    """Of SGD; β₁ of AdamW."""
    nesterov: bool = False
    weight_decay: float = 0.0
    proximal: float = 0.0
    """μ of the term μ/2 ‖θ - payload's θ‖² that is added to the loss (FedProx, Li et al. 2020)."""
    clip_gradient: float | None = None
    """Largest norm of a minibatch's gradient, the proximal term's included; longer ones are shortened to it."""
    precision: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Which draws a client makes from the payload's posterior: numbers `first` to `first + count - 1` of `seed`."""

    seed: int
    first: int
    count: int
    kind: Kind
    scale: float
    within_scale: float = 1.0
    between_scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a client's examples: those held out, a random `fraction` chosen by `seed`, or all the others."""

    fraction: float
    seed: int
    held_out: bool


@dataclass(frozen=True, kw_only=True)
class Task:
    """One client's part of one exchange; data only, so that any transport can carry it."""

    index: int
    """Position in the list of tasks, from 0; results are folded in this order."""
    client: int
    """Which client, from 0 to W - 1."""
    occasion: str
    """What it is for, as errors name it, such as "round 3"."""
    part: Part | None = None
    """Which of the client's examples it is about; all if None."""
    time_limit: float | None = None
    """Seconds after which the client gives up; none if None."""


@dataclass(frozen=True, kw_only=True)
class TrainTask(Task):
    """Train from the payload's θ on the client's data (Algorithm 1, lines 7-10 and 19-22)."""

    learning_rates: tuple[float, ...]
    """One rate for each local epoch."""
    snapshots: tuple[int, ...]
    """Numbers of finished epochs, ascending, after which θ is taken."""
    seed: int
    update: ClientUpdate
    upload: Literal["float32", "bfloat16"] = "float32"
    """How the snapshots come back: as they are, or as bfloat16 differences to the payload's θ, in half the bytes."""
    max_loss_growth: float = 10.0
    """Times the first minibatch's loss, taken as at least 1, above which an epoch's has diverged."""


@dataclass(frozen=True, kw_only=True)
class StatisticsTask(Task):
    """Collect the inputs' statistics of every BatchNorm layer (Algorithm 2, line 3).

    For the payload's θ, or, with `draws`, for draws that the client makes itself from the payload's posterior.
    """

    batch_size: int
    max_examples: int | None
    seed: int
    draws: tuple[Draws, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EvaluateTask(Task):
    """Measure loss and accuracy of the payload's θ (and buffers, by name) on the client's data."""

    batch_size: int


@dataclass(frozen=True, kw_only=True)
class CalibrateTask(Task):
    """Measure the averaged predictions of each group of draws from the payload's posterior, at each temperature.

    Buffers in the payload have a row for each draw, in the order of the groups.
    """

    batch_size: int
    draws: tuple[Draws, ...]
    temperatures: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a client answers to a task."""

    index: int
    client: int


@dataclass(frozen=True, kw_only=True)
class TrainResult(Result):
    """What a client answers to a `TrainTask`."""

    thetas: Float[Tensor, "s d"]
    """The snapshots, in the form that the task's `upload` names."""
    num_examples: int
    loss: float
    """Mean training loss of the last local epoch."""


@dataclass(frozen=True, kw_only=True)
class LayerStatistics:
    """What one BatchNorm layer saw: per channel, the mean and the summed squared distance from it."""

    count: int
    mean: Float64[Tensor, "c"]
    scatter: Float64[Tensor, "c"]


@dataclass(frozen=True, kw_only=True)
class StatisticsResult(Result):
    """What a client answers to a `StatisticsTask`: for each draw, each layer's statistics by the layer's name."""

    statistics: tuple[Mapping[str, LayerStatistics], ...]


@dataclass(frozen=True, kw_only=True)
class EvaluateResult(Result):
    """What a client answers to an `EvaluateTask`: sums over its examples."""

    num_examples: int
    loss_sum: float
    num_correct: int | None
    """None where outputs and targets are not those of a classification."""


@dataclass(frozen=True, kw_only=True)
class CalibrateResult(Result):
    """What a client answers to a `CalibrateTask`: sums over its examples, by group of draws and temperature."""

    num_examples: int
    gains: Float64[Tensor, "g t"]
    """How much lower the negative log likelihood is than the reference's.

    The reference of a group at the first temperature is the first group there; at others, the group's own first.
    """
    squares: Float64[Tensor, "g t"]
    """Squares of each example's gain."""


ResultT = TypeVar("ResultT", contravariant=True)
OutcomeT = TypeVar("OutcomeT", covariant=True)


class Fold(Protocol[ResultT, OutcomeT]):
    """An accumulator over client results; all that a server computes is one of these.

    `add` changes it in place. Whatever the grouping, folding parts and merging them in order gives what folding all
    results in order gives. `result` may be called at any time once something was added, and changes nothing.

    `empty`, `state` and `load` carry a fold's content to another process, or to disk.
    """

    def add(self, result: ResultT) -> None:
        """Take in one client's result."""

    def merge(self, other: Self) -> None:
        """Take in all that `other` took in, whose results come after this fold's own."""

    def result(self) -> OutcomeT:
        """The outcome so far. Raises ValueError where nothing was added."""

    def empty(self) -> Self:
        """A fold of the same kind and settings that has taken in nothing."""

    def state(self) -> dict[str, Tensor]:
        """All that was taken in, as tensors by name, numbers too; they may be the fold's own, so only to be read.

        Names that end in `PER_COORDINATE` are of tensors whose last axis is θ's: the same range of coordinates of all
        of them, with the others whole, is a state too, and merges as the whole does.
        """

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Becomes, in place, the fold of the same kind and settings whose `state` this is; copies what it keeps."""


PER_COORDINATE = " [d]"
APART = " of each client [d]"
"""Ends the names of those tensors per coordinate that an engine of several processes never brings together again."""


FoldT = TypeVar("FoldT", bound=Fold[Any, Any])


@runtime_checkable
class TolerantFold(Protocol):
    """A fold that is told of clients that fail, instead of the exchange ending there."""

    def miss(self, error: "ClientError") -> None:
        """Take note that this task has no result; raising the error ends the exchange."""


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A fold's state as a part of the state of the fold around it."""
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


def within(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state that was `prefixed`, without what else there is."""
    return {name.removeprefix(f"{prefix}."): t for name, t in state.items() if name.startswith(f"{prefix}.")}


class Coordinates(Protocol):
    """θ's coordinates, of which several processes hold a range each; all of them call these together."""

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes of a small tensor that each made of its own range."""

    def part(self, whole: Float[Tensor, "d"]) -> Float[Tensor, "d_part"]:
        """This process's range of the coordinates."""

    def whole(self, part: Float[Tensor, "d_part"]) -> Float[Tensor, "d"]:
        """All coordinates, of which each process gives its own range."""


@runtime_checkable
class SpreadFold(Protocol):
    """A fold that keeps something of each client, and can do with a range of the coordinates in each process."""

    def spread(self, coordinates: Coordinates) -> None:
        """From now on what is `APART` in the state is a range of the coordinates, the rest of which others hold.

        `result` is then called by all processes together.
        """


def spread(fold: Fold[Any, Any], coordinates: Coordinates) -> None:
    """Tells the fold, and those within it, that they hold a range of the coordinates."""
    if isinstance(fold, SpreadFold):
        fold.spread(coordinates)


def deliver(fold: Fold[Any, Any], answer: "Result | ClientError") -> None:
    """Hands a client's answer to the fold, which every engine does with this: a failure ends an intolerant fold.

    Raises:
        ClientError: the answer, where the fold does not tolerate it.
    """
    if not isinstance(answer, ClientError):
        fold.add(answer)
    elif isinstance(fold, TolerantFold):
        fold.miss(answer)
    else:
        raise answer


class Engine(Protocol):
    """Where clients run. An engine knows nothing of the algorithm."""

    @property
    def num_clients(self) -> int:
        """W; clients are numbered from 0."""

    def reduce(self, payload: Payload, tasks: Sequence[Task], fold: FoldT) -> FoldT:
        """The fold after every task's client answered and the fold took the answers in, in task order.

        The payload is read, never written. The same payload and tasks give the same answers, bit for bit, on one type
        of machine, whatever runs beside them.

        A client that fails is handed to the fold by `deliver`.

        Raises:
            ValueError: no tasks, or a client that does not exist.
            ClientError: a client failed, and the fold does not tolerate it; it is named, with the occasion and the
                cause.
        """


def check_tasks(tasks: Sequence[Task], num_clients: int) -> None:
    """Raises ValueError where there are none, or one for a client that does not exist: before any work."""
    if not tasks:
        raise ValueError("there are no tasks to reduce: sample at least one client")
    unknown = [task.client for task in tasks if not 0 <= task.client < num_clients]
    if unknown:
        raise ValueError(f"clients are numbered 0 to {num_clients - 1}, got tasks for {unknown}")


class ClientError(RuntimeError):
    """A client failed: the message names client, occasion, epoch where there is one, and cause."""

    def __init__(self, task: Task, cause: str, *, epoch: int | None = None) -> None:
        when = task.occasion if epoch is None else f"{task.occasion}, epoch {epoch}"
        super().__init__(f"client {task.client} failed in {when}: {cause}")
        self.task = task
        self.cause = cause
        self.epoch = epoch
