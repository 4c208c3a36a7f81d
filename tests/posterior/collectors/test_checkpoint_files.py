"""Moments of checkpoint files are those of the weights in them; files that do not fit are refused by name."""

import os
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from dswag.algorithms.prediction import predict
from dswag.core.parameters import Layout
from dswag.posterior.collectors.checkpoint_files import checkpoint_files, contents, moments_from_files
from dswag.posterior.collectors.state_dicts import CheckpointFileError, read_state_dict
from dswag.posterior.moments import Moments


def weights(number, **more):
    """A state dict whose names do not lie in alphabetical order, as those of modules seldom do."""
    generator = torch.Generator().manual_seed(number)
    return {"out.weight": torch.randn(2, 3, generator=generator), "bias": torch.randn(2, generator=generator), **more}


def save(state, path):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=path.suffix != ".pth")
    return path


def expected(states, **settings):
    """The posterior of the same weights, handed to `Moments` in the order of the first state's names."""
    layout = Layout(tuple(states[0]), tuple(tuple(tensor.shape) for tensor in states[0].values()))
    moments = Moments(layout=layout, **settings)
    for state in states:
        moments.add(layout.flatten(state))
    return moments.posterior()


def assert_same(posterior, other):
    assert (posterior.layout, posterior.count) == (other.layout, other.count)
    assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in posterior.tensors().items())


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
@pytest.mark.parametrize("settings", [{}, {"rank": 2, "columns": "svd"}, {"rank": 3, "centering": "running"}])
def test_moments_of_files_are_those_of_the_weights_in_them(tmp_path, suffix, settings):
    states = [weights(number) for number in range(5)]
    files = [save(state, tmp_path / f"{number}{suffix}") for number, state in enumerate(states)]
    assert_same(moments_from_files(files, **settings).posterior(), expected(states, **settings))


def test_safetensors_have_their_own_order_unless_a_layout_gives_another(tmp_path):
    states = [weights(number) for number in range(3)]
    files = [save(state, tmp_path / f"{number}.safetensors") for number, state in enumerate(states)]
    alphabetical = [{name: state[name] for name in sorted(state)} for state in states]
    assert_same(moments_from_files(files).posterior(), expected(alphabetical))
    layout = Layout(("out.weight", "bias"), ((2, 3), (2,)))
    assert_same(moments_from_files(files, layout=layout).posterior(), expected(states))


def test_predictions_do_not_depend_on_the_order_of_a_file(tmp_path):
    models = [nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)) for _ in range(3)]
    files = [save(model.state_dict(), tmp_path / f"{number}.safetensors") for number, model in enumerate(models)]
    in_order, alphabetical = (moments_from_files(files, layout=x).posterior() for x in (Layout.of(models[0]), None))
    assert alphabetical.layout.names != in_order.layout.names
    inputs = torch.randn(5, 3)
    first, second = (predict(models[0], posterior, inputs, kind="mean") for posterior in (in_order, alphabetical))
    assert torch.equal(first, second)


def test_kinds_of_files_may_be_mixed(tmp_path):
    kinds = (".pt", ".safetensors", ".pth")
    states = [weights(number) for number in range(3)]
    files = [save(state, tmp_path / f"{n}{kind}") for n, (state, kind) in enumerate(zip(states, kinds, strict=True))]
    assert_same(moments_from_files(files).posterior(), expected(states))


def test_a_folder_is_read_in_natural_order_and_a_list_as_given(tmp_path):
    """With a rank of 2 the columns are those of the last two files, so the order shows in them."""
    states = {number: weights(number) for number in (9, 10, 100)}
    for number, state in states.items():
        save(state, tmp_path / f"epoch{number}-step{1000 - number}.pt")
    (tmp_path / "notes.txt").write_text("")
    save(weights(5), tmp_path / "._epoch9.pt")
    (tmp_path / "older.pt").mkdir()
    assert [path.name for path in checkpoint_files(tmp_path)] == [f"epoch{n}-step{1000 - n}.pt" for n in states]
    assert_same(moments_from_files(tmp_path, rank=2).posterior(), expected([*states.values()], rank=2))
    backwards = checkpoint_files(tmp_path)[::-1]
    assert_same(moments_from_files(backwards, rank=2).posterior(), expected([*states.values()][::-1], rank=2))


