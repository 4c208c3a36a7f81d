"""Flower's telemetry, which is on unless told not to."""

import os
import sys

VARIABLE = "FLWR_TELEMETRY_ENABLED"


def switch_off() -> None:
    """No reports from this process to Flower's makers, unless the user has set the variable.

    Flower reads the variable once, when it is imported. Where that was before, as in every app that Flower itself
    starts, its own copy is set too. What Flower reports before it loads an app, only the variable can prevent.
    """
    if VARIABLE in os.environ:
        return
    os.environ[VARIABLE] = "0"
    read = sys.modules.get("flwr.supercore.telemetry")  # of 1.41; elsewhere the variable has to do
    if read is not None and hasattr(read, VARIABLE):
        setattr(read, VARIABLE, "0")
