"""The folder of a run: settings, partition, history, checkpoint, posterior, metrics and report, each in one file."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any, Self, TypeVar

from jaxtyping import Float
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dswag.config import Config, ConfigError
from dswag.data.class_counts import ClassCounts
from dswag.evaluation.calibration import Reliability
from dswag.evaluation.inspection import Inspection
from dswag.evaluation.metrics import Scores
from dswag.files import replacing, write_text
from dswag.parameters import Layout
from dswag.posterior import GaussianPosterior

CONFIG = "config.toml"
PARTITION = "partition.json"
HISTORY = "history.jsonl"
CHECKPOINT = "checkpoint.safetensors"
POSTERIOR = "posterior.safetensors"
METRICS = "metrics.json"
REPORT = "report.html"
FILES = (CONFIG, PARTITION, HISTORY, CHECKPOINT, POSTERIOR, METRICS, REPORT)

_CHECKPOINT_FORMAT = "dswag-checkpoint"
_CHECKPOINT_VERSION = 1

ConfigT = TypeVar("ConfigT", bound=Config)


class RunFolderError(ValueError):
    """A folder that cannot hold a run, or a part of a run that is missing, damaged or not of this run."""


@dataclass(frozen=True)
class RoundRecord:
    """A line of the history: one round of phase 1."""

    round: int
    """From 1."""
    loss: float
    seconds: float
    """What the round took, without what was measured after it."""
    clients: tuple[int, ...]
    test_accuracy: float | None = None


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Where phase 1 stands: θ after a complete round."""

    theta: Float[Tensor, "d"]
    layout: Layout
    round: int
    """Rounds done."""


@dataclass(frozen=True)
class Metrics:
    """How good the methods of a run are on the test set."""

    scores: Mapping[str, Scores]
    """By method, in the order in which they are shown."""
    reliability: Mapping[str, Reliability]
    samples: int
    scale: float
    seconds: Mapping[str, float]
    """What each part of the run took."""
    environment: Mapping[str, str]
    inspection: Mapping[str, Inspection] = field(default_factory=dict)
    """Class by class and example by example, of the methods that are looked into."""


