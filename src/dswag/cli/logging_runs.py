"""A run's rounds and scores as numbers by name, for the loggers of `dswag.runs.loggers`."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TypeVar

from dswag.lab.experiments.scoring import Scored
from dswag.runs.loggers import Log
from dswag.runs.schema import ExploreRecord, RoundRecord

EventT = TypeVar("EventT")


def logged(events: Iterable[EventT], log: Log) -> Iterator[EventT]:
    """The events as they are, their numbers sent to a log on the way; scores have the last round as their step."""
    step = 0
    for event in events:
        match event:
            case RoundRecord():
                step = event.round
                numbers = {"loss": event.loss, "seconds": event.seconds, "bytes up": float(event.bytes_up)}
                if event.test_accuracy is not None:
                    numbers["test accuracy"] = event.test_accuracy
                log({f"phase 1/{name}": value for name, value in numbers.items()}, step)
            case ExploreRecord():
                log({"phase 2/seconds": event.seconds, "phase 2/bytes up": float(event.bytes_up)}, step)
            case Scored():
                scores = {name: value for name, value in asdict(event.scores).items() if name != "num_examples"}
                method = event.method.replace("'", "")  # which MLflow refuses in names
                log({f"{method}/{name}": value for name, value in scores.items()}, step)
        yield event
