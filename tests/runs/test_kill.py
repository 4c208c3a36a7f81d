"""A run that is killed with SIGKILL at ten moments and resumed each time comes out as if it had never been."""

import multiprocessing
import os
import random
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from dswag.cli import main
from dswag.runs import FILES, RunFolder

SETTINGS = ["--clients", "5", "--rounds", "3", "--clients-per-round", "2", "--explore-epochs", "2", "--samples", "2"]
SERVER = ["--server-optimizer", "momentum", "--server-learning-rate", "0.5", "--cycles", "2", "--rank", "4"]
SERVER += ["--landscape-examples", "50"]


@pytest.fixture
def start(monkeypatch):
    """Starts a command in a process of its own, forked from one that has imported everything and done nothing."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dswag.cli", "dswag.lab.report.page"])

    def started(*arguments):
        process = context.Process(target=main, args=([str(argument) for argument in arguments],))
        process.start()
        return process

    return started


def files_of(folder):
    """Every file as it is now, temporary ones too."""
    found = set()
    for parent, _, names in os.walk(folder):  # which passes over folders that are removed meanwhile
        for name in names:
            try:
                status = Path(parent, name).stat()
            except FileNotFoundError:  # renamed meanwhile
                continue
            found.add((name, status.st_ino, status.st_mtime_ns, status.st_size))
    return found


def kill_after(changes, process, folder):
    """Kills the process when so many changes of files were seen; whether it was killed before its end."""
    before, seen = files_of(folder), set()
    while len(seen) < changes and process.is_alive():
        seen |= files_of(folder) - before
        process.join(0.001)
    process.kill()
    process.join()
    return process.exitcode < 0


def outcome(path):
    """All that a run comes to, but for the seconds that it took."""
    folder = RunFolder.open(path)
    server = folder.checkpoint().server
    records = [asdict(record) for record in (*folder.history(), folder.exploration())]
    metrics = asdict(folder.metrics())
    for part in (*records, metrics):
        part.pop("seconds")
    return (
        records,
        (metrics, folder.landscape()),
        {**folder.posterior().tensors(), "θ": server.theta, "momentum": server.momentum},
    )


def assert_same(path, expected):
    records, metrics, tensors = outcome(path)
    assert (records, metrics) == expected[:2]
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected[2].items())
    assert {file.name for file in path.iterdir()} == set(FILES)


def test_killed_at_ten_random_moments_nothing_is_lost(start, tmp_path):
    whole = start("train", *SETTINGS, *SERVER, "--output", tmp_path / "whole")
    whole.join()
    expected = outcome(tmp_path / "whole")
    schedule = random.Random(3)
    kills, number, path = 0, 0, tmp_path / "0"
    process = start("train", *SETTINGS, *SERVER, "--output", path)
    while kills < 10:
        if kill_after(schedule.randint(1, 16), process, path):
            kills += 1
            if (path / "config.toml").exists():
                process = start("train", "--resume", path)
                continue
        else:  # it was faster, and came to its end
            assert_same(path, expected)
            number += 1
            path = tmp_path / str(number)
        process = start("train", *SETTINGS, *SERVER, "--output", path)
    process.join()
    assert_same(path, expected)
