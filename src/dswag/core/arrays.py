"""Tensors of whatever holds numbers: tensors themselves, NumPy arrays, lists."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensor(values: Any) -> Tensor:
    """The tensor itself, or one of the numbers in an array, a series or a list.

    Memory is shared where PyTorch can: not with arrays that are read-only, reversed or of another byte order.

    Raises:
        TypeError: something that holds no numbers.
    """
    if isinstance(values, Tensor):
        return values.detach()
    array = np.asarray(values)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"expected a tensor or an array of numbers, got {type(values).__name__} of {array.dtype}")
    if not (array.dtype.isnative and array.flags.writeable and all(stride >= 0 for stride in array.strides)):
        array = np.array(array, dtype=array.dtype.newbyteorder("="))
    return torch.from_numpy(array)
