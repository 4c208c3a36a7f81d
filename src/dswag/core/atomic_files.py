"""Writing files so that a reader finds the old content or the new, never half of it."""

import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


class SaveError(OSError):
    """A file that cannot be written; what it held before, it holds still."""


@contextmanager
def replacing(path: Path, *, keep: Path | None = None) -> Iterator[Path]:
    """A path in a temporary folder beside `path`; what is written there takes its place when the context ends well.

    The content is flushed to disk before the rename. After an error `path` is as it was and nothing temporary is left.
    Writers that make temporary files of their own beside their target, as safetensors does, leave them in that folder
    when their process is killed, where `remove_leftovers` finds them whatever their names.

    Permissions are those that `open` would leave: of the file replaced, or for a new one by the umask. If `path` is a
    link, what it leads to is replaced. The old content goes to `keep`, where that is given; a process that dies just
    then leaves it there alone.

    Raises:
        FileNotFoundError: no folder to write into; it is named, and not the temporary one.
        OSError: what is there is no file to replace, such as a folder or /dev/null.
    """
    path = _led_to(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "what is there is no regular file", str(path))
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    temporary = folder / path.name
    try:
        temporary.touch()  # only so can the umask be seen without changing it for all threads
        mode = (path if path.exists() else temporary).stat().st_mode
        temporary.unlink()
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(stat.S_IMODE(mode))
        if keep is not None and path.exists():
            path.replace(keep)
        try:
            temporary.replace(path)
        except BaseException:
            if keep is not None and not path.exists():
                keep.replace(path)
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Removes what processes that were killed while they replaced `path` left beside it."""
    path = _led_to(path)
    for leftover in path.parent.glob(f".{path.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def saving(path: Path, advice: str) -> Iterator[None]:
    """A failure to write `path` within, such as a full disk, is a `SaveError` that names it and says what to do.

    A `SaveError` that comes from within has said so already, and is left as it is.
    """
    try:
        yield
    except SaveError:
        raise
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SaveError(f"{path} cannot be written ({reason}): {advice}") from error


@contextmanager
def held(folder: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """The folder is this process's alone until the context ends, or the process does, however.

    It is so among those that ask for it by this. Windows, and file systems without such locks, hold nothing.

    Args:
        folder: which folder.
        waiting: called where another holds the folder, before waiting for it.

    Raises:
        BlockingIOError: another holds it, and nobody would wait.
    """
    if find_spec("fcntl") is None:
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                raise
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # such as some network file systems
            pass
        yield
    finally:
        os.close(handle)


def prepare_folder(path: Path, advice: str) -> None:
    """Makes the folder, and raises SaveError where no file can be written into it: before work that ends in one."""
    with saving(path, advice):
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file whose bytes are a function of what is in it.

    The writer of safetensors puts the metadata in an order of chance; here they are sorted, in the same space.
    """
    save_file(dict(tensors), path, dict(metadata))
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(size))


def write_text(path: Path, text: str) -> None:
    """Replaces the file's content by the text, in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _led_to(path: Path) -> Path:
    """Where a link leads; the path itself where it is none."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path
