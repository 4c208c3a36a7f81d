"""Checkpoints as the tools write them: what counts once, what is one snapshot, what is no weight, in which order."""

import io
import json
import os
import pickle
import shutil
import warnings
import zipfile

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file, save_model
from torch import nn

from dswag.core.parameters import Layout
from dswag.posterior.collectors.checkpoint_files import checkpoint_files, contents, moments_from_files
from dswag.posterior.collectors.distributed_checkpoint import followed
from dswag.posterior.collectors.state_dicts import CheckpointFileError, read_state_dict
from dswag.posterior.moments import Moments


def save(path, number, **more):
    """A checkpoint whose only weight is its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"weight": torch.full((2,), float(number)), **more}
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def numbers(paths, **settings):
    """The mean, the variance and the columns' snapshots of what was collected."""
    posterior = moments_from_files(paths, **settings).posterior()
    columns = posterior.deviations[:, 0] + posterior.mean[0]
    return posterior.count, posterior.mean[0].item(), posterior.variance[0].item(), columns.tolist()


FOUR = (4, 1.5, 1.25, [0.0, 1.0, 2.0, 3.0])


# ------------------------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize("name", ["last.pt", "best.pt", "best-epoch-3.pt", "epoch-3-v1.pt", "final.safetensors"])
def test_a_copy_of_a_checkpoint_counts_once_and_in_its_place(tmp_path, name):
    for number in range(4):
        save(tmp_path / f"epoch-{number}.pt", number)
    save(tmp_path / name, 3, step=torch.tensor(7))
    assert numbers(tmp_path) == FOUR
    assert contents(tmp_path).copies == {tmp_path / name: tmp_path / "epoch-3.pt"}


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_counts_once_even_in_a_series(tmp_path, link):
    for number in range(4):
        save(tmp_path / f"{number}.pt", number)
    link(tmp_path / "3.pt", tmp_path / "last.pt")
    os.symlink(tmp_path / "3.pt", tmp_path / "4.pt")
    assert numbers(tmp_path) == FOUR
    assert numbers([*(tmp_path / f"{n}.pt" for n in range(4)), tmp_path / "3.pt"]) == FOUR


def test_a_last_checkpoint_of_its_own_is_a_snapshot(tmp_path):
    for number in range(3):
        save(tmp_path / f"epoch-{number}.pt", number)
    save(tmp_path / "last.pt", 3)
    assert numbers(tmp_path) == FOUR


def test_a_chain_that_stays_where_it_is_counts_each_time(tmp_path):
    """As samplers do that reject a step: 0, 0, 3."""
    for number, value in enumerate([0, 0, 3]):
        save(tmp_path / f"sample-{number}.pt", value)
    assert numbers(tmp_path)[:3] == (3, 1.0, 2.0)


# -------------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize("style", [str, lambda path: path])
@pytest.mark.parametrize("pattern", ["Epoch{}.pt", "checkpoint-{}/model.safetensors", "{}-a.pt"])
def test_what_a_shell_pattern_finds_is_taken_in_natural_order(tmp_path, pattern, style):
    paths = [save(tmp_path / pattern.format(number), number) for number in (9, 10, 100)]
    as_by_a_shell = [style(path) for path in sorted(paths, key=str)]
    assert as_by_a_shell != [style(path) for path in paths]
    assert checkpoint_files(as_by_a_shell) == tuple(paths)
    assert numbers(as_by_a_shell, rank=2)[3] == pytest.approx([10.0, 100.0])


def test_any_other_order_is_meant(tmp_path):
    paths = [save(tmp_path / f"{number}.pt", number) for number in (100, 9, 10)]
    assert checkpoint_files(paths) == tuple(paths)


# ------------------------------------------------------------------------------------- folders, parts and indices


def checkpoint_of_trainer(folder, number):
    """As transformers writes them."""
    save(folder / "model.safetensors", number)
    torch.save({"state": {0: {"exp_avg": torch.ones(2)}}}, folder / "optimizer.pt")
    torch.save({"last_epoch": 1}, folder / "scheduler.pt")
    torch.save({"cpu": torch.get_rng_state()}, folder / "rng_state.pth")
    torch.save({"cpu": torch.get_rng_state()}, folder / "rng_state_1.pth")
    torch.save(print, folder / "training_args.bin")
    (folder / "trainer_state.json").write_text("{}")
    return folder


