"""From the command line to an exit code: 0 done, 1 failed, 2 bad usage, 130 interrupted."""

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib.metadata import version

from dswag.cli import commands
from dswag.cli.calibrating import calibrate
from dswag.cli.collecting import collect
from dswag.cli.comparing import compare
from dswag.cli.console import emit, say
from dswag.cli.options import Calibrate, Collect, Compare, Evaluate, Options, Predict, Report, Reproduce, Train, Version
from dswag.cli.parsing import parse
from dswag.cli.reproducing import reproduce_figures
from dswag.client.stability import DivergenceError
from dswag.config import ConfigError
from dswag.engines.ranks import RankError
from dswag.federation.contract import ClientError
from dswag.federation.round_trip import TooFewClientsError

DONE, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130
DEBUG_VARIABLE = "DSWAG_DEBUG"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that the arguments name; those of the process if None.

    Errors that say what to do are printed as they are, without the traceback unless the environment's DSWAG_DEBUG is
    set; any other error is a defect and keeps its traceback.

    Raises:
        SystemExit: after --help (code 0), and for flags that cannot be read (code 2).
    """
    debug = bool(os.environ.get(DEBUG_VARIABLE))
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")
            _run(parse(sys.argv[1:] if arguments is None else arguments))
            sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        say(f"interrupted: {interrupt}" if interrupt.args else "interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough; keep Python from complaining when it flushes the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (ConfigError, ClientError, TooFewClientsError, DivergenceError, RankError, ValueError, OSError) as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, ConfigError):
            for fault in str(error).splitlines():
                say(f"error: {fault}")
            return BAD_USAGE
        say(f"error: {error}")
        return FAILED
    return DONE


def _run(options: Options) -> None:
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
        case Collect():
            collect(options)
        case Reproduce():
            reproduce_figures(options)
        case Version():
            emit(f"dswag {version('dswag')}")
