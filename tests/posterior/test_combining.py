"""What several clients' posteriors become together: closed forms, slow float64 references and bounds from theorems."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dswag
from dswag import GaussianPosterior, Layout, Moments
from dswag.core.randomness import generator_for
from dswag.posterior.combining import MixturePosterior, clients, pooled, product, wasserstein_median

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")

METHODS = {
    "pooled": pooled,
    "mixture": MixturePosterior,
    "product": lambda posteriors: product(posteriors, prior=None),
    "median": wasserstein_median,
}
WEIGHTED = {name: method for name, method in METHODS.items() if name != "product"}


def gaussian(mean, std=0.0, *, count=2, dtype=torch.float64, **others):
    """A diagonal Gaussian."""
    mean = torch.as_tensor(mean, dtype=dtype)
    std = torch.as_tensor(std, dtype=dtype).expand_as(mean)
    return GaussianPosterior(mean, std.square(), mean.new_empty(0, len(mean)), count=count, **others)


def make(d=6, k=4, *, seed=0, count=None, dtype=torch.float64, **others):
    """A posterior with columns, every term of it active."""
    generator = generator_for(seed)
    columns = torch.randn(k, d, generator=generator, dtype=dtype)
    return GaussianPosterior(
        mean=torch.randn(d, generator=generator, dtype=dtype),
        variance=torch.rand(d, generator=generator, dtype=dtype) + 0.1,
        deviations=columns - columns.mean(0),
        count=k + 1 if count is None else count,
        **others,
    )


def snapshots_of_clients(sizes=(5, 3, 8, 2), *, d=60, spread=1e-3, dtype=torch.float64):
    """Near 1, all snapshots of each client [s, d], with a spread between clients of twice that within."""
    generator = generator_for(*sizes)
    centers = 1 + 2 * spread * torch.randn(len(sizes), d, generator=generator, dtype=dtype)
    return [
        center + spread * torch.randn(size, d, generator=generator, dtype=dtype)
        for size, center in zip(sizes, centers, strict=True)
    ]


def moments_of(thetas_of_clients, **options):
    moments = Moments(rank=50, **options)
    for thetas in thetas_of_clients:
        moments.add(thetas)
    return moments.posterior()


def posterior_of_one(thetas):
    """Of one client's own Moments, which are given its snapshots one by one; a single one has no spread."""
    return moments_of(list(thetas)) if len(thetas) > 1 else gaussian(thetas[0], count=1)


def dense(posterior, kind="swag"):
    """The covariance as a matrix."""
    variance, rows = posterior.factors(kind)
    return torch.diag(variance) + rows.T @ rows


def assert_same_distribution(actual, expected, *, tolerance=1e-9):
    """Equal means, and covariances equal to within `tolerance` of their largest entry, of every kind and part."""
    torch.testing.assert_close(actual.mean, expected.mean, rtol=0, atol=1e-14)
    for within_scale, between_scale in ((1.0, 1.0), (0.3, 2.0), (0.0, 1.0)):
        scales = {"within_scale": within_scale, "between_scale": between_scale}
        for kind in ("swag", "diagonal", "low_rank"):
            mine, theirs = (dense(replace(p, **scales), kind) for p in (actual, expected))
            torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance * float(theirs.abs().max()))


# Pooled


@pytest.mark.parametrize("sizes", [(5, 3, 8, 2), (6, 6), (4, 1, 7), (20, 20)])
def test_pooling_is_what_moments_over_all_snapshots_give(sizes):
    """Means, variances and columns, and their parts within clients, whatever scales these are given later."""
    thetas = snapshots_of_clients(sizes)
    together = pooled([posterior_of_one(part) for part in thetas], rank=sum(sizes))
    assert_same_distribution(together, moments_of(thetas))
    assert together.count == sum(sizes)


def test_clients_with_one_snapshot_each_pool_to_moments_with_all_scatter_between():
    thetas = snapshots_of_clients((1, 1, 1, 1, 1))
    together = pooled([posterior_of_one(part) for part in thetas])
    assert_same_distribution(together, moments_of(thetas))
    assert together.variance_within is None
    assert together.deviations_within is None


def test_principal_columns_of_full_rank_pool_exactly_too():
    thetas = snapshots_of_clients()
    own = [moments_of(list(part), columns="svd") for part in thetas]
    torch.testing.assert_close(dense(pooled(own, rank=20)), dense(moments_of(thetas)), rtol=0, atol=1e-14)


