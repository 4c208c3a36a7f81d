"""The density is that of what `sample` draws: against dense matrices, `torch.distributions`, and the draws."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import LowRankMultivariateNormal, MultivariateNormal, kl_divergence

from dswag import GaussianPosterior, Layout
from dswag.core.randomness import generator_for
from dswag.posterior import density
from dswag.posterior.density import CHUNK, Gaussian

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")

KINDS = ["swag", "diagonal", "low_rank"]


def make(d=6, k=4, *, seed=0, dtype=torch.float64, spread=1.0, **fields):
    """A posterior with scatter within and between clients; standard deviations lie between about 0.01 and 3."""
    generator = generator_for(seed)
    size = spread * 10 ** torch.empty(d, dtype=torch.float64).uniform_(-2, 0.5, generator=generator)
    columns = torch.randn(k, d, generator=generator, dtype=torch.float64)
    variance = size**2 * (0.5 + torch.rand(d, generator=generator, dtype=torch.float64))
    return GaussianPosterior(
        mean=torch.randn(d, generator=generator, dtype=torch.float64).to(dtype),
        variance=variance.to(dtype),
        deviations=(size * columns).to(dtype),
        count=max(k, 2),
        variance_within=(0.3 * variance).to(dtype),
        deviations_within=(0.5 * size * columns.flip(0)).to(dtype),
        **fields,
    )


def dense(posterior, kind="swag", scale=1.0, floor=0.0):
    """Line 2's covariance [d, d] from the posterior's fields, in float64, with the scales of both parts."""
    p = {name: tensor.double() for name, tensor in posterior.tensors().items()}
    within, between = posterior.within_scale, posterior.between_scale
    diagonal = within * p["variance_within"] + between * (p["variance"] - p["variance_within"])
    columns = within**0.5 * p["deviations_within"] + between**0.5 * (p["deviations"] - p["deviations_within"])
    parts = {"diagonal": torch.diag(diagonal)}
    if len(columns):
        parts["low_rank"] = columns.T @ columns / (len(columns) - 1)
        parts["swag"] = (parts["diagonal"] + parts["low_rank"]) / 2
    else:
        parts["swag"] = parts["diagonal"]
    return scale * parts[kind] + floor * torch.eye(len(posterior.mean), dtype=torch.float64)


def reference(posterior, *options, **more):
    return MultivariateNormal(posterior.mean.double(), dense(posterior, *options, **more))


def points(posterior, n=3, seed=5):
    noise = torch.randn(n, len(posterior.mean), generator=generator_for(seed), dtype=torch.float64)
    return posterior.mean.double() + posterior.std.double() * noise


def close(found, expected, rtol=1e-9):
    """The dense reference inverts a matrix with condition up to about 1e6: 1e-9 leaves it room, 1e-16 being an ulp."""
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-9)


# Against dense matrices

posteriors = st.builds(
    make,
    d=st.integers(1, 9),
    k=st.sampled_from([0, 2, 3, 12]),
    seed=st.integers(0, 10**6),
    within_scale=st.sampled_from([1.0, 0.0, 0.3]),
    between_scale=st.sampled_from([1.0, 0.2]),
)
scales = st.floats(0.01, 10)
full_kinds = st.sampled_from(["swag", "diagonal"])


@given(posteriors, full_kinds, scales, st.sampled_from([0.0, 0.1]))
def test_density_entropy_and_distance_agree_with_the_dense_gaussian(posterior, kind, scale, floor):
    expected, theta = reference(posterior, kind, scale, floor), points(posterior)
    close(posterior.log_prob(theta, kind, scale, floor=floor), expected.log_prob(theta))
    close(posterior.entropy(kind, scale, floor=floor), expected.entropy())
    step = theta - posterior.mean
    distance = (step * torch.linalg.solve(expected.covariance_matrix, step.T).T).sum(1)
    close(posterior.mahalanobis(theta, kind, scale, floor=floor), distance)


@given(posteriors, st.integers(0, 10**6), full_kinds, scales, st.sampled_from([0.0, 0.1]))
def test_kl_agrees_with_the_dense_gaussians(posterior, seed, kind, scale, floor):
    other = make(len(posterior.mean), 3, seed=seed)
    expected = kl_divergence(reference(posterior, kind, scale, floor), reference(other, kind, scale, floor))
    close(posterior.kl(other, kind, scale, floor=floor), expected, rtol=1e-7)  # Σ_p in the metric of Σ_q squares 1e6


@pytest.mark.parametrize("kind", KINDS)
def test_a_floor_gives_every_kind_a_density(kind):
    posterior = make()
    theta = points(posterior)
    close(posterior.log_prob(theta, kind, floor=0.2), reference(posterior, kind, 1.0, 0.2).log_prob(theta))


def test_torchs_low_rank_gaussian_is_a_second_opinion():
    d = 3 * CHUNK // 2  # across a chunk
    posterior = make(d, 5, within_scale=0.4)
    v, factor = posterior.factors("swag", 0.7)
    expected = LowRankMultivariateNormal(posterior.mean, factor.T, v)
    theta = points(posterior, n=2)
    close(posterior.log_prob(theta, scale=0.7), expected.log_prob(theta))
    close(posterior.entropy(scale=0.7), expected.entropy())
    close(posterior.mahalanobis(theta[0], scale=0.7), posterior.mahalanobis(theta, scale=0.7)[0])


def test_one_theta_gives_a_number_and_rows_give_a_row():
    posterior = make()
    theta = points(posterior)
    for measure in (posterior.log_prob, posterior.mahalanobis):
        assert measure(theta[0]).shape == ()
        assert measure(theta[:1]).shape == (1,)
        close(measure(theta)[0], measure(theta[0]))


@given(posteriors, st.sampled_from(KINDS), scales)
def test_covariance_is_the_block_that_draws_have(posterior, kind, scale):
    if kind == "low_rank" and not len(posterior.deviations):
        return
    d = len(posterior.mean)
    chosen = [d - 1, 0, d // 2]
    close(posterior.covariance(chosen, kind, scale), dense(posterior, kind, scale)[chosen][:, chosen])


def test_covariance_between_layers_is_kept():
    layout = Layout(("a", "b"), ((4,), (2,)))
    posterior = make(layout=layout)
    places = torch.arange(6)
    both = torch.cat([places[layout.slices["a"]][2:], places[layout.slices["b"]]])
    block = posterior.covariance(both)
    close(block, dense(posterior)[both][:, both])
    assert block[:2, 2:].abs().min() > 0


def test_an_index_given_twice_is_one_parameter():
    block = make().covariance(torch.tensor([1, 1]))
    assert torch.equal(block, block[0, 0].expand(2, 2))


@pytest.mark.parametrize(
    ("indices", "words"),
    [
        ([0, 6], "indices must lie in 0 to 5, got 0 to 6"),
        ([-1], "indices must lie in 0 to 5, got -1"),
        ([0.5], r"indices must be integers \[m\], got torch.float32 \[1\]"),
        (torch.ones(6, dtype=torch.bool), "indices must be integers"),
        (torch.tensor(3), r"got torch.int64 \[\]"),
    ],
)
def test_impossible_indices_are_refused(indices, words):
    with pytest.raises(ValueError, match=words):
        make().covariance(indices)


# What the numbers mean


@pytest.mark.parametrize(("kind", "scale"), [("swag", 1.0), ("swag", 0.1), ("diagonal", 2.0)])
def test_draws_have_the_density_that_is_stated(kind, scale):
    """The distance of a draw is χ² with d degrees: mean d, variance 2d; and -log_prob averages to the entropy."""
    n, d = 4000, 30
    posterior = make(d, within_scale=0.5)
    draws = posterior.sample(3, n, kind=kind, scale=scale)
    distance = posterior.mahalanobis(draws, kind, scale)
    # 5 standard errors: √(2d / n) for the mean; √((κ - 1) / n) · 2d for the variance, κ = 3 + 12/d the χ²'s kurtosis.
    assert abs(distance.mean() - d) <= 5 * math.sqrt(2 * d / n)
    assert abs(distance.var() - 2 * d) <= 5 * math.sqrt((2 + 12 / d) / n) * 2 * d
    # log_prob is -½ the distance plus a constant: its standard deviation is √(d/2).
    surprise = -posterior.log_prob(draws, kind, scale).mean()
    assert abs(surprise - posterior.entropy(kind, scale)) <= 5 * math.sqrt(d / 2 / n)


def test_kl_is_the_mean_log_ratio_of_draws():
    n, p, q = 20_000, make(), make(seed=1, spread=3.0)
    draws = p.sample(0, n)
    ratio = p.log_prob(draws) - q.log_prob(draws)
    assert abs(ratio.mean() - p.kl(q)) <= 5 * ratio.std() / math.sqrt(n)


@given(posteriors, full_kinds, scales)
def test_kl_is_zero_to_itself_and_positive_otherwise(posterior, kind, scale):
    assert abs(posterior.kl(posterior, kind, scale)) <= 1e-10
    assert posterior.kl(replace(posterior, mean=posterior.mean + 0.01 * posterior.std), kind, scale) > 0
    assert posterior.kl(replace(posterior, variance=1.01 * posterior.variance), kind, scale) > 0


def test_the_density_of_one_dimension_integrates_to_one():
    posterior = make(1, 3)
    half_width = 12 * dense(posterior).sqrt().item()
    theta = posterior.mean + torch.linspace(-half_width, half_width, 4001, dtype=torch.float64)[:, None]
    total = torch.trapezoid(posterior.log_prob(theta).exp(), theta[:, 0])
    assert abs(total - 1) <= 1e-12  # the trapezoid rule on a smooth function that vanishes at both ends is exact


def test_the_gradient_of_the_log_density_leads_to_the_mean():
    posterior = make()
    theta = points(posterior, n=1)[0].requires_grad_()
    (gradient,) = torch.autograd.grad(posterior.log_prob(theta), theta)
    close(gradient, torch.linalg.solve(dense(posterior), posterior.mean - theta.detach()))


# Precision and size


def test_float32_at_size_agrees_with_float64():
    """Against Woodbury's difference in float64, whole tensors at once; only sums over θ of rounded inputs differ."""
    single = make(200_000, 10, dtype=torch.float32)
    theta = single.sample(1, 2)
    v, factor = (tensor.double() for tensor in single.factors())  # the same rounded inputs
    step = theta.double() - single.mean.double()
    inner = torch.eye(10, dtype=torch.float64) + (factor / v) @ factor.T
    projected = (factor / v) @ step.T
    distance = (step.square() / v).sum(1) - (projected * torch.linalg.solve(inner, projected)).sum(0)
    log_det = v.log().sum() + torch.logdet(inner)
    constant = len(v) * math.log(2 * math.pi)
    torch.testing.assert_close(single.mahalanobis(theta), distance, rtol=1e-11, atol=0)
    torch.testing.assert_close(single.log_prob(theta), -0.5 * (constant + log_det + distance), rtol=1e-11, atol=0)
    torch.testing.assert_close(single.entropy(), 0.5 * (constant + len(v) + log_det), rtol=1e-11, atol=0)


