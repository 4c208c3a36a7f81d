"""Numbers in any container become tensors with the same values."""

import numpy as np
import pytest
import torch

from dswag.core.arrays import as_tensor


def test_arrays_of_every_layout_keep_their_values():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    frozen = values.copy()
    frozen.flags.writeable = False
    for array in (values, frozen, values[::-1], values.T, values.astype(">f4"), values.tolist()):
        assert torch.equal(as_tensor(array).double(), torch.tensor(np.array(array, dtype=np.float64)))
    assert as_tensor(values).data_ptr() == values.ctypes.data


def test_what_holds_no_numbers_is_refused():
    with pytest.raises(TypeError, match="expected a tensor or an array of numbers, got list of"):
        as_tensor(["a", "b"])