@given(st.lists(st.integers(0, 10**6), min_size=1, unique=True), st.sampled_from(["", "2-", "e_"]))
def test_numbers_in_names_are_ordered_as_numbers(tmp_path_factory, numbers, beginning):
    folder = tmp_path_factory.mktemp("natural", numbered=True)
    for number in numbers:
        (folder / f"{beginning}{number}.pt").touch()
    assert [path.stem for path in checkpoint_files(folder)] == [f"{beginning}{number}" for number in sorted(numbers)]


def test_names_that_begin_with_a_number_and_such_that_do_not_can_be_ordered(tmp_path):
    for name in ("2b.pt", "b2.pt", "10.pt", "b.pt", "2.pt"):
        (tmp_path / name).touch()
    assert [path.name for path in checkpoint_files(tmp_path)] == ["2.pt", "2b.pt", "10.pt", "b.pt", "b2.pt"]


@pytest.mark.parametrize("key", [None, "state_dict", "ema.model"])
@pytest.mark.parametrize("prefix", ["", "model.", "module._orig_mod."])
def test_nested_checkpoints_are_found_by_key_and_prefix(tmp_path, key, prefix):
    states = [weights(number) for number in range(3)]
    files = []
    for number, state in enumerate(states):
        content = {prefix + name: tensor for name, tensor in state.items()}
        if prefix:
            content["teacher.weight"] = torch.zeros(7)
        for step in reversed([] if key is None else key.split(".")):
            content = {"epoch": number, step: content, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}}
        files.append(save(content, tmp_path / f"{number}.ckpt"))
    assert_same(moments_from_files(files, key=key, prefix=prefix).posterior(), expected(states))


def test_buffers_whole_numbers_and_second_names_are_left_out_and_said_so(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.first = nn.Linear(3, 3)
            self.second = nn.Linear(3, 3)
            self.second.weight = self.first.weight
            self.register_buffer("positions", torch.arange(3))

    models = [Tied(), Tied()]
    files = [save(model.state_dict(), tmp_path / f"{number}.pt") for number, model in enumerate(models)]
    found = contents(files[0])
    assert found.layout == Layout.of(models[0])
    norm = tuple(f"norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked"))
    assert set(found.left_out) == {*norm, "positions", "second.weight"}
    moments = moments_from_files(files)
    assert moments.layout == Layout.of(models[0])
    by_hand = Moments()
    for model in models:
        by_hand.add(model)
    assert_same(moments.posterior(), by_hand.posterior())


def test_what_the_prefix_excludes_is_said_too(tmp_path):
    path = save({"model.a": torch.ones(2), "loss.weight": torch.ones(3)}, tmp_path / "1.pt")
    assert contents(path, prefix="model.").layout == Layout(("a",), ((2,),))
    assert contents(path, prefix="model.").left_out == ("loss.weight",)


def test_tied_weights_may_have_lost_a_name_in_later_files(tmp_path):
    shared = torch.ones(3)
    files = [save({"a": shared, "b": shared}, tmp_path / "1.pt"), save({"a": 2 * shared}, tmp_path / "2.safetensors")]
    assert moments_from_files(files).layout == Layout(("a",), ((3,),))


def test_empty_tensors_are_not_taken_for_tied_ones(tmp_path):
    path = save({"a": torch.ones(0), "b": torch.ones(0), "c": torch.ones(1)}, tmp_path / "1.pt")
    assert contents(path).layout.names == ("a", "b", "c")


def test_a_layout_takes_what_it_names_and_ignores_the_rest(tmp_path):
    files = [save(weights(n, other=torch.zeros(n + 1)), tmp_path / f"{n}.pt") for n in range(3)]
    layout = Layout(("bias",), ((2,),))
    states = [{"bias": weights(number)["bias"]} for number in range(3)]
    assert_same(moments_from_files(files, layout=layout).posterior(), expected(states))


def test_a_prefix_that_is_missing_is_named(tmp_path):
    path = save({f"module.{name}": tensor for name, tensor in weights(0).items()}, tmp_path / "1.pt")
    layout = Layout(("bias",), ((2,),))
    with pytest.raises(CheckpointFileError, match=r"no bias, .*: it has module\.bias, so pass the prefix 'module\.'"):
        moments_from_files([path], layout=layout)


