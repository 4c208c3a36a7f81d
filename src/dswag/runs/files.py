"""A run's files: their names, and the one way in which each is written, removed and read."""

import hashlib
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
MANIFEST = "manifest.json"
ANSWERS = "explorers"
FILES = (CONFIG, PARTITION, HISTORY, CHECKPOINT, POSTERIOR, LANDSCAPE, METRICS, REPORT, MANIFEST)

RecordT = TypeVar("RecordT")


class RunFolderError(ValueError):
    """A folder that cannot hold a run, or a part of a run that is missing, damaged or of another run."""


@dataclass(frozen=True)
class Files:
    """Every file is replaced as a whole: a reader finds the old content or the new one."""

    path: Path

    def _write(self, name: str, write: Callable[[Path], None]) -> None:
        """Calls `write` with where the file is. Raises SaveError, with what to do, where it cannot be written."""
        if name != MANIFEST:
            self._remove(MANIFEST)  # until all files are written that belong together
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
        if not path.exists():
            return None
        record = from_json(path.read_bytes(), kind, str(path))
        self._check_unchanged(name)
        return record

    def _existing(self, name: str, otherwise: str) -> Path:
        """Where the file is. Raises RunFolderError, with what to do, where there is none."""
        if not (self.path / name).is_file():
            raise RunFolderError(f"{self.path} has no {name}: {otherwise}")
        return self.path / name

    def seal(self) -> None:
        """Writes the checksums of all files, by which a change is told from then on; the next file to come lifts it."""
        present = [name for name in FILES if name != MANIFEST and (self.path / name).is_file()]
        self._write_text(MANIFEST, json.dumps({name: _checksum(self.path / name) for name in present}, indent=1) + "\n")

    def manifest(self) -> dict[str, str] | None:
        """The checksum of each file by its name (SHA-256); None for a run that is not complete, or is being changed.

        Raises:
            RunFolderError: a manifest that is damaged.
        """
        path = self.path / MANIFEST
        return from_json(path.read_bytes(), dict[str, str], str(path)) if path.exists() else None

    def is_as_saved(self, name: str) -> bool | None:
        """Whether a file is what the manifest says; None if that does not say."""
        expected = (self.manifest() or {}).get(name)
        path = self.path / name
        return None if expected is None else path.is_file() and _checksum(path) == expected

    def _check_unchanged(self, name: str) -> None:
        """Raises RunFolderError if the file is not what was saved with the others."""
        if self.is_as_saved(name) is False:
            raise RunFolderError(
                f"{self.path / name} was changed after the run: put back what it was, "
                f"or delete {self.path / MANIFEST} if the change is meant"
            )

    def _check_no_links(self) -> None:
        """Raises RunFolderError if a file is a link: what it leads to is not the run's to read or replace."""
        for name in (*FILES, ANSWERS):
            if (self.path / name).is_symlink():
                raise RunFolderError(f"{self.path / name} is a link: a run folder has files of its own")


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
