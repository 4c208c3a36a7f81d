"""How a run's folder is made, found, and held while a run trains into it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Self, TypeVar

from dswag.config import Config, ConfigError
from dswag.core.atomic_files import held
from dswag.runs.files import CONFIG, FILES, RunFolderError
from dswag.runs.outcome import Outcome
from dswag.runs.progress import Progress

ConfigT = TypeVar("ConfigT", bound=Config)


class RunFolder(Progress, Outcome):
    """All files of a run."""

    @classmethod
    def create(cls, path: str | Path, config: Config, *, overwrite: bool = False) -> Self:
        """A folder for a run that is about to start, with its settings; other files in it are left alone.

        Raises:
            RunFolderError: a folder that cannot be written to, or that holds a run already.
        """
        path = Path(path)
        with _writable(path):
            path.mkdir(parents=True, exist_ok=True)
            folder = cls(path)
            folder._check_no_links()
            with folder.held():
                present = [name for name in FILES if (path / name).exists()]
                if present and not overwrite:
                    raise RunFolderError(
                        f"{path} holds a run already ({', '.join(present)}): choose another folder, or pass --overwrite"
                    )
                folder._remove(*present)
                folder.remove_answers()
                folder.remove_leftovers()
                config.to_toml(path / CONFIG)
        return folder

    @classmethod
    def create_next(cls, parent: str | Path, name: str, config: Config) -> Self:
        """A new folder parent/name-n, with the lowest n from 1 that is free; two processes never get the same."""
        parent = Path(parent)
        with _writable(parent):
            parent.mkdir(parents=True, exist_ok=True)
            for number in count(1):
                try:
                    (parent / f"{name}-{number}").mkdir()
                except FileExistsError:
                    continue
                break
        return cls.create(parent / f"{name}-{number}", config)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """The folder of a run that was started before.

        Raises:
            RunFolderError: no folder, or one that holds no run.
        """
        path = Path(path)
        if not path.is_dir():
            raise RunFolderError(f"{path} is no folder: name the folder that dswag train wrote")
        if not (path / CONFIG).is_file():
            raise RunFolderError(f"{path} holds no run, for it has no {CONFIG}: name the folder that dswag train wrote")
        folder = cls(path)
        folder._check_no_links()
        return folder

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else trains into the folder meanwhile.

        Raises:
            RunFolderError: somebody does.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(held(self.path))
            except BlockingIOError as error:
                raise RunFolderError(
                    f"another process trains into {self.path}: let it come to its end, end it, or choose another folder"
                ) from error
            yield

    def config(self, kind: type[ConfigT]) -> ConfigT:
        """The settings of the run."""
        try:
            config = kind.from_toml(self.path / CONFIG)
        except ConfigError as error:
            raise RunFolderError(f"the settings of the run are damaged, or of another version: {error}") from error
        self._check_unchanged(CONFIG)
        return config


class Unwritten(RunFolder):
    """The folder of a run that another process writes: files can be read, but nothing is saved."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """The other holds it."""
        yield

    def _write(self, name: str, write: Callable[[Path], None]) -> None:
        """Leaves it to the other process."""

    def _remove(self, *names: str) -> None:
        """Leaves it to the other process."""

    def remove_leftovers(self) -> None:
        """Leaves it to the other process."""


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be written to ({error.strerror}): choose another folder for the run"
        ) from error
