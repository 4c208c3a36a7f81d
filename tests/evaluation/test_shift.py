"""Corruptions against SciPy, closed forms, and what must hold for each of them."""

import math

import pytest
import torch
from scipy import ndimage

from dswag.core.randomness import generator_for
from dswag.evaluation.shift import BLUR, CONTRAST, CORRUPTIONS, NOISE, ROTATION, STRENGTHS, corrupt


def images(n=3, c=2, h=12, w=10, seed=0):
    return torch.randint(0, 256, (n, c, h, w), generator=generator_for(seed), dtype=torch.uint8)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_blur_is_that_of_scipy(strength):
    given = images()
    expected = ndimage.gaussian_filter(given.double().numpy(), BLUR[strength - 1], axes=(2, 3), mode="nearest")
    differences = corrupt(given, "blur", strength).double() - torch.from_numpy(expected)
    assert differences.abs().max() <= 0.501  # rounding to whole numbers, and float32


@pytest.mark.parametrize(("height", "width"), [(31, 31), (31, 45)])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_rotation_is_that_of_scipy_to_one_side_or_the_other(strength, height, width):
    """Within 9 of the border, SciPy and PyTorch fade into the black outside differently; so it is black already."""
    given = torch.zeros(8, 1, height, width, dtype=torch.uint8)
    given[:, :, 9 : height - 9, 9 : width - 9] = images(8, 1, height - 18, width - 18)
    rotated = corrupt(given, "rotation", strength).double()
    sides = set()
    for before, after in zip(given[:, 0].double().numpy(), rotated[:, 0], strict=True):
        turned = [
            torch.from_numpy(ndimage.rotate(before, side * ROTATION[strength - 1], order=1, reshape=False))
            for side in (1, -1)
        ]
        distances = [float((after - expected).abs().max()) for expected in turned]
        assert min(distances) <= 0.51
        sides.add(distances.index(min(distances)))
    assert sides == {0, 1}


@pytest.mark.parametrize("strength", STRENGTHS)
def test_noise_has_its_standard_deviation_and_no_bias(strength):
    """Of mid-gray; the share of pixels beyond one standard deviation that are not cut off tells the size.

    5 standard errors, and half a gray level for the rounding.
    """
    gray = torch.full((40, 1, 50, 50), 128, dtype=torch.uint8)
    noisy = corrupt(gray, "noise", strength).double() / 255
    n, sigma = noisy.numel(), NOISE[strength - 1]
    assert abs(float(noisy.mean()) - 128 / 255) < 5 * sigma / n**0.5 + 0.5 / 255
    deviations = (noisy - 128 / 255).abs()
    half = 0.5 * sigma  # where nothing is cut off, at any strength
    expected = math.erf(0.5 / math.sqrt(2))
    density = 2 * math.exp(-0.125) / math.sqrt(2 * math.pi) / sigma
    tolerance = 5 * math.sqrt(expected * (1 - expected) / n) + density * 0.5 / 255
    assert float((deviations < half).double().mean()) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_contrast_keeps_the_mean_of_each_image_and_scales_the_distance_from_it(strength):
    given = images()
    for image, after in zip(given.double(), corrupt(given, "contrast", strength).double(), strict=True):
        expected = image.mean() + CONTRAST[strength - 1] * (image - image.mean())
        assert (after - expected).abs().max() <= 0.501  # rounding to whole numbers, and float32


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_stronger_is_further_away_and_the_seed_decides_all(corruption):
    given = images(h=28, w=28)
    changed = [corrupt(given, corruption, strength, seed=1) for strength in STRENGTHS]
    assert all(each.shape == given.shape and each.dtype == torch.uint8 for each in changed)
    again = [corrupt(given, corruption, strength, seed=1) for strength in STRENGTHS]
    assert all(map(torch.equal, changed, again))
    distances = [float((each.double() - given.double()).square().mean()) for each in changed]
    assert distances[0] > 0
    if corruption != "rotation":  # of unrelated pixels any turn is as far as another
        assert distances == sorted(distances)


@pytest.mark.parametrize("corruption", ["noise", "rotation"])
def test_other_seeds_draw_otherwise(corruption):
    given = images(n=20)
    assert not torch.equal(corrupt(given, corruption, 3, seed=1), corrupt(given, corruption, 3, seed=2))


@pytest.mark.parametrize(
    ("given", "corruption", "strength", "message"),
    [
        (images(), "fog", 1, "corruption must be one of noise, blur, rotation, contrast, got 'fog'"),
        (images(), "blur", 6, "strength must be a whole number from 1 to 5, got 6"),
        (images().float(), "blur", 1, r"images must be uint8 \[n, c, h, w\], got torch.float32 \[3, 2, 12, 10\]"),
        (images()[0], "blur", 1, r"images must be uint8 \[n, c, h, w\], got torch.uint8 \[2, 12, 10\]"),
    ],
)
def test_what_cannot_be_corrupted_is_refused(given, corruption, strength, message):
    with pytest.raises(ValueError, match=message):
        corrupt(given, corruption, strength)