def test_pools_can_be_pooled_in_a_tree():
    own = [posterior_of_one(part) for part in snapshots_of_clients()]
    tree = pooled([pooled(own[:2], rank=20), pooled(own[2:], rank=20)], rank=20)
    flat = pooled(own, rank=20)
    torch.testing.assert_close(tree.mean, flat.mean, rtol=0, atol=1e-14)
    torch.testing.assert_close(dense(tree), dense(flat), rtol=0, atol=1e-14)


def law_of_total_covariance(posteriors, weights):
    """Mean and covariance of the mixture, as matrices, one client after another; n / (n - 1) as columns have it."""
    weights = [weight / sum(weights) for weight in weights]
    total = sum(p.count for p in posteriors)
    mean = sum(w * p.mean for w, p in zip(weights, posteriors, strict=True))
    covariance = 0
    for w, p in zip(weights, posteriors, strict=True):
        offset = p.mean - mean
        low_rank = p.deviations.T @ p.deviations / (len(p.deviations) - 1)
        covariance = covariance + w * (low_rank * (p.count - 1) / p.count + torch.outer(offset, offset))
    variance = sum(w * (p.variance + (p.mean - mean) ** 2) for w, p in zip(weights, posteriors, strict=True))
    return mean, variance, covariance * total / (total - 1)


@given(
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=5),
    k=st.integers(2, 4),
    seed=st.integers(0, 1000),
)
def test_pooling_follows_the_law_of_total_covariance(weights, k, seed):
    posteriors = [make(k=k, seed=seed + number, count=k + number) for number in range(len(weights))]
    together = pooled(posteriors, weights, rank=40)
    mean, variance, covariance = law_of_total_covariance(posteriors, weights)
    torch.testing.assert_close(together.mean, mean, rtol=0, atol=1e-13)
    torch.testing.assert_close(together.variance, variance, rtol=1e-12, atol=0)
    torch.testing.assert_close(dense(together, "low_rank"), covariance, rtol=0, atol=1e-10)


def test_the_variance_between_clients_does_not_cancel_in_float32():
    """Weights of 1, standard deviation 1e-5 within and between: within 1e-6 of float64 on the same float32 means."""
    own = [posterior_of_one(part) for part in snapshots_of_clients((20, 20, 20), d=3000, spread=1e-5)]
    single = [GaussianPosterior(p.mean.float(), p.variance.float(), p.deviations.float(), count=p.count) for p in own]
    stored = torch.stack([p.mean.double() for p in single])
    within = torch.stack([p.variance.double() for p in single]).mean(0)
    expected = within + (stored - stored.mean(0)).square().mean(0)
    together = pooled(single)
    assert together.mean.dtype == torch.float32
    assert ((together.variance.double() - expected).abs() / expected).max() < 1e-6
    printed = torch.stack([p.variance + p.mean.square() for p in single]).mean(0) - together.mean.square()
    assert ((printed.double() - expected).abs() / expected).median() > 0.5  # what it would be as E[θ²] - (E θ)²


@pytest.mark.parametrize("rank", [2, 3, 5])
def test_columns_are_compressed_to_the_nearest_of_that_rank(rank):
    """The spectral error of the best rank-K approximation is the next eigenvalue (Eckart & Young 1936)."""
    posteriors = [make(d=12, seed=number) for number in range(3)]
    _, variance, covariance = law_of_total_covariance(posteriors, [5, 5, 5])
    together = pooled(posteriors, rank=rank)
    assert together.deviations.shape == (rank, 12)
    error = torch.linalg.matrix_norm(covariance - dense(together, "low_rank"), 2)
    torch.testing.assert_close(error, torch.linalg.eigvalsh(covariance)[-rank - 1])
    torch.testing.assert_close(together.variance, variance)


def test_clients_scales_are_in_the_pool_already():
    plain = [make(seed=number) for number in range(3)]
    known = [replace(p, variance_within=0.4 * p.variance, deviations_within=0.6 * p.deviations) for p in plain]
    scaled = [replace(p, within_scale=0.5, between_scale=2.0) for p in known]
    factors = [(p.factors("diagonal")[0], p.factors("low_rank")[1] * math.sqrt(3)) for p in scaled]
    baked = [replace(p, variance=v, deviations=rows) for p, (v, rows) in zip(plain, factors, strict=True)]
    together = pooled(scaled)
    assert_same_distribution(together, pooled(baked))
    assert (together.within_scale, together.between_scale) == (1.0, 1.0)


