"""The command `dswag` from its first moment; outside the package, whose import loads PyTorch and takes seconds."""

import sys


def main() -> int:
    """Runs the command; an exit code, of 130 where Ctrl-C came before the command could see to it."""
    try:
        from dswag.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return run()
