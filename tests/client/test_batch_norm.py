"""Pooled BatchNorm statistics against the concatenated data in float64."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import TensorDataset

from dswag.client import batch_norm
from dswag.client.batch_norm import LayerStatistics, buffers, collect, load, merge, update
from dswag.client.statistics import PooledStatistics, StatisticsResult, refresh
from dswag.engines.in_process import InProcess

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")

FLOAT32 = 2**-24
"""Relative error of one rounding to float32."""


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def unequal_ordered_batches(shape=(), channels=3, dtype=torch.float64):
    """Batches of 2 to 40 examples whose means climb from -4 to 4: the variance between them is 8, within them 1."""
    sizes = (2, 11, 40, 5, 23)
    return [
        (normal(size, channels, *shape, seed=i) + 2 * (i - 2)).to(dtype).requires_grad_(False)
        for i, size in enumerate(sizes)
    ]


def of_concatenation(batches):
    """Mean and unbiased variance per channel of all values together, in float64."""
    together = torch.cat([batch.double() for batch in batches]).transpose(0, 1).flatten(1)
    return together.mean(1), together.var(1, correction=1)


def statistics_of(values):
    values = values.double()
    return LayerStatistics(count=len(values), mean=values.mean(0), scatter=(values - values.mean(0)).square().sum(0))


LAYERS = {
    "1d": (nn.BatchNorm1d, ()),
    "1d with a length": (nn.BatchNorm1d, (7,)),
    "2d": (nn.BatchNorm2d, (4, 5)),
    "3d": (nn.BatchNorm3d, (2, 3, 4)),
}
every_layer = pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS.keys())


@every_layer
@pytest.mark.parametrize("affine", [True, False])
def test_statistics_are_those_of_all_examples_together(layer, shape, affine):
    module = layer(3, affine=affine)
    batches = unequal_ordered_batches(shape, dtype=torch.float32)
    update(module, batches)
    mean, variance = of_concatenation(batches)
    # sums over at most 2,000 float32 numbers by cascade: a dozen roundings
    torch.testing.assert_close(module.running_mean.double(), mean, rtol=0, atol=12 * FLOAT32 * 4)
    torch.testing.assert_close(module.running_var.double(), variance, rtol=12 * FLOAT32, atol=0)


@every_layer
def test_a_double_model_s_statistics_are_exact_to_float64(layer, shape):
    batches = unequal_ordered_batches(shape)
    (seen,) = collect(nn.Sequential(layer(3)).double(), batches).values()
    mean, variance = of_concatenation(batches)
    assert seen.count == sum(b.numel() // 3 for b in batches)
    torch.testing.assert_close(seen.mean, mean, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(seen.scatter / (seen.count - 1), variance, rtol=1e-13, atol=0)


def test_variance_between_batches_is_kept_where_torch_drops_it():
    ours, torchs = nn.Sequential(nn.BatchNorm1d(3)), nn.Sequential(nn.BatchNorm1d(3))
    batches = [normal(50, 3, seed=i, dtype=torch.float32) + 2 * (i - 2) for i in range(5)]
    _, variance = of_concatenation(batches)
    update(ours, batches)
    update_bn(batches, torchs)
    # torch averages the variances within batches, 1 each; the batches' means -4, -2, 0, 2, 4 scatter by 8 more
    assert (variance > 8).all()
    assert (torchs[0].running_var < 1.3).all()
    torch.testing.assert_close(ours[0].running_var.double(), variance, rtol=12 * FLOAT32, atol=0)


def test_the_mean_weighs_examples_the_same_where_torch_weighs_batches():
    ours, torchs = nn.Sequential(nn.BatchNorm1d(3)), nn.Sequential(nn.BatchNorm1d(3))
    batches = unequal_ordered_batches(dtype=torch.float32)
    mean, _ = of_concatenation(batches)
    update(ours, batches)
    update_bn(batches, torchs)
    torch.testing.assert_close(ours[0].running_mean.double(), mean, rtol=0, atol=12 * FLOAT32 * 4)
    assert ((torchs[0].running_mean - mean).abs() > 0.1).all()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_mean_far_from_zero_takes_no_digits_from_the_variance(memory_format):
    # mean 10,000 and standard deviation 0.05: float32's own spacing there is 0.001, E[x^2] - E[x]^2 would be noise
    values = (normal(640, 3, 4, 5) * 0.05 + 1e4).float()
    module = nn.BatchNorm2d(3)
    update(module, [batch.contiguous(memory_format=memory_format) for batch in values.split(16)])
    mean, variance = of_concatenation([values])
    assert torch.equal(module.running_mean, mean.float())
    torch.testing.assert_close(module.running_var.double(), variance, rtol=20 * FLOAT32, atol=0)


def test_variance_between_batches_far_from_zero_is_kept():
    # batches' means differ by less than the spacing of float32 at 10,000 times the number of batches
    offsets = torch.arange(8).repeat_interleave(64) * 0.001
    values = (normal(512, 1) * 0.002 + 1e4 + offsets[:, None]).float()
    module = nn.BatchNorm1d(1)
    update(module, values.split(64))
    torch.testing.assert_close(module.running_var.double(), of_concatenation([values])[1], rtol=20 * FLOAT32, atol=0)


def test_a_constant_channel_has_variance_zero():
    module = nn.BatchNorm1d(2)
    update(module, [torch.full((5, 2), 0.1), torch.full((3, 2), 0.1)])
    assert (module.running_var >= 0).all()
    assert (module.running_var < 1e-15).all()  # (0.1 · 2^-24)^2


def test_half_precision_inputs_are_summed_in_single():
    values = (normal(4096, 2) + 3).bfloat16()
    seen = batch_norm._of_batch(values)
    mean, variance = of_concatenation([values])
    torch.testing.assert_close(seen.mean, mean, rtol=12 * FLOAT32, atol=0)
    torch.testing.assert_close(seen.scatter / (seen.count - 1), variance, rtol=12 * FLOAT32, atol=0)


class TwoLayers(nn.Module):
    """Two BatchNorm layers behind one another, the second on what the first makes of each batch."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.BatchNorm1d(4), nn.BatchNorm1d(3)
        self.mix = nn.Linear(4, 3)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(normal(*p.shape, seed=i))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.second(self.mix(self.dropout(self.first(x).tanh())))


