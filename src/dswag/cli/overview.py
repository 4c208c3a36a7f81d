"""What is answered without PyTorch: which commands there are, which version this is, and what was mistyped."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import version

COMMANDS = {
    "train": "Train on a known data set, score all methods, and write everything into a run folder.",
    "compare": "Train many methods on one problem with one budget, and compare their scores.",
    "evaluate": "Score a run again, for example with more draws.",
    "calibrate": "Fit a run's posterior to the examples that its clients held out.",
    "predict": "Predict the classes of images, with their uncertainties.",
    "report": "Write one HTML page about one or several runs.",
    "check": "Check that the files of a run are whole and as they were saved.",
    "collect": "Make a posterior from checkpoints of any model.",
    "reproduce": "Reproduce the paper's figures and tables.",
}


@dataclass(frozen=True)
class Answer:
    """What is printed, and whether because the arguments cannot be meant."""

    text: str
    fault: bool = False


def answer(arguments: Sequence[str]) -> Answer | None:
    """What there is to say without running a command; None if the first argument is one."""
    first = arguments[0] if arguments else ""
    if first in COMMANDS:
        return None
    if first in ("--help", "-h"):
        return Answer(_overview())
    if first == "--version":
        return Answer(f"dswag {version('dswag')}")
    if not first:
        return Answer(_overview(), fault=True)
    near = get_close_matches(first, COMMANDS, n=1)
    meant = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}"
    return Answer(f"error: there is no command {first}: {meant}", fault=True)


def _overview() -> str:
    listed = "\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items())
    return f"""usage: dswag COMMAND [flags]

Distributed SWAG: a Gaussian over weights, from clients that train where their data are.

{listed}

Each command tells its flags with dswag COMMAND --help, and dswag --version which version this is.
Set DSWAG_DEBUG=1 in the environment to see tracebacks of errors."""
