"""Files are found in the promised order, checked by their content, or fetched whole from the first good mirror."""

import gzip
import os
import socket

import pytest

from dswag.data import sources
from dswag.data.downloads import CacheNotWritableError
from dswag.data.formats import DataFormatError
from dswag.data.sources import DataNotFoundError, read_files

IMAGES = "t10k-images-idx3-ubyte"
LABELS = "t10k-labels-idx1-ubyte"
ARCHIVE = "cifar-10-binary.tar.gz"


def put(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def archive(make_tar_gz, cifar_files):
    return make_tar_gz({f"cifar-10-batches-bin/{name}": content for name, content in cifar_files.items()})


@pytest.mark.parametrize("folder", ["tiny", "Tiny/raw"])
@pytest.mark.parametrize("level", [None, 1, 9])
def test_plain_files_and_gz_files_of_any_packing_are_the_same(level, folder, tmp_path, cache, idx_files, make_release):
    for name, content in idx_files.items():
        if level is None:
            put(tmp_path / folder, name, content)
        else:
            put(tmp_path / folder, f"{name}.gz", gzip.compress(content, level))
    assert read_files(make_release(idx_files), [LABELS, IMAGES], tmp_path) == {
        LABELS: idx_files[LABELS],
        IMAGES: idx_files[IMAGES],
    }


def test_an_archive_and_its_members_are_the_same(tmp_path, cache, cifar_files, archive, make_release):
    release = make_release(cifar_files, archive=ARCHIVE)
    put(tmp_path / "packed", ARCHIVE, archive)
    for name, content in cifar_files.items():
        put(tmp_path / "unpacked/tiny", name, content)
    assert read_files(release, list(cifar_files), tmp_path / "packed") == cifar_files
    assert read_files(release, list(cifar_files), tmp_path / "unpacked") == cifar_files


def test_places_are_searched_in_the_promised_order(tmp_path, cache, make_release, monkeypatch):
    """Every place holds one file that the places before it lack; a place after it holds a wrong one of that name."""
    order = [tmp_path / "argument", tmp_path / "variable", cache, tmp_path / "debian"]
    monkeypatch.setenv("DSWAG_DATA_DIR", str(tmp_path / "variable"))
    contents = {f"file-{number}": bytes([number]) for number in range(4)}
    for number, place in enumerate(order):
        for earlier in range(number):
            put(place / "tiny", f"file-{earlier}", b"wrong")
        put(place / "tiny", f"file-{number}", contents[f"file-{number}"])
    assert read_files(make_release(contents), list(contents), tmp_path / "argument", download=False) == contents


@pytest.mark.parametrize("origin", ["data_dir", "DSWAG_DATA_DIR"])
def test_a_data_folder_that_does_not_exist_is_an_error(origin, tmp_path, cache, idx_files, make_release, monkeypatch):
    monkeypatch.setenv("DSWAG_DATA_DIR", str(tmp_path / "typo") if origin == "DSWAG_DATA_DIR" else "")
    with pytest.raises(DataNotFoundError, match=rf"{origin} must be an existing folder, got '.*typo'"):
        read_files(make_release(idx_files), [LABELS], tmp_path / "typo" if origin == "data_dir" else None)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda packed: packed[:-20], "must be a whole gzip file"),
        (lambda packed: b"", "must be a whole gzip file"),
        (lambda packed: gzip.compress(gzip.decompress(packed)[:-1]), "is not .* of tiny as published.*SHA-256"),
        (lambda packed: gzip.compress(b"another data set"), r".* got [0-9a-f]{64} \(16 bytes\)"),
    ],
)
def test_a_damaged_file_on_disk_is_named_and_never_replaced_in_silence(
    damage, message, tmp_path, cache, idx_files, packed, make_release, start_mirror
):
    mirror = start_mirror(packed)
    put(tmp_path / "tiny", f"{LABELS}.gz", damage(packed[f"{LABELS}.gz"]))
    with pytest.raises(DataFormatError, match=rf"tiny/{LABELS}\.gz {message}"):
        read_files(make_release(idx_files, mirror.url), [LABELS], tmp_path)
    assert not mirror.requested