def test_two_layers_equal_a_slow_loop_of_plain_batch_normalization():
    module = TwoLayers().double()
    batches = unequal_ordered_batches(channels=4)
    found = collect(module, batches)
    into_first, into_second = [], []
    for batch in batches:  # the formulas of Ioffe & Szegedy 2015, Algorithm 1, on each batch by itself
        into_first.append(batch)
        centered = batch - batch.mean(0)
        normalized = centered / (centered.square().mean(0) + module.first.eps).sqrt()
        activated = (normalized * module.first.weight + module.first.bias).tanh()
        into_second.append((activated @ module.mix.weight.T + module.mix.bias).detach())
    for name, inputs in (("first", into_first), ("second", into_second)):
        mean, variance = of_concatenation(inputs)
        torch.testing.assert_close(found[name].mean, mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found[name].scatter / (found[name].count - 1), variance, rtol=1e-12, atol=0)


def test_dropout_is_off_and_no_random_number_is_drawn():
    batches = unequal_ordered_batches(dtype=torch.float32)
    state = torch.get_rng_state()
    with_dropout = collect(nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3)), batches)["1"]
    without = collect(nn.Sequential(nn.Identity(), nn.BatchNorm1d(3)), batches)["1"]
    assert torch.equal(with_dropout.mean, without.mean)
    assert torch.equal(with_dropout.scatter, without.scatter)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_a_layer_sees_does_not_depend_on_its_old_statistics():
    batches = unequal_ordered_batches(channels=4)
    module = TwoLayers().double()
    before = collect(module, batches)["second"]
    module.first.running_mean.fill_(100)
    module.first.running_var.fill_(1e-3)
    assert torch.equal(collect(module, batches)["second"].mean, before.mean)


