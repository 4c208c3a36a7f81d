"""What several test files share: small models and clients with data that they can learn."""

from contextlib import suppress

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import nn

from dswag.core.randomness import DrawFrom, generator_for
from dswag.data.examples import Examples

with suppress(ImportError):  # of a PyTorch in which devices cannot be made of Python
    import pretended_device as pretended_device  # now: at its first gradient PyTorch counts the devices

settings.register_profile("busy machine", deadline=None, max_examples=50)
settings.register_profile("fuzz", deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
settings.load_profile("busy machine")  # unless pytest is told --hypothesis-profile


@pytest.fixture
def one_intra_op_thread():
    """Small operations are slower on several threads, above all where several test processes share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["pretended", *(["cuda"] if torch.cuda.is_available() else [])])
def second_device(request, monkeypatch):
    """A device that is not the CPU: one that shows on any machine what was left behind on the other, and a GPU."""
    if request.param == "cuda":
        return torch.device("cuda", 0)
    return pytest.importorskip("pretended_device", exc_type=ImportError).install(monkeypatch)


@pytest.fixture
def make_clients():
    """Clients with examples of a noisy linear rule over 6 features and 3 classes, each with its own number of them."""

    def make(sizes=(20, 33, 11), *, seed=0, dtype=torch.float32):
        rule = torch.randn(6, 3, generator=generator_for(seed))
        clients = []
        for client, size in enumerate(sizes):
            generator = generator_for(seed, client)
            inputs = torch.randn(size, 6, generator=generator)
            noise = 0.5 * torch.randn(size, 3, generator=generator)
            clients.append(Examples(inputs.to(dtype), (inputs @ rule + noise).argmax(1)))
        return clients

    return make


@pytest.fixture
def make_model():
    """A small network with a hidden layer; `batch_norm` and `dropout` put such layers in."""

    def make(*, batch_norm=False, dropout=0.0, seed=0):
        with DrawFrom(generator_for(seed)):
            return nn.Sequential(
                nn.Linear(6, 5),
                *([nn.BatchNorm1d(5)] if batch_norm else []),
                nn.Tanh(),
                *([nn.Dropout(dropout)] if dropout else []),
                nn.Linear(5, 3),
            )

    return make