def test_variance_within_is_the_mean_of_the_clients_variances():
    posteriors = [make(seed=number, count=count) for number, count in enumerate((4, 12))]
    together = pooled(posteriors)
    torch.testing.assert_close(together.variance_within, 0.25 * posteriors[0].variance + 0.75 * posteriors[1].variance)


def test_a_pool_of_one_is_that_posterior():
    alone = make(d=10)
    together = pooled([alone])
    assert_same_distribution(
        together, replace(alone, variance_within=alone.variance, deviations_within=alone.deviations)
    )


def test_one_direction_is_kept_in_two_columns():
    along = [gaussian([float(step), 0.0, 0.0], count=1) for step in (-1, 0, 1)]
    together = pooled(along)
    assert together.deviations.shape == (2, 3)
    torch.testing.assert_close(dense(together, "low_rank"), torch.diag(torch.tensor([1.0, 0, 0]).double()))


def test_columns_of_some_clients_alone_are_refused_unless_none_are_asked_for():
    mixed = [make(), gaussian(torch.zeros(6), 1.0)]
    with pytest.raises(ValueError, match=r"posteriors \[1\] have no deviation columns but others have.*rank=0"):
        pooled(mixed)
    assert pooled(mixed, rank=0).deviations.shape == (0, 6)
    assert pooled([mixed[1], mixed[1]]).deviations.shape == (0, 6)


@pytest.mark.parametrize(
    ("posteriors", "options", "words"),
    [
        ([make()], {"rank": 1}, "rank must be 0 or at least 2, got 1"),
        ([make()], {"rank": -1}, "rank must be 0 or at least 2, got -1"),
        ([make(count=0)], {"weights": [1.0]}, "posterior 0 must be made of at least 4 snapshots, got count = 0"),
        ([make(count=5), make(count=3)], {}, "posterior 1 must be made of at least 4 snapshots, got count = 3"),
        ([gaussian([1.0], count=1)], {}, "a pool needs at least 2 snapshots, got 1"),
    ],
)
def test_pools_that_cannot_be_are_refused(posteriors, options, words):
    with pytest.raises(ValueError, match=words):
        pooled(posteriors, **options)


# Mixture


def test_mixture_has_the_pools_mean_and_variance():
    posteriors = [make(seed=number, count=4 + number) for number in range(3)]
    mixture, pool = MixturePosterior(posteriors), pooled(posteriors)
    assert torch.equal(mixture.mean, pool.mean)
    assert torch.equal(mixture.variance, pool.variance)


def test_mixture_draws_have_its_mean_and_variance():
    n = 8000
    components = [gaussian([-1.0, 0.0, 3.0], [0.5, 1.0, 0.1]), gaussian([2.0, 0.0, 3.1], [1.0, 0.3, 0.2])]
    mixture = MixturePosterior(components, [1.0, 3.0])
    draws = mixture.sample(4, n)
    # 5 standard errors: √(variance / n), and √((fourth central moment - variance²) / n), where the fourth moment of a
    # component is 3 v² + 6 v δ² + δ⁴ with δ the offset of its mean.
    weights = mixture.weights
    variances, offsets = (
        torch.stack(rows) for rows in zip(*((c.variance, c.mean - mixture.mean) for c in components), strict=True)
    )
    fourth = weights @ (3 * variances**2 + 6 * variances * offsets**2 + offsets**4)
    assert ((draws.mean(0) - mixture.mean).abs() <= 5 * (mixture.variance / n).sqrt()).all()
    error = ((fourth - mixture.variance**2) / n).sqrt()
    assert ((draws.var(0) - mixture.variance).abs() <= 5 * error).all()


def test_components_come_as_often_as_they_weigh_and_say_nothing_of_the_draw():
    n = 4000
    mixture = MixturePosterior([gaussian([0.0], 1.0)] * 3, [1.0, 0.0, 3.0])
    chosen = torch.tensor([mixture.component(0, number) for number in range(n)])
    assert not (chosen == 1).any()
    assert abs(int((chosen == 2).sum()) - 0.75 * n) <= 5 * math.sqrt(n * 0.75 * 0.25)
    with_columns = MixturePosterior([make(d=2, k=2)] * 2)
    chosen = torch.tensor([float(with_columns.component(0, number)) for number in range(n)])
    draws = with_columns.sample(0, n)
    correlation = torch.corrcoef(torch.cat([chosen[None], draws.T]))[0, 1:]
    assert correlation.abs().max() <= 5 / math.sqrt(n)  # 5 standard errors of independent values


