"""The moments are those of the snapshots, to the last digits that float32 can hold."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_reference import columns_as_printed, columns_centered_on_final_mean, two_pass_moments
from torch import nn

from dswag import GaussianPosterior, Layout, Moments
from dswag.core.randomness import generator_for
from dswag.federation.client_results import TrainResult
from dswag.posterior.ledger import Ledger

D = 5_000


def snapshots(n, *, size=1.0, spread=1e-5, d=D, seed=0):
    """θ near `size`, with a drift from the anchor ten times the standard deviation between snapshots."""
    generator = generator_for(seed)
    anchor = size * (1 + 0.1 * torch.rand(d, generator=generator))
    drift = 10 * spread * torch.randn(d, generator=generator)
    return anchor, [anchor + drift + spread * torch.randn(d, generator=generator) for _ in range(n)]


def accumulate(anchor, thetas, **options):
    moments = Moments(anchor, **options)
    for theta in thetas:
        moments.add(theta)
    return moments


def relative_error(actual, expected):
    """The largest; where all snapshots of a coordinate are the same number, nothing but zero will do."""
    return ((actual.double() - expected).abs() / expected.clamp_min(1e-300)).max().item()


BOUND = {torch.float32: 1e-6, torch.float64: 1e-7}
"""Relative errors of float32 variances of up to 50 snapshots, by the dtype of the sums; rounding alone costs 6e-8."""


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("n", [2, 20, 50])
@pytest.mark.parametrize(("size", "spread"), [(1.0, 1e-5), (0.05, 1e-5), (1.0, 1e-4), (0.0, 1.0)])
def test_every_variance_is_within_one_millionth_of_two_pass_float64(n, size, spread, dtype):
    anchor, thetas = snapshots(n, size=size, spread=spread)
    mean, variance = two_pass_moments(thetas)
    posterior = accumulate(anchor, thetas, dtype=dtype).posterior()
    assert {tensor.dtype for tensor in posterior.tensors().values()} == {torch.float32}
    assert relative_error(posterior.variance, variance) < BOUND[dtype]
    torch.testing.assert_close(posterior.mean, mean.float(), rtol=1.2e-7, atol=1e-6 * spread)


def test_double_snapshots_keep_their_digits():
    thetas = [theta.double() + 1e-9 * theta.double().sin() for theta in snapshots(20)[1]]
    _, variance = two_pass_moments(thetas)
    posterior = accumulate(None, thetas).posterior()
    assert posterior.variance.dtype == torch.float64
    assert relative_error(posterior.variance, variance) < 1e-10  # of differences whose own rounding is 1e-11 of them


@pytest.mark.parametrize("columns", ["last", "svd"])
@pytest.mark.parametrize("anchor", [None, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", BOUND)
def test_double_snapshots_are_subtracted_before_they_are_rounded(dtype, anchor, columns):
    """Weights of 10,000 with a standard deviation of 0.001, the spacing of float32 there."""
    generator = generator_for(4)
    center = 1e4 + torch.rand(500, generator=generator).double()
    thetas = [center + 1e-3 * torch.randn(500, generator=generator).double() for _ in range(20)]
    like = None if anchor is None else center.to(anchor)
    whole, *parts = (Moments(like, dtype=dtype, columns=columns) for _ in range(3))
    for number, theta in enumerate(thetas):
        whole.add(theta, index=number)
        parts[number // 7 > 0].add(theta, index=number)
    parts[0].merge(parts[1])
    mean, variance = two_pass_moments(thetas)
    for moments in (whole, parts[0]):
        posterior = moments.posterior()
        assert relative_error(posterior.variance, variance) < BOUND[dtype]
        unbiased = posterior.deviations.double().square().sum(0) / (len(posterior.deviations) - 1)
        assert relative_error(unbiased, variance * 20 / 19) < 1e-5
        torch.testing.assert_close(posterior.mean.double(), mean, rtol=1.2e-7, atol=0)


def test_variance_survives_where_the_printed_formula_cancels():
    anchor, thetas = snapshots(20, size=1.0, spread=1e-5)
    _, variance = two_pass_moments(thetas)
    mean_of_squares = sum(theta.square() for theta in thetas) / 20
    printed = (mean_of_squares - (sum(thetas) / 20).square()).clamp_min(1e-30)
    # Half of the variances are wrong by 100 % or more, and the clamp hides it.
    assert ((printed.double() - variance).abs() / variance).median() > 0.999
    assert relative_error(accumulate(anchor, thetas).posterior().variance, variance) < 1e-6


@pytest.mark.parametrize("drift", [0, 10, 1000])
def test_drift_from_the_anchor_costs_no_digits(drift):
    """Whatever the standard deviations that all snapshots have moved since they started."""
    anchor, thetas = snapshots(50, size=0.0, spread=1.0)
    thetas = [drift + theta for theta in thetas]
    _, variance = two_pass_moments(thetas)
    assert relative_error(accumulate(anchor, thetas).posterior().variance, variance) < 1e-6


@pytest.mark.parametrize("dtype", BOUND)
def test_order_does_not_matter(dtype):
    anchor, thetas = snapshots(30)
    forward = accumulate(anchor, thetas, dtype=dtype).posterior()
    backward = accumulate(anchor, thetas[::-1], dtype=dtype).posterior()
    torch.testing.assert_close(backward.variance, forward.variance, rtol=1.2 * BOUND[dtype], atol=0)
    torch.testing.assert_close(backward.mean, forward.mean, rtol=1.2e-7, atol=0)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), n=st.integers(2, 50), rank=st.sampled_from([0, 2, 5, 30]))
def test_any_tree_of_merges_gives_the_same_moments_and_columns(data, n, rank):
    anchor, thetas = snapshots(n, d=64, seed=n)
    order = data.draw(st.permutations(range(n)))
    parts = []
    for index in order:
        part = Moments(anchor, rank=rank)
        part.add(thetas[index], index=index)
        parts.append(part)
    while len(parts) > 1:
        at = data.draw(st.integers(0, len(parts) - 2))
        parts[at].merge(parts.pop(at + 1))
    posterior = parts[0].posterior()
    mean, variance = two_pass_moments([theta - anchor for theta in thetas])
    assert parts[0].count == n
    assert relative_error(posterior.variance, variance) < 1e-6
    torch.testing.assert_close(posterior.mean, (anchor.double() + mean).float(), rtol=1.2e-7, atol=0)
    if rank:
        expected = columns_centered_on_final_mean([theta - anchor for theta in thetas], rank).float()
        torch.testing.assert_close(posterior.deviations, expected, rtol=1e-5, atol=1e-11)


def test_merging_accumulators_with_different_anchors_shifts_them():
    anchor, thetas = snapshots(8, spread=1e-3)
    first, second = Moments(rank=20), Moments(rank=20)
    for number, theta in enumerate(thetas):
        (first if number < 3 else second).add(theta, index=number)
    first.merge(second)
    expected = accumulate(anchor, thetas).posterior()
    torch.testing.assert_close(first.posterior().mean, expected.mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(first.posterior().variance, expected.variance, rtol=1e-6, atol=0)
    torch.testing.assert_close(first.posterior().deviations, expected.deviations, rtol=1e-4, atol=1e-7)


def test_what_is_added_after_a_merge_comes_after_all_that_was_merged():
    anchor, thetas = snapshots(4, d=16, spread=1e-2)
    first, second = Moments(anchor, rank=2), Moments(anchor, rank=2)
    first.add(thetas[0])
    for index in (7, 8):
        second.add(thetas[index - 6], index=index)
    first.merge(second)
    first.add(thetas[3])
    expected = columns_centered_on_final_mean(thetas, 2).float()
    torch.testing.assert_close(first.posterior().deviations, expected, rtol=1e-4, atol=1e-6)


def test_merging_with_an_empty_accumulator_changes_nothing():
    anchor, thetas = snapshots(4, d=16)
    for first, second in itertools.permutations([accumulate(anchor, thetas), Moments()], 2):
        first.merge(second)
        assert torch.equal(first.posterior().variance, accumulate(anchor, thetas).posterior().variance)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]])
def test_columns_are_those_of_the_last_tasks_whatever_the_order_of_arrival(order):
    anchor, thetas = snapshots(5, d=32, spread=1e-2)
    moments = Moments(anchor, rank=3)
    for index in order:
        moments.add(thetas[index], index=index)
    expected = columns_centered_on_final_mean(thetas, 3).float()
    torch.testing.assert_close(moments.posterior().deviations, expected, rtol=1e-4, atol=1e-6)


def test_posterior_can_be_taken_midway_and_adding_goes_on():
    anchor, thetas = snapshots(6, d=32)
    moments = accumulate(anchor, thetas[:3], rank=2)
    early = moments.posterior()
    kept = early.deviations.clone()
    for theta in thetas[3:]:
        moments.add(theta)
    assert torch.equal(early.deviations, kept)
    assert torch.equal(moments.posterior().deviations, accumulate(anchor, thetas, rank=2).posterior().deviations)


@pytest.mark.parametrize("options", [{}, {"rank": 4}, {"rank": 500}, {"columns": "svd"}, {"centering": "running"}])
@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("sizes", [(1,) * 40, (2, 3, 1, 2)])
def test_finishing_gives_the_same_posterior_and_leaves_nothing(options, dtype, sizes):
    moments = accumulate(torch.zeros(40), of_clients(sizes)[::-1], dtype=dtype, **options)
    expected = moments.posterior()
    finished = moments.finish()
    assert finished.count == sum(sizes)
    assert finished.tensors().keys() == expected.tensors().keys()
    for name, tensor in expected.tensors().items():
        assert torch.equal(finished.tensors()[name], tensor)
    assert (moments.count, moments.state()) == (0, {})
    with pytest.raises(ValueError, match="at least 2 snapshots, got 0"):
        moments.finish()
    for theta in torch.eye(40)[:3]:
        moments.add(theta)
    for name, tensor in expected.tensors().items():
        assert torch.equal(finished.tensors()[name], tensor)


def test_finishing_takes_no_second_copy_of_the_columns():
    moments = accumulate(torch.zeros(40), of_clients((3, 2)))
    state = moments.state()
    finished = moments.finish()
    assert finished.deviations.data_ptr() == state["columns.differences [d]"].data_ptr()
    assert finished.deviations_within.data_ptr() == state["columns.within [d]"].data_ptr()


@pytest.mark.parametrize("columns", ["last", "svd"])
def test_columns_that_never_come_take_no_memory(columns):
    moments = Moments(torch.zeros(1 << 20), rank=10_000, columns=columns)  # 40 GB
    for _ in range(3):
        moments.add(torch.zeros(1 << 20))
    assert sum(tensor.numel() for tensor in moments.state().values()) < 10 << 20


@pytest.mark.parametrize(("n", "share"), [(2, 0.50), (5, 0.68), (10, 0.79), (20, 0.86), (30, 0.90)])
def test_printed_running_columns_lose_the_stated_share_of_the_variance(n, share):
    """(n - H_n) / (n - 1) of the variance is left, for K = n (docs/paper.md)."""
    anchor, thetas = snapshots(n, d=100_000, spread=1e-2)
    posterior = accumulate(anchor, thetas, rank=n, centering="running").posterior()
    torch.testing.assert_close(posterior.deviations, columns_as_printed(thetas, n).float(), rtol=1e-4, atol=1e-6)
    closed_form = (n - sum(1 / i for i in range(1, n + 1))) / (n - 1)
    assert closed_form == pytest.approx(share, abs=0.006)
    _, variance = two_pass_moments(thetas)
    kept = (posterior.deviations.double().square().sum() / (n - 1) / (variance.sum() * n / (n - 1))).item()
    # The share averages d independent coordinates whose own standard deviation is below 1.
    assert kept == pytest.approx(closed_form, abs=5 / 100_000**0.5)


def test_running_columns_refuse_to_be_merged():
    anchor, thetas = snapshots(4, d=8)
    first, second = (accumulate(anchor, part, centering="running") for part in (thetas[:2], thetas[2:]))
    with pytest.raises(ValueError, match='cannot be merged: use centering="final"'):
        first.merge(second)


def test_merging_different_ranks_is_refused():
    with pytest.raises(ValueError, match="must agree in rank"):
        Moments(rank=2).merge(Moments(rank=3))


@pytest.mark.parametrize(("rank", "words"), [(1, "0 or at least 2"), (-1, "0 or at least 2"), (10**9, "at most 10000")])
def test_rank_that_cannot_be_is_refused(rank, words):
    with pytest.raises(ValueError, match=f"rank must be {words}, got {rank}"):
        Moments(rank=rank)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": "principal"}, "columns must be one of last, svd, got 'principal'"),
        ({"centering": "none"}, "centering must be one of final, running, got 'none'"),
    ],
)
def test_unknown_names_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Moments(**options)


def test_one_snapshot_has_no_posterior():
    anchor, thetas = snapshots(1, d=8)
    with pytest.raises(ValueError, match="needs at least 2 snapshots, got 1: use more explorers"):
        accumulate(anchor, thetas).posterior()
    with pytest.raises(ValueError, match="got 0"):
        Moments().posterior()


def test_two_snapshots_and_rank_twenty_keep_the_full_between_covariance():
    """The divisor is k - 1 = 1, the number of columns stored, not K - 1 = 19."""
    anchor, thetas = snapshots(2, d=8, spread=0.1)
    posterior = accumulate(anchor, thetas, rank=20).posterior()
    gap = (thetas[0] - thetas[1]) / 2
    torch.testing.assert_close(posterior.deviations, torch.stack([gap, -gap]), rtol=1e-5, atol=1e-7)
    drawn = posterior.sample(0, 4000, kind="low_rank")
    # Var = gap² · 2 / (k - 1); the standard error of a sample variance is √(2 / 4000) of it.
    torch.testing.assert_close(drawn.var(0), 2 * gap**2, rtol=5 * (2 / 4000) ** 0.5, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_snapshot_that_is_not_finite_is_refused_and_changes_nothing(bad):
    anchor, thetas = snapshots(3, d=8)
    moments = accumulate(anchor, thetas)
    spoilt = thetas[0].clone()
    spoilt[5] = bad
    with pytest.raises(ValueError, match="snapshot 3 is not finite"):
        moments.add(spoilt)
    assert moments.count == 3
    assert torch.equal(moments.posterior().variance, accumulate(anchor, thetas).posterior().variance)


def test_a_snapshot_of_another_length_is_refused():
    anchor, _ = snapshots(1, d=8)
    with pytest.raises(ValueError, match=r"must have shape \[8\] on cpu, got \[9\] on cpu"):
        Moments(anchor).add(torch.zeros(9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_anchor_and_the_snapshots_are_left_alone(dtype):
    anchor, thetas = snapshots(3, d=8)
    anchor, thetas = anchor.to(dtype), [theta.to(dtype) for theta in thetas]
    before = [tensor.clone() for tensor in (anchor, *thetas)]
    moments = accumulate(anchor, thetas)
    moments.posterior()
    anchor.zero_()  # what the caller does with its tensor later is no business of the moments
    assert all(torch.equal(a, b) for a, b in zip(thetas, before[1:], strict=True))
    assert torch.equal(moments.posterior().mean, accumulate(None, thetas).posterior().mean)


def test_modules_and_state_dicts_are_matched_by_name():
    models = []
    for seed in range(3):
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator_for(seed)))
        models.append(model)
    layout = Layout.of(models[0])
    from_modules, from_dicts = Moments(), Moments(layout=layout)
    for model in models:
        from_modules.add(model)
        from_dicts.add(dict(reversed(model.state_dict().items())))
    expected = accumulate(None, [layout.flatten(model) for model in models]).posterior()
    for posterior in (from_modules.posterior(), from_dicts.posterior()):
        assert torch.equal(posterior.mean, expected.mean)
        assert torch.equal(posterior.deviations, expected.deviations)
        assert posterior.layout == layout


class Attention(nn.Module):
    """Owns a parameter and children, as does MultiheadAttention in it."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)
        self.token = nn.Parameter(torch.zeros(1, 4))
        self.register_buffer("scale", torch.tensor(3.0))
        self.register_buffer("steps", torch.tensor(7))