@dataclass(frozen=True)
class RunFolder:
    """A run's files. Every file is replaced as a whole: a reader finds the old content or the new one."""

    path: Path

    @classmethod
    def create(cls, path: str | Path, config: Config, *, overwrite: bool = False) -> Self:
        """A folder for a run that is about to start, with its settings; other files in it are left alone.

        Raises:
            RunFolderError: a folder that cannot be written to, or that holds a run already.
        """
        path = Path(path)
        with _writable(path):
            path.mkdir(parents=True, exist_ok=True)
            present = [name for name in FILES if (path / name).exists()]
            if present and not overwrite:
                raise RunFolderError(
                    f"{path} holds a run already ({', '.join(present)}): choose another folder, or pass --overwrite"
                )
            for name in present:
                (path / name).unlink()
            config.to_toml(path / CONFIG)
        return cls(path)

    @classmethod
    def create_next(cls, parent: str | Path, name: str, config: Config) -> Self:
        """A new folder parent/name-n, with the lowest n from 1 that is free; two processes never get the same."""
        parent = Path(parent)
        with _writable(parent):
            parent.mkdir(parents=True, exist_ok=True)
            for number in count(1):
                try:
                    (parent / f"{name}-{number}").mkdir()
                except FileExistsError:
                    continue
                break
        return cls.create(parent / f"{name}-{number}", config)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """The folder of a run that was started some time.

        Raises:
            RunFolderError: no folder, or one that holds no run.
        """
        path = Path(path)
        if not path.is_dir():
            raise RunFolderError(f"{path} is no folder: name the folder that dswag train wrote")
        if not (path / CONFIG).is_file():
            raise RunFolderError(f"{path} holds no run, for it has no {CONFIG}: name the folder that dswag train wrote")
        return cls(path)

    def config(self, kind: type[ConfigT]) -> ConfigT:
        """The settings of the run."""
        try:
            return kind.from_toml(self.path / CONFIG)
        except ConfigError as error:
            raise RunFolderError(f"the settings of the run are damaged, or of another version: {error}") from error

    def save_partition(self, counts: ClassCounts) -> None:
        """Writes how many examples of each class each client has."""
        write_text(self.path / PARTITION, json.dumps(asdict(counts)) + "\n")

    def partition(self) -> ClassCounts | None:
        """How many examples of each class each client has; None for a run that has not started.

        Raises:
            RunFolderError: a file that is damaged or foreign.
        """
        path = self.path / PARTITION
        return _read_json(path.read_bytes(), ClassCounts, str(path)) if path.exists() else None

    def save_history(self, history: Sequence[RoundRecord]) -> None:
        """Writes a line for each round."""
        lines = [json.dumps(asdict(record), allow_nan=False) + "\n" for record in history]
        write_text(self.path / HISTORY, "".join(lines))

    def history(self) -> tuple[RoundRecord, ...]:
        """The rounds done; none where phase 1 did not come that far.

        Raises:
            RunFolderError: a line that is cut off or no round; it is named.
        """
        path = self.path / HISTORY
        if not path.exists():
            return ()
        lines = path.read_bytes().splitlines()
        return tuple(_read_json(line, RoundRecord, f"{path}, line {number}") for number, line in enumerate(lines, 1))

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Writes θ, with the number of rounds and the layout as metadata."""
        described = {
            "format": _CHECKPOINT_FORMAT,
            "format_version": str(_CHECKPOINT_VERSION),
            "dswag_version": version("dswag"),
            "round": str(checkpoint.round),
            "layout": json.dumps([checkpoint.layout.names, checkpoint.layout.shapes]),
        }
        with replacing(self.path / CHECKPOINT) as temporary:
            save_file({"theta": checkpoint.theta.contiguous()}, temporary, described)

    def checkpoint(self) -> Checkpoint:
        """Where phase 1 stands.

        Raises:
            RunFolderError: no round was completed, or a file that is damaged, foreign or of a newer format.
        """
        path = self._existing(CHECKPOINT, "no round of phase 1 was completed: train again")
        try:
            with safe_open(path, framework="pt") as file:
                described = file.metadata() or {}
                _check_checkpoint(path, described)
                names, shapes = json.loads(described["layout"])
                layout = Layout(tuple(names), tuple(map(tuple, shapes)))
                theta = file.get_tensor("theta")
            layout.check(theta)
            return Checkpoint(theta, layout, int(described["round"]))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, RunFolderError):
                raise
            raise RunFolderError(f"{path} is truncated, damaged or no checkpoint: {error}") from error

    def save_posterior(self, posterior: GaussianPosterior) -> None:
        """Writes what Algorithm 1 returned."""
        posterior.save(self.path / POSTERIOR)

    def has_posterior(self) -> bool:
        """Whether phase 2 came far enough for a posterior."""
        return (self.path / POSTERIOR).exists()

    def posterior(self) -> GaussianPosterior:
        """What Algorithm 1 returned.

        Raises:
            RunFolderError: phase 2 did not come far enough for one.
            PosteriorFileError: a file that is damaged, foreign or of a newer format.
        """
        return GaussianPosterior.load(self._existing(POSTERIOR, "the run was stopped too early for one: train again"))

    def save_metrics(self, metrics: Metrics) -> None:
        """Writes the scores of all methods."""
        write_text(self.path / METRICS, json.dumps(asdict(metrics), indent=2, allow_nan=False) + "\n")

    def metrics(self) -> Metrics | None:
        """The scores of all methods; None where the run has not been evaluated.

        Raises:
            RunFolderError: a file that is damaged or foreign.
        """
        path = self.path / METRICS
        return _read_json(path.read_bytes(), Metrics, str(path)) if path.exists() else None

    def save_report(self, html: str) -> Path:
        """Writes the page, and returns where."""
        write_text(self.path / REPORT, html)
        return self.path / REPORT

    def _existing(self, name: str, otherwise: str) -> Path:
        if not (self.path / name).is_file():
            raise RunFolderError(f"{self.path} has no {name}: {otherwise}")
        return self.path / name


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be written to ({error.strerror}): choose another folder for the run"
        ) from error


def _check_checkpoint(path: Path, described: Mapping[str, str]) -> None:
    if described.get("format") != _CHECKPOINT_FORMAT:
        raise RunFolderError(
            f"{path} is no dswag checkpoint: expected format {_CHECKPOINT_FORMAT}, got {described.get('format')}"
        )
    if int(described["format_version"]) > _CHECKPOINT_VERSION:
        raise RunFolderError(
            f"{path} has format version {described['format_version']}, this dswag reads up to {_CHECKPOINT_VERSION}: "
            f"install dswag {described.get('dswag_version', '')} or newer"
        )


def _read_json(text: bytes, kind: type[Any], where: str) -> Any:
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(map(str, fault["loc"]))
        raise RunFolderError(
            f"{where} is cut off, damaged or foreign: {f'{name}: ' if name else ''}{fault['msg']}"
        ) from error
