"""Fingerprints of tensors, by which a file that was damaged, or belongs to something else, is told."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def fingerprint(tensors: Mapping[str, Tensor], *words: str) -> str:
    """SHA-256 of the tensors' names, types, shapes and bytes, and of the words; in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name!r} {tensor.dtype} {list(tensor.shape)}\n".encode())
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(content.data)
    for word in words:
        digest.update(f"{word!r}\n".encode())
    return digest.hexdigest()
