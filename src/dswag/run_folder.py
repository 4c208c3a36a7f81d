"""The folder of a run, with a file each for settings, partition, history, checkpoint, posterior and outcome."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Self, TypeVar

from pydantic import TypeAdapter, ValidationError

from dswag.checkpoint import Checkpoint, before
from dswag.config import Config, ConfigError
from dswag.data.class_counts import ClassCounts
from dswag.files import remove_leftovers, saving, write_text
from dswag.posterior import GaussianPosterior
from dswag.records import ExploreRecord, Landscape, Metrics, RoundRecord

CONFIG = "config.toml"
PARTITION = "partition.json"
HISTORY = "history.jsonl"
CHECKPOINT = "checkpoint.safetensors"
POSTERIOR = "posterior.safetensors"
LANDSCAPE = "landscape.json"
METRICS = "metrics.json"
REPORT = "report.html"
ANSWERS = "explorers"
FILES = (CONFIG, PARTITION, HISTORY, CHECKPOINT, POSTERIOR, LANDSCAPE, METRICS, REPORT)

ConfigT = TypeVar("ConfigT", bound=Config)
RecordT = TypeVar("RecordT")


class RunFolderError(ValueError):
    """A folder that cannot hold a run, or a part of a run that is missing, damaged or of another run."""


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
            folder = cls(path)
            folder.remove_answers()
            folder.remove_leftovers()
            config.to_toml(path / CONFIG)
        return folder

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
        """The folder of a run that was started before.

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
        with self._saving(PARTITION) as path:
            write_text(path, json.dumps(asdict(counts)) + "\n")

    def partition(self) -> ClassCounts | None:
        """How many examples of each class each client has; None for a run that has not started.

        Raises:
            RunFolderError: a file that is damaged or foreign.
        """
        return self._record(PARTITION, ClassCounts)

    def save_history(self, rounds: Sequence[RoundRecord], exploration: ExploreRecord | None = None) -> None:
        """Writes a line for each round, and one for phase 2 once it is done."""
        records: list[RoundRecord | ExploreRecord] = [*rounds, *([] if exploration is None else [exploration])]
        lines = [json.dumps(asdict(record), allow_nan=False) + "\n" for record in records]
        with self._saving(HISTORY) as path:
            write_text(path, "".join(lines))

    def history(self) -> tuple[RoundRecord, ...]:
        """The complete rounds; none if there is none yet.

        Raises:
            RunFolderError: a line that is cut off or no round; it is named.
        """
        return tuple(record for record in self._records() if isinstance(record, RoundRecord))

    def exploration(self) -> ExploreRecord | None:
        """The record of phase 2; None if it is not done. Raises what `history` does."""
        return next((record for record in self._records() if isinstance(record, ExploreRecord)), None)

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Writes the state of phase 1, and keeps the previous checkpoint."""
        with self._saving(CHECKPOINT) as path:
            checkpoint.save(path)

    def checkpoint(self) -> Checkpoint:
        """The state of phase 1 after its last round.

        Raises:
            RunFolderError: no round was completed.
            CheckpointError: a file that is damaged, foreign or of a newer format.
        """
        return Checkpoint.load(self._existing(CHECKPOINT, "no round of phase 1 was completed: train again"))

    def latest_checkpoint(self) -> tuple[Checkpoint | None, tuple[str, ...]]:
        """The checkpoint to continue from, if any, and faults of newer ones; raises what `Checkpoint.latest` does."""
        return Checkpoint.latest(self.path / CHECKPOINT)

    def rounds_before(self, checkpoint: Checkpoint | None) -> tuple[RoundRecord, ...]:
        """The history up to the checkpoint; it is saved before the checkpoint is, so it may tell of later rounds.

        Raises:
            RunFolderError: a history that is damaged, or tells of fewer rounds.
        """
        rounds = 0 if checkpoint is None else checkpoint.server.round
        history = self.history() if rounds else ()
        if len(history) < rounds:
            raise RunFolderError(
                f"{self.path / HISTORY} tells of {len(history)} rounds, the checkpoint is of round {rounds}: "
                "put back the history that belongs to it, or train from the start again"
            )
        return history[:rounds]

    @property
    def answers(self) -> Path:
        """The folder for explorers' answers, which exists until the run has been scored."""
        return self.path / ANSWERS

    def remove_leftovers(self) -> None:
        """Removes temporary files of processes that were killed while they wrote."""
        for name in FILES:
            remove_leftovers(self.path / name)

    def remove_answers(self) -> None:
        """Removes what is needed only for resuming: the explorers' answers and the previous checkpoint."""
        shutil.rmtree(self.answers, ignore_errors=True)
        before(self.path / CHECKPOINT).unlink(missing_ok=True)

    def save_posterior(self, posterior: GaussianPosterior) -> None:
        """Writes the posterior, and removes the landscape, which belongs to the previous one."""
        with self._saving(POSTERIOR) as path:
            posterior.save(path)
        (self.path / LANDSCAPE).unlink(missing_ok=True)

    def has_posterior(self) -> bool:
        """Whether there is a posterior."""
        return (self.path / POSTERIOR).exists()

    def posterior(self) -> GaussianPosterior:
        """The posterior.

        Raises:
            RunFolderError: there is none yet.
            PosteriorFileError: a file that is damaged, foreign or of a newer format.
        """
        return GaussianPosterior.load(self._existing(POSTERIOR, "the run was stopped too early for one: train again"))

    def save_landscape(self, landscape: Landscape) -> None:
        """Writes the loss around the posterior's mean."""
        with self._saving(LANDSCAPE) as path:
            write_text(path, json.dumps(asdict(landscape), allow_nan=False) + "\n")

    def landscape(self) -> Landscape | None:
        """The loss around the posterior's mean; None if it was not measured.

        Raises:
            RunFolderError: a file that is damaged or foreign.
        """
        return self._record(LANDSCAPE, Landscape)

    def save_metrics(self, metrics: Metrics) -> None:
        """Writes the scores of all methods."""
        with self._saving(METRICS) as path:
            write_text(path, json.dumps(asdict(metrics), indent=2, allow_nan=False) + "\n")

    def metrics(self) -> Metrics | None:
        """The scores of all methods; None if the run has not been evaluated.

        Raises:
            RunFolderError: a file that is damaged or foreign.
        """
        return self._record(METRICS, Metrics)

    def save_report(self, html: str) -> Path:
        """Writes the HTML page, and returns its path."""
        with self._saving(REPORT) as path:
            write_text(path, html)
        return path

    def _existing(self, name: str, otherwise: str) -> Path:
        if not (self.path / name).is_file():
            raise RunFolderError(f"{self.path} has no {name}: {otherwise}")
        return self.path / name

    def _record(self, name: str, kind: type[RecordT]) -> RecordT | None:
        path = self.path / name
        return _read_json(path.read_bytes(), kind, str(path)) if path.exists() else None

    def _records(self) -> Iterator[RoundRecord | ExploreRecord]:
        path = self.path / HISTORY
        lines = path.read_bytes().splitlines() if path.exists() else []
        for number, line in enumerate(lines, 1):
            kind: type[RoundRecord] | type[ExploreRecord] = ExploreRecord if b'"phase": 2' in line else RoundRecord
            yield _read_json(line, kind, f"{path}, line {number}")

    @contextmanager
    def _saving(self, name: str) -> Iterator[Path]:
        """Where to write the file; the one place where a run's files are written after its start."""
        advice = f"free the disk or the folder, then go on with: dswag train --resume {self.path}"
        with saving(self.path / name, advice):
            yield self.path / name


class Unwritten(RunFolder):
    """The folder of a run that another process writes: files can be read, but nothing is saved."""

    def save_partition(self, counts: ClassCounts) -> None:
        """Leaves it to the other process."""

    def save_history(self, rounds: Sequence[RoundRecord], exploration: ExploreRecord | None = None) -> None:
        """Leaves it to the other process."""

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Leaves it to the other process."""

    def save_posterior(self, posterior: GaussianPosterior) -> None:
        """Leaves it to the other process."""

    def save_landscape(self, landscape: Landscape) -> None:
        """Leaves it to the other process."""

    def save_metrics(self, metrics: Metrics) -> None:
        """Leaves it to the other process."""

    def remove_leftovers(self) -> None:
        """Leaves it to the other process."""

    def remove_answers(self) -> None:
        """Leaves it to the other process."""


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be written to ({error.strerror}): choose another folder for the run"
        ) from error


def _read_json(text: bytes, kind: type[RecordT], where: str) -> RecordT:
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(map(str, fault["loc"]))
        raise RunFolderError(
            f"{where} is cut off, damaged or foreign: {f'{name}: ' if name else ''}{fault['msg']}"
        ) from error
