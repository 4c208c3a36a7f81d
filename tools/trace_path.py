"""Prints how many modules and functions of the package a training and a prediction pass: how much there is to read.

    python tools/trace_path.py

Every function that is entered counts once, with those of nested functions, properties and methods; comprehensions and
what runs while modules are imported do not.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

import dswag

PACKAGE = str(Path(dswag.__file__).parent)
ANONYMOUS = ("<module>", "<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>", "<lambda>")


def entered(function: Callable[[], Any]) -> set[tuple[str, str]]:
    """(module, function) of all that is entered in this thread, which must do all the work."""
    found: set[tuple[str, str]] = set()

    def watch(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and code.co_name not in ANONYMOUS:
            found.add((code.co_filename.removeprefix(PACKAGE), code.co_qualname))

    sys.setprofile(watch)
    try:
        function()
    finally:
        sys.setprofile(None)
    return found


def main() -> None:
    """Prints a line for each path, and with any argument all that it passes."""
    torch.set_num_threads(1)  # one worker, which is this thread
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    plain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    clients = [(torch.randn(20, 4), torch.randint(3, (20,))) for _ in range(3)]
    config = dswag.Config(clients=3, rounds=2, batch_size=10, samples=4)
    inputs = torch.randn(7, 4)
    for each in (model, plain):  # what is imported when it is first needed, and what is made once
        dswag.train(each, clients, config).predictive(each, inputs)
    run = dswag.train(model, clients, config)
    for name, path in (
        ("dswag.train", lambda: dswag.train(plain, clients, config)),
        ("predictive with BatchNorm", lambda: run.predictive(model, inputs)),
    ):
        passed = entered(path)
        print(f"{name}: {len({module for module, _ in passed})} modules, {len(passed)} functions")
        for module, function in sorted(passed) if sys.argv[1:] else ():
            print(f"    {module} {function}")


if __name__ == "__main__":
    main()
