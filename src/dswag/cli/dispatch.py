"""Which command does what, and which of their errors say what to do."""

from dswag.cli import commands
from dswag.cli.calibrating import calibrate
from dswag.cli.checking import check
from dswag.cli.collecting import collect
from dswag.cli.comparing import compare
from dswag.cli.options import Calibrate, Check, Collect, Compare, Evaluate, Options, Predict, Report, Reproduce, Train
from dswag.cli.reproducing import reproduce_figures
from dswag.client.stability import DivergenceError
from dswag.engines.ranks import RankError
from dswag.federation.contract import ClientError
from dswag.federation.round_trip import TooFewClientsError

EXPECTED = (ClientError, TooFewClientsError, DivergenceError, RankError, ValueError, OSError)
"""Errors that are no defects."""


def run(options: Options) -> None:
    """Does what the options ask for."""
    match options:
        case Compare():
            compare(options)
        case Train():
            commands.train(options)
        case Evaluate():
            commands.evaluate(options)
        case Calibrate():
            calibrate(options)
        case Predict():
            commands.predict(options)
        case Report():
            commands.report(options)
        case Check():
            check(options)
        case Collect():
            collect(options)
        case Reproduce():
            reproduce_figures(options)
