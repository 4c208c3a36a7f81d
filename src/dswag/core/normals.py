"""Standard normal numbers that are the same bits on every processor, at any place of a stream.

The stream of a key is Philox4x64-10 (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3"), of which
NumPy's generator gives the integers. Each makes two normal numbers (Box & Muller 1958): from 31 bits a radius
√(-2 ln v), from 32 an angle, from the last a sign. Logarithm, sine and cosine are polynomials, and all is addition,
multiplication, division and square root of single numbers, which IEEE 754 rounds in one way: no call of a mathematical
library, no fused operation, no sum whose order depends on a processor. The largest number is 6.66.

Sums of columns are taken in the same spirit. `core.compiled` has both functions again, several times faster;
`tests/core/test_normals.py` holds all forms to one file of bits.
"""

from hashlib import blake2b

import numpy as np
from jaxtyping import Float, Float32, UInt64
from numpy.random import Generator, Philox
from numpy.typing import NDArray

ALIGNED = 8
"""Numbers that come from one block of the stream."""

CACHED = 1 << 14
"""Elements of the columns that stay in the processor's cache for several rows."""

LOG = tuple(map(np.float32, (-4.0, -1.3333337306976318, -0.7997749447822571, -0.5916227102279663)))
"""-2 ln m = s (LOG₀ + s² (LOG₁ + s² (LOG₂ + s² LOG₃))), s being (m - 1) / (m + 1), to 3e-8 for √½ ≤ m ≤ √2."""

SIN = tuple(map(np.float32, (2.2214415073394775, -0.9135302901268005, 0.11268485337495804, -0.0065084416419267654)))
"""√2 sin(π f / 2) = f (SIN₀ + f² (SIN₁ + f² (SIN₂ + f² SIN₃))), to 1e-7 for |f| ≤ ½."""

COS = tuple(map(np.float32, (1.4142135381698608, -1.7447110414505005, 0.358642578125, -0.02886163257062435)))
"""√2 cos(π f / 2) = COS₀ + f² (COS₁ + f² (COS₂ + f² COS₃)), to 1e-7 for |f| ≤ ½."""

HALF = np.float32(0.5)
ONE = np.float32(1)
LN_4 = np.float32(-2 * np.log(2))
ROOT_HALF = np.int32(0x3F3504F3)
"""The bits of √½."""
MANTISSA = np.int32(23)
UNIT = np.int32(31)
"""v is this many binary places below the integer that it is made from."""
SIGN = np.uint32(31)
TURN = np.float32(2.0**-32)


def key_of(*path: int) -> int:
    """A key of 128 bits for the place named by `path`: a hash, so that keys of different paths are unrelated."""
    return int.from_bytes(blake2b(",".join(map(str, path)).encode(), digest_size=16).digest(), "little")


class Room:
    """Memory for the steps between integers and up to so many normal numbers, to be used again and again."""

    def __init__(self, numbers: int) -> None:
        n = (numbers + 1) // 2
        self.integers = np.empty(n, np.uint64)
        self.high, self.exponent = np.empty(n, np.uint32), np.empty(n, np.int32)
        self.floats = np.empty((4, n), np.float32)
        self.product = np.empty(numbers, np.float64)


