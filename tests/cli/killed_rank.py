"""`dswag` as one of several processes, of which the one of that rank kills itself before that round trip of its own."""

import os
import signal
import sys
from itertools import count

from dswag.cli import main
from dswag.engines.distributed import Distributed


def die_before(trip):
    """From then on the ranks that are left wait for this one in vain."""
    answers, number = Distributed.answers, count(1)

    def answer_or_die(*arguments):
        if next(number) == trip:
            os.kill(os.getpid(), signal.SIGKILL)
        return answers(*arguments)

    Distributed.answers = answer_or_die


if __name__ == "__main__":
    rank, trip, *arguments = sys.argv[1:]
    if os.environ["RANK"] == rank:
        die_before(int(trip))
    sys.exit(main(arguments))
