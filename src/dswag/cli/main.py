"""From the command line to an exit code: 0 done, 1 failed, 2 bad usage, 130 interrupted."""

import os
import sys
import traceback
import warnings
from collections.abc import Sequence

from dswag.cli.overview import answer
from dswag.core.extras import check

DONE, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130
DEBUG_VARIABLE = "DSWAG_DEBUG"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that the arguments name; those of the process if None.

    Errors that say what to do are printed as they are, without the traceback unless the environment's DSWAG_DEBUG is
    set; any other error is a defect and keeps its traceback. What needs no PyTorch is answered without importing it.

    Raises:
        SystemExit: after --help of a command (code 0), and for flags that cannot be read (code 2).
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    known = answer(arguments)
    if known is not None:
        print(known.text, file=sys.stderr if known.fault else sys.stdout)
        return BAD_USAGE if known.fault else DONE
    try:
        check("the command line", "tyro", "rich", "jinja2", "matplotlib", "pooch", "PIL", "tomli_w")
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return FAILED
    return _main(arguments)


def _main(arguments: Sequence[str]) -> int:
    from dswag.cli.console import say
    from dswag.cli.dispatch import EXPECTED, run
    from dswag.cli.parsing import parse
    from dswag.config import ConfigError

    debug = bool(os.environ.get(DEBUG_VARIABLE))
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")
            run(parse(arguments))
            sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        say(f"interrupted: {interrupt}" if interrupt.args else "interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough; keep Python from complaining when it flushes the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except EXPECTED as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, ConfigError):
            for fault in str(error).splitlines():
                say(f"error: {fault}")
            return BAD_USAGE
        say(f"error: {error}")
        return FAILED
    return DONE
