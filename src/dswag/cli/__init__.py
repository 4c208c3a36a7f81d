"""The commands: `dswag train`, `evaluate`, `predict`, `report` and `collect`."""

from dswag.cli.main import main

__all__ = ["main"]
