"""The commands: `dswag train`, `evaluate`, `predict` and `report`."""

from dswag.cli.main import main

__all__ = ["main"]