def test_kl_of_nearly_equal_gaussians_keeps_its_digits_at_size():
    """For p = q but for one variance times (1 + e), KL is ½ (e - ln(1 + e)): 2.5e-9 beside sums of 100,000 ones."""
    d, e = 100_000, 1e-4
    v = torch.rand(d, generator=generator_for(0), dtype=torch.float64) + 0.1
    changed = v.clone()
    changed[7] *= 1 + e
    mean, none = torch.zeros(d, dtype=torch.float64), torch.zeros(0, d, dtype=torch.float64)
    found = density.kl(Gaussian.of(mean, changed, none), Gaussian.of(mean, v, none))
    torch.testing.assert_close(found, torch.tensor(0.5 * (e - math.log1p(e)), dtype=torch.float64), rtol=1e-6, atol=0)


def test_distances_along_the_columns_keep_their_digits():
    """With x = t f, f being F's only row, xᵀ Σ⁻¹ x = t² m / (1 + m), m = fᵀ diag(v)⁻¹ f; Woodbury loses m's digits."""
    d = 50
    v = torch.full((d,), 1e-10, dtype=torch.float64)
    row = torch.randn(1, d, generator=generator_for(2), dtype=torch.float64)
    m = (row.square() / v).sum()
    distance = density.mahalanobis(Gaussian.of(torch.zeros(d, dtype=torch.float64), v, row), 3 * row[0])
    torch.testing.assert_close(distance, 9 * m / (1 + m), rtol=1e-9, atol=0)
    plain = 9 * m - (3 * m) ** 2 / (1 + m)
    assert abs(plain / distance - 1) > 1e-7  # what the plain formula gives, so that this test tests something


