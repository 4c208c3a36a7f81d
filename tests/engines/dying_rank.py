"""One of several processes: in the second exchange the last of them is killed, as by a machine without memory."""

import os
import signal

from engines.scenarios import clients, network, tasks, theta

from dswag.engines.distributed import Distributed
from dswag.engines.ranks import joined
from dswag.folds import Snapshots


def main():
    """Two exchanges, the second of which no rank survives."""
    with joined(timeout=60) as ranks:
        engine = Distributed(network(), clients(), ranks=ranks)
        engine.reduce({"theta": theta()}, tasks([0, 1]), Snapshots())
        if ranks.rank == ranks.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        engine.reduce({"theta": theta()}, tasks([0, 1]), Snapshots())


if __name__ == "__main__":
    main()
