"""Images come out of files as they went in, and what the model does not take is refused by name."""

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from dswag.cli.inputs import InputError, read_images

GRAY, COLOR = (1, 4, 5), (3, 4, 5)


def pixels(*shape):
    return np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)


@pytest.fixture
def save(tmp_path):
    def save(array, name="x.npy"):
        path = tmp_path / name
        np.save(path, array) if path.suffix == ".npy" else np.savez(path, **array)
        return path

    return save


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 1, 4, 5), (2, 4, 5, 1)])
def test_gray_arrays_of_every_form_are_the_same_images(save, shape):
    names, images = read_images([save(pixels(*shape))], GRAY)
    assert names == ("x.npy[0]", "x.npy[1]")
    assert torch.equal(images, torch.from_numpy(pixels(2, 1, 4, 5)))


def test_color_arrays_may_have_channels_first_or_last(save):
    first = pixels(2, 3, 4, 5)
    for array in (first, first.transpose(0, 2, 3, 1)):
        assert torch.equal(read_images([save(array)], COLOR)[1], torch.from_numpy(first))


def test_images_as_wide_as_there_are_channels_are_read_in_the_model_s_order(save):
    square = pixels(2, 3, 3, 3)
    assert torch.equal(read_images([save(square)], (3, 3, 3))[1], torch.from_numpy(square))


def test_archives_hold_one_array_or_one_named_images(save):
    array = pixels(2, 4, 5)
    for content in ({"a": array}, {"labels": np.zeros(2), "images": array}):
        assert read_images([save(content, "x.npz")], GRAY)[1].shape == (2, 1, 4, 5)
    with pytest.raises(InputError, match=r"x.npz must hold one array, or one named images, got a, b"):
        read_images([save({"a": array, "b": array}, "x.npz")], GRAY)


def test_image_files_are_converted_to_the_model_s_channels(tmp_path):
    gray, color = pixels(4, 5), pixels(4, 5, 3)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    Image.fromarray(color).save(tmp_path / "color.png")
    names, images = read_images([tmp_path / "gray.png", tmp_path / "color.png"], COLOR)
    assert names == ("gray.png", "color.png")
    assert torch.equal(images[0], torch.from_numpy(gray).expand(3, 4, 5))
    assert torch.equal(images[1], torch.from_numpy(color).permute(2, 0, 1))
    assert torch.equal(read_images([tmp_path / "gray.png"], GRAY)[1][0, 0], torch.from_numpy(gray))


def test_other_sizes_are_refused_or_resized_alike_from_files_and_arrays(tmp_path, save):
    image = pixels(8, 10, 3)
    Image.fromarray(image).save(tmp_path / "large.png")
    paths = [tmp_path / "large.png", save(image[None])]
    for path in paths:
        with pytest.raises(InputError, match=rf"{path.name}.* must be 4 x 5 for this model, got 8 x 10: .*--resize"):
            read_images([path], COLOR)
    _, images = read_images(paths, COLOR, resize=True)
    assert images.shape == (2, *COLOR)
    assert torch.equal(images[0], images[1])


@pytest.mark.parametrize(
    ("array", "shape", "message"),
    [
        (pixels(2, 4, 5) / 255, GRAY, "must hold uint8 from 0 to 255, got float64"),
        (pixels(2, 4, 5), COLOR, r"must have shape \[n, 3, h, w\] or \[n, h, w, 3\], got \[2, 4, 5\]"),
        (pixels(4, 5), GRAY, r"must have shape \[n, h, w\], .*, got \[4, 5\]"),
        (pixels(2, 3, 9, 3), COLOR, "channels may be the second axis or the last"),
        (pixels(0, 4, 5), GRAY, r"holds no images: its shape is \[0, 4, 5\]"),
        (np.uint8(3), GRAY, "holds no images"),
        (np.array([{}], dtype=object), GRAY, "holds something else than numbers: Object arrays cannot be loaded"),
    ],
)
def test_arrays_that_are_no_images_are_refused(save, array, shape, message):
    with pytest.raises(InputError, match=message):
        read_images([save(array)], shape)


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.png"])
def test_damaged_and_absent_files_are_named(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(InputError, match=f"{name} does not exist"):
        read_images([path], GRAY)
    for content in (b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_images([path], GRAY)


def test_truncated_files_are_named(tmp_path, save):
    Image.fromarray(pixels(40, 50)).save(tmp_path / "x.png")
    for path in (tmp_path / "x.png", save(pixels(9, 4, 5)), save({"images": pixels(9, 4, 5)}, "x.npz")):
        path.write_bytes(path.read_bytes()[:-60])
        with pytest.raises(InputError, match=path.name):
            read_images([path], GRAY, resize=True)


def test_folders_and_deep_images_are_refused(tmp_path):
    with pytest.raises(InputError, match="is a folder: name the files in it"):
        read_images([tmp_path], GRAY)
    Image.fromarray(np.full((4, 5), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match="more than 8 bits"):
        read_images([tmp_path / "deep.png"], GRAY)


def test_a_member_of_an_archive_that_is_no_array_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "images.npz", "w") as archive:
        archive.writestr("images", b"no array")
    with pytest.raises(InputError, match=r"images.npz holds something else than an array: save it with numpy.savez"):
        read_images([tmp_path / "images.npz"], (1, 4, 4))