def test_a_layer_used_twice_sees_the_values_of_both_uses():
    layer = nn.BatchNorm1d(3).double()
    module = nn.Sequential(layer, nn.Tanh(), layer)
    batch = unequal_ordered_batches()[2]
    (seen,) = collect(module, [batch]).values()
    with torch.no_grad():
        again = nn.BatchNorm1d(3).double()(batch).tanh()
    mean, variance = of_concatenation([batch, again])
    assert seen.count == 80
    torch.testing.assert_close(seen.mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(seen.scatter / 79, variance, rtol=1e-12, atol=0)


def test_a_users_hook_that_changes_a_layer_s_inputs_is_heeded():
    module = nn.Sequential(nn.BatchNorm1d(3))
    module[0].register_forward_pre_hook(lambda _, inputs: (inputs[0] * 2,))
    batches = unequal_ordered_batches(dtype=torch.float32)
    seen = collect(module, batches)["0"]
    torch.testing.assert_close(seen.mean, of_concatenation(batches)[0] * 2, rtol=0, atol=12 * FLOAT32 * 8)


def surroundings(module):
    """All that must be as it was: values, modes, settings and hooks."""
    return (
        {name: value.clone() for name, value in module.state_dict().items()},
        [m.training for m in module.modules()],
        [(m.momentum, m.eps, m.track_running_stats) for m in module.modules() if isinstance(m, nn.BatchNorm1d)],
        [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in module.modules()],
        [p.grad for p in module.parameters()],
    )


def in_some_state():
    """Trained a little, with a frozen layer in evaluation mode, another momentum, and a layer without statistics."""
    module = nn.Sequential(
        nn.BatchNorm1d(3),
        nn.Dropout(),
        nn.BatchNorm1d(3, momentum=None),
        nn.BatchNorm1d(3, track_running_stats=False),
        nn.BatchNorm1d(3, affine=False),
    )
    module(normal(9, 3, dtype=torch.float32))
    module[2].eval()
    module[4].track_running_stats = False  # after the fact: its buffers are there all the same
    module[0].register_forward_pre_hook(lambda *_: None)
    return module


@pytest.mark.parametrize("failure", [None, "in the batches", "in the model"])
@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
def test_collecting_leaves_the_model_as_it_found_it(failure, mode):
    module = in_some_state()
    if mode != "mixed":
        module.train(mode == "train")
    before = surroundings(module)
    good = normal(9, 3, dtype=torch.float32)

    def batches():
        yield good
        if failure == "in the batches":
            raise OSError("the disk is gone")
        yield torch.ones(4, 7) if failure == "in the model" else good

    if failure is None:
        assert set(collect(module, batches())) == ({"0", "4"} if mode == "mixed" else {"0", "2", "4"})
    else:
        with pytest.raises((OSError, ValueError, RuntimeError)):
            collect(module, batches())
    after = surroundings(module)
    assert all(torch.equal(before[0][name], value) for name, value in after[0].items())
    assert after[1:] == before[1:]


def test_update_changes_the_statistics_and_nothing_else():
    module = in_some_state()
    before = surroundings(module)
    update(module, unequal_ordered_batches(dtype=torch.float32))
    after = surroundings(module)
    changed = {name for name, value in after[0].items() if not torch.equal(before[0][name], value)}
    assert changed == {f"{layer}.running_{kind}" for layer in (0, 4) for kind in ("mean", "var")}  # 2 is frozen
    assert after[1:] == before[1:]


def test_an_update_that_fails_half_way_changes_nothing():
    module = in_some_state()
    before = module.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        update(module, [normal(9, 3, dtype=torch.float32), normal(1, 3, dtype=torch.float32)])
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("form", [lambda x: x, lambda x: (x, torch.zeros(len(x))), lambda x: [x, None]])
def test_update_takes_inputs_alone_or_first_in_a_batch(form):
    module = nn.BatchNorm1d(3)
    batches = unequal_ordered_batches(dtype=torch.float32)
    update(module, [form(batch) for batch in batches])
    torch.testing.assert_close(module.running_var.double(), of_concatenation(batches)[1], rtol=12 * FLOAT32, atol=0)


def test_update_takes_batches_in_the_form_of_the_model():
    class OfDict(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, batch):
            return self.norm(batch["x"])

    module, batches = OfDict(), unequal_ordered_batches(dtype=torch.float32)
    update(module, [{"x": batch} for batch in batches])
    expected = of_concatenation(batches)[1]
    torch.testing.assert_close(module.norm.running_var.double(), expected, rtol=12 * FLOAT32, atol=0)


@pytest.mark.parametrize("examples", [torch.ones(4, 3), TensorDataset(torch.ones(4, 3))], ids=["tensor", "data set"])
def test_update_refuses_examples_that_are_no_batches(examples):
    with pytest.raises(TypeError, match=rf"iterable of batches, got {type(examples).__name__}: pass inputs\.split"):
        update(nn.BatchNorm1d(3), examples)


def test_no_batches_are_refused():
    with pytest.raises(ValueError, match="need at least one batch, got none"):
        update(nn.BatchNorm1d(3), [])


def test_without_such_layers_the_batches_are_left_alone():
    def batches():
        pytest.fail("nobody needs these")
        yield

    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False), nn.LayerNorm(2))
    assert collect(module, batches()) == {}