def test_a_prefix_that_ends_before_the_dot_is_refused(tmp_path):
    path = save({f"module.{name}": tensor for name, tensor in weights(0).items()}, tmp_path / "1.pt")
    with pytest.raises(CheckpointFileError, match=r"prefix 'module' names begin with a dot: pass 'module\.'$"):
        moments_from_files([path], prefix="module")


def test_half_precision_is_taken_in_float32(tmp_path):
    states = [{name: tensor.bfloat16() for name, tensor in weights(number).items()} for number in range(3)]
    files = [save(state, tmp_path / f"{number}.safetensors") for number, state in enumerate(states)]
    posterior = moments_from_files(files, layout=Layout(("out.weight", "bias"), ((2, 3), (2,)))).posterior()
    assert posterior.mean.dtype == torch.float32
    assert_same(posterior, expected(states))


def test_one_checkpoint_at_a_time_is_in_memory(tmp_path, monkeypatch):
    files = [save(weights(number), tmp_path / f"{number}.pt") for number in range(6)]
    alive, flatten, most = [], Layout.flatten, 0

    def watched(self, source):
        nonlocal most
        alive.append(weakref.ref(theta := flatten(self, source)))
        most = max(most, sum(reference() is not None for reference in alive))
        return theta

    monkeypatch.setattr(Layout, "flatten", watched)
    moments_from_files(files)
    assert len(alive) == len(files)
    assert most == 1


def test_every_file_taken_in_is_told(tmp_path):
    files = [save(weights(number), tmp_path / f"{number}.pt") for number in range(3)]
    told = []
    moments_from_files(tmp_path, taken_in=told.append)
    assert told == files


def damaged(change):
    def write(folder):
        path = save(weights(1), folder / "2.pt")
        path.write_bytes(change(path.read_bytes()))

    return write