def test_a_folder_of_a_trainer_is_one_snapshot(tmp_path):
    folders = [checkpoint_of_trainer(tmp_path / f"checkpoint-{number * 500}", number) for number in range(4)]
    assert numbers(folders) == FOUR
    assert checkpoint_files(folders[0]) == (folders[0] / "model.safetensors",)


def test_the_folder_above_holds_them_all_and_the_last_model_once(tmp_path):
    for number in range(4):
        checkpoint_of_trainer(tmp_path / f"checkpoint-{number * 50}", number)
    save(tmp_path / "model.safetensors", 3)
    (tmp_path / "runs").mkdir()
    assert numbers(tmp_path) == FOUR


def test_a_folder_of_folders_with_several_checkpoints_each_is_refused(tmp_path):
    for number in range(2):
        save(tmp_path / "version_0" / f"{number}.pt", number)
    with pytest.raises(CheckpointFileError, match=r"version_0 holds 2 checkpoints, such as 0\.pt and 1\.pt"):
        checkpoint_files(tmp_path)


def in_parts(folder, number, suffix=".safetensors"):
    """As transformers writes models that are larger than one file may be."""
    files = [folder / f"model-0000{part}-of-00002{suffix}" for part in (1, 2)]
    folder.mkdir(parents=True, exist_ok=True)
    for part, file in enumerate(files):
        state = {f"{part}.weight": torch.full((2,), float(number)), f"{part}.bias": torch.full((1,), -float(number))}
        save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    places = {f"{part}.{name}": file.name for part, file in enumerate(files) for name in ("weight", "bias")}
    index = folder / f"model{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 24}, "weight_map": places}))
    return index


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("given", ["folder", "index", "parts"])
def test_a_checkpoint_in_parts_is_one_snapshot(tmp_path, suffix, given):
    indices = [in_parts(tmp_path / f"checkpoint-{number}", number, suffix) for number in range(4)]
    paths = {
        "folder": [index.parent for index in indices],
        "index": indices,
        "parts": [part for index in indices for part in sorted(index.parent.glob(f"model-*{suffix}"))],
    }[given]
    moments = moments_from_files(paths)
    assert moments.count == 4
    assert set(moments.layout.names) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert sorted(moments.posterior().mean.tolist()) == [-1.5, -1.5, 1.5, 1.5, 1.5, 1.5]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda index: (index.parent / "model-00002-of-00002.safetensors").unlink(),
            "is not beside it: the checkpoint",
        ),
        (lambda index: index.write_text("{"), "is damaged, or no list"),
        (lambda index: index.write_text("[" * 100_000), "is damaged, or no list"),
        (
            lambda index: index.write_text('{"weight_map": {"w": "../secret.safetensors"}}'),
            "is no checkpoint file besi",
        ),
        (lambda index: index.write_text('{"weight_map": {"w": 3}}'), "is damaged, or no list"),
        (
            lambda index: index.write_text('{"weight_map": {"w": "model-00001-of-00002.safetensors"}}'),
            "has no w, which model.safetensors.index.json says is in it",
        ),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(tmp_path, change, words):
    index = in_parts(tmp_path, 1)
    change(index)
    with pytest.raises(CheckpointFileError, match=words):
        moments_from_files(tmp_path)


def test_a_part_without_its_index_is_refused(tmp_path):
    in_parts(tmp_path, 1).unlink()
    with pytest.raises(
        CheckpointFileError, match=r"is a part of a checkpoint, whose index model\.safetensors\.index\."
    ):
        moments_from_files(tmp_path)


