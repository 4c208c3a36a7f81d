"""The loss around a mean against one loop in float64 over a dense covariance."""

import pytest
import torch

from dswag.core.randomness import generator_for
from dswag.evaluation.loss_landscape import surroundings
from dswag.evaluation.principal import principal, total_variance
from dswag.posterior.gaussian import GaussianPosterior

AT = (-1.5, 0.0, 2.0)


@pytest.fixture
def posterior():
    generator = generator_for(4)
    mean, variance = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    columns = 3 * torch.randn(6, 9, generator=generator, dtype=torch.float64)
    return GaussianPosterior(mean, variance.square(), columns - columns.mean(0), count=6)


@pytest.fixture
def found(posterior):
    v, factor = posterior.factors("swag")
    directions = principal(v, factor, 4, tolerance=1e-10)
    losses = {"train": cubic, "test": lambda theta: -cubic(theta)}
    return surroundings(posterior.mean, directions, AT, losses, total_variance=total_variance(v, factor), planes=2)


def cubic(theta):
    """Neither even nor the same in any two directions, so that no sign, row or column can be taken for another."""
    return float((theta.pow(3) * torch.arange(1, 10)).sum())


def dense(posterior):
    """Eigenvalues and steps of one standard deviation, their largest elements positive."""
    values, vectors = torch.linalg.eigh(posterior.covariance(range(9)))
    steps = []
    for value, vector in zip(values.flip(0), vectors.T.flip(0), strict=True):
        sign = 1 if vector[vector.abs().argmax()] > 0 else -1
        steps.append(sign * value.sqrt() * vector)
    return values.flip(0).tolist(), steps


def test_lines_are_along_eigenvectors_in_standard_deviations(posterior, found):
    values, steps = dense(posterior)
    assert found.eigenvalues == pytest.approx(values[:4], rel=1e-9)
    assert found.total_variance == pytest.approx(sum(values), rel=1e-12)
    for step, line, opposite in zip(steps, found.lines["train"], found.lines["test"], strict=False):
        assert line == pytest.approx([cubic(posterior.mean + x * step) for x in AT], rel=1e-6)
        assert opposite == tuple(-loss for loss in line)
    assert len(found.lines["train"]) == 4


def test_planes_are_of_successive_pairs_with_a_row_for_each_y(posterior, found):
    _, steps = dense(posterior)
    assert [plane.axes for plane in found.planes] == [(1, 2), (3, 4)]
    for plane in found.planes:
        first, second = (steps[number - 1] for number in plane.axes)
        for y, row, densities in zip(AT, plane.loss, plane.log_density, strict=True):
            assert row == pytest.approx([cubic(posterior.mean + x * first + y * second) for x in AT], rel=1e-6)
            assert densities == pytest.approx([-(x**2 + y**2) / 2 for x in AT])


def test_coordinates_are_the_standard_deviations_that_a_place_is_away(posterior):
    """Expected by projecting on dense eigenvectors; a place at x steps along one has x there and 0 elsewhere."""
    directions = principal(*posterior.factors("swag"), 3, tolerance=1e-10)
    _, steps = dense(posterior)
    places = torch.randn(5, 9, generator=generator_for(1), dtype=torch.float64)
    expected = [[float(place @ step / (step @ step)) for step in steps[:3]] for place in places]
    torch.testing.assert_close(directions.coordinates(places), torch.tensor(expected, dtype=torch.float64))
    own = directions.coordinates(2.5 * directions.steps[1:2])
    torch.testing.assert_close(own, torch.tensor([[0, 2.5, 0]], dtype=torch.float64))
