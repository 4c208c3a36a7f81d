"""Starts real processes on this computer, one thread each, that find one another and the tests' own modules."""

import os
import subprocess
import sys
from pathlib import Path

from patience import PATIENCE

TESTS = Path(__file__).parent.parent
RANKS = 2


def environment(**more):
    """For a process that meets others on this computer alone."""
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    given = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": os.pathsep.join(paths)}
    return {**os.environ, **given, **more}


def torchrun(*arguments):
    """Two processes of a program, until both have ended."""
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", RANKS, "--local-addr", "127.0.0.1"]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    command = [str(part) for part in (sys.executable, *launch, *rendezvous, *arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=False)
