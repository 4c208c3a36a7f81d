"""With the Trainer of transformers, the callback's posterior is that of the same weights handed to `Moments`."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dswag.core.parameters import Layout
from dswag.posterior.collectors.checkpoint_files import checkpoint_files, moments_from_files
from dswag.posterior.moments import Moments

pytest.importorskip("transformers", reason="needs transformers: pip install --group integrations")
pytest.importorskip("accelerate", reason="the Trainer needs accelerate: pip install --group integrations")
pytestmark = [pytest.mark.filterwarnings("ignore::Warning"), pytest.mark.usefixtures("one_intra_op_thread")]

from transformers import Trainer, TrainerCallback, TrainingArguments  # noqa: E402

from dswag.posterior.collectors.transformers import PosteriorCallback  # noqa: E402


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.model[0].bias.requires_grad_(False)

    def forward(self, inputs, labels):
        outputs = self.model(inputs)
        return {"loss": nn.functional.mse_loss(outputs, labels), "logits": outputs}


class Recorder(TrainerCallback):
    """Keeps θ after every epoch and every step of the optimizer."""

    def __init__(self):
        self.epochs, self.steps = [], {}

    def on_step_end(self, args, state, control, *, model, **_):
        self.steps[state.global_step] = Layout.of(model).flatten(model)

    def on_epoch_end(self, args, state, control, *, model, **_):
        self.epochs.append(Layout.of(model).flatten(model))


@pytest.fixture
def train(tmp_path):
    """Trains a small network on eight batches an epoch; returns it."""

    def run(*callbacks, **settings):
        inputs = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
        examples = [{"inputs": row, "labels": row.sum(0, keepdim=True)} for row in inputs]
        arguments = TrainingArguments(
            output_dir=tmp_path,
            use_cpu=True,
            per_device_train_batch_size=4,
            learning_rate=0.05,
            report_to=[],
            disable_tqdm=True,
            **{"save_strategy": "no", **settings},
        )
        model = Network()
        Trainer(model, arguments, train_dataset=examples, callbacks=[*callbacks]).train()
        return model

    return run


def assert_same(posterior, thetas, **settings):
    moments = Moments(**settings)
    for theta in thetas:
        moments.add(theta)
    expected = moments.posterior()
    assert posterior.count == len(thetas)
    assert all(torch.equal(tensor, expected.tensors()[name]) for name, tensor in posterior.tensors().items())


def test_the_posterior_is_that_of_the_weights_after_the_epochs(train):
    callback, recorder = PosteriorCallback(), Recorder()
    model = train(callback, recorder, num_train_epochs=4)
    assert_same(callback.posterior, recorder.epochs)
    assert callback.posterior.layout == Layout.of(model)
    assert callback.posterior.layout.names == ("model.0.weight", "model.2.weight", "model.2.bias")


def test_epochs_may_be_chosen_and_moments_brought_along(train):
    callback, recorder = PosteriorCallback(Moments(rank=2), every_n_epochs=2, start=1), Recorder()
    train(callback, recorder, num_train_epochs=7)
    assert_same(callback.posterior, [recorder.epochs[number - 1] for number in (3, 5, 7)], rank=2)


@pytest.mark.parametrize("batches_a_step", [1, 2])
def test_snapshots_may_be_taken_every_so_many_steps(train, batches_a_step):
    callback, recorder = PosteriorCallback(every_n_steps=3, start=2), Recorder()
    train(callback, recorder, num_train_epochs=3, gradient_accumulation_steps=batches_a_step)
    due = range(5, 24 // batches_a_step + 1, 3)
    assert_same(callback.posterior, [recorder.steps[number] for number in due])


def test_an_epoch_that_is_cut_short_is_an_epoch(train):
    callback, recorder = PosteriorCallback(), Recorder()
    train(callback, recorder, max_steps=18)
    assert len(recorder.epochs) == 3
    assert_same(callback.posterior, recorder.epochs)


def test_the_checkpoints_of_the_trainer_have_the_same_posterior(train, tmp_path):
    callback = PosteriorCallback()
    model = train(callback, num_train_epochs=3, save_strategy="epoch")
    files = [tmp_path / f"checkpoint-{step}" / "model.safetensors" for step in (8, 16, 24)]
    assert checkpoint_files(files) == tuple(files)
    from_files = moments_from_files(files, layout=Layout.of(model)).posterior()
    for name, tensor in callback.posterior.tensors().items():
        assert torch.equal(tensor, from_files.tensors()[name])


@pytest.mark.parametrize("sign", ["arguments", "ds_id", "_fsdp_flattened"])
def test_models_that_were_taken_apart_are_refused_whatever_the_arguments_say(sign):
    """As `accelerate launch` does, of which the arguments know nothing; a real FSDP1: `test_split_models`."""
    arguments = SimpleNamespace(deepspeed={"a": 1} if sign == "arguments" else None)
    model, state = nn.Linear(2, 1), SimpleNamespace(epoch=None, global_step=0)
    setattr(model.weight, sign, True)
    with pytest.raises(ValueError, match=r"(DeepSpeed splits|taken apart by FSDP1).* with dswag collect"):
        PosteriorCallback().on_train_begin(arguments, state, None, model=model)


def test_one_callback_is_for_one_training(train):
    callback = PosteriorCallback()
    train(callback, num_train_epochs=2)
    with pytest.raises(ValueError, match=r"2 snapshots of a training that ended after step 16, .* make a new callback"):
        train(callback, num_train_epochs=2)
