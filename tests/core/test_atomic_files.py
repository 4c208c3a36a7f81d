"""A file's content is the old or the new, never half of it."""

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from dswag.core import atomic_files
from dswag.core.atomic_files import held, remove_leftovers, replacing, save_tensors, write_text


class Interrupted(BaseException):
    """What Ctrl-C is: no `Exception`."""


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_written_takes_the_place_of_the_file(tmp_path):
    path = tmp_path / "state"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"  # until the end
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "state"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '.*nowhere'$"):
        write_text(tmp_path / "nowhere" / "state", "new")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Interrupted])
@pytest.mark.parametrize("before", ["old", None])
def test_after_an_error_all_is_as_it_was(tmp_path, error, before):
    path = tmp_path / "state"
    if before is not None:
        path.write_text(before)

    def write_half():
        with replacing(path) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(error):
        write_half()
    assert (path.read_text() if path.exists() else None) == before
    assert list(tmp_path.iterdir()) == ([] if before is None else [path])


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_after_an_error_between_two_renames_the_old_content_is_in_its_place(tmp_path, monkeypatch, error):
    path, kept = tmp_path / "state", tmp_path / "kept"
    path.write_text("old")
    rename, renamed = Path.replace, []

    def replace(source, target):
        renamed.append(source)
        if len(renamed) == 2:
            raise error
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(error), replacing(path, keep=kept) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "old"


def test_a_writer_that_replaces_the_temporary_itself_is_fine(tmp_path):
    path, other = tmp_path / "state", tmp_path / "other"
    with replacing(path) as temporary:
        other.write_text("new")
        other.replace(temporary)
    assert path.read_text() == "new"


def test_a_writer_that_leaves_no_file_leaves_the_old_one(tmp_path):
    path = tmp_path / "state"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path) as temporary:
        temporary.unlink()
    assert path.read_text() == "old"


def test_the_temporary_lies_in_the_same_folder_hidden(tmp_path):
    # a rename is only atomic within one file system
    with replacing(tmp_path / "state") as temporary:
        temporary.write_text("new")
        assert temporary.parent.parent == tmp_path
        assert temporary.parent.name.startswith(".state.")


KILLED_BY_THE_KERNEL = """
import resource, signal, sys, torch
from pathlib import Path
from dswag.core.atomic_files import replacing, save_tensors
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
with replacing(Path(sys.argv[1])) as temporary:
    save_tensors(temporary, {"theta": torch.ones(10_000)}, {"format": "state"})
"""


def test_what_a_writer_leaves_that_is_killed_in_the_middle_is_found_and_removed(tmp_path):
    """The kernel kills it at the first byte past the limit, while safetensors writes to a file that it named itself."""
    pytest.importorskip("resource")
    path, other = tmp_path / "state.safetensors", tmp_path / ".tmpabcdef"
    path.write_text("old")
    other.write_text("of somebody else")
    killed = subprocess.run([sys.executable, "-c", KILLED_BY_THE_KERNEL, path], check=False)
    assert killed.returncode == -signal.SIGXFSZ
    (left,) = [file for file in tmp_path.rglob("*") if file.is_file() and file not in (path, other)]
    assert left.name.startswith(".tmp")
    assert left.stat().st_size <= 10_000
    remove_leftovers(path)
    assert {file.name for file in tmp_path.iterdir()} == {path.name, other.name}
    assert path.read_text() == "old"


def test_a_new_file_has_the_permissions_that_open_gives(tmp_path, umask):
    opened, replaced = tmp_path / "opened", tmp_path / "replaced"
    opened.touch()
    with replacing(replaced) as temporary:
        temporary.write_text("x")
    assert mode(replaced) == mode(opened) == 0o640


def test_the_umask_of_the_process_is_not_touched(tmp_path, monkeypatch):
    """Another thread that made a file meanwhile would make it for everybody to write."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("changed for all threads"))
    write_text(tmp_path / "state", "x")


def test_a_link_leads_to_the_file_that_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    link, target = tmp_path / "link", tmp_path / "there" / "state"
    link.symlink_to(target)
    for content in ("new", "newer"):
        write_text(link, content)
        assert (link.is_symlink(), target.read_text()) == (True, content)
    (tmp_path / "there" / ".state.x").mkdir()
    remove_leftovers(link)
    assert list((tmp_path / "there").iterdir()) == [target]


def test_what_is_no_file_is_not_replaced(tmp_path):
    """The superuser's `--output /dev/null` must not make it a file."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (pipe, tmp_path):
        with pytest.raises(OSError, match="what is there is no regular file"):
            write_text(place, "x")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.parametrize("permissions", [0o600, 0o644, 0o660])
def test_a_replaced_file_keeps_its_permissions(tmp_path, umask, permissions):
    path = tmp_path / "state"
    path.touch()
    path.chmod(permissions)
    write_text(path, "private")
    assert mode(path) == permissions


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"), replacing(tmp_path / "missing" / "state"):
        pass


def test_text_is_written_in_utf_8_whatever_the_locale(tmp_path):
    path = tmp_path / "text"
    write_text(path, "θ ± σ\n")
    assert path.read_bytes() == "θ ± σ\n".encode()


def test_the_same_tensors_and_metadata_are_the_same_bytes(tmp_path):
    tensors = {"mean": torch.arange(5.0), 'a "name" of θ': torch.arange(3)}
    metadata = {"text": 'θ "quoted"\\\n\t\x01\x7f'} | {f"key {number}": str(number) for number in range(8)}
    contents = set()
    for number in range(5):
        save_tensors(tmp_path / f"{number}.safetensors", tensors, metadata)
        contents.add((tmp_path / f"{number}.safetensors").read_bytes())
    assert len(contents) == 1
    with safe_open(tmp_path / "0.safetensors", framework="pt") as file:
        assert file.metadata() == metadata
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items())


HOLDING = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_is_held_by_one_process_at_a_time_until_it_ends(tmp_path):
    pytest.importorskip("fcntl")
    holding = [sys.executable, "-c", HOLDING, tmp_path]
    other = subprocess.Popen(holding, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError), held(tmp_path):
        pass
    waited = []

    def waiting():
        other.kill()
        other.communicate()
        waited.append(True)

    with held(tmp_path, waiting=waiting):
        assert waited == [True]
        with pytest.raises(BlockingIOError), held(tmp_path):
            pass
    with held(tmp_path):
        assert list(tmp_path.iterdir()) == []


def test_where_a_file_system_has_no_locks_nothing_is_held(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def no_locks(handle, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with held(tmp_path), held(tmp_path):
        pass
    monkeypatch.setattr(atomic_files, "find_spec", lambda name: None)  # as on Windows
    with held(tmp_path), held(tmp_path):
        pass