def test_one_value_per_channel_is_refused_by_name():
    lone = LayerStatistics(count=1, mean=torch.zeros(2).double(), scatter=torch.zeros(2).double())
    with pytest.raises(ValueError, match=r"layers \['b'\] saw one value per channel: give at least two examples"):
        buffers({"a": merge(lone, lone), "b": lone})


parts = st.lists(st.integers(1, 6), min_size=1, max_size=7)


@settings(max_examples=50)
@given(sizes=parts, offset=st.sampled_from([0.0, 1e4]), data=st.data())
def test_merging_in_any_order_and_any_tree_gives_the_whole(sizes, offset, data):
    values = normal(sum(sizes), 3) + offset
    pieces = [statistics_of(part) for part in values.split(sizes)]
    while len(pieces) > 1:
        first = pieces.pop(data.draw(st.integers(0, len(pieces) - 1)))
        second = pieces.pop(data.draw(st.integers(0, len(pieces) - 1)))
        pieces.append(merge(first, second))
    whole = statistics_of(values)
    assert pieces[0].count == whole.count
    # 7 merges of float64; a mean of 10,000 is known to 10,000 x 2^-53 = 1e-12, which enters the scatter with ~30 x 4
    torch.testing.assert_close(pieces[0].mean, whole.mean, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(pieces[0].scatter, whole.scatter, rtol=1e-12, atol=2e-10 if offset else 1e-13)


def test_folding_parts_and_merging_them_equals_folding_all():
    def result(index, seed):
        draws = tuple({"a": statistics_of(normal(5 + seed, 3, seed=10 * seed + draw))} for draw in range(2))
        return StatisticsResult(index=index, client=index, statistics=draws)

    results = [result(i, i) for i in range(5)]
    whole, left, right = PooledStatistics(), PooledStatistics(), PooledStatistics()
    left.merge(PooledStatistics())  # nothing
    for i, each in enumerate(results):
        whole.add(each)
        (left if i < 2 else right).add(each)
    left.merge(right)
    assert len(whole.result()) == 2
    for draw in range(2):
        values = torch.cat([normal(5 + seed, 3, seed=10 * seed + draw) for seed in range(5)])
        for fold in (whole, left):
            found = fold.result()[draw]
            torch.testing.assert_close(found["a.running_mean"], values.mean(0).float(), rtol=0, atol=4 * FLOAT32)
            torch.testing.assert_close(found["a.running_var"], values.var(0).float(), rtol=2 * FLOAT32, atol=0)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_layer_that_only_some_clients_used_counts_with_those(order):
    a, b, c = (statistics_of(normal(6, 3, seed=seed)) for seed in range(3))
    results = [
        StatisticsResult(index=0, client=0, statistics=({"shared": a, "rare": b},)),
        StatisticsResult(index=1, client=1, statistics=({"shared": c},)),
    ]
    fold = PooledStatistics()
    for i in order:
        fold.add(results[i])
    (found,) = fold.result()
    assert torch.equal(found["rare.running_mean"], b.mean.float())
    torch.testing.assert_close(found["shared.running_mean"], ((a.mean + c.mean) / 2).float())


def test_pooling_changes_no_result():
    results = [
        StatisticsResult(index=i, client=i, statistics=({"a": statistics_of(normal(6, 3, seed=i))},)) for i in range(3)
    ]
    before = deepcopy(results)
    fold = PooledStatistics()
    for result in results:
        fold.add(result)
    for result, was in zip(results, before, strict=True):
        assert torch.equal(result.statistics[0]["a"].scatter, was.statistics[0]["a"].scatter)


def test_statistics_of_no_clients_are_an_error():
    with pytest.raises(ValueError, match="no BatchNorm statistics of no clients: add a result first"):
        PooledStatistics().result()


@pytest.mark.parametrize("sizes", [(40, 3, 300, 17), (360,)])
def test_refresh_over_several_clients_equals_one_client_with_all_data(sizes):
    values = (normal(360, 3) * torch.tensor([1.0, 5.0, 0.1]) + torch.linspace(-9, 9, 360)[:, None]).float()
    module = nn.Sequential(nn.BatchNorm1d(3))
    engine = InProcess(module, [(part, torch.zeros(len(part))) for part in values.split(sizes)], workers=2)
    (found,) = refresh(engine, {"theta": torch.ones(6)}, seed=0)
    mean, variance = of_concatenation([values])
    torch.testing.assert_close(found["0.running_mean"].double(), mean, rtol=0, atol=12 * FLOAT32 * 10)
    torch.testing.assert_close(found["0.running_var"].double(), variance, rtol=12 * FLOAT32, atol=0)


def test_refresh_asks_every_client_once_each_with_a_seed_of_its_own():
    class Asked(InProcess):
        def answers(self, payload, tasks):
            self.tasks = tasks
            return super().answers(payload, tasks)

    data = (normal(30, 3, dtype=torch.float32), torch.zeros(30))
    engine = Asked(nn.BatchNorm1d(3), [data] * 4, workers=1)
    asked = []
    for seed in (0, 1):
        refresh(engine, {"theta": torch.ones(6)}, seed=seed, max_examples=10)
        assert [(task.index, task.client, task.max_examples) for task in engine.tasks] == [(i, i, 10) for i in range(4)]
        asked += [task.seed for task in engine.tasks]
    assert len(set(asked)) == 8  # clients with the same data use different examples of them


def test_loaded_statistics_are_copies_under_their_names():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    values = torch.tensor([1.0, 2.0, 3.0])
    load(module, {"1.running_var": values})
    values.zero_()
    assert module[1].running_var.tolist() == [1, 2, 3]
    assert module[1].running_mean.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("named", "words"),
    [
        (
            {"1.running_var": torch.ones(3)},
            r"no buffers \['1\.running_var'\]: these statistics belong to another model",
        ),
        ({"0.running_var": torch.ones(1)}, r"buffers \['0\.running_var'\] differ in shape"),
        ({"0.running_var": torch.ones(3, 1)}, r"buffers \['0\.running_var'\] differ in shape"),
    ],
)
def test_statistics_of_another_model_are_refused_before_anything_is_copied(named, words):
    module = nn.Sequential(nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match=words):
        load(module, {"0.running_mean": torch.full((3,), 7.0), **named})
    assert module[0].running_mean.tolist() == [0, 0, 0]


