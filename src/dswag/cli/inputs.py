"""Images to predict, from image files and NumPy arrays, in the form that a model takes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

_MODES = {1: "L", 3: "RGB"}
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


class InputError(ValueError):
    """An input that holds no images that the model takes."""


def read_images(
    paths: Sequence[Path], shape: tuple[int, int, int], *, resize: bool = False
) -> tuple[tuple[str, ...], UInt8[Tensor, "n channels height width"]]:
    """A name for each image, and all images, of the shape (channels, height, width).

    Args:
        paths: image files, whose colors are converted to the channels asked for, and .npy or .npz files with uint8
            images [n, h, w], [n, c, h, w] or [n, h, w, c].
        shape: what the model takes.
        resize: whether images of another size are resized, instead of refused.

    Raises:
        InputError: a file that cannot be read, or images of another kind or size; the file is named.
    """
    names: list[str] = []
    images: list[Tensor] = []
    for path in paths:
        if path.is_dir():
            raise InputError(f"{path} is a folder: name the files in it")
        if path.suffix.lower() in (".npy", ".npz"):
            found = _from_array(path, _read_array(path), shape, resize)
            names += [f"{path.name}[{index}]" for index in range(len(found))]
        else:
            found = _from_file(path, shape, resize)[None]
            names.append(path.name)
        images.append(torch.from_numpy(found))
    return tuple(names), torch.cat(images)


def _from_file(path: Path, shape: tuple[int, int, int], resize: bool) -> np.ndarray:
    channels, height, width = shape
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode in _DEEP_MODES:
                raise InputError(f"{path} has more than 8 bits a channel ({image.mode}): convert it to 8 bits")
            image = image.convert(_MODES[channels])
    except UnidentifiedImageError:
        raise InputError(f"{path} is no image that Pillow reads, and no .npy or .npz file") from None
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except InputError:
        raise
    except Exception as error:  # a damaged image can fail anywhere in its reader
        raise InputError(f"{path} cannot be read: {error}") from error
    return _sized(image, (height, width), str(path), resize).reshape(height, width, channels).transpose(2, 0, 1).copy()


def _read_array(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            names = list(content.keys())
            if len(names) != 1 and "images" not in names:
                raise InputError(
                    f"{path} must hold one array, or one named images, got {', '.join(names) or 'none'}: save it alone"
                )
            array = content["images" if "images" in names else names[0]]
            if not isinstance(array, np.ndarray):
                raise InputError(f"{path} holds something else than an array: save it with numpy.savez")
            return array
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise InputError(f"{path} is damaged, or holds something else than numbers: {error}") from error


def _from_array(path: Path, array: np.ndarray, shape: tuple[int, int, int], resize: bool) -> np.ndarray:
    """The images as [n, channels, height, width]."""
    if array.dtype != np.uint8:
        raise InputError(f"{path} must hold uint8 from 0 to 255, got {array.dtype}: scale and convert it")
    if not len(array.shape) or not array.size:
        raise InputError(f"{path} holds no images: its shape is {list(array.shape)}")
    images = _channels_first(path, array, shape)
    if images.shape[1:] == shape:
        return np.ascontiguousarray(images)
    channels, height, width = shape
    resized = [
        _sized(Image.fromarray(_displayable(image)), (height, width), f"{path}[{index}]", resize)
        for index, image in enumerate(images)
    ]
    return np.stack(resized).reshape(-1, height, width, channels).transpose(0, 3, 1, 2).copy()


def _channels_first(path: Path, array: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    channels = shape[0]
    if array.ndim == 3 and channels == 1:
        return array[:, None]
    first = array.ndim == 4 and array.shape[1] == channels
    last = array.ndim == 4 and array.shape[3] == channels
    if first and last and array.shape[1:] != shape:
        raise InputError(
            f"{path} has shape {list(array.shape)}, whose channels may be the second axis or the last: "
            "save it as [n, c, h, w] in the size that the model takes"
        )
    if first:
        return array
    if last:
        return array.transpose(0, 3, 1, 2)
    forms = (
        "[n, h, w], [n, 1, h, w] or [n, h, w, 1]"
        if channels == 1
        else f"[n, {channels}, h, w] or [n, h, w, {channels}]"
    )
    raise InputError(f"{path} must have shape {forms}, got {list(array.shape)}")


def _displayable(image: np.ndarray) -> np.ndarray:
    """[h, w] or [h, w, c], as Pillow takes it."""
    return np.ascontiguousarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))


def _sized(image: Image.Image, size: tuple[int, int], name: str, resize: bool) -> np.ndarray:
    height, width = size
    if (image.height, image.width) != size:
        if not resize:
            raise InputError(
                f"{name} must be {height} x {width} for this model, got {image.height} x {image.width}: "
                "resize it, or pass --resize"
            )
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image)