@pytest.mark.parametrize("kind", ["swag", "diagonal", "low_rank"])
def test_a_mixture_draw_is_a_function_of_seed_and_number(kind):
    mixture = MixturePosterior([make(seed=number) for number in range(3)])
    together = mixture.sample(7, 9, kind=kind, scale=0.3)
    for number in range(9):
        (alone,) = mixture.sample(7, first=number, kind=kind, scale=0.3)
        component = mixture.components[mixture.component(7, number)]
        assert torch.equal(together[number], alone)
        assert torch.equal(alone, component.sample(7, first=number, kind=kind, scale=0.3)[0])
    assert len({mixture.component(7, number) for number in range(9)}) > 1


def test_a_mixture_of_one_draws_as_that_posterior_does():
    alone = make()
    assert torch.equal(MixturePosterior([alone]).sample(3, 5), alone.sample(3, 5))


def test_draws_of_no_number_are_refused():
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        MixturePosterior([make()]).sample(0, 0)


@pytest.mark.parametrize("kind", ["swag", "diagonal"])
def test_predict_averages_over_the_mixtures_draws(make_model, kind, monkeypatch):
    model, inputs = make_model(), torch.randn(7, 6, generator=generator_for(1))
    layout = Layout.of(model)
    mixture = MixturePosterior(
        [make(layout.d, seed=number, dtype=torch.float32, layout=layout) for number in range(3)], [1, 2, 1]
    )
    expected = torch.zeros(7, 3)
    for theta in mixture.sample(5, 6, kind=kind):
        layout.write(theta, model)
        expected += model(inputs).detach().softmax(1) / 6
    drawn, sample = [], MixturePosterior.sample
    monkeypatch.setattr(
        MixturePosterior, "sample", lambda *a, first, **o: drawn.append(first) or sample(*a, first=first, **o)
    )
    predicted = dswag.predict(model, mixture, inputs, samples=6, seed=5, kind=kind)
    torch.testing.assert_close(predicted, expected)
    assert sorted(drawn) == list(range(6))  # each once
    assert mixture.layout == layout


def test_models_with_batch_norm_are_refreshed_for_every_draw(make_model, make_clients):
    model = make_model(batch_norm=True)
    engine = dswag.InProcess(model, make_clients())
    layout = Layout.of(model)
    mixture = MixturePosterior([make(layout.d, seed=number, dtype=torch.float32) for number in range(2)])
    inputs = torch.randn(7, 6, generator=generator_for(1))
    thetas = mixture.sample(5, 4)
    expected = sum(dswag.ensemble(model, theta[None], inputs, engine=engine).probabilities for theta in thetas) / 4
    predicted = dswag.predict(model, mixture, inputs, samples=4, seed=5, engine=engine)
    torch.testing.assert_close(predicted, expected)


@pytest.mark.parametrize("kind", ["swag", "diagonal"])
def test_log_density_of_a_mixture_is_that_of_torchs_mixture(kind):
    components = [make(seed=number) for number in range(3)]
    mixture = MixturePosterior([*components, gaussian(torch.zeros(6), 0.0)], [1, 2, 3, 0])
    expected = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)),
        torch.distributions.MultivariateNormal(
            torch.stack([c.mean for c in components]), 0.5 * torch.stack([dense(c, kind) for c in components])
        ),
    )
    thetas = torch.cat([mixture.sample(0, 5), 1000 * mixture.sample(1)])  # the last where every density underflows
    torch.testing.assert_close(mixture.log_prob(thetas, kind, 0.5), expected.log_prob(thetas))
    assert mixture.log_prob(thetas[0], kind).shape == ()


# Product