def test_what_deepspeed_wrote_is_refused_with_what_to_do(tmp_path):
    for name in ("mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        torch.save({}, tmp_path / name)
    with pytest.raises(CheckpointFileError, match=r"written by DeepSpeed, .* zero_to_fp32\.py"):
        checkpoint_files(tmp_path)


# ---------------------------------------------------------------------------------- torch.distributed.checkpoint


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.norm, self.head = nn.Embedding(7, 4), nn.BatchNorm1d(4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.tokens.weight


def distributed(state, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=folder)
    return folder


@pytest.fixture
def models():
    torch.manual_seed(0)
    return [Tied() for _ in range(3)]


@pytest.mark.parametrize("key", [None, "model"])
def test_folders_of_torch_distributed_checkpoint_are_read(tmp_path, models, key):
    for number, model in enumerate(models):
        optimizer = torch.optim.Adam(model.parameters())
        sum(p.sum() for p in model.parameters()).backward()
        optimizer.step()
        state = model.state_dict()
        nested = {"model": state, "optim": optimizer.state_dict(), "step": number}
        distributed(nested if key else state, tmp_path / f"step-{number}")
    moments, expected = moments_from_files(tmp_path, key=key, layout=Layout.of(models[0])), Moments()
    for model in models:
        expected.add(model)
    assert set(moments_from_files(tmp_path, key=key).layout.names) == {*moments.layout.names, "head.weight"}
    assert torch.equal(moments.posterior().mean, expected.posterior().mean)
    assert torch.equal(moments.posterior().variance, expected.posterior().variance)


class Code:
    """What runs when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_in_such_a_folder_is_executed(tmp_path):
    folder = distributed({"weight": torch.ones(2)}, tmp_path / "c")
    (folder / ".metadata").write_bytes(pickle.dumps(Code(str(tmp_path / "executed"))))
    with pytest.raises(
        CheckpointFileError, match=r"its \.metadata is damaged, or of a version not known.* dcp_to_torch"
    ):
        read_state_dict(folder)
    assert not (tmp_path / "executed").exists()
    assert followed(pickle.dumps(Code("x"))).name == "posix.mkdir"


def test_a_damaged_folder_is_refused(tmp_path):
    folder = distributed({"weight": torch.ones(500)}, tmp_path / "c")
    good = (folder / ".metadata").read_bytes()
    for cut in range(0, len(good), 7):
        (folder / ".metadata").write_bytes(good[:cut])
        with pytest.raises(CheckpointFileError, match="cannot be read"):
            read_state_dict(folder)
    (folder / ".metadata").write_bytes(good.replace(b"__0_0.distcp", b"../../a.disk"))
    with pytest.raises(CheckpointFileError, match="is said to lie outside of it"):
        read_state_dict(folder)
    (folder / ".metadata").write_bytes(good)
    (folder / "__0_0.distcp").write_bytes((folder / "__0_0.distcp").read_bytes()[:-900])
    with pytest.raises(CheckpointFileError, match=r"a part of weight cannot be read|larger than all files"):
        read_state_dict(folder)


# ------------------------------------------------------------------------------------- what is a weight, and what not


def test_what_never_changes_is_no_weight(tmp_path):
    """Class weights of a loss, and inputs' mean and spread, look like parameters in a file."""
    files = [
        save(tmp_path / f"{n}.pt", n, **{"loss.weight": torch.ones(5), "0.mean": torch.tensor([0.13])})
        for n in range(3)
    ]
    found = contents(files)
    assert found.layout.names == ("weight",)
    assert found.unchanged == ("loss.weight", "0.mean")
    assert moments_from_files(files).layout == found.layout
    assert contents(files[0]).layout.names == ("weight", "loss.weight", "0.mean")  # of one file nobody can know


def test_a_posterior_of_our_own_models_has_the_parameters_alone(tmp_path):
    from dswag.lab.models import MODELS

    torch.manual_seed(0)
    model = MODELS["mlp"]((1, 28, 28), 10)
    for number in range(2):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        torch.save(model.state_dict(), tmp_path / f"{number}.pt")
    assert moments_from_files(tmp_path).layout == Layout.of(model)


@pytest.mark.parametrize("wrap", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_vectors_of_spectral_normalization_are_no_weights(tmp_path, wrap):
    torch.manual_seed(0)
    models = [nn.Sequential(wrap(nn.Linear(3, 4))) for _ in range(3)]
    for number, model in enumerate(models):
        torch.save(model.state_dict(), tmp_path / f"{number}.pt")
    assert set(moments_from_files(tmp_path).layout.names) == set(Layout.of(models[0]).names)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weight_norm_has_weights_of_similar_names(tmp_path):
    torch.manual_seed(0)
    models = [nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4))) for _ in range(3)]
    for number, model in enumerate(models):
        with torch.no_grad():
            model[0].weight_g.add_(number)
        torch.save(model.state_dict(), tmp_path / f"{number}.pt")
    assert set(moments_from_files(tmp_path).layout.names) == set(Layout.of(models[0]).names)