def test_modules_that_own_parameters_and_children_are_averaged_by_name():
    """Public SWAG fails on them, or assigns values to other parameters."""
    models = [Attention() for _ in range(3)]
    moments, means = Moments(), {}
    for seed, model in enumerate(models):
        for name, parameter in model.named_parameters():
            nn.init.normal_(parameter, generator=generator_for(seed, len(name)))
            means[name] = means.get(name, 0) + parameter.detach().double() / 3
        moments.add(model)
    fresh = Attention()
    moments.posterior().mean_into(fresh)
    for name, parameter in fresh.named_parameters():
        torch.testing.assert_close(parameter.double(), means[name], rtol=1e-6, atol=1e-7)
    assert (fresh.scale, fresh.steps) == (3.0, 7)


def test_a_module_that_is_refused_leaves_no_layout_behind():
    moments, broken, good = Moments(), nn.Linear(2, 2), nn.Linear(3, 1)
    nn.init.constant_(broken.weight, float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        moments.add(broken)
    assert moments.layout is None
    moments.add(good)
    assert moments.layout == Layout.of(good)


def test_every_snapshot_weighs_the_same_and_the_anchor_nothing():
    moments = Moments(torch.full((3,), 100.0))
    for index, value in ((7, 1.0), (2, 2.0), (90, 3.0), (4, 4.0)):
        moments.add(torch.full((3,), value), index=index)
    assert torch.equal(moments.posterior().mean, torch.full((3,), 2.5))
    assert torch.equal(moments.posterior().variance, torch.full((3,), 1.25))


@pytest.mark.parametrize("n", [2, 5, 20])
def test_draws_spread_as_far_as_the_snapshots(n):
    """Half of Σ_diag with divisor n and half of D Dᵀ with n - 1: (1 + n / (n - 1)) / 2 times the variance."""
    _, thetas = snapshots(n, d=50, spread=1e-2)
    v, f = accumulate(None, thetas).posterior().factors()
    _, variance = two_pass_moments(thetas)
    expected = (1 + n / (n - 1)) / 2 * variance
    torch.testing.assert_close((v + f.square().sum(0)).double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", ["last", "svd"])
def test_half_precision_snapshots_are_summed_in_single(dtype, columns):
    thetas = [theta.to(dtype) for theta in snapshots(20, size=1.0, spread=1e-2)[1]]
    mean, variance = two_pass_moments(thetas)
    posterior = accumulate(None, thetas, columns=columns).posterior()
    assert {tensor.dtype for tensor in posterior.tensors().values()} == {torch.float32}
    assert relative_error(posterior.variance, variance) < 1e-6
    torch.testing.assert_close(posterior.mean, mean.float())


@pytest.mark.parametrize("theta", [torch.arange(4), torch.zeros(4, dtype=torch.complex64), torch.zeros(0)])
def test_what_is_no_vector_of_real_numbers_is_refused(theta):
    moments = Moments()
    with pytest.raises(ValueError, match="θ"):
        moments.add(theta)
    assert moments.count == 0


def test_a_snapshot_that_does_not_fit_the_layout_is_refused():
    with pytest.raises(ValueError, match=r"θ must have shape \[16\] for these parameters, got \[15\]"):
        Moments(layout=Layout(("weight",), ((4, 4),))).add(torch.zeros(15))


@pytest.mark.parametrize("columns", ["last", "svd"])
def test_another_device_gives_the_same_moments_and_draws(columns, second_device):
    clients = of_clients((2, 3, 1, 2), d=70_000)
    here, there = (
        accumulate(None, [c.to(device) for c in clients], columns=columns) for device in ("cpu", second_device)
    )
    mine, theirs = here.posterior(), there.posterior()
    for name in ("mean", "variance", "variance_within"):
        torch.testing.assert_close(theirs.tensors()[name].cpu(), mine.tensors()[name], rtol=1e-4, atol=1e-4)
    lengths, expected = (p.deviations.norm(dim=0).cpu() for p in (theirs, mine))
    torch.testing.assert_close(lengths, expected, rtol=1e-4, atol=1e-4)
    if columns == "last":  # principal directions are the same up to their signs
        draws = theirs.sample(3, 2, first=1)
        torch.testing.assert_close(draws.cpu(), mine.sample(3, 2, first=1), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=f"on {second_device}, got .* on cpu"):
        there.add(clients[0])


def test_tied_weights_enter_once():
    """Public SWAG leaves them at zero."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    moments = Moments()
    for number in range(3):
        with torch.no_grad():
            model[0].weight.fill_(number)
        moments.add(model)
    posterior = moments.posterior()
    assert posterior.mean.shape == (16,)
    assert torch.equal(posterior.mean, torch.full((16,), 1.0))
    posterior.mean_into(model)
    assert model[1].weight is model[0].weight
    assert torch.equal(model[1].weight, torch.full((4, 4), 1.0))


def test_a_clients_snapshots_all_enter():
    anchor, thetas = snapshots(6, d=16, spread=1e-2)
    moments = Moments(anchor, rank=4)
    for index in (1, 0):
        part = torch.stack(thetas[3 * index : 3 * index + 3])
        moments.add(TrainResult(index=index, client=7, thetas=part, num_examples=1, loss=0.0))
    torch.testing.assert_close(
        moments.result().deviations, columns_centered_on_final_mean(thetas, 4).float(), rtol=1e-4, atol=1e-6
    )


# Scatter within and between clients


def of_clients(sizes, *, d=40, seed=3, within=0.1, between=1.0):
    """All snapshots [s, d] of each client, around the client's own center."""
    generator = generator_for(seed)
    return [
        between * torch.randn(d, generator=generator) + within * torch.randn(size, d, generator=generator)
        for size in sizes
    ]


def test_within_and_between_add_up_to_the_whole():
    """Law of total variance, against two passes in float64."""
    clients = of_clients((3, 5, 1, 4))
    posterior = accumulate(torch.zeros(40), clients).posterior()
    everything = torch.cat(clients).double()
    within = sum(((c.double() - c.double().mean(0)) ** 2).sum(0) for c in clients) / len(everything)
    means = torch.cat([c.double().mean(0).expand(len(c), -1) for c in clients])
    between = ((means - everything.mean(0)) ** 2).mean(0)
    torch.testing.assert_close(posterior.variance_within.double(), within, rtol=1e-6, atol=0)
    torch.testing.assert_close((posterior.variance - posterior.variance_within).double(), between, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(posterior.deviations_within.double(), everything - means, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        (posterior.deviations - posterior.deviations_within).double(), means - everything.mean(0), rtol=1e-4, atol=1e-6
    )


def test_what_lies_within_a_single_client_is_the_whole_and_no_more():
    """Both are summed in their own way, whose rounding errors differ."""
    posterior = accumulate(None, of_clients((5,), d=1000)).posterior()
    assert (posterior.variance_within <= posterior.variance).all()
    torch.testing.assert_close(posterior.variance_within, posterior.variance, rtol=1e-6, atol=0)


def test_single_snapshots_are_all_between():
    posterior = accumulate(torch.zeros(40), of_clients((1, 1, 1))).posterior()
    assert posterior.variance_within is None
    assert posterior.deviations_within is None


def test_a_single_snapshot_has_no_part_within_also_where_another_client_s_column_was():
    posterior = accumulate(None, of_clients((3, 1)), rank=3).posterior()
    assert posterior.deviations_within[:2].abs().min() > 0
    assert torch.equal(posterior.deviations_within[2], torch.zeros(40))


@pytest.mark.parametrize("columns", ["last", "svd"])
def test_merged_clients_keep_their_scatter_apart(columns):
    clients = of_clients((2, 3, 1, 2))
    whole = accumulate(torch.zeros(40), clients, columns=columns, rank=6).posterior()
    parts = [Moments(torch.full((40,), 0.1 * i), columns=columns, rank=6) for i in range(2)]
    for index, client in enumerate(clients):
        parts[index // 2].add(client, index=sum(len(c) for c in clients[:index]))
    parts[0].merge(parts[1])
    merged = parts[0].posterior()
    torch.testing.assert_close(merged.variance_within, whole.variance_within, rtol=1e-6, atol=0)
    torch.testing.assert_close(merged.variance, whole.variance, rtol=1e-6, atol=0)
    if columns == "last":
        torch.testing.assert_close(merged.deviations_within, whole.deviations_within, rtol=1e-4, atol=1e-6)


def test_a_snapshot_lies_in_the_parts_as_scaled():
    """Draws have the covariance of both parts, each with its scale."""
    posterior = accumulate(torch.zeros(8), of_clients((3, 3), d=8, within=0.5), rank=6).posterior()
    scaled = GaussianPosterior(
        **posterior.tensors(), count=6, within_scale=0.25, between_scale=4.0, layout=posterior.layout
    )
    inner, outer = posterior.deviations_within, posterior.deviations - posterior.deviations_within
    variance = 0.25 * posterior.variance_within + 4 * (posterior.variance - posterior.variance_within)
    low_rank = 0.25 * inner.T @ inner + 4 * outer.T @ outer  # cross terms vanish over all snapshots of a client
    expected = torch.diag(variance) / 2 + low_rank / (2 * 5)
    v, f = scaled.factors()
    torch.testing.assert_close(torch.diag(v) + f.T @ f, expected, rtol=1e-4, atol=1e-5)
    draws = scaled.sample(0, 40_000)
    std = expected.diagonal().sqrt()
    error = torch.sqrt((torch.outer(std, std) ** 2 + expected**2) / 40_000)
    assert ((draws.T.cov() - expected).abs() <= 5 * error).all()


# Withdrawal


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.float64, 1.2e-7)])
@pytest.mark.parametrize("rank", [0, 20])
def test_a_removed_client_leaves_nothing_behind(rank, dtype, error):
    clients = of_clients((2, 3, 4))
    moments = Moments(rank=rank, dtype=dtype)
    for index, client in enumerate(clients):
        moments.add(client, index=index)
    moments.remove(clients[1], index=1)
    expected = Moments(rank=rank, dtype=dtype)
    for index in (0, 2):
        expected.add(clients[index], index=index)
    left, right = moments.posterior(), expected.posterior()
    assert left.count == right.count == 6
    for name, tensor in right.tensors().items():
        torch.testing.assert_close(left.tensors()[name], tensor, rtol=error, atol=error)


def test_a_withdrawn_outlier_needs_float64():
    """What lies m standard deviations away costs m² rounding errors: some 0.1 in float32 at m = 1000."""
    _, thetas = snapshots(20, size=0.0, spread=1.0, d=200)
    _, variance = two_pass_moments(thetas)
    for dtype, worst in ((torch.float32, 0.2), (torch.float64, 1e-7)):
        moments = accumulate(None, [*thetas, 1000 + thetas[0]], rank=0, dtype=dtype)
        moments.remove(1000 + thetas[0], index=20)
        assert relative_error(moments.posterior().variance, variance) < worst


@pytest.mark.parametrize(("size", "index"), [(2, 5), (3, 1)])
def test_what_was_not_added_cannot_be_removed(size, index):
    clients = of_clients((2, 2, 2))
    moments = accumulate(None, clients)
    before = moments.posterior().variance
    with pytest.raises(ValueError, match="nothing can be removed that was not added"):
        moments.remove(torch.zeros(size, 40), index=index)
    assert moments.count == 6
    assert torch.equal(moments.posterior().variance, before)


def test_moments_can_be_emptied_and_filled_again():
    _, thetas = snapshots(6, d=16)
    moments = accumulate(None, thetas[:3])
    for index in range(3):
        moments.remove(thetas[index], index=index)
    assert moments.count == 0
    for theta in thetas[3:]:
        moments.add(theta)
    expected = accumulate(None, thetas[3:]).posterior()
    for name, tensor in expected.tensors().items():
        assert torch.equal(moments.posterior().tensors()[name], tensor)


def test_what_is_added_after_a_withdrawal_gets_an_index_of_its_own():
    _, thetas = snapshots(6, d=16)
    moments = accumulate(None, thetas[:4])
    moments.remove(thetas[1], index=1)
    moments.add(thetas[4])
    moments.remove(thetas[3], index=3)
    assert moments.posterior().deviations.shape == (3, 16)


def test_a_client_whose_columns_displaced_others_cannot_be_removed():
    clients = of_clients((2, 2, 2))
    moments = Moments(torch.zeros(40), rank=3)
    for index, client in enumerate(clients):
        moments.add(client, index=index)
    before = moments.posterior().tensors()
    with pytest.raises(ValueError, match="columns of 2 cannot be removed: earlier columns made room"):
        moments.remove(clients[2], index=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in moments.posterior().tensors().items())
    moments.remove(clients[0], index=0)  # its columns are gone already; its sums can still be taken off
    assert moments.count == 4


@pytest.mark.parametrize(("rank", "n"), [(0, 4), (2, 4)])
@pytest.mark.parametrize("index", [4, 17])
def test_an_index_that_was_never_added_cannot_be_removed_whatever_the_columns(rank, n, index):
    _, thetas = snapshots(n, d=16)
    moments = accumulate(None, thetas, rank=rank)
    before = moments.posterior().tensors()
    with pytest.raises(ValueError, match=f"not added: there was none with index {index}"):
        moments.remove(thetas[0], index=index)
    assert moments.count == n
    assert all(torch.equal(tensor, before[name]) for name, tensor in moments.posterior().tensors().items())


def test_nothing_can_be_removed_twice_also_after_a_journey_and_a_merge():
    _, thetas = snapshots(6, d=16)
    moments, other = Moments(rank=0), Moments(rank=0)
    for index, theta in enumerate(thetas):
        (moments if index % 2 else other).add(theta, index=index)
    moments.merge(other)
    there = Moments(rank=0)
    there.load(moments.state())
    there.remove(thetas[2], index=2)
    with pytest.raises(ValueError, match="none with index 2"):
        there.remove(thetas[2], index=2)
    assert there.count == 5


def test_a_client_with_another_number_of_snapshots_cannot_be_removed():
    moments = accumulate(None, of_clients((2, 3)), rank=0)
    with pytest.raises(ValueError, match="index 1 was added with another number, for a removal of 2"):
        moments.remove(of_clients((2, 3))[1][:2], index=1)


def test_another_theta_than_the_one_added_cannot_be_removed():
    _, thetas = snapshots(4, d=16)
    moments, other = accumulate(None, thetas[:2]), Moments()
    for index in (2, 3):
        other.add(thetas[index], index=index)
    moments.merge(other)  # columns that were shifted are still known
    with pytest.raises(ValueError, match="snapshot 0 of 2 was another θ"):
        moments.remove(thetas[3], index=2)
    moments.remove(thetas[2], index=2)
    expected = accumulate(None, [thetas[0], thetas[1]])
    expected.add(thetas[3], index=3)
    torch.testing.assert_close(moments.posterior().deviations, expected.posterior().deviations, rtol=0, atol=1e-6)


def test_clients_that_share_an_index_keep_their_columns():
    _, thetas = snapshots(4, d=16)
    moments = accumulate(None, thetas[:2])
    moments.merge(accumulate(None, thetas[2:]))  # both count from 0
    with pytest.raises(ValueError, match="index 0 was added 2 times, and it is not known whose columns"):
        moments.remove(thetas[0], index=0)
    assert moments.posterior().deviations.shape == (4, 16)
    sums = accumulate(None, thetas[:2], rank=0, dtype=torch.float64)
    sums.merge(accumulate(None, thetas[2:], rank=0, dtype=torch.float64))
    sums.remove(thetas[0], index=0)  # of sums it does not matter
    torch.testing.assert_close(sums.posterior().mean, accumulate(None, thetas[1:]).posterior().mean)


@given(st.data())
def test_the_ledger_counts_what_a_list_would(data):
    events = data.draw(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 2)), max_size=20))
    halves, listed = (Ledger(), Ledger()), list(events)
    for number, event in enumerate(events):
        halves[number % 2].add(*event)
    halves[0].merge(halves[1])
    ledger = Ledger()
    ledger.load(halves[0].state())
    for event in data.draw(st.permutations(events))[: len(events) // 2]:
        ledger.remove(*event)
        listed.remove(event)
    for index in range(8):
        assert ledger.times(index) == sum(index == found for found, _ in listed)
        assert ledger.times(index, 2) == listed.count((index, 2))


def test_the_ledger_of_clients_in_order_is_one_run():
    ledger, later = Ledger(), Ledger()
    for index in range(1000):
        (ledger if index < 500 else later).add(index, 3)
    ledger.merge(later)
    assert ledger.state().tolist() == [[0, 1000, 3]]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"columns": "svd"}, "principal columns cannot be removed"), ({"centering": "running"}, "cannot be removed")],
)
def test_columns_that_do_not_come_apart_refuse_removal(options, words):
    moments = accumulate(torch.zeros(40), of_clients((2, 2)), **options)
    with pytest.raises(ValueError, match=words):
        moments.remove(of_clients((2, 2))[0], index=0)


