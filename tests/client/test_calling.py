"""A batch reaches the model as its `forward` takes it, on the model's device, whatever holds its tensors."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass, field
from types import MappingProxyType

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import dswag
from dswag.client.calling import called, placed, scores_of
from dswag.core.parameters import Layout

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")


class Encoding(UserDict):
    """Like Hugging Face's BatchEncoding: a mapping that is no dict."""


Pair = namedtuple("Pair", ["x", "y"])


@dataclass(frozen=True)
class Record:
    x: torch.Tensor
    names: list = field(default_factory=list)


class Graph:
    """Like a batch of graphs: knows how to move."""

    def __init__(self, x):
        self.x = x

    def to(self, device):
        return Graph(self.x.to(device))


HOLDERS = {
    "tensor": (lambda x: x, lambda b: b),
    "tuple": (lambda x: (x, 3), lambda b: b[0]),
    "list": (lambda x: [x], lambda b: b[0]),
    "named tuple": (lambda x: Pair(x, "a"), lambda b: b.x),
    "dict": (lambda x: {"x": x, "n": 1}, lambda b: b["x"]),
    "OrderedDict": (lambda x: OrderedDict(x=x), lambda b: b["x"]),
    "Encoding": (lambda x: Encoding(x=x), lambda b: b["x"]),
    "read-only mapping": (lambda x: MappingProxyType({"x": x}), lambda b: b["x"]),
    "dataclass": (lambda x: Record(x, ["a"]), lambda b: b.x),
    "object": (Graph, lambda b: b.x),
    "packed sequence": (lambda x: pack_sequence([x]), lambda b: b.data),
    "nested": (lambda x: {"a": [Record((x, 1))]}, lambda b: b["a"][0].x[0]),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_tensors_move_whatever_holds_them(holder, second_device):
    hold, tensor_in = HOLDERS[holder]
    x = torch.arange(3.0)
    batch = hold(x)
    moved = placed(batch, second_device)
    assert tensor_in(moved).device == second_device
    assert torch.equal(tensor_in(moved).cpu(), x)
    assert tensor_in(batch).device.type == "cpu"  # the batch given stays
    if holder not in ("read-only mapping", "tensor"):
        assert type(moved) is type(batch)


class OfBatch(nn.Module):
    def forward(self, batch):
        return batch


class ByName(nn.Module):
    def forward(self, x, mask=None):
        return x, mask


class ByAnyName(nn.Module):
    def forward(self, *args, **kwargs):
        return args, kwargs


@pytest.mark.parametrize("kind", [dict, Encoding])
def test_a_mapping_goes_by_keyword_where_forward_has_its_names(kind):
    batch = kind(x=1, mask=2)
    assert called(ByName(), batch) == (1, 2)
    assert called(ByName(), kind(x=1)) == (1, None)
    assert called(ByAnyName(), batch) == ((), {"x": 1, "mask": 2})
    assert called(OfBatch(), batch) is batch
    assert called(OfBatch(), {1: 2}) == {1: 2}
    assert called(ByName(), 5) == (5, None)


@dataclass
class Output:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


def test_scores_are_the_logits_of_an_output_that_has_them():
    logits = torch.ones(2, 3)
    assert scores_of(Output(logits)) is logits
    assert scores_of(logits) is logits
    assert scores_of({"logits": logits}) == {"logits": logits}


class Classifier(nn.Module):
    """Like a model of Hugging Face's: keywords in, a named output back, with a loss where labels come along."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        mask = attention_mask[..., None]
        logits = self.head((self.embed(input_ids) * mask).sum(1) / mask.sum(1))
        return Output(logits, None if labels is None else F.cross_entropy(logits, labels))


class Texts(torch.utils.data.Dataset):
    def __init__(self, n, seed):
        self.ids = torch.randint(0, 20, (n, 5), generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "attention_mask": torch.ones(5), "labels": int(self.ids[i, 0]) % 3}


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return Classifier()


def test_a_model_of_named_inputs_and_outputs_trains_evaluates_calibrates_and_predicts(classifier):
    clients = [Texts(24, 1), Texts(30, 2)]
    config = dswag.Config(clients=2, rounds=8, learning_rate=0.5, holdout=0.2, calibrate=True, batch_size=8)
    run = dswag.train(classifier, clients, config)
    assert run.history[-1].loss < run.history[0].loss
    found = dswag.evaluate(run.engine, run.theta, config)
    assert found.accuracy > 0.4
    test = Texts(10, 3)
    probabilities = dswag.predict(classifier, run.posterior, test)
    encoded = Encoding(input_ids=test.ids, attention_mask=torch.ones(10, 5))
    torch.testing.assert_close(dswag.predict(classifier, run.posterior, [encoded]), probabilities)


def test_the_model_s_own_loss_trains_as_the_same_loss_outside(classifier):
    clients = [Texts(24, 1), Texts(30, 2)]
    config = dswag.Config(clients=2, rounds=2)
    inside, outside = (dswag.train(classifier, clients, config, loss=loss) for loss in ("model", F.cross_entropy))
    assert torch.equal(inside.theta, outside.theta)
    layout = Layout.of(classifier)
    losses = [dswag.evaluate(run.engine, layout.flatten(classifier), config).loss for run in (inside, outside)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_loss_of_its_own_needs_named_inputs_and_an_output_that_has_it(classifier):
    pairs = [(torch.ones(4, 2), torch.tensor([0, 1, 0, 1]))] * 2
    config = dswag.Config(clients=2, rounds=1)
    with pytest.raises(dswag.ClientError, match="own loss needs inputs by name, with which labels go, got float32"):
        dswag.train(nn.Linear(2, 2), pairs, config, loss="model")

    class Silent(Classifier):
        def forward(self, input_ids=None, attention_mask=None, labels=None):
            return super().forward(input_ids, attention_mask).logits

    with pytest.raises(dswag.ClientError, match=r"the loss must be a scalar tensor, .* got NoneType"):
        dswag.train(Silent(), [Texts(8, 1)] * 2, config, loss="model")