def fill(out: Float32[np.ndarray, "p"], key: int, start: int = 0, room: Room | None = None) -> None:
    """Fills a vector with the numbers of the key's stream from number `start` on."""
    ahead = start % ALIGNED
    if ahead:
        longer = np.empty(len(out) + ahead, np.float32)
        fill(longer, key, start - ahead)
        out[:] = longer[ahead:]
    else:
        transform(integers(key, start // ALIGNED, (len(out) + 1) // 2), out, room)


def add_products(
    sums: Float[np.ndarray, "m p"],
    columns: Float[np.ndarray, "k p"],
    factors: Float[np.ndarray, "m k"],
    room: Room | None = None,
) -> None:
    """Adds to each row of sums its factors times the columns, one column after the other; all of one dtype."""
    everything = (room or Room(sums.shape[1])).product.view(sums.dtype)
    for start in range(0, sums.shape[1], CACHED):
        part = slice(start, start + CACHED)
        product = everything[: sums[0, part].size]
        for row, of_row in zip(sums[:, part], factors, strict=True):
            for column, factor in zip(columns[:, part], of_row, strict=True):
                np.multiply(column, factor, out=product)
                np.add(row, product, out=row)


def integers(key: int, block: int, n: int) -> UInt64[np.ndarray, "n"]:
    """The stream's integers from a block of four on."""
    generator = Generator(Philox(key=key, counter=block))
    return generator.integers(0, 2**64 - 1, size=n, dtype=np.uint64, endpoint=True)


def transform(raw: UInt64[np.ndarray, "n"], out: Float32[np.ndarray, "p"], room: Room | None = None) -> None:
    """Two normal numbers from each integer, the last one from its first half where p is odd."""
    room, n = room or Room(len(out)), len(raw)
    high, (f, square, sine, cosine) = room.high[:n], room.floats[:, :n]
    np.copyto(high, np.right_shift(raw, np.uint64(32), out=room.integers[:n]), casting="unsafe")
    _radius(high, f, square, sine, cosine, room.exponent[:n])
    radius = f
    f = cosine
    np.copyto(room.exponent[:n].view(np.uint32), raw, casting="unsafe")
    np.copyto(f, room.exponent[:n], casting="same_kind")
    np.multiply(f, TURN, out=f)
    np.multiply(f, f, out=square)
    _polynomial(square, SIN, sine)
    np.multiply(sine, f, out=sine)
    _polynomial(square, COS, cosine)
    np.multiply(cosine, sine, out=cosine)  # sin π f
    np.multiply(sine, sine, out=sine)
    np.subtract(ONE, sine, out=sine)  # cos π f
    np.multiply(sine, radius, out=sine)
    signs = sine.view(np.uint32)
    np.bitwise_xor(signs, np.left_shift(high, SIGN, out=high), out=signs)
    out[0::2] = sine
    half = len(out) // 2
    np.multiply(cosine[:half], radius[:half], out=out[1::2])


def _radius(
    high: NDArray[np.uint32],
    radius: NDArray[np.float32],
    s: NDArray[np.float32],
    square: NDArray[np.float32],
    logarithm: NDArray[np.float32],
    exponent: NDArray[np.int32],
) -> None:
    """Fills `radius` with √(-2 ln v) of v = (31 bits + ½) / 2^31, a float of 24 binary digits in (0, 1]."""
    np.right_shift(high, np.uint32(1), out=exponent.view(np.uint32))
    v = radius
    np.copyto(v, exponent, casting="same_kind")
    np.add(v, HALF, out=v)
    digits = v.view(np.int32)
    np.subtract(digits, ROOT_HALF, out=exponent)
    np.right_shift(exponent, MANTISSA, out=exponent)
    np.left_shift(exponent, MANTISSA, out=s.view(np.int32))
    np.subtract(digits, s.view(np.int32), out=digits)  # v is in [√½, √2) now
    np.subtract(exponent, UNIT, out=exponent)
    np.add(v, ONE, out=s)
    np.subtract(v, ONE, out=v)
    np.divide(v, s, out=s)
    np.multiply(s, s, out=square)
    _polynomial(square, LOG, logarithm)
    np.multiply(logarithm, s, out=logarithm)
    np.copyto(s, exponent, casting="same_kind")
    np.multiply(s, LN_4, out=s)
    np.add(logarithm, s, out=logarithm)
    np.sqrt(logarithm, out=radius)


def _polynomial(x: NDArray[np.float32], coefficients: tuple[np.float32, ...], value: NDArray[np.float32]) -> None:
    """Fills `value` by Horner's rule, with every product and sum rounded."""
    first, *rest, last = coefficients
    np.multiply(x, last, out=value)
    for coefficient in reversed(rest):
        np.add(value, coefficient, out=value)
        np.multiply(value, x, out=value)
    np.add(value, first, out=value)
