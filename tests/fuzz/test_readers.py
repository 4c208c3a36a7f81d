"""Whatever a file holds, a reader gives what it says or raises an error of ours that names the file.

`make fuzz` tries many more examples than a run of the tests does.
"""

import gzip
import io
import json
import shutil
import tarfile
import warnings
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np
import pytest
import tomli_w
import torch
import torch.distributed.checkpoint as dcp
from folding import fold_answers
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from samples import LANDSCAPE, LAYOUT, METRICS, POSTERIOR

from dswag import Config, ConfigError, GaussianPosterior, PosteriorFileError, Server
from dswag.cli.inputs import InputError, read_images
from dswag.client.training import TrainTask
from dswag.core.validation import nested
from dswag.data.class_counts import ClassCounts
from dswag.data.formats import DataFormatError, gunzip, read_cifar, read_idx, read_idx_pair, tar_members
from dswag.engines.recorded import Recorded
from dswag.federation.client_results import TrainResult
from dswag.federation.folds import Snapshots
from dswag.federation.local_update import ClientUpdate
from dswag.federation.round_trip import Missing
from dswag.lab.experiments.recipe import Recipe
from dswag.posterior.collectors.state_dicts import CheckpointFileError, read_state_dict
from dswag.runs import RunFolder, RunFolderError
from dswag.runs.checkpoint import Checkpoint, CheckpointError
from dswag.runs.schema import ExploreRecord, RoundRecord


@st.composite
def damaged(draw, content):
    """The content with a few bytes changed, removed, put in or repeated, mostly near its ends, where headers are."""
    for _ in range(draw(st.integers(1, 4))):
        if not content:
            break
        last = len(content) - 1
        near = st.integers(0, min(200, last))
        place = draw(st.integers(0, last) | near | near.map(lambda distance, last=last: last - distance))
        end = place + draw(st.integers(0, 8) | st.integers(0, last))
        put = draw(
            st.binary(max_size=8) | st.sampled_from([b"9", b"0", b"-1", b"\xff" * 8, b"\0" * 8, content[place:end]])
        )
        content = content[:place] + put + content[draw(st.sampled_from([place, place + len(put), end])) :]
    return content


@contextmanager
def or_refused_as(kind, name):
    """Lets errors pass that are of this kind and name the file."""
    try:
        yield
    except kind as error:
        if name not in str(error):
            raise


def texts(content):
    return damaged(content.encode()) | st.binary(max_size=60) | st.text(max_size=60).map(str.encode)


def written(path, content):
    path.write_bytes(content)
    return path


def of_file(write, suffix):
    """The bytes that `write` puts into a file."""

    @pytest.fixture(scope="module")
    def content(tmp_path_factory):
        path = tmp_path_factory.mktemp("good") / f"file{suffix}"
        write(path)
        return path.read_bytes()

    return content


# ------------------------------------------------------------------------------------------------------ data sets

IMAGES = b"\0\0\x08\x03" + b"\0\0\0\x02\0\0\0\x03\0\0\0\x02" + bytes(range(12))
LABELS = b"\0\0\x08\x01\0\0\0\x02\x01\x02"
CIFAR = bytes(2 * 3073)


def archive():
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        member = tarfile.TarInfo("folder/data.bin")
        member.size = len(LABELS)
        tar.addfile(member, io.BytesIO(LABELS))
    return stream.getvalue()


TAR = archive()
ZIPPED = gzip.compress(IMAGES, mtime=0)


@given(damaged(IMAGES) | st.binary(max_size=30), damaged(LABELS) | st.just(LABELS))
@example(b"\0\0\x08\xff" + b"\xff" * 1020, LABELS)
def test_idx_is_read_or_refused(images, labels):
    with or_refused_as(DataFormatError, "digits"):
        pixels, targets = read_idx_pair(images, labels, "digits")
        assert pixels.dim() == 4
        assert targets.shape == (len(pixels),)
        assert read_idx(images, "digits").numel() == len(images) - 16


