"""Writing files so that a reader finds the old content or the new, never half of it."""

import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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

    Permissions are those that `open` would leave: of the file replaced, or for a new one by the umask. The old content
    goes to `keep`, where that is given; a process that dies just then leaves it there alone.

    Raises:
        FileNotFoundError: no folder to write into; it is named, and not the temporary one.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    temporary = folder / path.name
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~_umask())
        if keep is not None and path.exists():
            path.replace(keep)
        temporary.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Removes what processes that were killed while they replaced `path` left beside it."""
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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