class LinearRegression:
    """Clients with orthogonal designs, so that every posterior is diagonal, and the closed form on all their data."""

    def __init__(self, clients=4, d=5, noise=0.3):
        generator = generator_for(clients)
        self.prior = gaussian(torch.randn(d, generator=generator), 0.8)
        self.noise = noise
        self.theta = torch.randn(d, generator=generator, dtype=torch.float64)
        self.data = []
        for _ in range(clients):
            design = torch.linalg.qr(torch.randn(9, d, generator=generator, dtype=torch.float64)).Q
            design = design * (0.3 + torch.rand(d, generator=generator, dtype=torch.float64))
            noises = noise * torch.randn(9, generator=generator, dtype=torch.float64)
            self.data.append((design, design @ self.theta + noises))

    def posterior(self, data, prior):
        """N((XᵀX/σ² + Λ₀)⁻¹ (Xᵀy/σ² + Λ₀ m₀), (XᵀX/σ² + Λ₀)⁻¹)."""
        design, outputs = (torch.cat(rows) for rows in zip(*data, strict=True))
        prior_precision = prior.variance.reciprocal()
        covariance = torch.linalg.inv(design.T @ design / self.noise**2 + torch.diag(prior_precision))
        mean = covariance @ (design.T @ outputs / self.noise**2 + prior_precision * prior.mean)
        return gaussian(mean, covariance.diagonal().sqrt())


def test_product_is_the_posterior_of_all_data():
    model = LinearRegression()
    own = [model.posterior([data], model.prior) for data in model.data]
    expected = model.posterior(model.data, model.prior)
    together = product(own, prior=model.prior)
    torch.testing.assert_close(together.mean, expected.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(together.variance, expected.variance, rtol=1e-12, atol=0)
    # The prior counted W times, as where precisions are multiplied and nothing is divided out: too sure, and off.
    naive = product(own, prior=None)
    surplus = naive.variance.reciprocal() - expected.variance.reciprocal()
    torch.testing.assert_close(surplus, 3 * model.prior.variance.reciprocal())
    assert ((naive.mean - expected.mean).abs() / expected.std).max() > 0.3


def test_a_prior_may_be_given_by_its_precision():
    model = LinearRegression()
    prior = gaussian(torch.zeros(5), 0.5)
    own = [model.posterior([data], prior) for data in model.data]
    expected = model.posterior(model.data, prior)
    for given_prior in (prior, 4.0):
        together = product(own, prior=given_prior)
        torch.testing.assert_close(together.mean, expected.mean)
        torch.testing.assert_close(together.variance, expected.variance)


def test_the_product_of_one_is_that_diagonal():
    alone = make()
    together = product([alone], prior=10.0)
    torch.testing.assert_close(together.mean, alone.mean)
    torch.testing.assert_close(together.variance, alone.variance)
    assert together.deviations.shape == (0, 6)


def test_vanishing_variances_are_refused_by_number_unless_a_floor_is_given():
    sure = gaussian(torch.ones(4), [0.0, 1e-15, 0.1, 0.0], dtype=torch.float32)  # the second as a clamp of 1e-30 has it
    unsure = gaussian(torch.zeros(4), 0.1, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"3 of posterior 1 \(of 4 each\) are zero or too small.*pass floor="):
        product([unsure, sure], prior=None)
    together = product([unsure, sure], prior=None, floor=0.01)
    torch.testing.assert_close(together.mean, torch.full((4,), 0.5))
    torch.testing.assert_close(together.variance, torch.full((4,), 0.005))


def test_a_prior_narrower_than_the_posteriors_is_refused():
    own = [gaussian([0.0, 0.0], [0.1, 1.0]), gaussian([1.0, 1.0], [0.1, 1.0])]
    with pytest.raises(
        ValueError, match=r"precision is not positive for 1 of 2 parameters.*wider there than the prior"
    ):
        product(own, prior=3.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prior": -1.0}, "the prior's precision must be at least 0 and finite, got -1"),
        ({"prior": float("nan")}, "the prior's precision must be at least 0 and finite, got nan"),
        ({"prior": gaussian([0.0], 1.0)}, "over the same parameters as the posteriors: expected d = 6, got d = 1"),
        ({"prior": gaussian(torch.zeros(6), 0.0)}, "the prior's variance must be positive"),
        ({"prior": None, "floor": 0.0}, "floor must be positive and finite, got 0"),
        ({"prior": None, "floor": float("inf")}, "floor must be positive and finite, got inf"),
    ],
)
def test_products_that_cannot_be_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        product([make(), make(seed=1)], **options)


# Median


def point(posterior):
    """(m, s), whose Euclidean distances are the Wasserstein-2 distances of diagonal Gaussians."""
    return torch.cat([posterior.mean, posterior.std])


def test_median_of_a_right_triangle_is_its_fermat_point():
    corners = [gaussian(corner) for corner in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0])]
    median = wasserstein_median(corners)
    # It lies on the diagonal of symmetry, x = y = (3 - √3) / 6. Tolerance: gradient 1e-5 over a curvature of about 1.
    torch.testing.assert_close(median.mean, torch.full((2,), (3 - math.sqrt(3)) / 6).double(), rtol=0, atol=2e-5)


