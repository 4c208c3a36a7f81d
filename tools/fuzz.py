"""Try the readers of files and answers on damaged ones, pass after pass, until the time is up or one fails."""

import argparse
import os
import signal
import subprocess
import sys
from time import monotonic

TESTS = ("tests/fuzz", "tests/federation/test_round_trip.py", "tests/test_config.py")


def main() -> int:
    """Zero if no test failed within the time, else what pytest returned."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120, help="when to stop, whatever the machine (default: 120)")
    seconds = parser.parse_args().seconds
    until, passes = monotonic() + seconds, 0
    command = [sys.executable, "-m", "pytest", "-qx", "--hypothesis-profile=fuzz", "--numprocesses=2", *TESTS]
    while (left := until - monotonic()) > 0:
        tests = subprocess.Popen(command, start_new_session=True)
        try:
            code = tests.wait(left)
        except subprocess.TimeoutExpired:
            os.killpg(
                tests.pid, signal.SIGKILL
            )  # what failed meanwhile is kept in .hypothesis, and tried first next time
            tests.wait()
            break
        if code:
            return code
        passes += 1
    print(f"stopped after {seconds:g} seconds and {passes} whole passes; no test failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
