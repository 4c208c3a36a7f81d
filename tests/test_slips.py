"""What a new user slips on with a model and data of their own is said in words that tell what to change."""

import math
import threading
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import dswag
from dswag import ClientError

CONFIG = dswag.Config(clients=3, rounds=1, explore_epochs=1, batch_size=20)
INPUTS = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(60) % 5
PARTS = torch.arange(60).split(20)


def network(size=16, classes=5):
    return nn.Sequential(nn.Flatten(), nn.Linear(size, classes))


def clients(inputs=INPUTS, targets=TARGETS):
    return [(inputs[part], targets[part]) for part in PARTS]


class Own(Dataset):
    def __len__(self):
        return 60

    def __getitem__(self, index):
        return INPUTS[index], TARGETS[index]


class ReturnsTwo(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 5)

    def forward(self, inputs):
        return self.layer(inputs.flatten(1)), inputs


def with_nan():
    inputs = INPUTS.clone()
    inputs[:, 0, 0, 0] = math.nan
    return inputs


DATA = {
    "a loader for all": (
        DataLoader(TensorDataset(INPUTS, TARGETS)),
        "got one DataLoader: split the data, and pass a list",
    ),
    "a data set for all": (Own(), "got one Own: split the data, and pass a list"),
    "an array": (INPUTS.numpy(), "got one ndarray"),
    "a generator": ((client for client in clients()), "got one generator"),
    "clients by name": (dict(enumerate(clients())), "got one dict"),
    "a pair for all": ((INPUTS, TARGETS), r"client 0: .* got Tensor: give a list of these, one for each client"),
    "three tensors each": ([(INPUTS, TARGETS, TARGETS)] * 3, r"client 0: .* \(inputs, targets\), .* got a tuple of 3"),
}


@pytest.mark.parametrize(("data", "words"), DATA.values(), ids=DATA.keys())
def test_data_that_are_no_list_of_clients_are_told_to_be_one(data, words):
    with pytest.raises(TypeError, match=words):
        dswag.train(network(), data, CONFIG)


@pytest.mark.parametrize(("model", "words"), [(nn.Linear, "got the class Linear"), (len, "got builtin_function")])
def test_a_model_must_be_a_module(model, words):
    with pytest.raises(TypeError, match=f"the model must be an instance of nn.Module, {words}"):
        dswag.train(model, clients(), CONFIG)


def test_settings_must_be_a_config():
    with pytest.raises(TypeError, match=r"config must be a dswag.Config, got dict: Config\(clients=\.\.\., \.\.\.\)"):
        dswag.train(network(), clients(), {"clients": 3})


FAILING = {
    "inputs of another size": (network(15), clients(), r"\(the model was given float32 \[20, 1, 4, 4\]\)$"),
    "inputs of another type": (
        network(),
        clients(INPUTS.double()),
        r"\(the model was given float64 \[20, 1, 4, 4\]\) \(its weights are not: give inputs as inputs\.float.*\)$",
    ),
    "too few outputs": (
        network(classes=4),
        clients(),
        r"IndexError: .*outputs float32 \[20, 4\] and targets int64 \[20\] from 0 to 4\)$",
    ),
    "classes from 1 on": (
        network(),
        clients(targets=TARGETS + 1),
        r"\[20, 5\] and targets int64 \[20\] from 1 to 5\)$",
    ),
    "classes as floats": (network(), clients(targets=TARGETS.float()), r"\[20, 5\] and targets float32 \[20\]\)$"),
    "classes in a column": (network(), clients(targets=TARGETS[:, None]), r"targets int64 \[20, 1\] from 0 to 4\)$"),
    "two outputs": (ReturnsTwo(), clients(), r"TypeError: .* \(the loss was given outputs tuple and targets int64"),
}


@pytest.mark.parametrize(("model", "data", "words"), FAILING.values(), ids=FAILING.keys())
def test_what_does_not_fit_together_is_described(model, data, words):
    with pytest.raises(ClientError, match=rf"client 0 failed in round 1: .*{words}"):
        dswag.train(model, data, CONFIG)


