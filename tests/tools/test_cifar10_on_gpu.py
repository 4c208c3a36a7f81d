"""The script that reproduces CIFAR-10 on a GPU piece by piece; what it calls is a stand-in that notes its flags."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "cifar10_on_gpu.sh"


@pytest.fixture
def called(tmp_path):
    """Runs the script with a stand-in for Python that does this, and gives how it ended and all calls."""

    def run(seconds, *flags, does=""):
        stand_in, calls = tmp_path / "python", tmp_path / "calls"
        stand_in.write_text(f'#!/usr/bin/env bash\necho "$@" >> {calls}\n{does}\n')
        stand_in.chmod(0o755)
        command = [SCRIPT, tmp_path / "out", str(seconds), *flags]
        done = subprocess.run(
            command, env={**os.environ, "PYTHON": str(stand_in)}, capture_output=True, text=True, check=False
        )
        return done, calls.read_text().splitlines() if calls.exists() else []

    return run


def test_it_asks_for_the_table_and_both_figures_of_every_number_of_workers(called, tmp_path):
    done, calls = called(600, "--quick")
    assert done.returncode == 0
    out = tmp_path / "out"
    tail = f"--quick --work {out}/work --output {out}/results"
    assert calls == [
        line
        for clients in (2, 4, 8, 1)
        for line in (
            f"-m dswag reproduce table-cifar10 --only clients-{clients} {tail}",
            f"-m dswag reproduce fig5-right fig7 --dataset cifar10 --only clients-{clients} {tail}/cifar10",
        )
    ]


def test_it_ends_well_when_its_time_is_up(called):
    done, calls = called(20)
    assert (done.returncode, calls) == (0, [])
    assert "time is up before dswag reproduce table-cifar10" in done.stdout
    done, calls = called(600, does="exit 130")  # as dswag ends when it is interrupted
    assert (done.returncode, len(calls)) == (0, 1)
    assert "time is up within dswag reproduce table-cifar10" in done.stdout


def test_a_failure_is_its_own(called):
    done, calls = called(600, does="exit 2")
    assert (done.returncode, len(calls)) == (2, 1)