def test_no_copy_of_theta_or_the_columns_is_made():
    posterior, asked = make(5 * CHUNK + 3, 3), []

    def factors(part):
        asked.append(part)
        return posterior.factors(part=part)

    density.log_prob(Gaussian(posterior.mean, factors), posterior.mean)
    assert max(part.stop - part.start for part in asked) == CHUNK


def test_the_number_of_threads_changes_no_bit():
    p, q, before = make(3 * CHUNK, 4), make(3 * CHUNK, 5, seed=1), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(torch.stack([p.log_prob(q.mean), p.mahalanobis(q.mean), p.entropy(), p.kl(q)]))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_no_grad_holds_on_the_threads_too():
    posterior = make(2 * CHUNK)
    theta = posterior.mean.clone().requires_grad_()
    assert posterior.log_prob(theta).requires_grad
    with torch.no_grad():
        assert not posterior.log_prob(theta).requires_grad


# Where there is no density


def still(posterior, *indices):
    """The posterior as if the snapshots had never moved these."""
    tensors = {name: tensor.clone() for name, tensor in posterior.tensors().items()}
    for name in set(tensors) - {"mean"}:
        tensors[name][..., list(indices)] = 0
    return replace(posterior, **tensors)


MEASURES = {
    "log_prob": lambda p, **options: p.log_prob(p.mean, **options),
    "mahalanobis": lambda p, **options: p.mahalanobis(p.mean, **options),
    "entropy": lambda p, **options: p.entropy(**options),
    "kl to": lambda p, **options: make().kl(p, **options),
    "kl from": lambda p, **options: p.kl(make(), **options),
}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_a_gaussian_without_a_density_is_refused(measure):
    remedy = r'use kind="swag" or "diagonal" with a positive scale, or add a variance .* with floor='
    for options in ({"kind": "low_rank"}, {"scale": 0.0}):
        with pytest.raises(ValueError, match=f"no density: 6 of 6 elements.*{remedy}"):
            measure(make(), **options)
    with pytest.raises(ValueError, match=f"no density: 2 of 6 elements.*weights that no snapshot moved.*{remedy}"):
        measure(still(make(), 1, 5))