def test_a_wrong_member_is_named_with_its_archive(tmp_path, cache, cifar_files, make_release, make_tar_gz):
    put(tmp_path, ARCHIVE, make_tar_gz(cifar_files | {"test_batch.bin": b"other"}))
    with pytest.raises(DataFormatError, match=rf"test_batch\.bin in .*{ARCHIVE} is not test_batch\.bin of tiny"):
        read_files(make_release(cifar_files, archive=ARCHIVE), list(cifar_files), tmp_path)


def test_fetched_files_are_kept_and_not_fetched_again(cache, idx_files, packed, make_release, start_mirror):
    mirror = start_mirror(packed)
    release = make_release(idx_files, mirror.url)
    assert read_files(release, list(idx_files)) == idx_files
    assert files_below(cache) == sorted(f"tiny/{name}" for name in packed)
    assert read_files(release, list(idx_files)) == idx_files
    assert sorted(mirror.requested) == sorted(f"/{name}" for name in packed)


def test_only_missing_files_are_fetched(tmp_path, cache, idx_files, packed, make_release, start_mirror):
    mirror = start_mirror(packed)
    put(tmp_path / "tiny", IMAGES, idx_files[IMAGES])
    read_files(make_release(idx_files, mirror.url), [IMAGES, LABELS], tmp_path)
    assert mirror.requested == [f"/{LABELS}.gz"]


def test_a_fetched_archive_is_kept_whole(cache, cifar_files, archive, make_release, start_mirror):
    mirror = start_mirror({ARCHIVE: archive})
    release = make_release(cifar_files, mirror.url, archive=ARCHIVE)
    assert read_files(release, ["test_batch.bin"]) == {"test_batch.bin": cifar_files["test_batch.bin"]}
    assert files_below(cache) == [ARCHIVE]
    assert read_files(release, list(cifar_files)) == cifar_files
    assert mirror.requested == [f"/{ARCHIVE}"]


def test_a_fetched_archive_with_a_wrong_member_is_refused_whole(
    cache, cifar_files, make_tar_gz, make_release, start_mirror
):
    mirror = start_mirror({ARCHIVE: make_tar_gz(cifar_files | {"data_batch_3.bin": b"other"})})
    with pytest.raises(DataNotFoundError, match=r"data_batch_3\.bin in http.* is not data_batch_3\.bin of tiny"):
        read_files(make_release(cifar_files, mirror.url, archive=ARCHIVE), ["test_batch.bin"])
    assert files_below(cache) == []


