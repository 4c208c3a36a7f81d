"""The contract between the algorithms and the engines: tasks go out, results come back, folds take them in."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, TypeVar, runtime_checkable

from jaxtyping import Float, Float64, Int64
from torch import Tensor

from dswag.core.conformal_scores import Scoring

Payload = Mapping[str, Tensor]
"""What every client is sent once, by name: θ [d] as "theta" or a posterior's tensors, and buffers of the model."""

Kind = Literal["swag", "diagonal", "low_rank"]
"""Which covariance a draw uses: both halves, Σ_diag alone, or the columns alone."""

Precision = Literal["float32", "bfloat16"]
"""Of forward and backward passes: "bfloat16" runs them under autocast, and leaves the weights in float32."""


@dataclass(frozen=True, kw_only=True)
class ClientUpdate:
    """How a client turns minibatch gradients into steps (Algorithm 1, lines 8-9 and 20-21)."""

    batch_size: int
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.0
    """Momentum of SGD; β₁ of AdamW."""
    nesterov: bool = False
    weight_decay: float = 0.0
    proximal: float = 0.0
    """μ of the term μ/2 ‖θ - payload's θ‖² that is added to the loss (FedProx, Li et al. 2020)."""
    clip_gradient: float | None = None
    """Norm to which a minibatch's gradient, including that of the proximal term, is shortened; no limit if None."""
    precision: Precision = "float32"


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The draws that a client makes from the payload's posterior: numbers `first` to `first + count - 1` of `seed`."""

    seed: int
    first: int
    count: int
    kind: Kind
    scale: float
    within_scale: float = 1.0
    between_scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a client's examples: the random `fraction` held out, chosen by `seed`, or all the others."""

    fraction: float
    seed: int
    held_out: bool


@dataclass(frozen=True, kw_only=True)
class Task:
    """One client's part of one round trip; data only, so that any transport can carry it."""

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


@dataclass(frozen=True, kw_only=True)
class TrainTask(Task):
    """Train from the payload's θ on the client's data (Algorithm 1, lines 7-10 and 19-22)."""

    learning_rates: tuple[float, ...]
    """One learning rate for each local epoch."""
    snapshots: tuple[int, ...]
    """After how many epochs snapshots of θ are taken; ascending."""
    seed: int
    update: ClientUpdate
    upload: Literal["float32", "bfloat16"] = "float32"
    """How snapshots are sent back: as they are, or as bfloat16 differences from the payload's θ, in half the bytes."""
    max_loss_growth: float = 10.0
    """Training has diverged if an epoch's loss exceeds this many times the first minibatch's, taken as at least 1."""


@dataclass(frozen=True, kw_only=True)
class StatisticsTask(Task):
    """Collect the statistics of the inputs of every BatchNorm layer (Algorithm 2, line 3).

    They are for the payload's θ or, with `draws`, for draws that the client makes itself from the payload's posterior.
    """

    batch_size: int
    max_examples: int | None
    seed: int
    draws: tuple[Draws, ...] = ()
    precision: Precision = "float32"


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
class ConformalTask(Task):
    """Count the conformal scores of the averaged predictions of draws from the payload's posterior.

    Buffers in the payload have a row for each draw.
    """

    batch_size: int
    draws: Draws
    temperature: float
    scoring: Scoring
    noise: float | None = None
    """Variance of the targets of a regression, for a model that does not return it."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """What a client answers to a task."""

    index: int
    client: int


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainResult(Result):
    """What a client answers to a `TrainTask`."""

    thetas: Float[Tensor, "s d"]
    """The snapshots, in the form that the task's `upload` names."""
    num_examples: int
    loss: float
    """Mean training loss of the last local epoch."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerStatistics:
    """The inputs of one BatchNorm layer: per channel, their mean and the sum of squared distances from it."""

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
    """Examples; of a classification the labels that count, which are none where the loss ignores all."""
    loss_sum: float
    loss_weight: float
    """What the sum of losses is divided by: the number of targets, or the sum of the class weights of the labels."""
    num_correct: int | None = None
    """Number of correct predictions; None if outputs and targets are not those of a classification."""
    calibration_error: float | None = None
    """Expected calibration error of these predictions, in bins of equal mass; None where `num_correct` is."""


@dataclass(frozen=True, eq=False, kw_only=True)
class CalibrateResult(Result):
    """What a client answers to a `CalibrateTask`: sums over its examples, by group of draws and temperature."""

    num_examples: int
    gains: Float64[Tensor, "g t"]
    """Sums of how much lower the negative log likelihood is than that of a reference.

    At the first temperature it is that of the first group; at others, that of the same group at the first one.
    """
    squares: Float64[Tensor, "g t"]
    """Sums of the squares of each example's gain."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ConformalResult(Result):
    """What a client answers to a `ConformalTask`."""

    counts: Int64[Tensor, "b"]
    """How many scores lie in each bin of the task's scoring, up to the last that is filled; none without examples."""


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

        If a name ends in `PER_COORDINATE`, the last axis of the tensor is that of θ. A state in which all such tensors
        are cut to the same range of coordinates is a state too, and merges in the same way.
        """

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Becomes, in place, the fold of the same kind and settings whose `state` this is; copies what it keeps."""


PER_COORDINATE = " [d]"
APART = " of each client [d]"
"""Ends the names of tensors of which, once cut by coordinates, every process keeps only its own range."""


FoldT = TypeVar("FoldT", bound=Fold[Any, Any])


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A fold's state as a part of the state of the fold around it."""
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


def within(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of the state that has this prefix, with the prefix removed."""
    return {name.removeprefix(f"{prefix}."): t for name, t in state.items() if name.startswith(f"{prefix}.")}


class Coordinates(Protocol):
    """θ's coordinates, divided into ranges that several processes hold; all processes call these methods together."""

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes of a small tensor that each has computed from its own range."""

    def part(self, whole: Float[Tensor, "d"]) -> Float[Tensor, "d_part"]:
        """This process's range of the coordinates."""

    def whole(self, part: Float[Tensor, "d_part"]) -> Float[Tensor, "d"]:
        """All coordinates, put together from the ranges of all processes."""


@runtime_checkable
class SpreadFold(Protocol):
    """A fold that keeps something of each client, and can work with a range of the coordinates in each process."""

    def spread(self, coordinates: Coordinates) -> None:
        """From now on the tensors that are `APART` hold one range of the coordinates; other processes hold the rest.

        `result` is then called by all processes together.
        """


def spread(fold: Fold[Any, Any], coordinates: Coordinates) -> None:
    """Tells the fold, and those within it, that they hold a range of the coordinates."""
    if isinstance(fold, SpreadFold):
        fold.spread(coordinates)


class Engine(Protocol):
    """Where clients run. An engine knows nothing of the algorithm."""

    @property
    def num_clients(self) -> int:
        """W; clients are numbered from 0."""

    def answers(self, payload: Payload, tasks: Sequence[Task]) -> Iterator["Result | ClientError"]:
        """Each task's result, or why there is none, in task order; where processes share the clients, of its own part.

        The payload is only read. On one type of machine, the same payload and tasks give the same results, bit for bit,
        whatever else is running. Whoever stops early closes the iterator, which then stops the clients' work.

        Raises:
            ValueError: no tasks, or a client that does not exist; before any work.
        """

    def combine(self, fold: "Fold[Any, Any]", failure: Exception | None = None) -> None:
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