def test_median_of_points_on_a_line_is_the_middle_one():
    on_a_line = [gaussian([10.0 + x]) for x in (0.0, 1.0, 3.0, 100.0, 1e6)]
    # The smoothing moves it by about 1e-4 of the majority's radius, which is 3.
    torch.testing.assert_close(wasserstein_median(on_a_line).mean, torch.tensor([13.0]).double(), rtol=0, atol=3e-4)


@pytest.mark.parametrize("noise", [0.0, 1e-3])
@pytest.mark.parametrize("n", [4, 10])
def test_clients_that_drift_along_a_line_have_a_median_in_the_middle(n, noise):
    generator = generator_for(n)
    direction = torch.randn(50, generator=generator, dtype=torch.float64)
    along = [k * direction + noise * torch.randn(50, generator=generator, dtype=torch.float64) for k in range(n)]
    median = wasserstein_median([gaussian(mean) for mean in along]).mean
    place = float(median @ direction / direction.square().sum())
    assert n / 2 - 1 - 1e-3 <= place <= n / 2 + 1e-3
    if not noise:
        assert place == pytest.approx((n - 1) / 2, abs=1e-6)


def test_spread_counts_as_position_does():
    """The same triangle, with one axis a standard deviation."""
    corners = [gaussian([0.0], 0.0), gaussian([1.0], 0.0), gaussian([0.0], 1.0)]
    expected = torch.full((2,), (3 - math.sqrt(3)) / 6).double()
    torch.testing.assert_close(point(wasserstein_median(corners)), expected, rtol=0, atol=2e-5)


@given(
    points=st.lists(st.tuples(*[st.floats(-5, 5)] * 3), min_size=3, max_size=8, unique=True),
    weights=st.lists(st.floats(0.1, 10), min_size=8, max_size=8),
)
def test_no_point_nearby_has_a_smaller_sum_of_distances(points, weights):
    """The mean distance is convex: that it is no larger at its minimum than at any client, or beside it, suffices."""
    posteriors = [gaussian([x, y], abs(s)) for x, y, s in points]
    weights = torch.tensor(weights[: len(points)], dtype=torch.float64)
    rows = torch.stack([point(p) for p in posteriors])
    median = point(wasserstein_median(posteriors, weights))

    def mean_distance(at):
        return float((rows - at).norm(dim=1) @ weights / weights.sum())

    best = mean_distance(median)
    beside = [median + 1e-2 * axis for axis in (*torch.eye(4).double(), *-torch.eye(4).double())]
    # Smoothing adds at most 1e-4 of the radius of the majority, a gradient of 1e-5 as much of the way to the minimum.
    slack = 1.1e-4 * float(torch.cdist(rows, rows).max())
    assert best <= min(mean_distance(at) for at in [*rows, *beside]) + slack