@given(damaged(CIFAR), st.integers(1, 2))
def test_cifar_is_read_or_refused(content, label_bytes):
    with or_refused_as(DataFormatError, "pictures"):
        images, labels = read_cifar(content, "pictures", label_bytes)
        assert images.shape[1:] == (3, 32, 32)
        assert len(labels) == len(images) == len(content) // (3072 + label_bytes)


@given(damaged(ZIPPED))
def test_gzip_is_read_or_refused(content):
    with or_refused_as(DataFormatError, "digits.gz"):
        gunzip(content, "digits.gz")


@given(damaged(TAR) | damaged(gzip.decompress(TAR)).map(lambda content: gzip.compress(content, mtime=0)))
def test_tar_is_read_or_refused(content):
    with or_refused_as(DataFormatError, "cifar.tar.gz"):
        assert list(tar_members(io.BytesIO(content), ["data.bin"], "cifar.tar.gz")) == ["data.bin"]


# ------------------------------------------------------------------------------------------- tensors and checkpoints

SERVER = Server(torch.arange(8.0), 2, momentum=torch.ones(8), first_loss=2.0)

posterior = of_file(lambda path: POSTERIOR.save(path), ".safetensors")
checkpoint = of_file(lambda path: Checkpoint(SERVER, LAYOUT, Config().decisive()).save(path), ".safetensors")
state_dict = of_file(lambda path: torch.save({"model": {"weight": torch.ones(2, 3)}}, path), ".pt")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@given(data=st.data())
def test_a_posterior_is_read_or_refused(posterior, place, data):
    path = written(place / "posterior.safetensors", data.draw(damaged(posterior)))
    with or_refused_as(PosteriorFileError, "posterior.safetensors"):
        GaussianPosterior.load(path).sample(0)


@given(data=st.data())
def test_a_checkpoint_is_the_one_saved_or_refused(checkpoint, place, data):
    """Unlike a posterior it has a fingerprint, so that nothing but what was saved is ever taken."""
    path = written(place / "checkpoint.safetensors", data.draw(damaged(checkpoint)))
    with or_refused_as(CheckpointError, "checkpoint.safetensors"):
        found = Checkpoint.load(path)
        assert torch.equal(found.server.theta, SERVER.theta)
        assert torch.equal(found.server.momentum, SERVER.momentum)
        assert (found.server.round, found.server.first_loss, found.layout) == (2, 2.0, LAYOUT)


@given(data=st.data())
def test_a_state_dict_is_read_or_refused(state_dict, checkpoint, place, data):
    kind = data.draw(st.sampled_from([".pt", ".safetensors"]))
    content = state_dict if kind == ".pt" else checkpoint.replace(b"dswag-", b"other-")
    path = written(place / f"weights{kind}", data.draw(damaged(content)))
    with or_refused_as(CheckpointFileError, "weights"):
        for tensor in read_state_dict(path, key="model" if kind == ".pt" else None).values():
            tensor.sum()


@pytest.fixture(scope="module")
def distributed(tmp_path_factory):
    """A folder of torch.distributed.checkpoint."""
    folder = tmp_path_factory.mktemp("distributed") / "checkpoint"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": {"weight": torch.ones(2, 3)}, "step": 3}, checkpoint_id=folder)
    return folder


@given(data=st.data())
def test_a_folder_of_parts_is_read_or_refused(distributed, place, data):
    folder = place / "parts"
    shutil.copytree(distributed, folder, dirs_exist_ok=True)
    name = data.draw(st.sampled_from([".metadata", ".metadata", "__0_0.distcp"]))
    written(folder / name, data.draw(damaged((distributed / name).read_bytes())))
    with or_refused_as(CheckpointFileError, "parts"):
        for tensor in read_state_dict(folder, key="model").values():
            tensor.sum()


TASK = TrainTask(
    index=0,
    client=3,
    occasion="phase 2",
    learning_rates=(0.1,),
    snapshots=(1,),
    seed=0,
    update=ClientUpdate(batch_size=2),
)
ANSWER = TrainResult(index=0, client=3, thetas=torch.arange(8.0)[None], num_examples=5, loss=0.25)


