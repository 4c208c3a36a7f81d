"""Two processes that FSDP2 splits a model among have, part by part, the posterior that one process has of the whole."""

import json
import sys
from pathlib import Path

import pytest
import torch
from engines.launch import RANKS, torchrun
from posterior.split import RANK, WIDTH, Network, steps
from safetensors.torch import load_file

from dswag.core.parameters import Layout
from dswag.posterior.gaussian import GaussianPosterior, PosteriorFileError
from dswag.posterior.moments import Moments

pytestmark = [
    pytest.mark.usefixtures("one_intra_op_thread"),
    pytest.mark.filterwarnings("ignore:the running statistics:UserWarning"),
]

LAYOUTS = {"all": None, "part": Layout.of(Network(), only=["second.weight", "scale"])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes wrote."""
    folder = tmp_path_factory.mktemp("split")
    done = torchrun(Path(__file__).with_name("split.py"), folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module", params=LAYOUTS)
def both(request, folder):
    """The name of a case, what the two processes found, and the posterior of one process that had it all."""
    moments = Moments(rank=4, layout=LAYOUTS[request.param])
    for module in steps(Network(), 6):
        moments.add(module)
    return request.param, load_file(folder / "found.safetensors"), moments.posterior()


def test_the_parts_are_those_of_the_whole_bit_for_bit(both, folder):
    name, _, expected = both
    found = GaussianPosterior.load(folder / f"{name}.safetensors")
    assert (found.layout, found.count) == (expected.layout, expected.count)
    for key, tensor in expected.tensors().items():
        assert torch.equal(found.tensors()[key], tensor), key


@pytest.mark.parametrize("kind", ["swag", "diagonal", "low_rank", "read", "mean"])
def test_what_is_written_into_the_parts_is_what_is_written_into_the_whole(both, kind):
    name, found, posterior = both
    *_, module = steps(Network(), 6)
    if kind == "mean":
        posterior.mean_into(module)
        expected = dict(module.named_parameters())
    else:
        with posterior.sampled(module, seed=3, number=6, kind="swag" if kind == "read" else kind):
            expected = {key: parameter.detach().clone() for key, parameter in module.named_parameters()}
    assert {key.rpartition("/")[2] for key in found} == set(expected)
    for key, tensor in expected.items():
        assert torch.equal(found[f"{name}/{kind}/{key}"], tensor), key


def test_no_process_needs_more_memory_than_its_part(folder, capsys):
    """In each, the columns are there twice, once while they are gathered and once in the posterior."""
    whole = RANK * 2 * (WIDTH**2 + WIDTH) * 4 / 2**20
    for rank in range(RANKS):
        before, most = json.loads((folder / f"memory-{rank}.json").read_text())
        with capsys.disabled():
            sys.stdout.write(f"\nrank {rank}: {most - before:.0f} MiB, where all columns are {whole:.0f} MiB\n")
        assert most - before < 2 * whole / RANKS + 0.5 * whole


def test_parts_load_as_one_only_if_all_belong_together(folder, tmp_path):
    for path in folder.glob("all*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert GaussianPosterior.load(tmp_path / "all.safetensors.index.json").count == 6
    part = tmp_path / "all-00002-of-00002.safetensors"
    part.write_bytes((folder / "part-00002-of-00002.safetensors").read_bytes())
    with pytest.raises(PosteriorFileError, match=r"index\.json lists no whole posterior: .* saved with the others"):
        GaussianPosterior.load(tmp_path / "all.safetensors")
    part.unlink()
    with pytest.raises(FileNotFoundError, match=r"all-00002-of-00002"):
        GaussianPosterior.load(tmp_path / "all.safetensors")


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "[" * 100_000, '{"format": "dswag-posterior-index", "format_version": 1, "parts": {"../a": "b"}}'],
)
def test_a_list_of_parts_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "p.safetensors.index.json").write_text(content)
    with pytest.raises(PosteriorFileError, match=r"p\.safetensors\.index\.json lists no whole posterior"):
        GaussianPosterior.load(tmp_path / "p.safetensors")


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (
            "FSDP1",
            "was taken apart by FSDP1, which leaves this process a piece of it under its name: use FSDP2 (fully_shard)",
        ),
        ("FSDP1 flat", "was taken apart by FSDP1"),
        ("svd", 'columns="svd" are principal directions of the whole θ'),
        ("columns", "first.weight is split as S(1): only rows can be"),
        ("flatten", "scale is split among processes (DTensor), so that this one has no whole θ"),
        ("density", "a density is of the whole θ, and this is one process's part"),
        ("whole module", "this is one process's part of a posterior, and the module is whole"),
    ],
)
def test_what_cannot_be_done_with_parts_is_refused_by_name(folder, case, words):
    for rank in range(RANKS):
        assert words in json.loads((folder / f"errors-{rank}.json").read_text())[case]


def test_one_part_alone_is_known_as_such(folder):
    part = GaussianPosterior.load(folder / "all-00001-of-00002.safetensors")
    with pytest.raises(ValueError, match="this is one process's part"), part.sampled(Network(), seed=0):
        pass
    assert part.subset(["first.weight"]).mean.numel() == 4 * 5  # of 7 rows, the first process has 4
