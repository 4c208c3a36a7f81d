"""The Laplace approximation against PyTorch's second derivatives and the evidence on a grid."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dswag.core.parameters import Layout
from dswag.core.randomness import DrawFrom, generator_for
from dswag.lab.baselines import laplace
from dswag.lab.baselines.method import Trial


def logistic(classes=3, features=4):
    with DrawFrom(generator_for(0)):
        return nn.Linear(features, classes).double()


def test_curvature_is_the_hessian_of_the_summed_cross_entropy():
    """Of a multinomial logistic regression, whose only layer is the last one; in two batches."""
    model = logistic()
    generator = generator_for(1)
    inputs, targets = torch.randn(30, 4, generator=generator).double(), torch.arange(30) % 3
    layout = Layout.of(model)

    def loss(theta):
        outputs = torch.func.functional_call(model, layout.views(theta), (inputs,))
        return F.cross_entropy(outputs, targets, reduction="sum")

    expected = torch.autograd.functional.hessian(loss, layout.flatten(model))
    batches = [(inputs[:20], targets[:20]), (inputs[20:], targets[20:])]
    found = laplace.curvature(model, laplace.last_layer(model), batches)
    torch.testing.assert_close(found, expected)


def test_covariance_is_the_inverse_of_hessian_and_prior():
    model = logistic()
    root = torch.randn(15, 15, generator=generator_for(2)).double()
    hessian = root @ root.T
    layout = Layout.of(model)
    mean = layout.flatten(model)
    posterior = laplace.gaussian(mean, hessian, layout)
    tau = laplace.prior_precision(mean, torch.linalg.eigvalsh(hessian))
    expected = torch.linalg.inv(hessian + tau * torch.eye(15).double())
    torch.testing.assert_close(posterior.covariance(range(15), "low_rank"), expected)
    torch.testing.assert_close(posterior.variance, expected.diagonal())


def test_prior_precision_has_the_largest_evidence():
    """Ln p(D) up to constants, on a grid."""
    eigenvalues = torch.tensor([0.0, 0.01, 1.0, 30.0, 500.0]).double()
    mean = torch.tensor([0.1, 0.5, -1.0, 2.0, 0.3]).double()
    found = laplace.prior_precision(mean, eigenvalues)
    grid = torch.logspace(-3, 3, 6001).double()
    evidence = 5 * grid.log() - (eigenvalues[:, None] + grid).log().sum(0) - grid * mean.square().sum()
    assert found == pytest.approx(float(grid[evidence.argmax()]), rel=0.003)


def test_last_layer_must_be_linear(classification):
    model = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="needs a linear one with bias, got BatchNorm1d"):
        laplace.run(Trial(classification(model=model)))
