"""`dswag` as one of several processes, of which the one of that rank kills itself before that exchange of its own."""

import os
import signal
import sys
from itertools import count

from dswag.cli import main
from dswag.engines.distributed import Distributed


def die_before(exchange):
    """From then on the ranks that are left wait for this one in vain."""
    reduce, number = Distributed.reduce, count(1)

    def reduce_or_die(*arguments):
        if next(number) == exchange:
            os.kill(os.getpid(), signal.SIGKILL)
        return reduce(*arguments)

    Distributed.reduce = reduce_or_die


if __name__ == "__main__":
    rank, exchange, *arguments = sys.argv[1:]
    if os.environ["RANK"] == rank:
        die_before(int(exchange))
    sys.exit(main(arguments))