def test_layers_are_those_with_running_statistics():
    module = nn.ModuleDict(
        {
            "one": nn.BatchNorm1d(2),
            "none": nn.BatchNorm2d(2, track_running_stats=False),
            "no": nn.InstanceNorm1d(2),
            "instances": nn.InstanceNorm1d(3, affine=True, track_running_stats=True),
        }
    )
    assert batch_norm.widths(module) == {"one": 2, "instances.running_mean": 3, "instances.running_var": 3}


# ------------------------------------------------------------------------------------------- layers behind one another


def deep():
    torch.manual_seed(0)
    layers = [part for _ in range(4) for part in (nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh())]
    return nn.Sequential(*layers).double()


def layer_by_layer(module, batches):
    """The statistics of each layer's inputs, with all layers before it in evaluation mode with theirs."""
    module = deepcopy(module).eval()
    values = torch.cat(batches)
    for layer in module:
        if isinstance(layer, nn.BatchNorm1d):
            layer.running_mean.copy_(values.mean(0))
            layer.running_var.copy_(values.var(0, correction=1))
        with torch.no_grad():
            values = layer(values)
    return module.state_dict()


def split_otherwise(batches):
    return list(torch.cat(batches)[torch.randperm(81, generator=torch.Generator().manual_seed(1))].split(9))


