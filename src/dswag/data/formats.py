"""File formats of image data sets, from bytes to tensors: gzip, tar, IDX and the binary form of CIFAR.

IDX is the format of MNIST (two zero bytes, a type, the number of axes, big-endian axis lengths, data); CIFAR's authors
describe theirs at https://www.cs.toronto.edu/~kriz/cifar.html. Neither can carry code.
"""

import gzip
import io
import math
import struct
import tarfile
import zlib
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

_UNSIGNED_BYTE = 8
_CIFAR_PIXELS = 3 * 32 * 32


class DataFormatError(ValueError):
    """A file that is not what it should be: truncated, damaged or another file; names the file."""


def gunzip(compressed: bytes, name: str, *, largest: int | None = None) -> bytes:
    """The content of a gzip file, which is unpacked no further than to `largest` bytes.

    Raises:
        DataFormatError: a file that is no gzip file, or not a whole one, or that unpacks to more.
    """
    if not compressed:
        raise DataFormatError(f"{name} must be a whole gzip file, got an empty one")
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(compressed)) as file:
            content = file.read() if largest is None else file.read(largest + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataFormatError(f"{name} must be a whole gzip file, got {len(compressed)} bytes: {error}") from error
    if largest is not None and len(content) > largest:
        raise DataFormatError(f"{name} must unpack to at most {largest:,} bytes: it is another file")
    return content


def tar_members(
    archive: BinaryIO, members: Iterable[str], name: str, *, largest: int | None = None
) -> dict[str, bytes]:
    """Contents of the files with these base names, from a .tar.gz archive, in whatever folder they lie there.

    Raises:
        DataFormatError: a file that is no such archive, or not a whole one, that lacks a member, or in which a file,
            whether wanted or not, is larger than `largest` bytes.
    """
    wanted = set(members)
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=archive, mode="r:gz") as tar:
            for member in tar:
                if largest is not None and member.size > largest:
                    raise DataFormatError(
                        f"{name} must hold files of at most {largest:,} bytes, got {member.name} of {member.size:,}: "
                        "it is another archive"
                    )
                base = member.name.rsplit("/", 1)[-1]
                if member.isfile() and base in wanted and (file := tar.extractfile(member)) is not None:
                    contents[base] = file.read()
    except DataFormatError:
        raise
    except (EOFError, ValueError, OverflowError, gzip.BadGzipFile, tarfile.TarError, zlib.error) as error:
        raise DataFormatError(f"{name} must be a whole .tar.gz archive: {error}") from error
    if missing := wanted - contents.keys():
        raise DataFormatError(f"{name} must hold {', '.join(sorted(wanted))}; {', '.join(sorted(missing))} not in it")
    return contents


def read_idx(content: bytes, name: str) -> UInt8[Tensor, "n ..."]:
    """The array of bytes in an uncompressed IDX file.

    Raises:
        DataFormatError: another format, another type than bytes, or a length that differs from the header's.
    """
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UNSIGNED_BYTE or content[3] == 0:
        raise DataFormatError(
            f"{name} must be an IDX file of bytes (it starts with 00 00 08 and the number of axes), "
            f"got {content[:4].hex(' ') or 'an empty file'}"
        )
    axes = content[3]
    start = 4 + 4 * axes
    if len(content) < start:
        raise DataFormatError(f"{name} must have a header of {start} bytes, got {len(content)} bytes: it is truncated")
    shape = struct.unpack(f">{axes}I", content[4:start])
    if len(content) != start + math.prod(shape):
        raise DataFormatError(
            f"{name} must have {start + math.prod(shape)} bytes for shape {list(shape)}, got {len(content)}: "
            "it is truncated or damaged"
        )
    if axes > 8 or math.prod(shape) == 0:
        raise DataFormatError(f"{name} must hold an array with 1 to 8 axes and something in it, got {list(shape)}")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def read_idx_pair(images: bytes, labels: bytes, name: str) -> tuple[UInt8[Tensor, "n 1 h w"], Int64[Tensor, "n"]]:
    """Images and labels out of the two IDX files that belong together.

    Raises:
        DataFormatError: what `read_idx` refuses, other axes, or files of different lengths.
    """
    pixels, targets = read_idx(images, f"{name} (images)"), read_idx(labels, f"{name} (labels)")
    if pixels.ndim != 3 or targets.ndim != 1 or len(pixels) != len(targets):
        raise DataFormatError(
            f"{name} must be images [n, h, w] and labels [n], got {list(pixels.shape)} and {list(targets.shape)}"
        )
    return pixels.unsqueeze(1), targets.long()


def read_cifar(
    content: bytes, name: str, label_bytes: int = 1
) -> tuple[UInt8[Tensor, "n 3 32 32"], Int64[Tensor, "n"]]:
    """Images and labels out of CIFAR's binary form; where a record has several label bytes, the last is the fine label.

    Raises:
        DataFormatError: a length that is no whole number of records.
    """
    record = label_bytes + _CIFAR_PIXELS
    if not content or len(content) % record:
        raise DataFormatError(
            f"{name} must be whole records of {record} bytes, got {len(content)} bytes: it is truncated or another file"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, record)
    images = torch.from_numpy(rows[:, label_bytes:].reshape(-1, 3, 32, 32).copy())
    return images, torch.from_numpy(rows[:, label_bytes - 1].astype(np.int64))