@given(
    num_clients=st.integers(3, 9),
    magnitudes=st.tuples(*[st.floats(-3, 30)] * 4),
    together=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_fewer_than_half_adversaries_leave_the_median_near_the_honest_while_the_pools_mean_is_lost(
    num_clients, magnitudes, together, seed
):
    """Minsker et al. 2014, Lemma 2.1: at most r (1 - q) / √(1 - 2q) from any center within r of a share 1 - q."""
    generator = generator_for(seed)
    num_adversaries = (num_clients - 1) // 2
    d = 4

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    honest = [gaussian(1 + 1e-3 * random(d), 1e-3 * random(d).abs()) for _ in range(num_clients - num_adversaries)]
    direction = random(d)
    hostile = [
        gaussian(10.0**magnitude * (direction if together else random(d)), 10.0**magnitude * random(d).abs())
        for magnitude in magnitudes[:num_adversaries]
    ]
    everyone = [*hostile, *honest]
    center = torch.stack([point(p) for p in honest]).mean(0)
    radius = max(float((point(p) - center).norm()) for p in honest)
    share = num_adversaries / num_clients
    bound = radius * (1 - share) / math.sqrt(1 - 2 * share)
    median = wasserstein_median(everyone)
    assert (point(median) - center).norm() <= bound + 4e-4 * radius  # about the smoothing: 1e-4 of at most 2 radii
    if (
        together and max(magnitudes[:num_adversaries]) > 3
    ):  # then they pull the same way, by W times what the honest differ at the very least
        assert (pooled(everyone, rank=0).mean - center[:d]).norm() > 100 * bound


def test_columns_and_claimed_counts_do_not_enter_the_median():
    honest = [make(seed=number, dtype=torch.float32) for number in range(3)]
    liar = replace(make(seed=9, dtype=torch.float32), count=10**9, mean=torch.full((6,), 1e6))
    without = [replace(p, deviations=p.deviations[:0], count=2) for p in (*honest, liar)]
    median = wasserstein_median([*honest, liar])
    assert torch.equal(median.mean, wasserstein_median(without).mean)
    assert median.deviations.shape == (0, 6)
    assert median.mean.dtype == torch.float32
    assert (median.mean.abs() < 10).all()


def test_a_majority_that_agrees_is_the_median_to_the_last_bit():
    same = gaussian([0.1, 0.2, 0.3], 0.7)
    median = wasserstein_median([gaussian([9.0] * 3), same, same, same, gaussian([-1e20] * 3)])
    assert torch.equal(median.mean, same.mean)
    torch.testing.assert_close(median.variance, same.variance, rtol=1e-15, atol=0)
    assert torch.equal(wasserstein_median([same]).mean, same.mean)


def test_the_median_of_two_lies_half_way():
    median = wasserstein_median([gaussian([0.0, 2.0], 1.0), gaussian([4.0, 2.0], 3.0)])
    torch.testing.assert_close(point(median), torch.tensor([2.0, 2.0, 2.0, 2.0]).double())


def test_a_client_of_more_than_half_of_the_weight_is_the_median():
    own = [gaussian([float(x), 0.0], 0.1) for x in range(4)]
    median = wasserstein_median(own, [1, 1, 4, 1])
    torch.testing.assert_close(median.mean, own[2].mean, rtol=0, atol=1e-3)  # to about the smoothing


def test_posteriors_that_became_infinite_are_named():
    own = [make(seed=number) for number in range(4)]
    own[2].mean[3] = float("nan")
    with pytest.raises(ValueError, match=r"the distances of posteriors \[2\] are not finite"):
        wasserstein_median(own)


def test_distances_that_overflow_are_refused():
    with pytest.raises(ValueError, match=r"posteriors \[1\] are not finite: .* too far away"):
        wasserstein_median([gaussian([0.0]), gaussian([1e200]), gaussian([1.0])])


def test_no_convergence_is_an_error():
    corners = [gaussian(corner) for corner in ([0.0, 0.0], [1.0, 0.0], [0.0, 3.0])]
    with pytest.raises(RuntimeError, match="did not converge in 2 iterations: the gradient is"):
        wasserstein_median(corners, max_iterations=2)


@pytest.mark.parametrize("option", ["smoothing", "tolerance", "max_iterations"])
def test_medians_that_cannot_be_are_refused(option):
    with pytest.raises(ValueError, match="smoothing, tolerance and max_iterations must be positive"):
        wasserstein_median([make()], **{option: 0})


# What holds for all


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_results_do_not_depend_on_the_parts_that_are_handled_at_a_time(method, monkeypatch):
    posteriors = [make(d=23, seed=number) for number in range(3)]
    at_once = method(posteriors)
    monkeypatch.setattr(clients, "ELEMENTS", 100)
    in_parts = method(posteriors)
    torch.testing.assert_close(in_parts.mean, at_once.mean, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(in_parts.variance, at_once.variance, rtol=1e-13, atol=0)
    if method is pooled:
        torch.testing.assert_close(dense(in_parts), dense(at_once), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_order_of_clients_does_not_matter_and_nothing_is_changed(method):
    posteriors = [make(seed=number, count=5 + number) for number in range(4)]
    copies = [{name: tensor.clone() for name, tensor in p.tensors().items()} for p in posteriors]
    forward, backward = method(posteriors), method(posteriors[::-1])
    # The median's iterations stop at a gradient of 1e-5, where the curvature of the mean distance is above 0.1.
    tolerance = 1e-4 if method is wasserstein_median else 1e-13
    torch.testing.assert_close(forward.mean, backward.mean, rtol=0, atol=tolerance)
    torch.testing.assert_close(forward.variance, backward.variance, rtol=0, atol=tolerance)
    for posterior, copied in zip(posteriors, copies, strict=True):
        assert all(torch.equal(tensor, copied[name]) for name, tensor in posterior.tensors().items())


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_layout_and_temperature_are_kept(method):
    layout = Layout(("w", "b"), ((2, 2), (2,)))
    together = method([make(temperature=1.5), make(seed=1, layout=layout, temperature=1.5)])
    assert together.layout == layout
    assert together.temperature == 1.5


@pytest.mark.parametrize(
    ("posteriors", "words"),
    [
        ([], "there are no posteriors to combine"),
        ([make(), make(d=5)], "over the same parameters, got d = 5 for posterior 1 and 6"),
        ([make(), make(dtype=torch.float32)], r"one dtype, got torch\.float32 for posterior 1 and torch\.float64"),
        ([make(), make(temperature=2.0)], r"one temperature, got 2\.0 for posterior 1 and 1\.0: set it with"),
        (
            [make(), make(layout=Layout(("w", "b"), ((2, 2), (2,)))), make(layout=Layout(("w", "b"), ((2, 1), (4,))))],
            r"over the same parameters, got w \[2, 1\] for posterior 2 and w \[2, 2\]",
        ),
        (
            [make(layout=Layout(("w",), ((6,),))), make(layout=Layout(("w", "b"), ((6,), (0,))))],
            r"over the same parameters, got b \[0\] for posterior 1 and w \[6\]",
        ),
    ],
)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_posteriors_that_do_not_go_together_are_refused(method, posteriors, words):
    with pytest.raises(ValueError, match=words):
        method(posteriors)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1.0], r"one weight for each of 2 posteriors, got \[1\]"),
        ([[1.0, 1.0]], r"one weight for each of 2 posteriors, got \[1, 2\]"),
        ([1.0, -1.0], r"at least 0 and not all 0, got \[1\.0, -1\.0\]"),
        ([0.0, 0.0], "not all 0"),
        ([1.0, float("nan")], "must be finite"),
        ([1.0, float("inf")], "must be finite"),
    ],
)
@pytest.mark.parametrize("method", WEIGHTED.values(), ids=WEIGHTED)
def test_weights_that_cannot_be_are_refused(method, weights, words):
    with pytest.raises(ValueError, match=words):
        method([make(), make(seed=1)], weights)