def test_parameters_that_never_moved_are_counted_by_name():
    layout = Layout(("a", "b", "c"), ((2,), (1,), (3,)))
    with pytest.raises(ValueError, match=r"3 of 6 elements of θ \(1 in a, 2 in c\) have no variance"):
        still(make(layout=layout), 0, 3, 4).entropy()


def test_with_a_floor_parameters_that_never_moved_have_a_density():
    posterior = still(make(), 1, 5)
    theta = points(make())
    expected = MultivariateNormal(posterior.mean, dense(posterior, "swag", 1.0, 0.01))
    close(posterior.log_prob(theta, floor=0.01), expected.log_prob(theta))


def test_covariance_needs_no_density():
    posterior = make()
    close(posterior.covariance(range(6), "low_rank"), dense(posterior, "low_rank"))
    assert torch.equal(posterior.covariance([2, 3], scale=0.0), torch.zeros(2, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda p: p.log_prob(torch.zeros(5)), r"θ must have shape \[6\] or \[n, 6\], got \[5\]"),
        (lambda p: p.mahalanobis(torch.zeros(1, 1, 6)), r"got \[1, 1, 6\]"),
        (lambda p: p.log_prob(p.mean, "full"), "kind must be one of swag, diagonal, low_rank"),
        (lambda p: p.entropy(scale=-1.0), "scale must be at least 0"),
        (lambda p: p.entropy(floor=-1.0), "floor is a variance and must be at least 0"),
        (lambda p: make(k=0).entropy("low_rank"), "no deviation columns"),
        (lambda p: p.kl(make(7)), "same θ, got 6 and 7 dimensions"),
        (
            lambda p: make(layout=Layout(("a",), ((6,),))).kl(make(layout=Layout(("b",), ((6,),)))),
            r"same parameters, got \['b'\] and \['a'\].*take a subset",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(use, words):
    with pytest.raises(ValueError, match=words):
        use(make())


# Dtypes and devices


def test_to_changes_all_tensors_and_nothing_else():
    posterior = make(within_scale=0.3, between_scale=0.2, temperature=1.5, layout=Layout(("a",), ((6,),)))
    single = posterior.to(dtype=torch.float32)
    assert {tensor.dtype for tensor in single.tensors().values()} == {torch.float32}
    assert {tensor.dtype for tensor in posterior.tensors().values()} == {torch.float64}
    torch.testing.assert_close(single.to(dtype=torch.float64).variance, posterior.variance, rtol=1e-7, atol=0)
    fields = ("count", "layout", "within_scale", "between_scale", "temperature")
    assert [getattr(single, name) for name in fields] == [getattr(posterior, name) for name in fields]
    assert posterior.to().mean is posterior.to("cpu").mean is posterior.mean


def test_a_bfloat16_posterior_can_be_drawn_from_and_measured():
    posterior = make().to(dtype=torch.bfloat16)
    draws = posterior.sample(0, 2)
    assert draws.dtype == torch.bfloat16
    close(posterior.entropy(), reference(posterior).entropy(), rtol=0.01)  # factors are rounded to 8 bits


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64])
def test_a_dtype_that_holds_no_small_variances_is_refused(dtype):
    with pytest.raises(ValueError, match="dtype must be float32, float64 or bfloat16"):
        make().to(dtype=dtype)


def test_values_beyond_a_dtype_are_refused():
    posterior = replace(make(), mean=torch.full((6,), 1e300, dtype=torch.float64))
    with pytest.raises(ValueError, match="mean must be finite"):
        posterior.to(dtype=torch.float32)


def test_another_device_gives_the_same_numbers(second_device):
    posterior, other = make(2 * CHUNK + 5, 6), make(2 * CHUNK + 5, 4, seed=1)
    there, other_there = posterior.to(device=second_device), other.to(device=second_device)
    theta = points(posterior)
    assert {tensor.device for tensor in there.tensors().values()} == {second_device}
    close(there.log_prob(theta.to(second_device)).cpu(), posterior.log_prob(theta))
    close(there.entropy().cpu(), posterior.entropy())
    close(there.kl(other_there).cpu(), posterior.kl(other))
    close(there.covariance([0, 3]).cpu(), posterior.covariance([0, 3]))
    torch.testing.assert_close(there.sample(0, 2).cpu(), posterior.sample(0, 2))
