"""What a person sees: progress on standard error, tables of scores on standard output."""

import sys
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dswag.evaluation.by_client import ClientScores, quantiles
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


def show(rows: Mapping[str, Mapping[str, str]]) -> None:
    """Writes methods' values by title to standard output, in as many tables as a terminal's width asks for."""
    console = Console()
    titles = next(iter(rows.values())).keys()
    widths = {title: max(len(title), *(len(row[title]) for row in rows.values())) + _RULE for title in titles}
    named = max(map(len, [_METHOD, *rows])) + _RULE + 1
    if not console.is_terminal:
        console.width = named + sum(widths.values())
    for part in _parts(widths, console.width - named):
        table = Table(_METHOD)
        for title in part:
            table.add_column(title, justify="right")
        for method, row in rows.items():
            table.add_row(method, *(row[title] for title in part))
        console.print(table)


def show_scores(scores: Mapping[str, Scores]) -> None:
    """Writes the table of methods to standard output."""
    show({method: {title: text(values) for title, text in _COLUMNS.items()} for method, values in scores.items()})
    number = next(iter(scores.values())).num_examples
    emit(f"{number:,} test images; NLL in nats; ECE over 20 bins of equal mass")


def show_clients(clients: Mapping[str, Sequence[ClientScores]]) -> None:
    """Writes, for each method and score, the quantiles over the clients to standard output."""
    titles = ("worst", "10 %", "median", "90 %", "best")
    show(
        {
            f"{method}, {name}": {
                title: f"{value:.2%}" if score == "accuracy" else f"{value:.4f}"
                for title, value in zip(titles, quantiles(own, score), strict=True)
            }
            for score, name in {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE"}.items()
            for method, own in clients.items()
        }
    )
    sizes = [client.num_examples for client in next(iter(clients.values()))]
    emit(
        f"{len(sizes):,} clients, each with {min(sizes):,} to {max(sizes):,} test images in its own mix of the classes"
    )


def _parts(widths: Mapping[str, int], room: int) -> list[list[str]]:
    """The titles in as few parts as fit the room, in their order; a part has one title at least."""
    parts: list[list[str]] = [[]]
    for title, width in widths.items():
        if parts[-1] and width + sum(widths[other] for other in parts[-1]) > room:
            parts.append([])
        parts[-1].append(title)
    return parts


_METHOD = "method"
_RULE = 3
"""What a column of a table takes beside its text."""

_COLUMNS: Mapping[str, Callable[[Scores], str]] = {
    "accuracy": lambda scores: f"{scores.accuracy:.2%}",
    "NLL": lambda scores: f"{scores.nll:.4f}",
    "ECE": lambda scores: f"{scores.ece_equal_mass:.4f}",
    "Brier": lambda scores: f"{scores.brier:.4f}",
}
