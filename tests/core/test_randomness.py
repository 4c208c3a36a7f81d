"""Seeds are hashes of a path, and random operations draw from the generator that they are given."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE
from torch import nn

from dswag.core.randomness import DrawFrom, derive_seed, generator_for

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")

POSITIVE = torch.linspace(0.1, 2.0, 60).view(6, 10)
IMAGES = torch.linspace(-1.0, 1.0, 4 * 6 * 8 * 8).view(4, 6, 8, 8)

RANDOM = {
    "rand": lambda: torch.rand(50),
    "randn": lambda: torch.randn(50),
    "randint": lambda: torch.randint(1000, (50,)),
    "randint from": lambda: torch.randint(-500, 500, (50,)),
    "randperm": lambda: torch.randperm(50),
    "rand_like": lambda: torch.rand_like(POSITIVE),
    "randn_like": lambda: torch.randn_like(POSITIVE),
    "randint_like": lambda: torch.randint_like(POSITIVE, 1000),
    "randint_like from": lambda: torch.randint_like(POSITIVE, -500, 500),
    "rand into": lambda: torch.rand(50, out=torch.empty(50)),
    "normal of two tensors": lambda: torch.normal(POSITIVE, POSITIVE),
    "normal of a mean": lambda: torch.normal(POSITIVE, 1.0),
    "normal of a std": lambda: torch.normal(1.0, POSITIVE),
    "normal of a size": lambda: torch.normal(0.0, 1.0, (50,)),
    "multinomial": lambda: torch.multinomial(POSITIVE, 6),
    "bernoulli": lambda: torch.bernoulli(POSITIVE / 2),
    "bernoulli of p": lambda: torch.bernoulli(POSITIVE, 0.5),
    "poisson": lambda: torch.poisson(10 * POSITIVE),
    "binomial": lambda: torch.binomial(torch.full((50,), 9.0), torch.full((50,), 0.5)),
    "gamma": lambda: torch.distributions.Gamma(POSITIVE, 1.0).sample(),
    "dirichlet": lambda: torch.distributions.Dirichlet(POSITIVE).sample(),
    "uniform_": lambda: torch.empty(50).uniform_(),
    "normal_": lambda: torch.empty(50).normal_(),
    "bernoulli_": lambda: torch.empty(50).bernoulli_(),
    "exponential_": lambda: torch.empty(50).exponential_(),
    "cauchy_": lambda: torch.empty(50).cauchy_(),
    "geometric_": lambda: torch.empty(50).geometric_(0.1),
    "log_normal_": lambda: torch.empty(50).log_normal_(),
    "random_": lambda: torch.empty(50, dtype=torch.int64).random_(),
    "random_ to": lambda: torch.empty(50).random_(1000),
    "random_ from to": lambda: torch.empty(50).random_(-500, 500),
    "dropout": lambda: F.dropout(POSITIVE),
    "dropout with gradient": lambda: F.dropout(POSITIVE.clone().requires_grad_()).detach(),
    "dropout as on a GPU": lambda: torch.native_dropout(POSITIVE, 0.5, True)[0],
    "dropout1d": lambda: F.dropout1d(IMAGES[0]),
    "dropout2d": lambda: F.dropout2d(IMAGES),
    "alpha_dropout": lambda: F.alpha_dropout(POSITIVE, training=True),
    "feature_alpha_dropout": lambda: F.feature_alpha_dropout(IMAGES, training=True),
    "rrelu": lambda: F.rrelu(IMAGES, training=True),
    "rrelu in place": lambda: F.rrelu(IMAGES.clone(), training=True, inplace=True),
    "gumbel_softmax": lambda: F.gumbel_softmax(POSITIVE),
    "fractional_max_pool2d": lambda: F.fractional_max_pool2d(IMAGES, 2, output_size=5),
    "attention with dropout": lambda: F.scaled_dot_product_attention(IMAGES, IMAGES, IMAGES, dropout_p=0.5),
    "LSTM with dropout": lambda: nn.LSTM(10, 4, 2, dropout=0.5)(POSITIVE[None])[0].detach(),
    "transformer layer": lambda: nn.TransformerEncoderLayer(10, 2, 8)(POSITIVE).detach(),
    "Linear": lambda: nn.Linear(5, 4).weight.detach(),
    "Conv2d": lambda: nn.Conv2d(3, 4, 2).weight.detach(),
    "Embedding": lambda: nn.Embedding(5, 4).weight.detach(),
    "GRU": lambda: nn.GRU(5, 4).weight_hh_l0.detach(),
    "xavier_normal_": lambda: nn.init.xavier_normal_(torch.empty(5, 4)),
    "kaiming_uniform_": lambda: nn.init.kaiming_uniform_(torch.empty(5, 4)),
    "trunc_normal_": lambda: nn.init.trunc_normal_(torch.empty(5, 4)),
    "orthogonal_": lambda: nn.init.orthogonal_(torch.empty(5, 4)),
    "sparse_": lambda: nn.init.sparse_(torch.empty(20, 4), 0.5),
}


def drawn(operation, seed):
    with DrawFrom(torch.Generator().manual_seed(seed)):
        return operation()


@pytest.mark.parametrize("operation", RANDOM.values(), ids=RANDOM.keys())
def test_a_random_operation_is_a_function_of_the_generator_alone(operation):
    first = drawn(operation, 1)
    torch.rand(3)  # whoever else draws from the global generator must not matter
    global_state = torch.get_rng_state()
    assert torch.equal(drawn(operation, 1), first)
    assert not torch.equal(drawn(operation, 2), first)
    assert torch.equal(torch.get_rng_state(), global_state)


@pytest.mark.parametrize("operation", RANDOM.values(), ids=RANDOM.keys())
def test_used_tells_that_an_operation_drew(operation):
    with DrawFrom(torch.Generator().manual_seed(0)) as randomness:
        assert not randomness.used
        operation()
    assert randomness.used


def test_used_stays_false_where_nothing_draws():
    module = nn.Sequential(nn.Linear(10, 4), nn.Dropout(), nn.BatchNorm1d(4)).eval()
    with DrawFrom(torch.Generator()) as randomness:
        F.cross_entropy(module(POSITIVE), torch.zeros(6, dtype=torch.int64))
    assert not randomness.used


def test_the_values_are_those_that_the_generator_gives_by_hand():
    expected = torch.randn(50, generator=torch.Generator().manual_seed(3))
    assert torch.equal(drawn(lambda: torch.randn(50), 3), expected)


def test_an_operation_with_a_generator_of_its_own_keeps_it():
    own, ours = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    before = ours.get_state()
    with DrawFrom(ours):
        values = torch.rand(5, generator=own)
    assert torch.equal(values, torch.rand(5, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(ours.get_state(), before)


def test_consecutive_draws_go_on_in_the_generator():
    generator = torch.Generator().manual_seed(1)
    with DrawFrom(generator):
        first = torch.rand(5)
    with DrawFrom(generator):
        second = torch.rand(5)
    assert torch.equal(torch.cat([first, second]), torch.rand(10, generator=torch.Generator().manual_seed(1)))


def test_an_exception_ends_the_redirection():
    def fail():
        torch.rand(1)
        raise KeyError

    ours = torch.Generator().manual_seed(1)
    with pytest.raises(KeyError), DrawFrom(ours):
        fail()
    before = ours.get_state()
    torch.rand(5)
    assert torch.equal(ours.get_state(), before)


def test_threads_at_once_each_draw_from_their_own_generator():
    def operation():
        return torch.cat([F.dropout(POSITIVE).flatten() + torch.randn(60) for _ in range(50)])

    barrier = threading.Barrier(4, timeout=PATIENCE)

    def in_thread(seed):
        barrier.wait()
        return drawn(operation, seed)

    alone = [drawn(operation, seed) for seed in range(4)]
    global_state = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(in_thread, range(4)))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert torch.equal(torch.get_rng_state(), global_state)


def test_gradients_flow_through_operations_that_draw():
    x = torch.ones(200, requires_grad=True)
    with DrawFrom(torch.Generator().manual_seed(0)):
        y = F.dropout(x, 0.25)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # 0 where dropped, 1 / 0.75 where kept: the same mask in both directions


# Golden: python -c "from dswag.core.randomness import derive_seed as d; print(d(0), d(0, 1, 2, 3), d(7, 2**80))"
def test_seeds_are_the_same_on_every_machine_and_in_every_release():
    assert derive_seed(0) == 4_761_921_975_702_974_394
    assert derive_seed(0, 1, 2, 3) == 1_612_513_367_417_538_615
    assert derive_seed(7, 2**80) == 3_973_457_108_069_351_747


# Golden: python -c "from dswag.core.randomness import *; print(torch.randperm(8, generator=generator_for(0, 1)))"
def test_draws_are_the_same_in_every_release():
    assert torch.randperm(8, generator=generator_for(0, 1)).tolist() == [6, 0, 7, 1, 2, 3, 5, 4]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1,), (1, 0)),  # a prefix
        ((0,), (0, 0)),
        ((), (0,)),
        ((1, 2), (2, 1)),
        ((1, 23), (12, 3)),  # the same digits
        ((-1,), (1,)),
        ((2**63,), (0,)),  # beyond 64 bits nothing wraps
        ((2**64 + 5,), (5,)),
        ((2**200,), (2**200 + 1,)),
    ],
)
def test_different_paths_have_different_seeds(one, other):
    assert derive_seed(*one) != derive_seed(*other)


@given(st.lists(st.integers(), max_size=6))
def test_a_seed_fits_torch_and_numpy(path):
    seed = derive_seed(*path)
    assert 0 <= seed < 2**63
    assert generator_for(*path).initial_seed() == seed


def test_seeds_of_neighboring_places_are_unrelated():
    # 63 fair coins per pair: the mean number of equal bits over 2,000 pairs lies within 5 standard errors of 31.5
    pairs = [(derive_seed(0, 1, t), derive_seed(0, 1, t + 1)) for t in range(2000)]
    mean = sum(63 - (a ^ b).bit_count() for a, b in pairs) / len(pairs)
    assert mean == pytest.approx(31.5, abs=5 * math.sqrt(63 / 4 / len(pairs)))


def test_dropout_as_on_a_gpu_is_dropout():
    inputs = torch.ones(20_000).requires_grad_()
    with DrawFrom(generator_for(3)) as randomness:
        outputs, kept = torch.native_dropout(inputs, 0.2, True)
        outputs.sum().backward()
    assert randomness.used
    assert torch.equal(outputs, torch.where(kept, 1 / 0.8, 0.0))
    assert torch.equal(inputs.grad, outputs)
    assert abs(kept.float().mean() - 0.8) < 5 * math.sqrt(0.2 * 0.8 / 20_000)
    with DrawFrom(generator_for(3)):
        everything, nothing = (
            torch.native_dropout(POSITIVE, 0.2, False)[0],
            torch.native_dropout(POSITIVE, 1.0, True)[0],
        )
    assert torch.equal(everything, POSITIVE)
    assert not nothing.any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_operations_draw_from_what_the_generator_seeded():
    inputs = torch.ones(1000, device="cuda")
    before = torch.cuda.get_rng_state()

    def draws(seed):
        with DrawFrom(generator_for(seed)):
            return torch.cat([F.dropout(inputs), torch.randn_like(inputs), torch.rand(1000, device="cuda")])

    assert torch.equal(draws(1), draws(1))
    assert not torch.equal(draws(1), draws(2))
    assert torch.equal(torch.cuda.get_rng_state(), before)
