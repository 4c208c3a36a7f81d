"""Results as JSON, and as files."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dswag.core.atomic_files import write_text


def to_json(value: object) -> str:
    """The value as JSON for people and programs; NaN, which JSON has not, is refused."""
    return json.dumps(value, indent=2, allow_nan=False)


def write(path: Path, text: str) -> None:
    """Replaces the file's content by the text."""
    with writing(path):
        write_text(path, text)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A failure to write the file names it, and says what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror}): choose another output") from error
