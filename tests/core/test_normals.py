"""Normal numbers: the same bits everywhere, at any place of a stream, and as normal as they should be."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from dswag.core import fast, normals
from dswag.core.normals import add_products, fill, integers, key_of, transform

HERE = Path(__file__).parent
VECTORS = json.loads((HERE / "draws_of_every_processor.json").read_text())
"""Written by `python tests/core/draws_of_every_processor.py > tests/core/draws_of_every_processor.json`."""

PRETENDED = [
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE"},
    {"NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR", "ATEN_CPU_CAPABILITY": "default"},
    {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
]
"""Processors that this one can be taken for; what it cannot be is ignored, with a warning."""


def numbers(n, *path, start=0):
    out = np.empty(n, np.float32)
    fill(out, key_of(*path), start)
    return out


@pytest.fixture(scope="session")
def compiled_once(tmp_path_factory):
    """Where compiled loops are kept, apart for each kind of processor."""
    return tmp_path_factory.getbasetemp() / "numba"


@pytest.mark.parametrize("pretended", PRETENDED, ids=lambda values: " ".join(values.values()) or "generic")
def test_draws_are_the_same_bits_on_every_processor(pretended, compiled_once):
    environment = {**os.environ, **pretended, "NUMBA_CACHE_DIR": str(compiled_once)}
    command = [sys.executable, "-W", "ignore", HERE / "draws_of_every_processor.py"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert json.loads(found) == VECTORS


def test_the_integers_are_those_of_the_published_generator():
    """Random123's known answers for philox4x64-10; NumPy counts from the counter after the one that it is given."""
    largest, pi = (1 << 256) - 1, (0x452821E638D01377, 0xBE5466CF34E90C6C)
    counter = 0x243F6A8885A308D3 | 0x13198A2E03707344 << 64 | 0xA4093822299F31D0 << 128 | 0x082EFA98EC4E6C89 << 192
    known = {
        (largest, 0): "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b",
        (counter - 1, pi[0] | pi[1] << 64): "a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6",
    }
    for (before, key), expected in known.items():
        assert [f"{value:016x}" for value in integers(key, before, 4).tolist()] == expected.split()


@given(start=st.integers(0, 300), n=st.integers(0, 300), seed=st.integers(0, 2**70))
def test_a_number_is_a_function_of_its_place(start, n, seed):
    assert np.array_equal(numbers(n, seed, start=start), numbers(start + n, seed)[start:])


def test_the_transform_is_that_of_box_and_muller():
    """In float64, from the same bits: 31 for the radius, one for the sign of the first, 32 for the angle."""
    raw = integers(key_of(9), 0, 200_000)
    raw[:6] = [0, 2**64 - 1, 2**63, 2**32, 2**31, 2**31 - 1]  # where any rounding would show
    found = np.empty(2 * len(raw), np.float32)
    transform(raw, found)
    high, low = raw >> np.uint64(32), raw.astype(np.uint32).view(np.int32)
    v = ((high >> np.uint64(1)).astype(np.float32) + np.float32(0.5)).astype(float) / 2**31
    radius, angle = np.sqrt(-2 * np.log(v)), np.pi * low.astype(float) / 2**32
    sign = 1 - 2 * (high & np.uint64(1)).astype(float)
    np.testing.assert_allclose(found[0::2], sign * radius * np.cos(angle), rtol=0, atol=2e-6)
    np.testing.assert_allclose(found[1::2], radius * np.sin(angle), rtol=0, atol=2e-6)
    assert np.isfinite(found).all()
    assert np.abs(found).max() == pytest.approx(math.sqrt(2 * 32 * math.log(2)), abs=1e-6)


N = 1 << 22