@pytest.mark.parametrize("method", WEIGHTED.values(), ids=WEIGHTED)
def test_only_the_ratios_of_weights_matter(method):
    posteriors = [make(seed=number) for number in range(3)]
    small, large = (
        method(posteriors, [1, 2, 3]),
        method(posteriors, torch.tensor([1e300, 2e300, 3e300], dtype=torch.float64)),
    )
    torch.testing.assert_close(small.mean, large.mean, rtol=1e-12, atol=1e-12)
    without = method(posteriors, [1, 2, 0])
    torch.testing.assert_close(without.mean, method(posteriors[:2], [1, 2]).mean, rtol=0, atol=1e-5)


def test_a_mixture_by_counts_needs_counts():
    with pytest.raises(ValueError, match=r"posteriors \[1\] do not say how many snapshots.*pass weights="):
        MixturePosterior([make(), make(count=0)])


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_another_device_and_the_cpu_agree(method, second_device):
    posteriors = [make(seed=number) for number in range(3)]
    here, there = method(posteriors), method([posterior.to(device=second_device) for posterior in posteriors])
    assert there.mean.device == second_device
    torch.testing.assert_close(there.mean.cpu(), here.mean)
    torch.testing.assert_close(there.variance.cpu(), here.variance)


def test_posteriors_of_one_model_in_two_orders_are_combined_by_name():
    """As from a .pt file, in the model's order, and from a .safetensors file, in that of the alphabet."""
    own = Layout(("w", "b", "a"), ((2, 1), (2,), (2,)))
    other = Layout(("a", "b", "w"), ((2,), (2,), (2, 1)))
    first, second = make(seed=1, layout=own), make(seed=2, layout=own)
    turned = second.in_layout(other)
    assert not torch.equal(turned.mean, second.mean)
    assert torch.equal(turned.mean[4:], second.mean[:2])
    assert torch.equal(turned.deviations[:, :2], second.deviations[:, 4:])
    for name, tensor in turned.in_layout(own).tensors().items():
        assert torch.equal(tensor, second.tensors()[name])
    expected, found = (MixturePosterior([first, each]) for each in (second, turned))
    assert torch.equal(found.mean, expected.mean)
    assert torch.equal(found.sample(3, 6), expected.sample(3, 6))
    assert found.layout == own
    assert float(first.kl(turned)) == float(first.kl(second))
