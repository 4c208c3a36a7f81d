"""The batch operation equals cropping and flipping one image after another."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dswag.data.augmentation import CropAndFlip

DTYPES = [torch.uint8, torch.int64, torch.float32, torch.float64, torch.bfloat16, torch.bool]


def crop_and_flip_one_by_one(images, padding, generator):
    """The slow reference: the same draws, then a zero canvas, a slice and a flip per image."""
    b, c, h, w = images.shape
    tops, lefts = torch.randint(2 * padding + 1, (2, b), generator=generator)
    flips = torch.randint(2, (b,), generator=generator)
    changed = []
    for image, top, left, flip in zip(images, tops.tolist(), lefts.tolist(), flips.tolist(), strict=True):
        canvas = torch.zeros(c, h + 2 * padding, w + 2 * padding, dtype=images.dtype)
        canvas[:, padding : padding + h, padding : padding + w] = image
        crop = canvas[:, top : top + h, left : left + w]
        changed.append(crop.flip(2) if flip else crop)
    return torch.stack(changed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 4), padding=st.integers(0, 5), seed=st.integers(0, 2**32), last=st.booleans()
)
def test_the_batch_operation_equals_the_loop(dtype, shape, padding, seed, last):
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    if last:
        images = images.to(memory_format=torch.channels_last)
    changed = CropAndFlip(padding)(images, torch.Generator().manual_seed(seed))
    expected = crop_and_flip_one_by_one(images, padding, torch.Generator().manual_seed(seed))
    assert changed.dtype == dtype
    assert torch.equal(changed, expected)


def test_every_shift_is_about_equally_frequent():
    """A bright pixel in the middle shows the shift: 18,000 images, 9 shifts, mean 2,000, std 42; 6 std are allowed."""
    images = torch.zeros(18_000, 1, 9, 9)
    images[:, :, 4, 4] = 1
    places = CropAndFlip(padding=4)(images, torch.Generator().manual_seed(0)).flatten(1).argmax(1)
    for shifts in (places // 9, places % 9):
        assert (shifts.bincount(minlength=9) - 2000).abs().max() < 6 * 42


def test_half_of_the_images_are_mirrored():
    """Without padding nothing else happens: 10,000 images, mean 5,000, std 50; 6 std are allowed."""
    images = torch.tensor([1, 2]).expand(10_000, 1, 1, 2)
    mirrored = CropAndFlip(padding=0)(images, torch.Generator().manual_seed(0))[:, 0, 0, 0] == 2
    assert abs(int(mirrored.sum()) - 5000) < 6 * 50


def test_draws_come_from_the_given_generator_alone():
    images = torch.arange(4 * 3 * 8 * 8, dtype=torch.uint8).view(4, 3, 8, 8)
    before = torch.get_rng_state()
    generator = torch.Generator().manual_seed(1)
    first, second = CropAndFlip()(images, generator), CropAndFlip()(images, generator)
    assert not torch.equal(first, second)
    assert torch.equal(CropAndFlip()(images, generator.manual_seed(1)), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_images_given_stay_as_they_are():
    images = torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    copy = images.clone()
    CropAndFlip()(images, torch.Generator())
    assert torch.equal(images, copy)


def test_a_generator_on_the_cpu_serves_a_batch_on_another_device(second_device):
    images = torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    there = CropAndFlip()(images.to(second_device), torch.Generator().manual_seed(2))
    assert there.device == second_device
    assert torch.equal(there.cpu(), CropAndFlip()(images, torch.Generator().manual_seed(2)))


def test_negative_padding_and_other_shapes_are_refused():
    with pytest.raises(ValueError, match="padding must be at least 0 pixels, got -1"):
        CropAndFlip(-1)
    with pytest.raises(ValueError, match=r"images must have shape \[b, c, h, w\], got \[3, 8, 8\]"):
        CropAndFlip()(torch.zeros(3, 8, 8), torch.Generator())
