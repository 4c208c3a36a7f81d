"""The commands: `dswag train`, `evaluate`, `calibrate`, `predict`, `report`, `collect`, `compare` and `reproduce`."""

from dswag.cli.main import main

__all__ = ["main"]
