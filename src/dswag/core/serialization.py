"""Named tensors as one row of bytes, in which they cross to another process; reading them executes nothing."""

import json
from collections.abc import Mapping
from math import prod

import torch
from jaxtyping import UInt8
from torch import Tensor

_DTYPES = {
    str(dtype): dtype
    for dtype in (
        torch.bool,
        torch.uint8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    )
}
_PREFIX = 8
"""Bytes of the number that says how long the description is."""


def packed(tensors: Mapping[str, Tensor], device: torch.device) -> UInt8[Tensor, "n"]:
    """The tensors in one row of bytes on the device, after a description of them in JSON."""
    described = [[name, str(t.dtype), list(t.shape), t.device.type == "cpu"] for name, t in tensors.items()]
    text = json.dumps(described).encode()
    front = torch.frombuffer(bytearray(len(text).to_bytes(_PREFIX, "little") + text), dtype=torch.uint8)
    bodies = (tensor.contiguous().flatten().view(torch.uint8) for tensor in tensors.values())
    return torch.cat([part.to(device) for part in (front, *bodies)])


def unpacked(data: UInt8[Tensor, "n"]) -> dict[str, Tensor]:
    """The tensors that were `packed`, copied; on the row's device, or on the CPU where they came from there."""
    start = _PREFIX + int.from_bytes(bytes(data[:_PREFIX].tolist()), "little")
    tensors = {}
    for name, dtype_name, shape, on_cpu in json.loads(bytes(data[_PREFIX:start].tolist())):
        dtype = _DTYPES[dtype_name]
        end = start + prod(shape) * dtype.itemsize
        body = data[start:end].clone()  # which aligns it
        tensors[name] = (body.cpu() if on_cpu else body).view(dtype).view(shape)
        start = end
    return tensors


def as_bytes(text: str) -> UInt8[Tensor, "n"]:
    """A text as a tensor."""
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else torch.empty(0, dtype=torch.uint8)


def as_text(data: UInt8[Tensor, "n"]) -> str:
    """The text that was a tensor."""
    return bytes(data.tolist()).decode()
