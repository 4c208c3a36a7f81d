"""Principal directions against dense eigenvectors, and lines and planes on losses known in closed form."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dswag.core.randomness import generator_for
from dswag.evaluation.loss_landscape import along, density_on_plane, on_plane, random_signs
from dswag.evaluation.principal import principal
from dswag.posterior.gaussian import GaussianPosterior

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")


def covariance(d=40, k=6, *, diagonal=1.0, columns=1.0, seed=0, dtype=torch.float64):
    """Variances v and columns F, with variances from 0 to `diagonal`."""
    v = diagonal * torch.rand(d, generator=generator_for(seed), dtype=torch.float64)
    factor = columns * torch.randn(k, d, generator=generator_for(seed, 1), dtype=torch.float64)
    return v.to(dtype), factor.to(dtype)


def dense(v, factor):
    values, vectors = torch.linalg.eigh(v.double().diag() + factor.double().T @ factor.double())
    return values.flip(0), vectors.T.flip(0)


@given(
    seed=st.integers(0, 30),
    k=st.integers(0, 6),
    count=st.integers(1, 4),
    columns=st.sampled_from([0.0, 0.05, 0.3, 2.0]),
)
def test_they_are_the_dense_eigenvectors_whichever_part_is_larger(seed, k, count, columns):
    v, factor = covariance(30, k, columns=columns, seed=seed)
    found = principal(v, factor, count, tolerance=1e-9, iterations=500)
    values, vectors = dense(v, factor)
    torch.testing.assert_close(found.values, values[:count], rtol=1e-9, atol=0)
    gaps = (values[:count] - values[1 : count + 1]) / values[0]
    for u, expected, gap in zip(found.vectors, vectors, gaps.tolist(), strict=False):
        if gap > 1e-3:  # an error of 1e-9 in Σu turns a vector by up to 1e-9 / gap; those before must be apart as well
            assert float((u @ expected).abs()) > 1 - 1e-6
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(count, dtype=torch.float64))


def test_the_low_rank_part_alone_takes_one_iteration():
    v, factor = covariance(500, 7, diagonal=0.0, dtype=torch.float32)
    found = principal(v, factor, 7, iterations=1)
    values, vectors = dense(v, factor)
    torch.testing.assert_close(found.values, values[:7], rtol=1e-10, atol=0)
    assert ((found.vectors @ vectors[:7].T).abs().diagonal() > 1 - 1e-9).all()


def test_two_equal_columns_are_one_direction():
    column = torch.randn(1, 20, generator=generator_for(0), dtype=torch.float64)
    found = principal(torch.zeros(20, dtype=torch.float64), column.repeat(2, 1), 1)
    torch.testing.assert_close(found.steps[0].abs(), 2**0.5 * column[0].abs())


def test_a_posteriors_directions_are_those_of_its_covariance():
    v, factor = covariance(25, 5, dtype=torch.float32)
    posterior = GaussianPosterior(torch.zeros(25), v, factor - factor.mean(0), count=5)
    found = principal(*posterior.factors("swag"), 3)
    full = posterior.covariance(range(25))
    torch.testing.assert_close(full @ found.vectors.T, found.vectors.T * found.values, rtol=0, atol=1e-5)


def test_density_on_a_plane_of_eigenvectors_is_that_of_the_posterior():
    v, factor = covariance(12, 4)
    posterior = GaussianPosterior(torch.ones(12, dtype=torch.float64), v + 0.1, factor - factor.mean(0), count=4)
    first, second = principal(*posterior.factors("swag"), 2, tolerance=1e-10).steps
    distances = (-2.0, 0.0, 1.5)
    measured = on_plane(posterior.mean, first, second, distances, lambda theta: float(posterior.log_prob(theta)))
    at_mean = float(posterior.log_prob(posterior.mean))
    for row, expected in zip(measured, density_on_plane(distances), strict=True):
        assert [value - at_mean for value in row] == pytest.approx(expected, abs=1e-8)


def test_a_quadratic_loss_is_a_parabola_along_a_line_and_its_rows_go_up_the_plane():
    generator = generator_for(3)
    mean, first, second = torch.randn(3, 9, generator=generator, dtype=torch.float64)

    def loss(theta):
        return float((theta - mean) @ (theta - mean))

    distances = (0.0, 1.0, -3.0)
    parabola = along(mean, first, distances, loss)
    assert parabola == pytest.approx([x * x * float(first @ first) for x in distances])
    plane = on_plane(mean, first, second, distances, loss)
    assert [row[0] for row in plane] == pytest.approx([y * y * float(second @ second) for y in distances])
    assert plane[0] == pytest.approx(parabola)


def test_random_signs_keep_every_size_and_turn_about_half():
    """10,000 coins: half of them, within 5 standard errors of 0.005."""
    direction = torch.rand(10_000, generator=generator_for(0)) + 0.1
    turned = random_signs(direction, generator_for(1))
    assert torch.equal(turned.abs(), direction)
    assert abs(float((turned < 0).double().mean()) - 0.5) < 0.025


@pytest.mark.parametrize(
    ("v", "factor", "count", "message"),
    [
        (torch.zeros(5), torch.rand(2, 5), 3, "up to 2 principal directions, got a count of 3"),
        (torch.ones(5), torch.rand(2, 5), 6, "up to 5 principal directions, got a count of 6"),
        (torch.ones(5), torch.rand(2, 5), 0, "up to 5 principal directions, got a count of 0"),
        (torch.ones(5), torch.rand(5), 1, r"needs v \[d\] and F \[k, d\], got \[5\] and \[5\]"),
    ],
)
def test_directions_that_are_not_there_are_refused(v, factor, count, message):
    with pytest.raises(ValueError, match=message):
        principal(v, factor, count)


def test_too_few_iterations_say_how_far_they_came():
    v, factor = covariance(200, 4, columns=0.02)
    with pytest.raises(ValueError, match=r"did not converge: Σu - λu is .* of λ after 1 iterations"):
        principal(v, factor, 3, tolerance=1e-12, iterations=1)
