"""Tensors from the folders that torch.distributed.checkpoint writes, whose list of contents is pickled.

Nothing in that list is executed, or imported: its instructions are followed one by one, and where they ask for an
object of some class, what comes is a note of the class's name and of what the object would have been given.
"""

import io
import math
import pickletools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

METADATA = ".metadata"
"""The file with the list of contents."""


class DistributedCheckpointError(ValueError):
    """A folder that is damaged, or holds what cannot be read."""


@dataclass(eq=False)
class Note:
    """A class or function by name, or, with what it is given, an object of it."""

    name: str
    given: tuple[Any, ...] = ()
    state: Any = None


class DistributedCheckpoint:
    """The contents of a folder: `tree` has a tensor without memory in place of each, which `read` fills.

    Raises:
        DistributedCheckpointError: a list of contents that is damaged, or of another kind.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tree: dict[str, Any] = {}
        self._chunks: dict[int, tuple[str, list[tuple[int, ...]]]] = {}
        self._stored: dict[tuple[str, tuple[int, ...] | None], Mapping[str, Any]] = {}
        try:
            listed = followed((folder / METADATA).read_bytes()).state
            for key, stored in listed["storage_data"].items():
                offset = key.state.get("offset")
                self._stored[key.state["fqn"], None if offset is None else _size(offset)] = stored.state
            places = listed.get("planner_data") or {}
            for name, described in listed["state_dict_metadata"].items():
                if described.name.endswith(".TensorStorageMetadata"):
                    self._place(places.get(name, (name,)), name, described.state)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise DistributedCheckpointError(f"its {METADATA} is damaged, or of a version not known: {error}") from None

    def read(self, placeholder: Tensor) -> Tensor:
        """The tensor that a placeholder of the tree stands for.

        Raises:
            DistributedCheckpointError: files that are missing or damaged, or that lie outside of the folder.
        """
        name, offsets = self._chunks[id(placeholder)]
        room = sum(path.stat().st_size for path in self.folder.iterdir())
        if placeholder.numel() * placeholder.itemsize > room:
            raise DistributedCheckpointError(f"{name} is said to be larger than all files in it")
        whole = torch.empty(placeholder.shape, dtype=placeholder.dtype)
        filled = 0
        for offset in offsets:
            part = self._load(name, self._stored.get((name, offset)) or self._stored.get((name, None)))
            ends = [start + length for start, length in zip(offset, part.shape, strict=False)]
            if (
                not len(offset) == part.dim() == whole.dim()
                or part.dtype != whole.dtype
                or any(end > length for end, length in zip(ends, whole.shape, strict=False))
            ):
                raise DistributedCheckpointError(f"a part of {name} is not what its {METADATA} says")
            whole[tuple(slice(start, end) for start, end in zip(offset, ends, strict=True))] = part
            filled += part.numel()
        if filled != whole.numel():
            raise DistributedCheckpointError(f"it has {filled} of the {whole.numel()} elements of {name}")
        return whole

    def _place(self, where: tuple[Any, ...], name: str, described: Mapping[str, Any]) -> None:
        """A placeholder in the tree."""
        *above, last = map(str, where)
        branch = self.tree
        for step in above:
            branch = branch.setdefault(step, {})
        properties = described["properties"].state
        dtype = properties[0] if isinstance(properties, tuple) else properties["dtype"]
        placeholder = torch.empty(_size(described["size"]), dtype=_dtype(dtype.name), device="meta")
        branch[last] = placeholder
        self._chunks[id(placeholder)] = name, [_size(chunk.state["offsets"]) for chunk in described["chunks"]]

    def _load(self, name: str, stored: Mapping[str, Any] | None) -> Tensor:
        if stored is None or stored.get("transform_descriptors"):
            how = "is nowhere" if stored is None else "is compressed or transformed"
            raise DistributedCheckpointError(f"a part of {name} {how}")
        try:
            path, offset, length = self.folder / stored["relative_path"], int(stored["offset"]), int(stored["length"])
        except (KeyError, TypeError, ValueError) as error:
            raise DistributedCheckpointError(f"its {METADATA} does not say where {name} lies") from error
        if path.parent.resolve() != self.folder.resolve():
            raise DistributedCheckpointError(f"{name} is said to lie outside of it")
        try:
            with path.open("rb") as file:
                file.seek(offset)
                content = file.read(min(length, path.stat().st_size))
            part = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)  # noqa: TID251
        except Exception as error:  # a damaged file can fail anywhere in the reader
            raise DistributedCheckpointError(f"a part of {name} cannot be read from {path.name}") from error
        if not isinstance(part, Tensor) or part.numel() * part.itemsize > len(content):
            raise DistributedCheckpointError(f"a part of {name} is no tensor that {path.name} has room for")
        return part


def followed(pickled: bytes) -> Note:
    """What pickled instructions describe, with a `Note` in place of each class, function and object.

    Raises:
        ValueError: instructions that are cut off, that make no sense, or that describe anything but an object.
    """
    stack: list[Any] = []
    marks: list[list[Any]] = []
    memory: dict[int, Any] = {}
    instructions: Iterable[tuple[pickletools.OpcodeInfo, Any, int | None]] = pickletools.genops(pickled)
    for instruction, argument, _ in instructions:
        name = instruction.name
        if name == "MARK":
            marks.append(stack)
            stack = []
        elif name in ("TUPLE", "SETITEMS", "APPENDS"):
            items, stack = stack, marks.pop()
            _MANY[name](stack, items)
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            memory[len(memory) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memory[argument])
        elif name in _VALUES:
            stack.append(argument)
        elif name in _STEPS:
            _STEPS[name](stack, argument)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"the instruction {name} has no place in it")
    if len(stack) != 1 or not isinstance(stack[0], Note):
        raise ValueError("it does not describe one object")
    return stack[0]


_VALUES = ("SHORT_BINUNICODE", "BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")


def _set_items(stack: list[Any], items: list[Any]) -> None:
    stack[-1].update(zip(items[::2], items[1::2], strict=True))


def _set_item(stack: list[Any], _: object) -> None:
    value = stack.pop()
    key = stack.pop()
    stack[-1][key] = value


def _make(stack: list[Any], _: object) -> None:
    given = stack.pop()
    stack.append(Note(stack.pop().name, given))


def _build(stack: list[Any], _: object) -> None:
    state = stack.pop()
    stack[-1].state = state


def _last(count: int) -> Callable[[list[Any], object], None]:
    def gather(stack: list[Any], _: object) -> None:
        stack[-count:] = [tuple(stack[-count:])]

    return gather


def _named(stack: list[Any], _: object) -> None:
    name = stack.pop()
    stack.append(Note(f"{stack.pop()}.{name}"))


_MANY: dict[str, Callable[[list[Any], list[Any]], None]] = {
    "TUPLE": lambda stack, items: stack.append(tuple(items)),
    "SETITEMS": _set_items,
    "APPENDS": lambda stack, items: stack[-1].extend(items),
}
_STEPS: dict[str, Callable[[list[Any], Any], None]] = {
    "NONE": lambda stack, _: stack.append(None),
    "NEWTRUE": lambda stack, _: stack.append(True),
    "NEWFALSE": lambda stack, _: stack.append(False),
    "EMPTY_TUPLE": lambda stack, _: stack.append(()),
    "EMPTY_LIST": lambda stack, _: stack.append([]),
    "EMPTY_DICT": lambda stack, _: stack.append({}),
    "TUPLE1": _last(1),
    "TUPLE2": _last(2),
    "TUPLE3": _last(3),
    "APPEND": lambda stack, _: stack[-2].append(stack.pop()),
    "SETITEM": _set_item,
    "GLOBAL": lambda stack, argument: stack.append(Note(argument.replace(" ", "."))),
    "STACK_GLOBAL": _named,
    "REDUCE": _make,
    "NEWOBJ": _make,
    "BUILD": _build,
}


def _size(described: Note) -> tuple[int, ...]:
    """Of a `torch.Size`."""
    size = tuple(int(length) for length in described.given[0])
    if described.name != "torch.Size" or any(length < 0 for length in size) or math.prod(size) > 1 << 50:
        raise ValueError(f"{described.name}{size} is no size")
    return size


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name} is no dtype")
    return dtype
