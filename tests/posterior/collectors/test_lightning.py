"""With Lightning's own Trainer, the callback's posterior is that of the same weights handed to `Moments`."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dswag.core.parameters import Layout
from dswag.posterior.collectors.checkpoint_files import contents, moments_from_files
from dswag.posterior.moments import Moments

pytest.importorskip("lightning", reason="needs Lightning: pip install --group integrations")
pytestmark = [pytest.mark.filterwarnings("ignore::Warning"), pytest.mark.usefixtures("one_intra_op_thread")]

from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: E402
from lightning.pytorch.callbacks import (  # noqa: E402
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.strategies import FSDPStrategy  # noqa: E402

from dswag.posterior.collectors.lightning import PosteriorCallback  # noqa: E402


class Network(LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
        self.model[0].bias.requires_grad_(False)
        self.loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0]))
        self.loss.register_buffer("weight", torch.tensor([1.5]))

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        return nn.functional.mse_loss(self.model(inputs), targets)

    def validation_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Recorder(Callback):
    """Keeps θ after every epoch and every step of the optimizer."""

    def __init__(self):
        self.epochs, self.steps = [], {}

    def on_train_batch_end(self, trainer, module, *_):
        self.steps.setdefault(trainer.global_step, Layout.of(module).flatten(module))

    def on_train_epoch_end(self, trainer, module):
        self.epochs.append(Layout.of(module).flatten(module))


@pytest.fixture
def fit(tmp_path):
    """Fits a small network on eight batches an epoch; returns it."""

    def run(*callbacks, module=None, validate=False, **settings):
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(32, 3, generator=generator)
        examples = TensorDataset(inputs, inputs.sum(1, keepdim=True))
        module = module or Network()
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=[*callbacks],
            **settings,
        )
        loader = DataLoader(examples, batch_size=4)
        trainer.fit(module, loader, loader if validate else None)
        return module

    return run


def assert_same(posterior, thetas, **settings):
    moments = Moments(**settings)
    for theta in thetas:
        moments.add(theta)
    expected = moments.posterior()
    assert posterior.count == len(thetas)
    assert all(torch.equal(tensor, expected.tensors()[name]) for name, tensor in posterior.tensors().items())


def test_the_posterior_is_that_of_the_weights_after_the_epochs(fit):
    callback, recorder = PosteriorCallback(), Recorder()
    module = fit(callback, recorder, max_epochs=4)
    assert_same(callback.posterior, recorder.epochs)
    assert callback.posterior.layout == Layout.of(module)
    assert "model.0.weight" in callback.posterior.layout.names
    assert "model.0.bias" not in callback.posterior.layout.names


def test_epochs_may_be_chosen_and_moments_brought_along(fit):
    moments = Moments(rank=2, columns="svd")
    callback, recorder = PosteriorCallback(moments, every_n_epochs=2, start=1), Recorder()
    fit(callback, recorder, max_epochs=7)
    assert_same(callback.posterior, [recorder.epochs[number - 1] for number in (3, 5, 7)], rank=2, columns="svd")


@pytest.mark.parametrize("batches_a_step", [1, 2])
def test_snapshots_may_be_taken_every_so_many_steps(fit, batches_a_step):
    callback, recorder = PosteriorCallback(every_n_steps=3, start=2), Recorder()
    fit(callback, recorder, max_epochs=3, accumulate_grad_batches=batches_a_step)
    due = range(5, 24 // batches_a_step + 1, 3)
    assert_same(callback.posterior, [recorder.steps[number] for number in due])


def test_draws_go_into_the_fitted_module_and_out_again(fit):
    callback = PosteriorCallback()
    module = fit(callback, max_epochs=3)
    inputs = torch.randn(5, 3)
    module.eval()
    before = module.model(inputs)
    with callback.posterior.sampled(module, seed=0):
        assert not torch.equal(module.model(inputs), before)
    assert torch.equal(module.model(inputs), before)


def test_the_checkpoints_of_lightning_have_the_same_posterior(fit, tmp_path):
    callback = PosteriorCallback()
    saving = ModelCheckpoint(dirpath=tmp_path / "all", save_top_k=-1)
    module = fit(callback, saving, max_epochs=11)
    from_files = moments_from_files(tmp_path / "all", key="state_dict", layout=Layout.of(module)).posterior()
    assert from_files.count == 11
    for name, tensor in callback.posterior.tensors().items():
        assert torch.equal(tensor, from_files.tensors()[name])


class Adversaries(LightningModule):
    """With two optimizers, each of which steps once a batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.model = nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(nn.functional.mse_loss(self.model(batch[0]), batch[1]))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD([parameter], lr=0.05) for parameter in self.model.parameters()]


