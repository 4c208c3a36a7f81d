"""What the extra `dswag[fast]` brings: loops compiled by Numba, which give the same bits as those of NumPy."""

import os
from functools import cache
from importlib import import_module
from typing import Any

LEAST = 1 << 21
"""Elements from which on compiled loops save more time than loading them takes."""

SWITCH = "DSWAG_FAST"
"""Environment variable: 0 for no compiled loops."""


def loops(elements: int) -> Any:
    """`core.compiled`, if there is Numba and so many elements are worth it; otherwise `core.normals`."""
    return _compiled() if elements >= LEAST and os.environ.get(SWITCH) != "0" else import_module("dswag.core.normals")


@cache
def _compiled() -> Any:
    """NumPy's, of the same bits, where there is no Numba, or one that refuses this NumPy or may keep nothing."""
    try:
        return import_module("dswag.core.compiled")
    except (ImportError, RuntimeError):
        return import_module("dswag.core.normals")