def test_exact_statistics_are_those_of_layer_after_layer_whatever_the_batches():
    batches = unequal_ordered_batches(channels=4)
    expected = layer_by_layer(deep(), batches)
    for whatever in (batches, split_otherwise(batches)):
        module = deep()
        update(module, whatever, exact=True)
        for name, value in module.state_dict().items():
            torch.testing.assert_close(value.double(), expected[name].double(), rtol=1e-6, atol=1e-6)


def test_statistics_of_one_pass_depend_on_the_batches_behind_the_first_layer_alone():
    batches = unequal_ordered_batches(channels=4)
    one, other = deep(), deep()
    update(one, batches)
    update(other, split_otherwise(batches))
    torch.testing.assert_close(one[1].running_var, other[1].running_var, rtol=1e-6, atol=0)
    assert ((one[10].running_var - other[10].running_var).abs() / other[10].running_var).max() > 0.01


def test_exact_statistics_stop_where_nothing_changes_any_more():
    passes = []

    class Counted(list):
        def __iter__(self):
            passes.append(1)
            return super().__iter__()

    update(nn.Sequential(nn.BatchNorm1d(3)), Counted(unequal_ordered_batches(dtype=torch.float32)), exact=True)
    assert len(passes) == 2
    passes.clear()
    update(deep(), Counted(unequal_ordered_batches(channels=4)), exact=True)
    assert len(passes) == 5  # one for each layer, after the first


def test_exact_statistics_need_batches_that_can_be_passed_over_again():
    with pytest.raises(TypeError, match="take several passes over the batches: give a list or a loader"):
        update(deep(), iter(unequal_ordered_batches(channels=4)), exact=True)


def test_an_exact_update_that_fails_in_a_later_pass_changes_nothing():
    class Failing(list):
        passes = 0

        def __iter__(self):
            Failing.passes += 1
            if Failing.passes == 3:
                raise OSError("the disk is gone")
            return super().__iter__()

    module = deep()
    before = deepcopy(module.state_dict())
    with pytest.raises(OSError, match="the disk is gone"):
        update(module, Failing(unequal_ordered_batches(channels=4)), exact=True)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
