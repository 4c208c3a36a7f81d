"""State dicts from checkpoint files; nothing in a file is executed."""

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dswag.core.parameters import unwrapped_name
from dswag.posterior.collectors.distributed_checkpoint import (
    METADATA,
    DistributedCheckpoint,
    DistributedCheckpointError,
)

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")

INDEX = ".index.json"
"""How the name of a file ends that says in which others a checkpoint's tensors lie."""

_READABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class CheckpointFileError(ValueError):
    """A file holds no weights that can be read, or not the weights that the others hold."""


@dataclass(frozen=True, eq=False)
class StateDict:
    """The tensors of a checkpoint by name, mapped from their file where its kind allows."""

    tensors: Mapping[str, Tensor]
    averaged: bool = False
    """Whether the file holds averaged weights too: then these are the current ones, not their average."""
    is_average: bool = False
    """Whether these are an average of the weights that training went through."""


def read_state_dict(path: Path, *, key: str | None = None) -> dict[str, Tensor]:
    """The tensors in a file by name, mapped from it where its kind allows, so that only those used take memory.

    Names are the model's own, without what torch.compile puts between them. Weights that a safetensors file holds once
    are there under each name that its metadata give.

    Args:
        path: a safetensors file, what `torch.save` wrote, the index of a checkpoint in several such files, or a folder
            that torch.distributed.checkpoint wrote.
        key: where they lie in a nested file, such as "state_dict"; a dot leads further down.

    Raises:
        CheckpointFileError: a file that is truncated, foreign, or nested in another way, or that it takes code to read.
        FileNotFoundError: no such file.
    """
    return dict(read(path, key=key).tensors)


def read(path: Path, *, key: str | None = None) -> StateDict:
    """As `read_state_dict`, with what else is known of the tensors.

    Where Lightning's callbacks for averaging put the average in the place of the weights, the weights still come.
    """
    if path.suffix == ".safetensors" or path.name.endswith(f".safetensors{INDEX}"):
        if key is not None:
            raise CheckpointFileError(f"{path} is not nested, as no safetensors file is: the key {key!r} leads nowhere")
        tensors = _load_parts(path) if path.name.endswith(INDEX) else _load_safetensors(path)
        return StateDict(_named(tensors))
    if path.name.endswith(INDEX):
        return StateDict(_named(_descend(path, _load_parts(path), key)))
    if is_distributed(path):
        return StateDict(_named(_load_distributed(path, key)))
    content: Any = _load_torch(path)
    averaged = isinstance(content, Mapping) and "averaging_state" in content and "current_model_state" in content
    if averaged:  # the average is under "state_dict", and of no use for a posterior
        content = {name: value for name, value in content.items() if name != "state_dict"}
        content["state_dict"] = content.pop("current_model_state")
        key = "state_dict" if key == "current_model_state" else key
    return StateDict(_named(_descend(path, content, key)), averaged, _is_average(content))


def _is_average(content: Any) -> bool:
    """Whether Lightning saved the file after StochasticWeightAveraging put the average into the model.

    For BatchNorm it does so an epoch before training ends, in which no optimizer steps and no average is updated.
    """
    state = content.get("callbacks", {}).get("StochasticWeightAveraging") if isinstance(content, Mapping) else None
    last = state.get("latest_update_epoch", -1) if isinstance(state, Mapping) else -1
    epoch = content.get("epoch") if isinstance(content, Mapping) else None
    return isinstance(epoch, int) and isinstance(last, int) and 0 <= last < epoch


def is_distributed(path: Path) -> bool:
    """Whether this is a folder that torch.distributed.checkpoint wrote."""
    return (path / METADATA).is_file()


def check_readable(path: Path, name: str, tensor: Tensor) -> None:
    """Raises CheckpointFileError unless a tensor is what weights can be made of."""
    fault = None
    if tensor.layout != torch.strided:
        fault = "is sparse: store it dense"
    elif tensor.dtype not in _READABLE:
        fault = f"is {tensor.dtype}, a number of which means nothing without its scale: store weights in a larger type"
    elif tensor.is_meta:
        fault = "is on the meta device, without values"
    elif tensor.numel() * tensor.itemsize > max(tensor.untyped_storage().nbytes(), path.stat().st_size):
        fault = f"has {tensor.numel():,} elements, for which the file is too small: it repeats a few of them"
    if fault:
        raise CheckpointFileError(f"{path}: {name} {fault}")