# Principal columns


def test_principal_columns_are_exact_while_they_fit():
    clients = of_clients((1,) * 7, d=30)
    posterior = accumulate(torch.zeros(30), clients, columns="svd", rank=8).posterior()
    everything = torch.cat(clients).double()
    d = posterior.deviations.double()
    torch.testing.assert_close(d.T @ d / (len(d) - 1), everything.T.cov(), rtol=1e-4, atol=1e-5)


def test_principal_columns_of_many_snapshots_are_their_principal_components():
    """40 snapshots that move mostly along 3 directions; the residual is 1 % of them."""
    generator = generator_for(11)
    directions = torch.linalg.qr(torch.randn(60, 3, generator=generator))[0].T * torch.tensor([[3.0], [2.0], [1.0]])
    thetas = torch.randn(40, 3, generator=generator) @ directions + 0.01 * torch.randn(40, 60, generator=generator) + 5
    posterior = accumulate(torch.zeros(60), list(thetas), columns="svd", rank=4).posterior()
    d = posterior.deviations.double()
    covariance = thetas.double().T.cov()
    values = torch.linalg.eigvalsh(covariance)[-3:]
    torch.testing.assert_close(torch.linalg.eigvalsh(d.T @ d / (len(d) - 1))[-3:], values, rtol=1e-3, atol=0)
    # What is missing is of the size of the residual's variance, 1e-4 in each of 60 directions.
    assert torch.linalg.matrix_norm(d.T @ d / (len(d) - 1) - covariance, 2) < 1e-3
    last = accumulate(torch.zeros(60), list(thetas), rank=4).posterior().deviations.double()
    assert torch.linalg.matrix_norm(last.T @ last / 3 - covariance, 2) > 0.5  # four snapshots say little of forty