FAILURES = {
    "wrong content": ({"files": {f"{LABELS}.gz": gzip.compress(b"other")}}, "is not .* as published"),
    "not a gz file": ({"files": {f"{LABELS}.gz": b"<html>sign in</html>"}}, "must be a whole gzip file"),
    "interrupted": ({"cut_after": 20}, "(IncompleteRead|Connection broken)"),
    "server error": ({"status": 500}, "500 Server Error"),
    "no such file": ({"files": {}}, "404 Client Error"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_download_says_why_and_leaves_nothing(failure, cache, idx_files, packed, make_release, start_mirror):
    behavior, message = FAILURES[failure]
    mirror = start_mirror(**{"files": packed, **behavior})
    with pytest.raises(DataNotFoundError, match=rf"{mirror.url}{LABELS}\.gz: .*{message}"):
        read_files(make_release(idx_files, mirror.url), [LABELS])
    assert list(cache.rglob("*")) == [cache / "tiny"]


@pytest.mark.parametrize("failure", FAILURES)
def test_the_second_mirror_serves_when_the_first_fails(failure, cache, idx_files, packed, make_release, start_mirror):
    first, second = start_mirror(**{"files": packed, **FAILURES[failure][0]}), start_mirror(packed)
    assert read_files(make_release(idx_files, first.url, second.url), [LABELS]) == {LABELS: idx_files[LABELS]}
    assert files_below(cache) == [f"tiny/{LABELS}.gz"]


def test_a_dead_mirror_is_passed_over(cache, idx_files, packed, make_release, start_mirror):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{free.getsockname()[1]}/"
        release = make_release(idx_files, dead, start_mirror(packed).url)
        assert read_files(release, [LABELS]) == {LABELS: idx_files[LABELS]}


def test_after_a_file_that_no_mirror_gives_no_other_is_tried(cache, idx_files, make_release, start_mirror):
    mirror = start_mirror({})
    with pytest.raises(DataNotFoundError):
        read_files(make_release(idx_files, mirror.url), list(idx_files))
    assert len(mirror.requested) == 1


def test_an_interrupt_leaves_nothing_half_written(cache, idx_files, packed, make_release, start_mirror, monkeypatch):
    def interrupted(*_, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "gunzip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read_files(make_release(idx_files, start_mirror(packed).url), [LABELS])
    assert list(cache.rglob("*")) == [cache / "tiny"]


def test_absent_data_say_where_they_were_sought_and_what_to_do(tmp_path, cache, idx_files, make_release, monkeypatch):
    (tmp_path / "argument").mkdir()
    (tmp_path / "variable").mkdir()
    monkeypatch.setenv("DSWAG_DATA_DIR", str(tmp_path / "variable"))
    with pytest.raises(DataNotFoundError) as caught:
        read_files(make_release(idx_files, "http://127.0.0.1:9/"), [LABELS], tmp_path / "argument", download=False)
    assert str(caught.value).splitlines() == [
        f"data set tiny was not found: no {LABELS} (plain or .gz)",
        "looked in:",
        *(
            f"  {place / folder} ({origin})"
            for place, origin in [
                (tmp_path / "argument", "data_dir"),
                (tmp_path / "variable", "DSWAG_DATA_DIR"),
                (cache, "the cache"),
                (tmp_path / "debian", "Debian's folder"),
            ]
            for folder in ("tiny", "Tiny/raw")
        ),
        "tried to fetch it from:",
        "  nowhere: downloading is switched off",
        "what to do: run again with a network, "
        "or copy the files into DIR/tiny and name DIR by data_dir or DSWAG_DATA_DIR",
    ]


def test_an_absent_archive_is_listed_too(cache, cifar_files, make_release):
    with pytest.raises(DataNotFoundError, match=rf"unpacked or in {ARCHIVE}\)[^$]*{cache}/{ARCHIVE} \(the cache\)"):
        read_files(make_release(cifar_files, archive=ARCHIVE), ["test_batch.bin"], download=False)


def test_a_cache_that_cannot_be_written_to_is_an_error_before_any_download(
    cache, idx_files, packed, make_release, start_mirror
):
    cache.write_text("a file where the folder should be")
    mirror = start_mirror(packed)
    with pytest.raises(CacheNotWritableError, match=rf"writable to download {LABELS}\.gz, got .*: make it so, or put"):
        read_files(make_release(idx_files, mirror.url), [LABELS])
    assert not mirror.requested


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_cache_is_an_error(cache, idx_files, packed, make_release, start_mirror):
    cache.mkdir()
    cache.chmod(0o500)
    with pytest.raises(CacheNotWritableError, match="Permission denied"):
        read_files(make_release(idx_files, start_mirror(packed).url), [LABELS])


@pytest.mark.parametrize("progress", [False, True])
def test_progress_is_shown_on_standard_error_only_when_asked_for(
    progress, cache, idx_files, packed, make_release, start_mirror, capsys
):
    read_files(make_release(idx_files, start_mirror(packed).url), [LABELS], progress=progress)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert (f"{LABELS}.gz" in printed.err) == progress