def _named(tensors: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Those that are tensors, under the model's own names."""
    return {
        unwrapped_name(name): value
        for name, value in tensors.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            kind = metadata.get("format", "")
            if kind.startswith("dswag-"):
                raise CheckpointFileError(f"{path} is a {kind} file of dswag's own, no checkpoint of named weights")
            if "DCP_SHARDING_INFO" in metadata:
                raise CheckpointFileError(
                    f"{path} was written by torch.distributed.checkpoint as a part of a checkpoint: save it with "
                    "enable_consolidation=True"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, AttributeError, RuntimeError) as error:
        raise CheckpointFileError(f"{path} is truncated, damaged or no safetensors file: {error}") from error
    tied = {name: tensors[kept] for name, kept in metadata.items() if kept in tensors and name not in tensors}
    return {**tensors, **tied}


def _load_parts(index: Path) -> dict[str, Tensor]:
    """The tensors that the index lists, each from its file."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        wanted = {name: index.parent / file for name, file in places.items()}
        files = sorted(set(wanted.values()))
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointFileError(f"{index} is damaged, or no list of the files of a checkpoint") from error
    parts: dict[Path, Mapping[Any, Any]] = {}
    for file in files:
        if file.parent.resolve() != index.parent.resolve() or file.suffix not in SUFFIXES:
            raise CheckpointFileError(f"{index} lists {file.name}, which is no checkpoint file beside it")
        if not file.exists():
            raise CheckpointFileError(f"{index} lists {file.name}, which is not beside it: the checkpoint is not whole")
        content: Any = _load_safetensors(file) if file.suffix == ".safetensors" else _load_torch(file)
        if not isinstance(content, Mapping):
            raise CheckpointFileError(f"{file} holds a value of type {type(content).__name__}, no state dict")
        parts[file] = content
    for name, file in wanted.items():
        if name not in parts[file]:
            raise CheckpointFileError(f"{file} has no {name}, which {index.name} says is in it")
    return {name: parts[file][name] for name, file in wanted.items()}


def _load_distributed(folder: Path, key: str | None) -> dict[str, Tensor]:
    try:
        checkpoint = DistributedCheckpoint(folder)
        found = {
            name: value for name, value in _descend(folder, checkpoint.tree, key).items() if isinstance(value, Tensor)
        }
        return {name: checkpoint.read(value) for name, value in found.items()}
    except DistributedCheckpointError as error:
        raise CheckpointFileError(
            f"{folder} cannot be read: {error}; python -m torch.distributed.checkpoint.format_utils dcp_to_torch makes "
            "a file of it"
        ) from error


def _load_torch(path: Path) -> object:
    path.open("rb").close()  # what the system has against the file is no damage of it
    try:
        archive = zipfile.is_zipfile(path)
        if archive:
            with zipfile.ZipFile(path) as entries:
                if sum(entry.file_size for entry in entries.infolist()) > path.stat().st_size:
                    raise ValueError("its parts are compressed, as PyTorch never does")
        # `weights_only` reads tensors and plain values; given here, no environment variable can switch it off.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)  # noqa: TID251
    except Exception as error:  # a damaged file can fail anywhere in the reader, also in a seek to where nothing can be
        code = re.search(r"GLOBAL ([\w.]+\.\w+)", str(error))
        if code or "TorchScript" in str(error):
            allowing = (
                f"; or, if you know {code[1]} and trust it, read the file in Python within "
                f"torch.serialization.safe_globals([{code[1]}])"
                if code and "add_safe_globals" in str(error)
                else ""
            )
            raise CheckpointFileError(
                f"{path} holds {code[1] if code else 'TorchScript'}, which takes executing code to read, and dswag "
                f"executes nothing: save model.state_dict() alone{allowing}"
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
