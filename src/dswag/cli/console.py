"""What a person sees: progress on standard error, tables of scores on standard output."""

import sys
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dswag.evaluation.metrics import Scores

_ALL_LINES = 30
_SECONDS_BETWEEN_LINES = 10.0
_HISTORY_SECONDS = 3600.0


class Display(Protocol):
    """Shows how far a command is; a context that ends the showing."""

    def __enter__(self) -> Self:
        """Starts showing."""

    def __exit__(self, *error: object) -> None:
        """Ends showing, also after an error."""

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """From now on it is `what` that is done, in `total` steps, of which some are done already."""

    def advance(self, details: str = "") -> None:
        """One more step is done."""

    def tell(self, details: str) -> None:
        """How far the step is that is being done."""


def display() -> Display:
    """Bars on a terminal, lines elsewhere."""
    console = Console(stderr=True)
    return Bars(console) if console.is_terminal else Lines()


class Bars:
    """A bar for each part of the work, with its details and the time left."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[details]}"),
            console=console,
            speed_estimate_period=_HISTORY_SECONDS,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """Starts another bar below those that stand."""
        self._task = self._progress.add_task(what, total=total, completed=done, details="")

    def advance(self, details: str = "") -> None:
        """Moves the last bar on."""
        self._progress.update(self._task, advance=1, details=details)

    def tell(self, details: str) -> None:
        """Shows it beside the last bar."""
        self._progress.update(self._task, details=details)


class Lines:
    """A line for each step, or one every ten seconds where there are many or one takes long."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """Counts on from those done."""
        self._what, self._total, self._done = what, total, done
        self._last = float("-inf")
        self._told = monotonic()

    def advance(self, details: str = "") -> None:
        """Writes a line, unless there was one just before and there are many to come."""
        self._done += 1
        now = monotonic()
        if self._total <= _ALL_LINES or self._done == self._total or now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            say(f"{self._what} {self._done}/{self._total}" + (f": {details}" if details else ""))

    def tell(self, details: str) -> None:
        """Writes a line, unless there was one in the last ten seconds."""
        now = monotonic()
        if now - max(self._told, self._last) >= _SECONDS_BETWEEN_LINES:
            self._told = now
            say(f"{self._what} {self._done}/{self._total}, now {details}")


def say(line: str) -> None:
    """Writes one line to standard error."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def emit(text: str) -> None:
    """Writes text to standard output, where results go."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def show(table: Table) -> None:
    """Writes a table to standard output, as wide as it is where no terminal bounds it."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, console.measure(table).maximum)
    console.print(table)


def show_scores(scores: Mapping[str, Scores]) -> None:
    """Writes the table of methods to standard output."""
    table = Table("method")
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    for method, values in scores.items():
        table.add_row(method, *(text(values) for text in _COLUMNS.values()))
    show(table)
    number = next(iter(scores.values())).num_examples
    emit(f"{number:,} test images; NLL in nats; ECE over 20 bins of equal mass")


_COLUMNS: Mapping[str, Callable[[Scores], str]] = {
    "accuracy": lambda scores: f"{scores.accuracy:.2%}",
    "NLL": lambda scores: f"{scores.nll:.4f}",
    "ECE": lambda scores: f"{scores.ece_equal_mass:.4f}",
    "Brier": lambda scores: f"{scores.brier:.4f}",
}
