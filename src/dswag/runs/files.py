"""A run's files: their names, and the one way in which each is written, removed and read."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from dswag.core.atomic_files import remove_leftovers, saving, write_text

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

RecordT = TypeVar("RecordT")


class RunFolderError(ValueError):
    """A folder that cannot hold a run, or a part of a run that is missing, damaged or of another run."""


@dataclass(frozen=True)
class Files:
    """Every file is replaced as a whole: a reader finds the old content or the new one."""

    path: Path

    def _write(self, name: str, write: Callable[[Path], None]) -> None:
        """Calls `write` with where the file is. Raises SaveError, with what to do, where it cannot be written."""
        advice = f"free the disk or the folder, then go on with: dswag train --resume {self.path}"
        with saving(self.path / name, advice):
            write(self.path / name)

    def _remove(self, *names: str) -> None:
        """Removes files and folders, where they are there."""
        for name in names:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Removes temporary files of processes that were killed while they wrote."""
        for name in FILES:
            remove_leftovers(self.path / name)

    def _write_text(self, name: str, text: str) -> None:
        """Writes a text."""
        self._write(name, lambda path: write_text(path, text))

    def _write_record(self, name: str, record: Any, *, indent: int | None = None) -> None:
        """Writes a dataclass as JSON; NaN, which JSON has not, is refused."""
        self._write_text(name, json.dumps(asdict(record), indent=indent, allow_nan=False) + "\n")

    def _read_record(self, name: str, kind: type[RecordT]) -> RecordT | None:
        """The dataclass that was written; None where there is none.

        Raises:
            RunFolderError: a file that is damaged or foreign.
        """
        path = self.path / name
        return from_json(path.read_bytes(), kind, str(path)) if path.exists() else None

    def _existing(self, name: str, otherwise: str) -> Path:
        """Where the file is. Raises RunFolderError, with what to do, where there is none."""
        if not (self.path / name).is_file():
            raise RunFolderError(f"{self.path} has no {name}: {otherwise}")
        return self.path / name


def from_json(text: bytes, kind: type[RecordT], where: str) -> RecordT:
    """The dataclass that the text says. Raises RunFolderError, with where it stands, for any other text."""
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(map(str, fault["loc"]))
        raise RunFolderError(
            f"{where} is cut off, damaged or foreign: {f'{name}: ' if name else ''}{fault['msg']}"
        ) from error