def test_steps_of_several_optimizers_are_counted_from_snapshot_to_snapshot(fit):
    callback, recorder = PosteriorCallback(every_n_steps=3), Recorder()
    fit(callback, recorder, module=Adversaries(), max_epochs=1)
    assert list(recorder.steps) == [2, 4, 6, 8, 10, 12, 14, 16]
    assert_same(callback.posterior, [recorder.steps[number] for number in (4, 8, 12, 16)])


@pytest.mark.parametrize("settings", [{}, {"every_n_steps": 4}])
def test_the_epoch_in_which_an_average_is_in_the_module_has_no_snapshot(fit, settings):
    """Its only step is a stray one of Lightning's, after all batches."""
    callback, recorder = PosteriorCallback(**settings), Recorder()
    fit(callback, recorder, StochasticWeightAveraging(0.05, swa_epoch_start=2), max_epochs=5)
    assert len(recorder.epochs) == 6
    thetas = [recorder.steps[number] for number in range(4, 41, 4)] if settings else recorder.epochs[:5]
    assert_same(callback.posterior, thetas)


@pytest.mark.parametrize("settings", [{}, {"every_n_steps": 4}])
def test_snapshots_are_of_the_weights_where_lightning_averages_them(fit, settings):
    callback, recorder = PosteriorCallback(**settings), Recorder()
    module = fit(callback, recorder, EMAWeightAveraging(decay=0.9), max_epochs=3, validate=True)
    thetas = [recorder.steps[number] for number in range(4, 25, 4)] if settings else recorder.epochs
    assert_same(callback.posterior, thetas)
    assert not torch.equal(Layout.of(module).flatten(module), thetas[-1])


@pytest.mark.parametrize("key", ["state_dict", "current_model_state"])
def test_checkpoints_with_averages_give_the_posterior_of_the_weights(fit, tmp_path, key):
    callback, saving = PosteriorCallback(), ModelCheckpoint(dirpath=tmp_path / "all", save_top_k=-1, save_last=True)
    module = fit(callback, saving, EMAWeightAveraging(decay=0.99), max_epochs=5, validate=True)
    found = contents(tmp_path / "all", key=key)
    assert found.averaged
    assert found.copies == {tmp_path / "all" / "last.ckpt": found.files[-1]}
    assert "model.0.bias" in found.unchanged  # which is frozen
    assert "loss.weight" in found.unchanged  # which is a buffer
    from_files = moments_from_files(tmp_path / "all", key=key, layout=Layout.of(module)).posterior()
    assert torch.equal(callback.posterior.mean, from_files.mean)
    assert torch.equal(callback.posterior.variance, from_files.variance)
    assert set(found.layout.names) == set(from_files.layout.names)


def test_of_files_with_averages_alone_none_is_a_snapshot(fit, tmp_path):
    callback, saving = PosteriorCallback(), ModelCheckpoint(dirpath=tmp_path / "all", save_top_k=-1, save_last=True)
    module = fit(callback, saving, StochasticWeightAveraging(0.05, swa_epoch_start=2), max_epochs=5)
    found = contents(tmp_path / "all", key="state_dict")
    assert [path.name.partition("-")[0] for path in found.averages] == ["epoch=5", "last.ckpt"]
    from_files = moments_from_files(tmp_path / "all", key="state_dict", layout=Layout.of(module)).posterior()
    assert from_files.count == 5
    assert torch.equal(callback.posterior.mean, from_files.mean)


def test_one_callback_is_for_one_training(fit):
    callback = PosteriorCallback()
    fit(callback, max_epochs=2)
    with pytest.raises(ValueError, match=r"2 snapshots of a training that ended after step 16, .* make a new callback"):
        fit(callback, max_epochs=2)


def test_strategies_that_split_the_weights_are_refused():
    trainer = SimpleNamespace(strategy=FSDPStrategy.__new__(FSDPStrategy))
    with pytest.raises(ValueError, match=r"FSDPStrategy splits the weights among processes, .* with dswag collect, or"):
        PosteriorCallback().on_fit_start(trainer, None)
