"""Downloads that appear in the cache whole and checked, or not at all."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

from dswag.core.extras import required

_CHUNK_BYTES = 1 << 20
Content = TypeVar("Content")


class CacheNotWritableError(OSError):
    """A cache into which nothing can be downloaded."""


def fetch(url: str, target: Path, read: Callable[[Path, str], Content], *, progress: bool) -> Content:
    """What `read` makes of the file fetched from the URL; kept as `target` if it raises nothing.

    Raises:
        CacheNotWritableError: a folder of the target that cannot be made or written to.
        OSError: a server that cannot be reached, refuses or breaks off.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        holder = tempfile.TemporaryDirectory(dir=target.parent, prefix=".incomplete-")
    except OSError as error:
        raise CacheNotWritableError(
            f"the cache must be writable to download {target.name}, got {error}: make it so, or put the files into a "
            "folder of your own and name that by data_dir or DSWAG_DATA_DIR"
        ) from error
    with holder as folder, _DownloadBar(target.name, visible=progress) as bar:
        path = Path(folder) / target.name
        pooch = required("pooch", "a download")
        pooch.HTTPDownloader(progressbar=bar, chunk_size=_CHUNK_BYTES)(url, str(path), None)
        content = read(path, url)
        path.replace(target)
    return content


class _DownloadBar:
    """The progress bar whose methods and `total` pooch uses, drawn by rich on standard error."""

    def __init__(self, title: str, *, visible: bool) -> None:
        of, console = required("rich.progress", "a download"), required("rich.console", "a download")
        columns = (of.TextColumn("{task.description}"), of.BarColumn(), of.DownloadColumn(), of.TimeRemainingColumn())
        self._progress = of.Progress(*columns, console=console.Console(stderr=True), disable=not visible)
        self._task = self._progress.add_task(title, total=None)
        self.total = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, num_bytes: int) -> None:
        """Moves the bar on; the total is known by then, or 0 where the server does not tell."""
        self._progress.update(self._task, total=self.total or None, advance=num_bytes)

    def reset(self) -> None:
        """Puts the bar back to its beginning."""
        self._progress.reset(self._task)

    def close(self) -> None:
        """Nothing: the bar goes when its `with` block ends."""
