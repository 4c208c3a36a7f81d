"""Readers give what the formats' descriptions say, and nothing but DataFormatError for anything else."""

import gzip
import io
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dswag.data.formats import DataFormatError, gunzip, read_cifar, read_idx, read_idx_pair, tar_members

IMAGES = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, *range(24)])
LABELS = bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9])
CIFAR = bytes([3]) + bytes(range(256)) * 12 + bytes([8]) + bytes(3072)

READERS = {
    "gunzip": lambda content: gunzip(content, "file"),
    "tar_members": lambda content: tar_members(io.BytesIO(content), ["first.bin", "second.bin"], "file"),
    "read_idx": lambda content: read_idx(content, "file"),
    "read_cifar": lambda content: read_cifar(content, "file"),
}


@pytest.fixture(scope="module")
def archive(make_tar_gz):
    return make_tar_gz({"folder/first.bin": b"one", "folder/second.bin": b"two"})


@pytest.fixture(scope="module")
def valid(archive):
    """A whole file for every reader."""
    return {"gunzip": gzip.compress(IMAGES), "tar_members": archive, "read_idx": IMAGES, "read_cifar": CIFAR}


def test_idx_gives_the_array_in_the_order_of_its_bytes():
    assert read_idx(IMAGES, "file").tolist() == np.arange(24).reshape(2, 3, 4).tolist()


def test_idx_pair_gives_one_channel_and_int64_labels():
    images, labels = read_idx_pair(IMAGES, LABELS, "tiny")
    assert (images.shape, images.dtype) == ((2, 1, 3, 4), torch.uint8)
    assert (labels.tolist(), labels.dtype) == ([7, 9], torch.int64)


def test_cifar_gives_planes_in_the_order_red_green_blue():
    images, labels = read_cifar(CIFAR, "file")
    assert (images.shape, images.dtype, labels.tolist()) == ((2, 3, 32, 32), torch.uint8, [3, 8])
    assert images[0, 1, 2, 5] == (1024 + 2 * 32 + 5) % 256
    assert not images[1].any()


def test_cifar_takes_the_last_of_several_labels():
    record = bytes([19, 99]) + bytes(3072)
    assert read_cifar(record, "file", label_bytes=2)[1].tolist() == [99]


def test_members_are_found_in_any_folder_of_the_archive(archive):
    assert tar_members(io.BytesIO(archive), ["second.bin"], "file") == {"second.bin": b"two"}


def test_tensors_own_their_memory():
    images = read_idx(IMAGES, "file")
    images.zero_()
    assert read_idx(IMAGES, "file").any()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "IDX file of bytes.*got an empty file"),
        (b"\x1f\x8b\x08\x00", "IDX file of bytes.*got 1f 8b 08 00"),
        (struct.pack(">HBBI", 0, 13, 1, 2) + bytes(8), "IDX file of bytes.*got 00 00 0d 01"),
        (IMAGES[:9], "header of 16 bytes, got 9 bytes: it is truncated"),
        (IMAGES[:-1], r"must have 40 bytes for shape \[2, 3, 4\], got 39"),
        (IMAGES + b"\0", r"must have 40 bytes for shape \[2, 3, 4\], got 41"),
        (struct.pack(">HBB2I", 0, 8, 2, 0, 5), r"something in it, got \[0, 5\]"),
    ],
)
def test_a_bad_idx_file_says_what_was_expected(content, message):
    with pytest.raises(DataFormatError, match=rf"images\.idx .*{message}"):
        read_idx(content, "images.idx")


def test_idx_files_that_do_not_belong_together_are_refused():
    with pytest.raises(DataFormatError, match=r"got \[2, 3, 4\] and \[3\]"):
        read_idx_pair(IMAGES, bytes([0, 0, 8, 1, 0, 0, 0, 3, 1, 1, 1]), "tiny")


@pytest.mark.parametrize("content", [b"", CIFAR[:-1], CIFAR + b"\0"])
def test_a_bad_cifar_file_says_what_was_expected(content):
    with pytest.raises(DataFormatError, match=rf"batch\.bin must be whole records of 3073 bytes, got {len(content)}"):
        read_cifar(content, "batch.bin")


def test_what_unpacks_to_more_than_is_known_is_unpacked_no_further(archive, monkeypatch):
    bomb = gzip.compress(bytes(1 << 24))
    read, most = gzip.GzipFile.read, 0

    def watched(self, size=-1):
        nonlocal most
        found = read(self, size)
        most = max(most, len(found))
        return found

    monkeypatch.setattr(gzip.GzipFile, "read", watched)
    with pytest.raises(DataFormatError, match=r"digits\.gz must unpack to at most 1,000 bytes"):
        gunzip(bomb, "digits.gz", largest=1000)
    assert most == 1001
    assert gunzip(gzip.compress(bytes(1000)), "digits.gz", largest=1000) == bytes(1000)
    with pytest.raises(DataFormatError, match=r"a\.tar\.gz must hold files of at most 2 bytes, got .* of 3"):
        tar_members(io.BytesIO(archive), ["second.bin"], "a.tar.gz", largest=2)


def test_an_archive_without_a_member_names_it(archive):
    with pytest.raises(DataFormatError, match=r"a\.tar\.gz must hold first\.bin, third\.bin; third\.bin not in it"):
        tar_members(io.BytesIO(archive), ["first.bin", "third.bin"], "a.tar.gz")


@pytest.mark.parametrize("reader", READERS)
@given(content=st.binary(max_size=2000))
def test_arbitrary_bytes_give_only_our_error(reader, content):
    try:
        READERS[reader](content)
    except DataFormatError as error:
        assert str(error).startswith("file must")  # noqa: PT017


@pytest.mark.parametrize("reader", READERS)
@given(data=st.data())
def test_a_damaged_file_is_read_or_gives_only_our_error(reader, valid, data):
    content = bytearray(valid[reader])
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] = data.draw(st.integers(0, 255))
    try:
        READERS[reader](bytes(content))
    except DataFormatError as error:
        assert str(error).startswith("file must")  # noqa: PT017


@pytest.mark.parametrize("reader", READERS)
@given(data=st.data())
def test_a_truncated_file_is_refused(reader, valid, data):
    content = valid[reader]
    # One of the two CIFAR records is a whole file too; of the zeros that end a tar file, tarfile reads only the first.
    unseen = {"read_cifar": len(content) - 3073, "tar_members": 60}.get(reader, 0)
    length = data.draw(st.integers(0, len(content) - 1 - unseen))
    with pytest.raises(DataFormatError, match="file must"):
        READERS[reader](content[:length])