@pytest.mark.filterwarnings("ignore:the running statistics")
def test_tied_weights_are_found_by_the_names_that_safetensors_gives(tmp_path, models):
    for number, model in enumerate(models):
        save_model(model, tmp_path / f"step{number}.safetensors")
    layout = Layout.of(models[0])
    assert "tokens.weight" in layout.names
    given, found = moments_from_files(tmp_path, layout=layout), moments_from_files(tmp_path)
    assert found.layout.d == layout.d
    first, second = Tied(), Tied()
    given.posterior().mean_into(first)
    found.posterior().mean_into(second)
    assert torch.equal(first.head.weight, second.head.weight)
    torch.testing.assert_close(first.head.weight, sum(model.head.weight for model in models) / 3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_names_are_those_of_the_model_where_a_part_of_it_was_compiled(tmp_path):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    compiled = nn.Sequential(torch.compile(nn.Linear(2, 3)), nn.Linear(3, 1))
    assert "0._orig_mod.weight" in compiled.state_dict()
    assert Layout.of(compiled) == Layout.of(plain)
    torch.save(plain.state_dict(), tmp_path / "1.pt")
    torch.save(compiled.state_dict(), tmp_path / "2.pt")
    posterior = moments_from_files(tmp_path).posterior()
    assert posterior.layout == Layout.of(plain)
    posterior.mean_into(compiled)
    assert torch.equal(Layout.of(plain).flatten(compiled), posterior.mean)
    assert torch.equal(Layout.of(plain).flatten(compiled.state_dict()), posterior.mean)


# ------------------------------------------------------------------------------------------- what cannot be taken


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.eye(3).to_sparse(), r"1\.pt: odd is sparse: store it dense"),
        (torch.zeros(3, dtype=torch.float8_e4m3fn), r"1\.pt: odd is torch\.float8_e4m3fn, a number of which means"),
        (torch.zeros(3, dtype=torch.uint8).view(torch.float8_e8m0fnu), r"odd is torch\.float8_e8m0fnu"),
        (torch.zeros(3, device="meta"), r"odd is on the meta device, without values"),
        (torch.zeros(1).expand(10**12), r"odd has 1,000,000,000,000 elements, for which the file is too small"),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_tensors_of_which_no_weights_can_be_made_are_refused(tmp_path, tensor, words, named):
    save(tmp_path / "1.pt", 1, odd=tensor)
    layout = Layout(("odd",), (tuple(tensor.shape),)) if named else None
    with pytest.raises(CheckpointFileError, match=words):
        moments_from_files(tmp_path, layout=layout)


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.float8_e4m3fn])
def test_so_are_those_in_safetensors(tmp_path, dtype):
    save(tmp_path / "1.safetensors", 1, odd=torch.zeros(3).to(dtype))
    with pytest.raises(CheckpointFileError, match=rf"1\.safetensors: odd is {dtype}"):
        moments_from_files(tmp_path)


def test_weights_that_share_one_number_are_no_larger_than_their_file(tmp_path):
    files = [save(tmp_path / f"{n}.pt", n, shared=torch.full((1,), float(n)).expand(3)) for n in range(2)]
    assert moments_from_files(files).layout.d == 5


def test_a_file_that_grows_when_it_is_unpacked_is_refused(tmp_path):
    path = save(tmp_path / "1.pt", 1, zeros=torch.zeros(200_000))
    content = io.BytesIO()
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as after:
        for name in before.namelist():
            after.writestr(name, before.read(name))
    path.write_bytes(content.getvalue())
    with pytest.raises(CheckpointFileError, match=r"1\.pt is truncated, damaged or no checkpoint of PyTorch") as caught:
        moments_from_files(tmp_path)
    assert "compressed" in str(caught.value.__cause__)


class Settings:
    """Of a training, as Lightning and others put them into their files."""


def test_a_file_with_a_class_of_somebody_s_own_says_how_to_read_it(tmp_path):
    path = save(tmp_path / "1.pt", 1, settings=Settings())
    name = f"{Settings.__module__}.Settings"
    with pytest.raises(
        CheckpointFileError, match=rf"holds {name}, .* within torch\.serialization\.safe_globals"
    ) as error:
        contents(path)
    assert f"safe_globals([{name}])" in str(error.value)
    with torch.serialization.safe_globals([Settings]):
        assert contents(path).layout.names == ("weight",)


def test_a_file_with_a_command_of_the_system_gives_no_such_advice(tmp_path):
    path = save(tmp_path / "1.pt", 1, settings=Code("x"))
    with pytest.raises(CheckpointFileError, match=r"holds posix\.mkdir, .* save model\.state_dict\(\) alone$"):
        contents(path)


def test_files_that_were_read_stay_as_they_are(tmp_path):
    for number in range(2):
        save(tmp_path / f"{number}.pt", number)
    shutil.copytree(tmp_path, tmp_path.parent / "before")
    moments_from_files(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (tmp_path.parent / "before" / path.name).read_bytes()
