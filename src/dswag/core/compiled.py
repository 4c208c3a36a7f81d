"""The loops of `core.normals` compiled by Numba, with the same operations in the same order.

Nothing is compiled with `fastmath`: every product and sum is rounded by itself, as NumPy's are.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from dswag.core.normals import ALIGNED, COS, HALF, LN_4, LOG, MANTISSA, ONE, ROOT_HALF, SIN, TURN, UNIT, Room

_M0, _M1 = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_W0, _W1 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
_L0, _L1, _L2, _L3 = LOG
_S0, _S1, _S2, _S3 = SIN
_C0, _C1, _C2, _C3 = COS
_CACHED = 1 << 13
"""As `normals.CACHED`."""
_TILE = 1024
"""Integers made at a time, so that they are transformed out of the cache."""


def fill(out: NDArray[np.float32], key: int, start: int = 0, room: Room | None = None) -> None:
    """As `normals.fill`."""
    ahead = start % ALIGNED
    target = np.empty(len(out) + ahead, np.float32) if ahead else out
    _fill(target, np.uint64(key & (1 << 64) - 1), np.uint64(key >> 64), np.uint64(start // ALIGNED))
    if ahead:
        out[:] = target[ahead:]


@intrinsic  # type: ignore[untyped-decorator]
def _high(context: Any, a: Any, b: Any) -> Any:
    """The upper half of a product of 128 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = ir.IntType(128)
        a, b = (builder.zext(argument, wide) for argument in arguments)
        return builder.trunc(builder.lshr(builder.mul(a, b), ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _as_int(context: Any, x: Any) -> Any:
    """The bits of a float."""
    return types.int32(types.float32), lambda c, builder, s, arguments: builder.bitcast(arguments[0], ir.IntType(32))


@intrinsic  # type: ignore[untyped-decorator]
def _as_float(context: Any, x: Any) -> Any:
    """The float with these bits."""
    return types.float32(types.int32), lambda c, builder, s, arguments: builder.bitcast(arguments[0], ir.FloatType())


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _philox(raw: NDArray[np.uint64], key0: np.uint64, key1: np.uint64, block: np.uint64) -> None:
    """Philox4x64-10 of as many counters as there are four integers; NumPy counts from 1."""
    for i in range(len(raw) // 4):
        c0, c1, c2, c3 = block + np.uint64(i + 1), np.uint64(0), np.uint64(0), np.uint64(0)
        k0, k1 = key0, key1
        for _ in range(10):
            c0, c1, c2, c3 = _high(_M1, c2) ^ c1 ^ k0, _M1 * c2, _high(_M0, c0) ^ c3 ^ k1, _M0 * c0
            k0 += _W0
            k1 += _W1
        raw[4 * i], raw[4 * i + 1], raw[4 * i + 2], raw[4 * i + 3] = c0, c1, c2, c3


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _transform(raw: NDArray[np.uint64], first: NDArray[np.float32], second: NDArray[np.float32]) -> None:
    """Line by line what `normals.transform` does."""
    for i in range(len(raw)):
        high = np.uint32(raw[i] >> np.uint64(32))
        v = np.float32(np.int32(high >> np.uint32(1))) + HALF
        digits = _as_int(v)
        exponent = np.int32((digits - ROOT_HALF) >> MANTISSA)
        v = _as_float(np.int32(digits - np.int32(exponent << MANTISSA)))
        s = (v - ONE) / (v + ONE)
        x = s * s
        logarithm = (((x * _L3 + _L2) * x + _L1) * x + _L0) * s
        radius = np.sqrt(logarithm + np.float32(np.int32(exponent - UNIT)) * LN_4)
        f = np.float32(np.int32(np.uint32(raw[i] & np.uint64(0xFFFFFFFF)))) * TURN
        y = f * f
        sine = (((y * _S3 + _S2) * y + _S1) * y + _S0) * f
        cosine = ((y * _C3 + _C2) * y + _C1) * y + _C0
        along = (ONE - sine * sine) * radius
        sign = np.int32(high << np.uint32(31))
        first[i] = _as_float(_as_int(along) ^ sign)
        second[i] = cosine * sine * radius


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _fill(out: NDArray[np.float32], key0: np.uint64, key1: np.uint64, block: np.uint64) -> None:
    raw = np.empty(_TILE, np.uint64)
    first, second = np.empty(_TILE, np.float32), np.empty(_TILE, np.float32)
    for start in range(0, len(out), 2 * _TILE):
        n = min(2 * _TILE, len(out) - start)
        half = (n + 1) // 2
        blocks = (half + 3) // 4
        _philox(raw[: 4 * blocks], key0, key1, block + np.uint64(start // 8))
        _transform(raw[:half], first, second)
        for i in range(n // 2):
            out[start + 2 * i] = first[i]
            out[start + 2 * i + 1] = second[i]
        if n % 2:
            out[start + n - 1] = first[half - 1]


def add_products(
    sums: NDArray[np.float32],
    columns: NDArray[np.float32],
    factors: NDArray[np.float32],
    room: Room | None = None,
) -> None:
    """As `normals.add_products`, four columns in one pass."""
    _add_products(*_flat(sums), *_flat(columns), sums.shape[1], np.ascontiguousarray(factors))


def _flat(rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """The memory from the first to the last element, and how far rows lie apart: a loop over it is vectorized."""
    if rows.shape[1] > 1 and rows.strides[1] != rows.itemsize:
        raise ValueError("each row must lie in one piece")
    apart = rows.strides[0] // rows.itemsize
    size = (len(rows) - 1) * apart + rows.shape[1]
    return np.lib.stride_tricks.as_strided(rows, (size,), (rows.itemsize,)), apart


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _add_products(
    sums: NDArray[np.float32],
    sums_apart: int,
    columns: NDArray[np.float32],
    apart: int,
    p: int,
    factors: NDArray[np.float32],
) -> None:
    m, k = factors.shape
    for start in range(0, p, _CACHED):
        n = min(_CACHED, p - start)
        for row in range(m):
            x = sums[row * sums_apart + start : row * sums_apart + start + n]
            for j in range(0, k - k % 4, 4):
                a, b, c, d = factors[row, j], factors[row, j + 1], factors[row, j + 2], factors[row, j + 3]
                at = j * apart + start
                first, second = columns[at : at + n], columns[at + apart : at + apart + n]
                at += 2 * apart
                third, fourth = columns[at : at + n], columns[at + apart : at + apart + n]
                for i in range(n):
                    y = x[i] + a * first[i]
                    y = y + b * second[i]
                    y = y + c * third[i]
                    x[i] = y + d * fourth[i]
            for j in range(k - k % 4, k):
                factor, column = factors[row, j], columns[j * apart + start : j * apart + start + n]
                for i in range(n):
                    x[i] = x[i] + factor * column[i]
