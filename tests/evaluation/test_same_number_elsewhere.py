"""The calls of other libraries in docs/elsewhere.md, each against our number; libraries that are not installed skip."""

import numpy as np
import pytest
import torch

from dswag.evaluation import calibration_errors, metrics, out_of_distribution, regression, reliability, selective

C = 5


def predictions():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2000, C, generator=generator, dtype=torch.float64)
    return (1.4 * logits).softmax(1), logits.softmax(1).multinomial(1, generator=generator)[:, 0]


P, Y = predictions()
INSIDE = torch.rand(300, generator=torch.Generator().manual_seed(1))
OUTSIDE = (1.25 * torch.rand(200, generator=torch.Generator().manual_seed(2))).clamp_max(1)
SCORES = torch.cat([INSIDE, OUTSIDE])
IS_OUTSIDE = torch.cat([torch.zeros(300), torch.ones(200)]).long()


def module(name):
    return pytest.importorskip(name, exc_type=ImportError)


def test_scikit_learn():
    sk = module("sklearn.metrics")
    assert metrics.accuracy(P, Y) == sk.accuracy_score(Y, P.argmax(1))
    assert metrics.nll(P, Y) == pytest.approx(sk.log_loss(Y, P.numpy(), labels=range(C)))
    brier = sk.brier_score_loss(Y, P.numpy(), labels=range(C), scale_by_half=False)
    assert metrics.brier(P, Y) == pytest.approx(brier)
    assert out_of_distribution.auroc(INSIDE, OUTSIDE) == pytest.approx(sk.roc_auc_score(IS_OUTSIDE, SCORES))
    fpr, tpr, _ = sk.roc_curve(1 - IS_OUTSIDE, -SCORES, drop_intermediate=False)
    assert out_of_distribution.fpr_at_tpr(INSIDE, OUTSIDE) == pytest.approx(fpr[(tpr >= 0.95).argmax()])
    two, labels = P[:, :2] / P[:, :2].sum(1, keepdim=True), (Y > 1).long()
    assert metrics.brier(two, labels) == pytest.approx(2 * sk.brier_score_loss(labels, two[:, 1].numpy()))


def test_torchmetrics():
    tm = module("torchmetrics.functional.classification")
    assert metrics.accuracy(P, Y) == pytest.approx(float(tm.multiclass_accuracy(P, Y, num_classes=C, average="micro")))
    assert metrics.accuracy(P, Y) != pytest.approx(float(tm.multiclass_accuracy(P, Y, num_classes=C)), abs=1e-5)
    ours = reliability.expected_calibration_error(P, Y, bins=20, binning="equal-width")
    assert ours == pytest.approx(float(tm.multiclass_calibration_error(P, Y, num_classes=C, n_bins=20)), abs=1e-6)
    padded = Y.where(torch.arange(len(Y)) % 3 > 0, -100)
    theirs = tm.multiclass_accuracy(P, padded, num_classes=C, average="micro", ignore_index=-100)
    assert metrics.accuracy(P, padded) == pytest.approx(float(theirs))
    assert out_of_distribution.auroc(INSIDE, OUTSIDE) == pytest.approx(float(tm.binary_auroc(SCORES, IS_OUTSIDE)))
    far, farther = 100 + INSIDE, 150 + OUTSIDE  # they do not overlap, yet a sigmoid makes 1.0 of all
    assert out_of_distribution.auroc(far, farther) == 1
    assert float(tm.binary_auroc(torch.cat([far, farther]), IS_OUTSIDE)) == 0.5


def test_netcal():
    nc = module("netcal.metrics")
    p, y = P.numpy(), Y.numpy()
    ours = reliability.expected_calibration_error(P, Y, bins=20, binning="equal-width")
    assert ours == pytest.approx(nc.ECE(20).measure(p, y))
    assert reliability.expected_calibration_error(P, Y, bins=20) == pytest.approx(
        nc.ECE(20, equal_intervals=False).measure(p, y)
    )


def test_torch_uncertainty():
    tu = module("torch_uncertainty.metrics.classification")

    def value(metric, *arguments):
        metric.update(*arguments)
        return float(metric.compute())

    task = {"task": "multiclass", "num_classes": C, "num_bins": 20}
    close = {"abs": 1e-5}  # sums in float32
    assert metrics.nll(P, Y) == pytest.approx(value(tu.CategoricalNLL(), P, Y), **close)
    assert metrics.brier(P, Y) == pytest.approx(value(tu.BrierScore(num_classes=C), P, Y), **close)
    ours = reliability.expected_calibration_error(P, Y, bins=20, binning="equal-width")
    assert ours == pytest.approx(value(tu.CalibrationError(**task), P, Y), **close)
    ours = reliability.expected_calibration_error(P, Y, bins=20)
    assert ours == pytest.approx(value(tu.AdaptiveCalibrationError(**task), P, Y), **close)
    ours = calibration_errors.classwise_calibration_error(P, Y, bins=20, binning="equal-width")
    assert ours == pytest.approx(value(tu.ClasswiseCalibrationError(num_classes=C, num_bins=20), P, Y), **close)
    risks, n = selective.risk_coverage(P, Y), len(Y)
    ends = float(risks[0] + risks[-1]) / 2 / n
    assert (selective.aurc(P, Y) - ends) / (1 - 1 / n) == pytest.approx(value(tu.AURC(), P, Y), **close)
    assert selective.selective_accuracy(P, Y) == pytest.approx(1 - value(tu.RiskAt80Cov(), P, Y), **close)
    ours = out_of_distribution.fpr_at_tpr(INSIDE, OUTSIDE)
    assert ours == pytest.approx(value(tu.FPR95(pos_label=1), -SCORES, 1 - IS_OUTSIDE), **close)
    assert ours != pytest.approx(value(tu.FPR95(pos_label=1), SCORES, IS_OUTSIDE), abs=0.01)


def test_relplot():
    theirs = module("relplot.metrics").smECE(P.amax(1).numpy(), (P.argmax(1) == Y).double().numpy())
    assert calibration_errors.smooth_calibration_error(P, Y) == pytest.approx(theirs, abs=5e-4)


def test_scipy_and_properscoring():
    norm = module("scipy.stats").norm
    mean, std = np.linspace(-1, 1, 50), np.linspace(0.1, 2, 50)
    targets = mean + std * norm.ppf((np.arange(50) * 17 % 50 + 0.5) / 50)
    assert regression.nll(mean, std**2, targets) == pytest.approx(-norm.logpdf(targets, mean, std).mean())
    crps = module("properscoring").crps_gaussian
    assert regression.crps(mean, std**2, targets) == pytest.approx(crps(targets, mean, std).mean())
