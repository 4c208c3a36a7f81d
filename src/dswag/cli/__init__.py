"""The commands; `main` takes what follows `dswag` on the command line and returns the exit code.

A command is a class of flags in `options`, a function that does it, a line in `dispatch` and one in `overview`, which
answers `dswag --help` without importing PyTorch. `places` knows where clients run, and `console` shows how far it is.

>>> from dswag.cli import main
>>> main(["trian"])
2
"""

from dswag.cli.main import main

__all__ = ["main"]
