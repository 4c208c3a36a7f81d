"""The exported program says what `predictive` says, for other batch sizes and after a trip through a file."""

import io

import pytest
import torch
from torch import nn

import dswag
from dswag.core.randomness import DrawFrom, generator_for

pytestmark = pytest.mark.filterwarnings("default")  # torch.export has warnings of its own


def around(model, *, temperature=1.0, link=None):
    layout, generator = dswag.Layout.of(model), generator_for(0)
    d = layout.d
    return dswag.GaussianPosterior(
        mean=layout.flatten(model),
        variance=0.1 * torch.rand(d, generator=generator),
        deviations=0.3 * torch.randn(3, d, generator=generator),
        count=3,
        layout=layout,
        temperature=temperature,
        link=link,
    )


class Tied(nn.Module):
    """Ties two weights, freezes a third."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight
        self.last.bias.requires_grad_(False)

    def forward(self, x):
        return self.last(self.second(self.first(x).tanh()).tanh())


def made(kind):
    with DrawFrom(generator_for(5)):
        return {
            "mlp": lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)),
            "tied": Tied,
            "tokens": lambda: nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3))),
        }[kind]()


def same(found, expected):
    torch.testing.assert_close(found["probabilities"], expected.probabilities, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["mutual_information"], expected.mutual_information, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["mlp", "tied", "tokens"])
def test_the_program_gives_what_predictive_gives(kind):
    model, generator = made(kind), generator_for(1)
    posterior = around(model, temperature=2.0)
    example, x = (torch.randn(n, 4, generator=generator) for n in (3, 11))
    program = dswag.export(model, posterior, example, samples=4, seed=7)
    expected = dswag.predictive(model, posterior, x, samples=4, seed=7)
    same(program.module()(x), expected)
    with torch.no_grad():  # it shares nothing with the model
        for parameter in model.parameters():
            parameter.zero_()
    same(program.module()(x), expected)
    saved = io.BytesIO()
    torch.export.save(program, saved)
    saved.seek(0)
    same(torch.export.load(saved).module()(x), expected)


def test_yes_or_no_labels_are_exported_too():
    model, x = made("mlp"), torch.randn(5, 4, generator=generator_for(1))
    posterior = around(model, link="sigmoid")
    program = dswag.export(model, posterior, x, samples=3)
    same(program.module()(x), dswag.predictive(model, posterior, x, samples=3))


def test_each_draw_has_its_own_batch_norm_statistics():
    with DrawFrom(generator_for(5)):
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    generator = generator_for(1)
    clients = [(torch.randn(20, 4, generator=generator), torch.arange(20) % 3) for _ in range(2)]
    engine, posterior = dswag.InProcess(model, clients), around(model)
    x = torch.randn(6, 4, generator=generator)
    program = dswag.export(model, posterior, x, samples=3, engine=engine)
    same(program.module()(x), dswag.predictive(model, posterior, x, samples=3, engine=engine))
    with pytest.raises(ValueError, match="pass engine="):
        dswag.export(model, posterior, x, samples=3)


def test_an_example_of_one_input_is_refused():
    model = made("mlp")
    with pytest.raises(ValueError, match="a batch of at least two inputs"):
        dswag.export(model, around(model), torch.randn(1, 4))