@pytest.mark.parametrize("sizes", [(5,), (1, 5), (5, 1), (2, 5, 3)])
def test_principal_columns_are_carried_with_a_client_of_more_snapshots_than_columns(sizes):
    moments, there = accumulate(None, of_clients(sizes), columns="svd", rank=2), Moments(columns="svd", rank=2)
    there.load(moments.state())
    for either in (moments, there):
        either.add(torch.zeros(40))
    assert torch.equal(there.posterior().deviations, moments.posterior().deviations)


def test_looking_at_principal_columns_or_merging_them_elsewhere_changes_nothing():
    generator = generator_for(12)
    thetas = list(torch.randn(23, 40, generator=generator))
    watched, left_alone = Moments(columns="svd", rank=4), Moments(columns="svd", rank=4)
    for theta in thetas:
        watched.add(theta)
        left_alone.add(theta)
        if watched.count > 1:
            watched.posterior()
            Moments(columns="svd", rank=4).merge(watched)
    assert torch.equal(watched.posterior().deviations, left_alone.posterior().deviations)


def test_two_snapshots_have_one_principal_direction():
    thetas = [torch.zeros(5), torch.tensor([2.0, 0.0, 0.0, 0.0, 0.0])]
    posterior = accumulate(torch.zeros(5), thetas, columns="svd").posterior()
    expected = torch.zeros(5, 5)
    expected[0, 0] = 2.0  # the sample variance of 0 and 2
    torch.testing.assert_close(posterior.deviations.T @ posterior.deviations, expected)


def test_principal_columns_have_a_rank_and_no_running_mean():
    with pytest.raises(ValueError, match="use a rank of at least 2"):
        Moments(columns="svd", rank=0)
    with pytest.raises(ValueError, match="principal directions around the final mean"):
        Moments(columns="svd", centering="running")