class Answering:
    num_clients = 4

    def answers(self, payload, tasks):
        return (ANSWER for _ in tasks)


@pytest.fixture(scope="module")
def answer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    fold_answers(Recorded(Answering(), folder), {"theta": torch.zeros(8)}, [TASK], Snapshots())
    return next(folder.glob("00000-*.safetensors"))


@given(data=st.data())
def test_a_saved_answer_is_the_one_given_or_asked_for_again(answer, place, data):
    written(place / answer.name, data.draw(damaged(answer.read_bytes())))
    fold = fold_answers(Recorded(Answering(), place), {"theta": torch.zeros(8)}, [TASK], Snapshots())
    assert torch.equal(fold.result(), ANSWER.thetas)


# ---------------------------------------------------------------------------------------------- settings and records

SETTINGS = tomli_w.dumps(nested(Recipe()))
values = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["adam", "mean", "shards", 0, 1, 0.5, -1, 1.0])
    | st.datetimes(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)
tables = st.dictionaries(st.sampled_from(list(asdict(Recipe()))) | st.text(max_size=5), values, max_size=5)


@given(texts(SETTINGS) | tables.map(lambda table: tomli_w.dumps(table).encode()))
def test_settings_are_read_and_come_back_or_every_fault_is_named(tmp_path_factory, content):
    path = written(tmp_path_factory.getbasetemp() / "fuzzed.toml", content)
    for kind in (Config, Recipe):
        with or_refused_as(ConfigError, "fuzzed.toml"):
            found = kind.from_toml(path)
            found.to_toml(path)
            assert kind.from_toml(path) == found


RECORDS = [
    RoundRecord(1, 2.5, 0.1, (2, 0), 0.5, (Missing(2, "vanished"),), 800, 200),
    ExploreRecord(0.5, (2, 1), (), 300, 100),
]
LINES = "".join(json.dumps(asdict(record)) + "\n" for record in RECORDS)
PARTS = json.dumps(asdict(ClassCounts(("cat", "dog"), ((3, 0), (1, 2)))))
READERS = {
    "history.jsonl": (LINES, lambda folder: (folder.history(), folder.exploration())),
    "landscape.json": (json.dumps(asdict(LANDSCAPE)), RunFolder.landscape),
    "metrics.json": (json.dumps(asdict(METRICS)), RunFolder.metrics),
    "partition.json": (PARTS, RunFolder.partition),
    "config.toml": (SETTINGS, lambda folder: folder.config(Recipe)),
}


@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
def test_a_run_s_records_are_read_or_refused(place, name, data):
    good, read = READERS[name]
    folder = RunFolder(place)
    written(place / name, data.draw(texts(good)))
    with or_refused_as(RunFolderError, name):
        read(folder)


# ------------------------------------------------------------------------------------------------ images to predict


def picture(kind):
    stream = io.BytesIO()
    Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).save(stream, kind)
    return stream.getvalue()


def array(save, **named):
    stream = io.BytesIO()
    save(stream, *([] if named else [np.zeros((2, 4, 4), np.uint8)]), **named)
    return stream.getvalue()


INPUTS = {
    "image.png": picture("PNG"),
    "image.jpg": picture("JPEG"),
    "image.bmp": picture("BMP"),
    "image.gif": picture("GIF"),
    "image.tif": picture("TIFF"),
    "images.npy": array(np.save),
    "images.npz": array(np.savez_compressed, images=np.zeros((2, 4, 4), np.uint8)),
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.filterwarnings("ignore")
@given(data=st.data())
def test_images_are_read_in_the_form_asked_for_or_refused(place, name, data):
    path = written(place / name, data.draw(damaged(INPUTS[name])))
    with or_refused_as(InputError, name):
        names, images = read_images([path], (1, 4, 4), resize=data.draw(st.booleans()))
        assert images.shape == (len(names), 1, 4, 4)
        assert images.dtype == torch.uint8
