"""One of several processes: before the second exchange the last of them sends itself the signal of that number."""

import os
import sys

from engines.scenarios import clients, network, tasks, theta

from dswag.engines.distributed import Distributed
from dswag.engines.ranks import joined
from dswag.federation.folds import Snapshots
from dswag.federation.round_trip import round_trip


def main(signal):
    """Two exchanges, the second of which no rank survives."""
    with joined(timeout=15) as ranks:
        engine = Distributed(network(), clients(), ranks=ranks)
        round_trip(engine, {"theta": theta()}, tasks([0, 1]), Snapshots())
        if ranks.rank == ranks.size - 1:
            os.kill(os.getpid(), signal)
        round_trip(engine, {"theta": theta()}, tasks([0, 1]), Snapshots())


if __name__ == "__main__":
    main(int(sys.argv[1]))
