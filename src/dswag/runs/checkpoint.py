"""Checkpoints of phase 1: everything that the next round depends on, in a safetensors file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open

from dswag.algorithms.server_update import Server
from dswag.config import Config, differences
from dswag.core.atomic_files import replacing, save_tensors
from dswag.core.checksums import fingerprint
from dswag.core.parameters import Layout
from dswag.core.provenance import provenance

_FORMAT = "dswag-checkpoint"
_FORMAT_VERSION = 1
_TENSORS = ("theta", "momentum", "second_moment")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or is of another run."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of phase 1 after a round, and the parameters and settings that it belongs to."""

    server: Server
    layout: Layout | None = None
    """The parameters behind θ."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Those on which the outcome of the run depends: `Config.decisive()`."""

    def save(self, path: str | Path) -> None:
        """Writes the checkpoint in place of the file; what the file held before is kept beside it, for `latest`."""
        tensors = {name: getattr(self.server, name) for name in _TENSORS}
        present = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
        described = {
            "round": self.server.round,
            "first_loss": self.server.first_loss,
            "layout": None if self.layout is None else [self.layout.names, self.layout.shapes],
            "settings": dict(self.settings),
        }
        text = json.dumps(described, allow_nan=False)
        metadata = {
            "format": _FORMAT,
            "format_version": str(_FORMAT_VERSION),
            **provenance(),
            "described": text,
            "fingerprint": fingerprint(present, text),
        }
        with replacing(Path(path), keep=before(Path(path))) as temporary:
            save_tensors(temporary, present, metadata)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """What `save` wrote.

        Raises:
            CheckpointError: a file that is damaged, foreign or of a newer format.
            FileNotFoundError: no such file.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                _check_format(path, metadata)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata["fingerprint"] != fingerprint(tensors, metadata["described"]):
                raise CheckpointError(f"{path} is damaged: its content is not what was saved")
            described = json.loads(metadata["described"])
            if described["round"] < 0:
                raise ValueError(f"it is of round {described['round']}")
            layout = described["layout"]
            layout = None if layout is None else Layout(tuple(layout[0]), tuple(map(tuple, layout[1])))
            server = Server(**tensors, round=described["round"], first_loss=described["first_loss"])
            return cls(server, layout, described["settings"])
        except (SafetensorError, KeyError, RecursionError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path} is truncated, damaged or no checkpoint: {error}") from error

    @classmethod
    def latest(cls, path: str | Path) -> tuple[Self | None, tuple[str, ...]]:
        """The newest checkpoint that can be read, and what is wrong with newer ones; (None, ()) if none was ever saved.

        Raises:
            CheckpointError: there are checkpoints, but none can be read.
        """
        faults: list[str] = []
        for candidate in (Path(path), before(Path(path))):
            try:
                return cls.load(candidate), tuple(faults)
            except FileNotFoundError:
                continue
            except CheckpointError as error:
                faults.append(str(error))
        if faults:
            raise CheckpointError(f"no checkpoint can be read: {'; '.join(faults)}: train from the start again")
        return None, ()

    def check(self, config: Config) -> None:
        """Raises CheckpointError if this is of a run with other settings, and names those that differ."""
        differing = differences(config.decisive(), self.settings, kind=type(config))
        if differing:
            raise CheckpointError(
                f"the checkpoint of round {self.server.round} is of a run with other settings: {', '.join(differing)}"
            )


def before(path: Path) -> Path:
    """Where the checkpoint before the one at `path` is kept."""
    return path.with_suffix(f".before{path.suffix}")


def _check_format(path: str | Path, metadata: Mapping[str, Any]) -> None:
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is no dswag checkpoint: expected format {_FORMAT}, got {metadata.get('format')}")
    if int(metadata["format_version"]) > _FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {metadata['format_version']}, this dswag reads up to {_FORMAT_VERSION}: "
            f"install dswag {metadata.get('dswag', '')} or newer"
        )
