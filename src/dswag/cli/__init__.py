"""The commands: `dswag train`, `evaluate`, `predict`, `calibrate`, `report` and `collect`."""

from dswag.cli.main import main

__all__ = ["main"]