def test_numbers_are_normal_as_far_as_the_tails():
    """4 million numbers: moments to 5 standard errors, Kolmogorov and Smirnov, χ² of 1,000 equal cells, and tails."""
    z = np.concatenate([numbers(N // 4, seed) for seed in range(4)]).astype(float)
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15), (8, 105)):
        variance = scipy.special.factorial2(2 * power - 1) - moment**2
        assert abs((z**power).mean() - moment) < 5 * math.sqrt(variance / N)
    assert scipy.stats.kstest(z, "norm").pvalue > 1e-3
    cells = np.bincount((scipy.special.ndtr(z) * 1000).astype(int).clip(0, 999), minlength=1000)
    assert scipy.stats.chisquare(cells).pvalue > 1e-3
    for edge in (2.5, 3, 4, 4.5):
        expected = 2 * N * scipy.special.ndtr(-edge)
        assert abs((np.abs(z) > edge).sum() - expected) < 5 * math.sqrt(expected)


def test_tails_beyond_five_sigma_have_their_shape():
    """Of the integers that give them: the 31 bits of the radius go down to 2^-32, where it is 6.66.

    Given a radius, the angle is uniform, so P(z > x | r) is known: its mean over all radii is P(z > x), a sum here over
    the least two million of 2^31 values, which hold all above 3.73.
    """
    least = np.arange(1 << 21, dtype=np.uint64) << np.uint64(33)
    along = np.empty(2 << 21, np.float32)
    transform(least, along)  # an angle of 0: the first of each pair is the radius
    radius = along[0::2].astype(float)
    assert radius[-1] < 3.75
    for x in (5, 5.5, 6, 6.4):
        found = (np.arccos(np.minimum(x / radius, 1)) / np.pi).sum() / 2**31
        assert found == pytest.approx(scipy.special.ndtr(-x), rel=0.2 if x > 6 else 0.01)


def test_streams_places_and_halves_are_independent():
    """Correlations of numbers, and of their squares, over keys that differ little, places and halves of integers."""
    n = 1 << 18
    streams = [numbers(n, *path) for path in ((0,), (1,), (2**63,), (0, 1), (1, 0))]
    first = streams[0]
    shifted = [np.roll(first, step) for step in (1, 2, 3, 4, 8, 16, 1024, n // 2)]
    rows = np.stack([*streams, *shifted]).astype(float)
    for values in (rows, rows**2, np.abs(rows)):
        correlation = np.corrcoef(values) - np.eye(len(rows))
        assert np.abs(correlation).max() < 5 / math.sqrt(n)


def test_bits_of_the_integers_are_even_and_change_with_every_bit_of_key_and_counter():
    base = integers(key_of(3), 0, 4096)
    bits = np.unpackbits(base.view(np.uint8)).reshape(4096, 64)
    assert np.abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / 64
    for bit in range(0, 128, 5):
        changed = np.unpackbits((base ^ integers(key_of(3) ^ 1 << bit, 0, 4096)).view(np.uint8)).mean()
        assert abs(changed - 0.5) < 5 * 0.5 / math.sqrt(4096 * 64)


def test_sums_of_columns_go_one_after_the_other():
    rng = np.random.default_rng(0)
    sizes = ((7, 40_000), (3, 7), (3, 40_000))
    columns, factors, start = (rng.standard_normal(size).astype(np.float32) for size in sizes)
    sums = start.copy()
    add_products(sums, columns, factors)
    for row, of_row, expected in zip(sums, factors, start, strict=True):
        for column, factor in zip(columns, of_row, strict=True):
            expected = (expected + (column * factor).astype(np.float32)).astype(np.float32)
        assert np.array_equal(row, expected)


@pytest.mark.parametrize("start", [0, 3, 8, 4097])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 2047, 2049, 10_001])
def test_compiled_loops_give_the_same_bits(start, n):
    compiled = pytest.importorskip("dswag.core.compiled", reason="dswag[fast] is not installed")
    found = np.empty(n, np.float32)
    compiled.fill(found, key_of(4), start)
    assert np.array_equal(found.view(np.int32), numbers(n, 4, start=start).view(np.int32))
    for k in (1, 4, 6):
        columns = np.stack([numbers(n, 5, j) for j in range(k)])
        sums, others = np.stack([found] * 2), np.stack([found] * 2)
        compiled.add_products(sums, columns, columns[:, :2].T.copy() if n > 1 else np.ones((2, k), np.float32))
        add_products(others, columns, columns[:, :2].T.copy() if n > 1 else np.ones((2, k), np.float32))
        assert np.array_equal(sums, others)


def test_compiled_loops_can_be_switched_off(monkeypatch):
    monkeypatch.setenv(fast.SWITCH, "0")
    assert fast.loops(fast.LEAST) is normals
    monkeypatch.setenv(fast.SWITCH, "1")
    assert fast.loops(fast.LEAST - 1) is normals


@pytest.mark.parametrize("error", [ImportError("Numba needs NumPy 2.4 or less"), RuntimeError("cannot cache function")])
def test_a_numba_that_does_not_work_is_done_without(monkeypatch, error):
    def broken(name):
        if name == "dswag.core.compiled":
            raise error
        return normals

    fast._compiled.cache_clear()
    monkeypatch.setattr(fast, "import_module", broken)
    try:
        assert fast.loops(fast.LEAST) is normals
    finally:
        fast._compiled.cache_clear()