class Code:
    """What runs when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def wrong(name, state):
    return lambda folder: save(state, folder / name)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (damaged(lambda content: content[:-100]), r"2\.pt is truncated, damaged or no checkpoint of PyTorch"),
        (damaged(lambda content: content[: len(content) // 3]), r"2\.pt is truncated, damaged"),
        (damaged(lambda content: b""), r"2\.pt is truncated, damaged or no checkpoint of PyTorch: leave it out"),
        (damaged(lambda content: b"cut off"), r"2\.pt is truncated, damaged"),  # c: what names code in such files
        (damaged(lambda content: b"no checkpoint at all"), r"2\.pt is truncated, damaged"),
        (wrong("2.pt", [1, 2]), r"2\.pt holds a value of type list, no state dict"),
        (wrong("2.pt", {"epoch": 3}), r"2\.pt has no weights, only values that are no tensors"),
        (wrong("2.pt", {"n": torch.arange(3)}), r"2\.pt has no weights, only n"),
        (wrong("2.pt", {"model": weights(1), "epoch": 3}), r"2\.pt holds weights further down: .* the key model$"),
        (wrong("2.pt", {"loss": torch.ones(()), "a": weights(1), "b": weights(1)}), r"with the key a or b$"),
        (wrong("2.pt", {"bias": torch.ones(2)}), r"2\.pt has no out\.weight, which .*1\.pt has"),
        (wrong("2.pt", weights(1, more=torch.ones(1))), r"2\.pt has more, which .*1\.pt has not"),
        (
            wrong("2.pt", {**weights(1), "bias": torch.ones(3)}),
            r"2\.pt: bias must be .* shape \[2\], as in .*1\.pt, got",
        ),
        (
            wrong("2.pt", {**weights(1), "bias": torch.ones(2).int()}),
            r"bias must be floating-point .* got torch\.int32",
        ),
        (wrong("2.pt", {**weights(1), "bias": torch.tensor([1, torch.nan])}), r"2\.pt: bias is NaN or infinite"),
        (wrong("2.pt", {**weights(1), "bias": torch.tensor([torch.inf, 0])}), r"2\.pt: bias is NaN or infinite"),
        (
            lambda folder: (folder / "2.safetensors").write_bytes(b"no such file"),
            r"2\.safetensors is truncated, damaged",
        ),
        (
            lambda folder: save_file(weights(1), folder / "2.safetensors", {"format": "dswag-posterior"}),
            r"2\.safetensors is a dswag-posterior file of dswag's own",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_named_with_what_is_wrong(tmp_path, write, words):
    save(weights(0), tmp_path / "1.pt")
    write(tmp_path)
    with pytest.raises(CheckpointFileError, match=words):
        moments_from_files(tmp_path)


@pytest.mark.parametrize("size", [0.2, 0.9, 0.999])
def test_a_truncated_safetensors_file_is_named(tmp_path, size):
    path = save(weights(0), tmp_path / "1.safetensors")
    path.write_bytes(path.read_bytes()[: int(size * path.stat().st_size)])
    with pytest.raises(CheckpointFileError, match=r"1\.safetensors is truncated, damaged or no safetensors file"):
        moments_from_files(path)


def test_an_archive_that_points_outside_itself_is_damaged_and_no_matter_of_the_system(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"w": torch.ones(3)}, path)
    content = bytearray(path.read_bytes())
    where = content.index(b"PK\x06\x06") + 48  # of the archive's directory, in the record at its end
    content[where : where + 8] = b"8" + 7 * b"\xff"
    path.write_bytes(content)
    with pytest.raises(CheckpointFileError, match=r"weights.pt is truncated, damaged or no checkpoint of PyTorch"):
        read_state_dict(path)


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("allowed_by_the_environment", [False, True])
def test_a_checkpoint_with_code_is_refused_and_not_executed(tmp_path, suffix, allowed_by_the_environment, monkeypatch):
    if allowed_by_the_environment:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    proof = tmp_path / "executed"
    path = save({"code": Code(str(proof)), **weights(0)}, tmp_path / f"1{suffix}")
    with pytest.raises(CheckpointFileError, match=r"1\.pth? holds posix\.mkdir, which takes executing code to read"):
        moments_from_files(path)
    assert not proof.exists()


def test_a_whole_module_is_refused_with_what_to_save_instead(tmp_path):
    torch.save(nn.Linear(2, 1), tmp_path / "1.pt")
    with pytest.raises(CheckpointFileError, match=r"holds torch.*Linear, .* save model\.state_dict\(\) alone"):
        moments_from_files(tmp_path)


def test_a_key_or_prefix_that_leads_nowhere_says_what_there_is(tmp_path):
    nested = save({"epoch": 1, "model": weights(0)}, tmp_path / "1.pt")
    flat = save(weights(0), tmp_path / "1.safetensors")
    with pytest.raises(
        CheckpointFileError, match=r"1\.pt has no 'state_dict' for the key 'state_dict', only epoch, mod"
    ):
        read_state_dict(nested, key="state_dict")
    with pytest.raises(CheckpointFileError, match=r"1\.pt has no 'a' for the key 'epoch.a', only a value of type int"):
        read_state_dict(nested, key="epoch.a")
    with pytest.raises(CheckpointFileError, match=r"1\.pt, under 'epoch', holds a value of type int, no state dict"):
        read_state_dict(nested, key="epoch")
    with pytest.raises(CheckpointFileError, match=r"1\.safetensors is not nested, as no safetensors file is"):
        read_state_dict(flat, key="model")
    with pytest.raises(CheckpointFileError, match=r"has no weights that start with 'net\.', only bias, out\.weight$"):
        contents(flat, prefix="net.")


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("absent", FileNotFoundError, "absent does not exist"),
        ("absent.pt", FileNotFoundError, r"absent\.pt does not exist"),
        (
            "empty",
            ValueError,
            r"empty holds no checkpoints: expected files that end in \.safetensors, \.pt, \.pth, \.ck",
        ),
        ("weights.onnx", CheckpointFileError, r"weights\.onnx must end in one of \.safetensors"),
    ],
)
def test_paths_that_lead_to_no_checkpoint_are_refused(tmp_path, name, error, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.onnx").touch()
    with pytest.raises(error, match=words):
        checkpoint_files([tmp_path / name])


def test_no_paths_are_refused():
    with pytest.raises(ValueError, match="there are no checkpoints to take moments of"):
        moments_from_files([])
