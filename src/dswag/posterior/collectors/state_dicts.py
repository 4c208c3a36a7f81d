"""State dicts from checkpoint files; nothing in a file is executed."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt")


class CheckpointFileError(ValueError):
    """A file holds no weights that can be read, or not the weights that the others hold."""


def read_state_dict(path: Path, *, key: str | None = None) -> dict[str, Tensor]:
    """The tensors in a file by name, mapped from it where its kind allows, so that only those used take memory.

    Args:
        path: a safetensors file, or what `torch.save` wrote.
        key: where they lie in a nested file, such as "state_dict"; a dot leads further down.

    Raises:
        CheckpointFileError: a file that is truncated, foreign, or nested in another way, or that it takes code to read.
        FileNotFoundError: no such file.
    """
    if path.suffix == ".safetensors":
        if key is not None:
            raise CheckpointFileError(f"{path} is not nested, as no safetensors file is: the key {key!r} leads nowhere")
        return _load_safetensors(path)
    state = _descend(path, _load_torch(path), key)
    return {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            kind = (file.metadata() or {}).get("format", "")
            if kind.startswith("dswag-"):
                raise CheckpointFileError(f"{path} is a {kind} file of dswag's own, no checkpoint of named weights")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointFileError(f"{path} is truncated, damaged or no safetensors file: {error}") from error


def _load_torch(path: Path) -> object:
    path.open("rb").close()  # what the system has against the file is no damage of it
    try:
        # `weights_only` reads tensors and plain values; given here, no environment variable can switch it off.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))  # noqa: TID251
    except Exception as error:  # a damaged file can fail anywhere in the reader, also in a seek to where nothing can be
        code = re.search(r"GLOBAL ([\w.]+\.\w+)", str(error))
        if code or "TorchScript" in str(error):
            raise CheckpointFileError(
                f"{path} holds {code[1] if code else 'TorchScript'}, which takes executing code to read, and dswag "
                "executes nothing: save model.state_dict() alone"
            ) from None
        raise CheckpointFileError(f"{path} is truncated, damaged or no checkpoint of PyTorch: leave it out") from error


def _descend(path: Path, content: Any, key: str | None) -> Mapping[Any, Any]:
    """The mapping under the key; the file's own without one, unless that leaves doubt."""
    for step in [] if key is None else key.split("."):
        if not isinstance(content, Mapping) or step not in content:
            found = (
                ", ".join(map(str, content))
                if isinstance(content, Mapping)
                else f"a value of type {type(content).__name__}"
            )
            raise CheckpointFileError(f"{path} has no {step!r} for the key {key!r}, only {found}")
        content = content[step]
    where = str(path) if key is None else f"{path}, under {key!r},"
    if not isinstance(content, Mapping):
        raise CheckpointFileError(f"{where} holds a value of type {type(content).__name__}, no state dict")
    nested = [name for name, value in content.items() if isinstance(value, Mapping) and _has_weights(value)]
    if nested:
        names = " or ".join(str(name) if key is None else f"{key}.{name}" for name in nested)
        raise CheckpointFileError(f"{where} holds weights further down: say which are meant with the key {names}")
    return content


def _has_weights(mapping: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) and value.is_floating_point() for value in mapping.values())
