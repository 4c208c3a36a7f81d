"""Two real processes give what one gives: each plays all scenarios once, and every claim looks at what came."""

import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from engines.launch import RANKS, environment, torchrun
from engines.scenarios import SCENARIOS, words
from patience import PATIENCE
from safetensors.torch import load_file

from dswag.engines.in_process import InProcess
from dswag.engines.ranks import RankError, joined

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each rank found: {"scenario/name": tensor}."""
    folder = tmp_path_factory.mktemp("ranks")
    done = torchrun(HERE / "rank.py", folder)
    assert done.returncode == 0, done.stderr
    return [load_file(folder / f"{rank}.safetensors") for rank in range(RANKS)]


def of(scenario, tensors):
    """What belongs to one scenario."""
    return {key.partition("/")[2]: value for key, value in tensors.items() if key.startswith(f"{scenario}/")}


def failure(found, scenario):
    """The words with which each rank ended."""
    return [words(of(scenario, tensors)["error"]) for tensors in found]


names = pytest.mark.parametrize("scenario", SCENARIOS, ids=[scenario.__name__ for scenario in SCENARIOS])


@names
def test_all_ranks_end_with_the_same(found, scenario):
    first, *others = (of(scenario.__name__, tensors) for tensors in found)
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(first[name], other[name]) for name in first)


ROUNDED = {
    # the columns' differences are to other anchors, and the directions come out of other products: float32 of size 1
    "without_an_anchor": 4 * 2**-24,
    "principal_columns": 20 * 2**-24,
}


@names
def test_two_processes_give_what_one_gives(found, scenario):
    expected = scenario(InProcess)
    there = of(scenario.__name__, found[0])
    assert there.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(there[name], tensor, rtol=0, atol=ROUNDED.get(scenario.__name__, 0))


def test_a_failing_client_is_named_on_every_rank(found):
    first, *others = failure(found, "failing")
    assert first.startswith("client 3 failed in round 1: IndexError: Target ")
    assert others == [first]


def test_the_ranks_without_a_fault_learn_of_it(found):
    assert failure(found, "spoiled") == [
        "RankError: rank 1 failed: OSError: the disk is full",
        "OSError: the disk is full",
    ]


def test_a_fold_that_was_combined_would_count_twice_and_is_refused(found):
    assert all(words.startswith("ValueError: this fold was combined before") for words in failure(found, "twice"))


def test_folds_that_depend_on_order_are_refused(found):
    assert all(
        words.startswith("ValueError: columns centered on the running mean") for words in failure(found, "printed")
    )


@pytest.mark.parametrize(
    ("scenario", "difference"),
    [
        ("apart", "work from another θ"),
        ("other_tasks", "have other tasks"),
        ("other_fold", "have a fold of another kind"),
    ],
)
def test_ranks_that_do_not_do_the_same_are_refused(found, scenario, difference):
    for rank, told in enumerate(failure(found, scenario)):
        assert told.startswith(f"ValueError: ranks [{1 - rank}] {difference} than rank {rank}: every rank must be")


def test_processes_that_do_not_find_one_another_are_one_error(monkeypatch):
    where = {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "node0", "MASTER_PORT": "29400"}
    for name, value in where.items():
        monkeypatch.setenv(name, value)

    def nobody(*arguments, **options):
        raise dist.DistStoreError("1/3 clients joined.")

    monkeypatch.setattr(dist, "init_process_group", nobody)
    words = r"rank 0 did not find all 3 processes of the run at node0:29400 within 7 s \(1/3 clients joined"
    with pytest.raises(RankError, match=words), joined(timeout=7):
        pass


def test_coordinates_are_cut_put_together_and_summed(found):
    parts = [of("coordinates", tensors) for tensors in found]
    assert torch.equal(torch.cat([part["part"] for part in parts]), torch.arange(5.0))
    for part in parts:
        assert torch.equal(part["whole"], torch.arange(5.0))
        assert part["total"] == 10


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_a_process_that_is_gone_ends_the_others_with_its_name(how):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(RANKS)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with ExitStack() as ending:
        processes = []
        for rank in range(RANKS):
            command = [sys.executable, str(HERE / "leaving_rank.py"), str(int(how))]
            process = subprocess.Popen(command, env=environment(**where, RANK=str(rank)), **pipes)
            ending.enter_context(process)
            ending.callback(process.kill)  # also one that is stopped, and whatever failed here
            processes.append(process)
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        first, last = processes
        said = first.communicate(timeout=PATIENCE)[1]
    assert first.returncode == 1
    name = rf"rank 1 of 2 \([^()]*, process {last.pid}\)"
    assert re.search(rf"RankError: {name} is gone, or took longer than the timeout: \w", said)
