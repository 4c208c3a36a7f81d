"""The moments are those of the snapshots, to the last digits that float32 can hold."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_reference import columns_as_printed, columns_centred_on_final_mean, two_pass_moments
from torch import nn

from dswag import Layout, Moments
from dswag.randomness import generator_for
from dswag.tasks import TrainResult

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


@pytest.mark.parametrize("n", [2, 20, 50])
@pytest.mark.parametrize(("size", "spread"), [(1.0, 1e-5), (0.05, 1e-5), (1.0, 1e-4), (0.0, 1.0)])
def test_every_variance_is_within_one_millionth_of_two_pass_float64(n, size, spread):
    anchor, thetas = snapshots(n, size=size, spread=spread)
    mean, variance = two_pass_moments([theta - anchor for theta in thetas])
    posterior = accumulate(anchor, thetas).posterior()
    assert relative_error(posterior.variance, variance) < 1e-7  # the float32 that is returned rounds by up to 6e-8
    assert torch.equal(posterior.mean, (anchor.double() + mean).float())


def test_variance_survives_where_the_printed_formula_cancels():
    anchor, thetas = snapshots(20, size=1.0, spread=1e-5)
    _, variance = two_pass_moments(thetas)
    mean_of_squares = sum(theta.square() for theta in thetas) / 20
    printed = (mean_of_squares - (sum(thetas) / 20).square()).clamp_min(1e-30)
    # Half of the variances are wrong by 100 % or more, and the clamp hides it.
    assert ((printed.double() - variance).abs() / variance).median() > 0.999
    assert relative_error(accumulate(anchor, thetas).posterior().variance, variance) < 1e-7


def test_order_does_not_matter():
    anchor, thetas = snapshots(30)
    forward = accumulate(anchor, thetas).posterior()
    backward = accumulate(anchor, thetas[::-1]).posterior()
    # Reordered float64 sums differ by 1e-15 of the values, which moves few of the rounded float32 by one unit.
    torch.testing.assert_close(backward.variance, forward.variance, rtol=1.2e-7, atol=0)
    torch.testing.assert_close(backward.mean, forward.mean, rtol=1.2e-7, atol=0)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), n=st.integers(2, 24), rank=st.sampled_from([0, 2, 5, 30]))
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
    assert relative_error(posterior.variance, variance) < 1e-7
    torch.testing.assert_close(posterior.mean, (anchor.double() + mean).float(), rtol=1.2e-7, atol=0)
    if rank:
        expected = columns_centred_on_final_mean([theta - anchor for theta in thetas], rank).float()
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
    expected = columns_centred_on_final_mean(thetas, 3).float()
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


@pytest.mark.parametrize("rank", [1, -1])
def test_rank_that_cannot_be_is_refused(rank):
    with pytest.raises(ValueError, match=f"rank must be 0 or at least 2, got {rank}"):
        Moments(rank=rank)


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
    with pytest.raises(ValueError, match=r"must have shape \[8\], got \[9\]"):
        Moments(anchor).add(torch.zeros(9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_anchor_and_the_snapshots_are_left_alone(dtype):
    anchor, thetas = snapshots(3, d=8)
    anchor, thetas = anchor.to(dtype), [theta.to(dtype) for theta in thetas]
    before = [tensor.clone() for tensor in (anchor, *thetas)]
    moments = accumulate(anchor, thetas)
    moments.posterior()
    anchor.zero_()  # what the caller does with its tensor later is no business of the moments
    assert all(torch.equal(a, b) for a, b in zip((moments.anchor, *thetas), before, strict=True))


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
        moments.result().deviations, columns_centred_on_final_mean(thetas, 4).float(), rtol=1e-4, atol=1e-6
    )