@pytest.mark.parametrize(
    ("loss", "found"),
    [
        (lambda outputs, targets: nn.functional.cross_entropy(outputs, targets, reduction="none"), r"shape \[20\]"),
        (lambda outputs, targets: 0.5, "float"),
    ],
    ids=["for each example", "a number"],
)
def test_a_loss_is_one_tensor_for_a_batch(loss, found):
    with pytest.raises(ClientError, match=rf"the loss must be a scalar tensor, the mean over the batch, got {found}"):
        dswag.train(network(), clients(), CONFIG, loss=loss)


def test_a_model_that_cannot_be_copied_is_told_why_it_should():
    model = network()
    model.lock = threading.Lock()
    words = r"cannot be copied, and every thread works on a copy of its own: cannot pickle '_thread\.lock'"
    with pytest.raises(TypeError, match=words):
        dswag.train(model, clients(), CONFIG)


def test_a_model_that_keeps_its_last_outputs_can_be_copied():
    model = network()
    model.last_outputs = model(INPUTS)  # deepcopy takes no tensor that has a history
    assert dswag.train(model, clients(), CONFIG).history[-1].loss > 0


@pytest.mark.parametrize(
    ("loss", "error", "words"),
    [
        (nn.CrossEntropyLoss, TypeError, r"got the class CrossEntropyLoss: use loss=CrossEntropyLoss\(\)"),
        ("cross_entropy", TypeError, r"a function of \(outputs, targets\), or \"model\", got 'cross_entropy'"),
        (
            nn.CrossEntropyLoss(reduction="sum"),
            ValueError,
            "got reduction='sum', with which learning rates would",
        ),
        (nn.CrossEntropyLoss(reduction="none"), ValueError, "got reduction='none'"),
        (partial(nn.functional.cross_entropy, reduction="sum"), ValueError, "got reduction='sum'"),
    ],
)
def test_a_loss_that_is_no_mean_is_refused_before_any_work(loss, error, words):
    with pytest.raises(error, match=words):
        dswag.train(network(), clients(), CONFIG, loss=loss)


def test_nan_in_data_that_come_one_by_one_is_told_from_a_learning_rate_that_is_too_large():
    loaders = [DataLoader(TensorDataset(*client), 20) for client in clients(with_nan())]
    with pytest.raises(
        ClientError, match="epoch 1: loss is nan before the first step: look for NaN or infinity in the"
    ):
        dswag.train(network(), loaders, CONFIG)
    steep = dswag.Config(clients=3, rounds=1, learning_rate=1e38, batch_size=5)
    with pytest.raises(ClientError, match=r"\(learning rate 1e\+38\): lower the learning rate, set clip_gradient, or"):
        dswag.train(network(), clients(), steep)


def test_predictions_need_the_posterior_of_the_run_and_inputs_that_fit():
    model = network()
    run = dswag.train(model, clients(), CONFIG)
    with pytest.raises(TypeError, match=r"predictions need a posterior, such as run.posterior, got Run"):
        dswag.predict(model, run, INPUTS)
    with pytest.raises(RuntimeError) as caught:
        dswag.predict(model, run.posterior, INPUTS[:, :, :3])
    assert caught.value.__notes__ == ["the model was given float32 [60, 1, 3, 4]"]
    array = dswag.predict(model, run.posterior, np.asarray(INPUTS))
    assert torch.equal(array, dswag.predict(model, run.posterior, INPUTS))


def test_settings_may_come_by_name_and_the_number_of_clients_is_known():
    by_name = dswag.train(network(), clients(), rounds=2, cycles=5)
    assert by_name.config.clients == len(clients())
    assert by_name.config.rounds == 2
    with pytest.raises(TypeError, match=r"in a config or by name, got a config and \['rounds'\]: choose one"):
        dswag.train(network(), clients(), CONFIG, rounds=2)
    with pytest.raises(dswag.ConfigError, match="round"):
        dswag.train(network(), clients(), round=2)
