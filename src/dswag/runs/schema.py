"""What a run folder records of a run: its rounds, its phase 2, its scores, its landscape."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from dswag.evaluation.bootstrap import Interval, ReliabilityBand
from dswag.evaluation.by_client import ClientScores
from dswag.evaluation.inspection import Inspection, Telling
from dswag.evaluation.loss_landscape import Surroundings
from dswag.evaluation.metrics import Scores
from dswag.evaluation.reliability import Reliability
from dswag.evaluation.uncertainty import Uncertainty
from dswag.federation.round_trip import Missing


@dataclass(frozen=True)
class RoundRecord:
    """A line of the history: one round of phase 1."""

    round: int
    """From 1."""
    loss: float
    seconds: float
    """Duration of the round, without the measurements after it."""
    clients: tuple[int, ...]
    """The clients sampled, including any that are missing."""
    test_accuracy: float | None = None
    missing: tuple[Missing, ...] = ()
    """The clients without an answer, and why."""
    bytes_down: int = 0
    """Bytes sent to all clients together in training; evaluation is not counted."""
    bytes_up: int = 0


@dataclass(frozen=True)
class ExploreRecord:
    """The last line of the history: phase 2."""

    seconds: float
    """Duration of phase 2; if the run was resumed within it, since then."""
    clients: tuple[int, ...]
    """The explorers, including any that are missing."""
    missing: tuple[Missing, ...]
    bytes_down: int
    bytes_up: int
    phase: Literal[2] = 2


@dataclass(frozen=True)
class Examined:
    """The uncertainty of predictions for test inputs and for foreign ones, and the inputs that stand out."""

    uncertainty: Uncertainty
    foreign: str
    """What the foreign inputs are."""
    disagreed: tuple[Telling, ...]
    """The test inputs on which the draws disagree most."""
    surest_foreign: tuple[Telling, ...]
    """The foreign inputs that are predicted with the highest confidence; their target is empty."""


@dataclass(frozen=True)
class ConformalSets:
    """Sets of classes from scores that the clients held out ("thr"), and how well they cover the test set.

    Every set has the most probable class in it.
    """

    alpha: float
    """Sets hold the right class with probability 1 - alpha at least."""
    resolution: float
    """Width of a bin of scores."""
    counts: tuple[tuple[int, int], ...]
    """The bins that hold scores of all clients, and how many."""
    coverage: float
    """Share of the test examples whose set holds the right class."""
    sizes: tuple[int, ...]
    """How many test examples have a set of 0, 1, 2, ... classes."""
    classes: Mapping[str, float | None]
    """Coverage of the test examples of each class; None where there are none."""
    clients: tuple[float | None, ...]
    """Coverage of the test examples of each client, with the sets of all clients together."""


@dataclass(frozen=True)
class Metrics:
    """Scores of the methods of a run on the test set."""

    scores: Mapping[str, Scores]
    """By method, in the order in which they are shown."""
    reliability: Mapping[str, Reliability]
    samples: int
    scale: float
    seconds: Mapping[str, float]
    """Duration of each part of the run."""
    environment: Mapping[str, str]
    inspection: Mapping[str, Inspection] = field(default_factory=dict)
    """Scores of classes and telling examples, for the methods that were inspected."""
    nll_differences: Mapping[str, Interval] = field(default_factory=dict)
    """NLL less that of the baseline on the same examples, with a 95 % interval over them, by method."""
    baseline: str = "phase-1 model"
    """The method that the others are compared with."""
    bands: Mapping[str, ReliabilityBand] = field(default_factory=dict)
    """Where the reliability curves of DSWAG and the baseline might be with other test examples."""
    uncertainty: Examined | None = None
    """Of DSWAG's predictions."""
    clients: Mapping[str, tuple[ClientScores, ...]] = field(default_factory=dict)
    """Scores of each client's test examples, for DSWAG and the baseline."""
    sets: ConformalSets | None = None
    """Of DSWAG's predictions, where examples were held out."""


@dataclass(frozen=True)
class Landscape:
    """The training loss around the posterior's mean, in standard deviations of the posterior at scale 1."""

    num_examples: int
    """Number of examples over which the loss, the negative log-likelihood in nats, is averaged."""
    surroundings: Surroundings
    places: Mapping[str, tuple[tuple[float, ...], ...]]
    """For named weights, such as the phase-1 model, their distances from the mean along each eigenvector."""

    def __post_init__(self) -> None:
        if list(self.surroundings.lines) != ["train"]:
            raise ValueError(f"a landscape has lines of the train loss, got {list(self.surroundings.lines)}")
        directions = len(self.surroundings.eigenvalues)
        for name, places in self.places.items():
            if any(len(place) != directions for place in places):
                raise ValueError(f"places of {name} must have a number for each of {directions} eigenvectors")
