"""One of several processes: before the second round trip the last of them sends itself the signal of that number."""

import os
import sys
from signal import SIGKILL

from engines.scenarios import clients, network, tasks, theta
from patience import PATIENCE

from dswag.engines.distributed import Distributed
from dswag.engines.ranks import joined
from dswag.federation.folds import Snapshots
from dswag.federation.round_trip import round_trip


def main(signal):
    """Two round trips, the second of which no rank survives."""
    sys.stdout.write("ready\n")  # what takes long on a busy machine is done
    sys.stdout.flush()
    sys.stdin.readline()
    with joined(timeout=PATIENCE if signal == SIGKILL else 20) as ranks:
        engine = Distributed(network(), clients(), ranks=ranks)
        round_trip(engine, {"theta": theta()}, tasks([0, 1]), Snapshots())
        if ranks.rank == ranks.size - 1:
            os.kill(os.getpid(), signal)
        round_trip(engine, {"theta": theta()}, tasks([0, 1]), Snapshots())


if __name__ == "__main__":
    main(int(sys.argv[1]))
