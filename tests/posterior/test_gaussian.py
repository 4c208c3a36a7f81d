"""Draws have the mean and covariance that the paper's line 2 states, and files hold what they were given."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from safetensors.torch import save_file
from slow_reference import covariance
from torch import nn

from dswag import GaussianPosterior, Layout, PosteriorFileError
from dswag.core.randomness import generator_for
from dswag.posterior.sampling import CHUNK, GROUP, PAIRS, low_rank_normals

N = 40_000


def make(d=6, k=4, seed=0):
    generator = generator_for(seed)
    columns = torch.randn(k, d, generator=generator)
    return GaussianPosterior(
        mean=torch.randn(d, generator=generator),
        variance=torch.rand(d, generator=generator) + 0.1,
        deviations=columns - columns.mean(0) if k else columns,
        count=max(k, 2),
    )


def expected_covariance(posterior, kind, scale):
    low_rank = posterior.deviations.T @ posterior.deviations / (len(posterior.deviations) - 1)
    full = {
        "swag": covariance(posterior.variance, posterior.deviations),
        "diagonal": torch.diag(posterior.variance),
        "low_rank": low_rank,
    }
    return scale * full[kind].double()


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("kind", ["swag", "diagonal", "low_rank"])
def test_draws_have_the_stated_mean_and_covariance(kind, scale):
    posterior = make()
    draws = posterior.sample(1, N, kind=kind, scale=scale).double()
    expected = expected_covariance(posterior, kind, scale)
    std = expected.diagonal().sqrt()
    # 5 standard errors: √(Σ_ii / n) for the mean, √((Σ_ii Σ_jj + Σ_ij²) / n) for the covariance, where n = N / 2
    # draws are independent: every other one, and those beside them say the same of the covariance.
    assert ((draws[::2].mean(0) - posterior.mean).abs() <= 5 * std / math.sqrt(N / 2)).all()
    error = torch.sqrt((torch.outer(std, std) ** 2 + expected**2) / (N / 2))
    assert ((draws.T.cov() - expected).abs() <= 5 * error).all()


@pytest.mark.parametrize("kind", ["swag", "diagonal", "low_rank"])
def test_a_pair_lies_around_the_mean(kind):
    posterior = make(d=1000, k=5).to(dtype=torch.float64)
    even, odd = posterior.sample(3, 8, kind=kind).view(4, 2, 1000).unbind(1)
    torch.testing.assert_close((even + odd) / 2, posterior.mean.expand(4, -1), rtol=0, atol=1e-14)
    assert ((even - odd).abs() > 1e-9).all()


@pytest.mark.parametrize("k", [2, 5, 20, 40])
def test_the_low_rank_normals_of_a_set_are_orthogonal_and_normal(k):
    size = min(k, PAIRS)
    z2 = np.array([[low_rank_normals(k, seed, pair) for pair in range(2 * size)] for seed in range(300)], float)
    for of_set in (z2[:, :size], z2[:, size:]):
        gram = of_set @ of_set.transpose(0, 2, 1)
        lengths = np.sqrt(np.einsum("nii->ni", gram))
        cosines = gram / lengths[:, :, None] / lengths[:, None] - np.eye(size)
        assert np.abs(cosines).max() < 1e-5  # of float32
        assert scipy.stats.kstest(lengths.ravel() ** 2, "chi2", args=(k,)).pvalue > 1e-3
    for pair in (0, size - 1, size):  # each by itself is a normal vector: the last of a set as the first
        assert scipy.stats.kstest(z2[:, pair].ravel(), "norm").pvalue > 1e-3
        assert np.abs(np.cov(z2[:, pair].T) - np.eye(k)).max() < 5.5 * math.sqrt(2 / 300)
    across = np.einsum("nik,njk->nij", z2[:, :size], z2[:, size:]) / k
    assert abs(across.mean()) < 5 / math.sqrt(300 * size * size * k)  # sets know nothing of each other


def test_means_over_orthogonal_pairs_have_less_noise():
    """Of (θ₀ - mean₀)², whose mean over n independent draws is off by √(2 / n) variances.

    With 16 orthogonal directions the squares of their cosines with any direction add up to 1. What is left comes from
    their lengths, of which √(3 / 18) in the standard error.
    """
    posterior = make(d=3, k=16, seed=3)
    variance = posterior.covariance([0], kind="low_rank").item()
    draws = torch.stack([posterior.sample(seed, 32, kind="low_rank")[::2, 0] for seed in range(400)])
    errors = (draws - posterior.mean[0]).square().mean(1) / variance - 1
    assert abs(errors.mean()) < 5 * errors.std() / math.sqrt(400)
    assert errors.std() == pytest.approx(math.sqrt(2 / 16 * 3 / 18), rel=0.2)


def test_one_draw_of_z2_serves_all_of_theta():
    """Parameters that moved together in the snapshots move together in the draws, across chunks and layers."""
    d = 2 * CHUNK + 1
    columns = torch.zeros(2, d)
    columns[:, 0], columns[:, -1] = torch.tensor([1.0, -1.0]), torch.tensor([1.0, -1.0])
    posterior = GaussianPosterior(torch.zeros(d), torch.zeros(d), columns, count=2)
    draws = posterior.sample(0, 8)
    assert torch.equal(draws[:, 0], draws[:, -1])
    assert draws[:, 0].unique().numel() == 8


@pytest.mark.parametrize("d", [1, CHUNK - 1, CHUNK + 1, 3 * CHUNK + 3])
def test_a_draw_does_not_depend_on_its_companions_or_the_threads(d):
    posterior = make(d, k=3)
    n = 2 * GROUP + 3
    together = posterior.sample(7, n)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for size in (1, 2, GROUP, n - 1):
            apart = [posterior.sample(7, min(size, n - number), first=number) for number in range(0, n, size)]
            assert torch.equal(together, torch.cat(apart))
    finally:
        torch.set_num_threads(before)
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(posterior.sample(8)[0], together[0])


def test_draws_can_go_into_memory_that_is_there():
    posterior = make(d=50, k=3)
    memory = torch.full((4, 50), float("nan"))
    assert posterior.sample(3, 2, first=1, out=memory[1:3]).data_ptr() == memory[1].data_ptr()
    assert torch.equal(memory[1:3], posterior.sample(3, 2, first=1))
    assert memory[[0, 3]].isnan().all()


@pytest.mark.parametrize("out", [torch.empty(2, 5), torch.empty(6), torch.empty(2, 6, dtype=torch.float64)])
def test_memory_that_does_not_fit_the_draws_is_refused(out):
    with pytest.raises(ValueError, match=r"out must have shape \[2, 6\], torch.float32 on cpu, got"):
        make(d=6, k=3).sample(0, 2, out=out)


def test_drawing_leaves_the_global_generator_and_the_posterior_alone():
    posterior = make()
    state, mean = torch.get_rng_state(), posterior.mean.clone()
    posterior.sample(0, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(posterior.mean, mean)


def test_parts_of_theta_are_independent_in_the_diagonal_half():
    size = 1 << 16
    posterior = GaussianPosterior(torch.zeros(3 * size), torch.ones(3 * size), torch.zeros(0, 3 * size), count=2)
    blocks = posterior.sample(0, 4)[::2].reshape(6, size)
    correlation = torch.corrcoef(blocks) - torch.eye(6)
    assert correlation.abs().max() < 5 / math.sqrt(size)  # 5 standard errors of a correlation of independent values


def test_without_columns_the_diagonal_is_not_halved():
    posterior = make(k=0)
    assert torch.equal(posterior.sample(3, 4), posterior.sample(3, 4, kind="diagonal"))


def test_scale_zero_gives_the_mean():
    posterior = make()
    assert torch.equal(posterior.sample(0, scale=0.0)[0], posterior.mean)


def test_double_precision_is_kept():
    single = make()
    double = GaussianPosterior(single.mean.double(), single.variance.double(), single.deviations.double(), count=4)
    draw = double.sample(0)
    assert draw.dtype == torch.float64
    torch.testing.assert_close(draw.float(), single.sample(0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "full"}, "kind must be one of swag, diagonal, low_rank, got 'full'"),
        ({"scale": -1.0}, "scale must be at least 0"),
        ({"scale": float("nan")}, "scale must be at least 0"),
        ({"n": 0}, "n must be at least 1"),
        ({"first": -1}, "first at least 0, got 1 and -1"),
    ],
)
def test_impossible_draws_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        make().sample(0, **options)


def test_low_rank_draws_need_columns():
    with pytest.raises(ValueError, match="no deviation columns: train with rank at least 2"):
        make(k=0).sample(0, kind="low_rank")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"variance": torch.ones(5)}, r"got \[6\], \[5\] and \[4, 6\]"),
        ({"deviations": torch.ones(6)}, "deviations"),
        ({"deviations": torch.ones(1, 6)}, "got 1: k - 1 would divide by zero"),
        ({"variance": -torch.ones(6)}, "must not be negative"),
        ({"mean": torch.full((6,), float("nan"))}, "mean must be finite"),
        ({"deviations": torch.full((2, 6), float("inf"))}, "deviations must be finite"),
        ({"layout": Layout(("w",), ((5,),))}, r"\[5\]"),
    ],
)
def test_a_posterior_that_cannot_be_is_refused(change, words):
    good = make()
    parts = {**good.tensors(), "count": 4, **change}
    with pytest.raises(ValueError, match=words):
        GaussianPosterior(**parts)


def test_finite_numbers_whose_sum_overflows_are_a_posterior():
    large = torch.full((3,), 2e38)
    posterior = GaussianPosterior(mean=large, variance=large, deviations=large.expand(2, 3), count=2)
    assert torch.equal(posterior.mean, large)


def small_model():
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))


def test_sampled_gives_back_the_models_own_weights_also_after_an_exception():
    model = small_model()
    layout = Layout.of(model)
    own = layout.flatten(model)
    posterior = make(d=layout.d)
    with posterior.sampled(model, seed=3, number=2, kind="diagonal") as same:
        assert same is model
        assert torch.equal(layout.flatten(model), posterior.sample(3, first=2, kind="diagonal")[0])
    assert torch.equal(layout.flatten(model), own)
    with pytest.raises(KeyError), posterior.sampled(model, seed=3):
        raise KeyError
    assert torch.equal(layout.flatten(model), own)


def test_a_model_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"θ must have shape \[9\] for these parameters, got \[6\]"):
        make(d=6).mean_into(small_model())
    with_layout = GaussianPosterior(*make(d=9).tensors().values(), count=4, layout=Layout.of(small_model()))
    with pytest.raises(ValueError, match=r"0\.weight must have shape"):
        with_layout.mean_into(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)))


# Files


def test_a_file_gives_back_every_bit(tmp_path):
    layout = Layout.of(small_model())
    posterior = GaussianPosterior(*make(d=layout.d).tensors().values(), count=17, layout=layout)
    posterior.save(tmp_path / "p.safetensors")
    loaded = GaussianPosterior.load(tmp_path / "p.safetensors")
    for name, tensor in posterior.tensors().items():
        assert torch.equal(loaded.tensors()[name], tensor)
    assert (loaded.count, loaded.layout) == (17, layout)
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]


def memory_of_its_own():
    """Bytes of this process that are mapped from no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux, which tells mapped memory apart")
def test_a_file_is_loaded_and_drawn_from_without_its_columns_in_memory(tmp_path):
    k, d = 32, 1_000_000
    columns = torch.zeros(k, d)
    GaussianPosterior(torch.zeros(d), torch.ones(d), columns, count=k).save(tmp_path / "posterior.safetensors")
    draw, size = torch.zeros(1, d), columns.nbytes
    del columns
    before = memory_of_its_own()
    posterior = GaussianPosterior.load(tmp_path / "posterior.safetensors")
    for number in range(3):
        posterior.sample(0, first=number, out=draw)
    grown = memory_of_its_own() - before
    assert grown < size / 4


def test_a_posterior_without_columns_or_layout_can_be_saved(tmp_path):
    make(k=0).save(tmp_path / "p")
    assert GaussianPosterior.load(tmp_path / "p").deviations.shape == (0, 6)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path, share):
    path = tmp_path / "p.safetensors"
    make(d=100).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(PosteriorFileError, match=r"p\.safetensors is truncated, damaged or no posterior"):
        GaussianPosterior.load(path)


@pytest.mark.parametrize("place", [-1, -200, -1000])
def test_a_single_changed_bit_among_the_tensors_is_found(tmp_path, place):
    path = tmp_path / "p.safetensors"
    make(d=100).save(path)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(PosteriorFileError, match=r"p\.safetensors is truncated, damaged.*not what was saved"):
        GaussianPosterior.load(path)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.ones(3)}, path)
    with pytest.raises(PosteriorFileError, match="no dswag posterior"):
        GaussianPosterior.load(path)
    path.write_bytes(b"PK\x03\x04 this is a zip, as torch.save writes")
    with pytest.raises(PosteriorFileError):
        GaussianPosterior.load(path)
    with pytest.raises(FileNotFoundError):
        GaussianPosterior.load(tmp_path / "absent")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": "99"}, "has format version 99, this dswag reads up to 1"),
        ({"format_version": "one"}, "damaged"),
        ({"count": None}, "damaged"),
        ({"count": "-3"}, "count of snapshots must be at least 0, got -3"),
        ({"layout": "[" * 100_000}, "damaged"),
        ({"layout": '{"whole": null, "shapes": [], "firsts": []}'}, "damaged"),
        ({"layout": json.dumps([["w"], [[5]]])}, "damaged"),
        ({"layout": "{"}, "damaged"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(tmp_path, change, words):
    scales = {"within_scale": "1", "between_scale": "1", "temperature": "1", "link": "null"}
    good = {"format": "dswag-posterior", "format_version": "1", "count": "4", "layout": "null", **scales}
    described = {key: value for key, value in {**good, **change}.items() if value is not None}
    save_file(make().tensors(), tmp_path / "p", described)
    with pytest.raises(PosteriorFileError, match=words):
        GaussianPosterior.load(tmp_path / "p")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int64, torch.complex64])
def test_numbers_that_no_weights_are_made_of_are_refused(tmp_path, dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in make().tensors().items()}
    scales = {"within_scale": "1.0", "between_scale": "1.0", "temperature": "1.0", "link": "null"}
    good = {"format": "dswag-posterior", "format_version": "1", "count": "4", "layout": "null", **scales}
    save_file(tensors, tmp_path / "p", good)
    with pytest.raises(PosteriorFileError, match=rf"p is truncated, damaged or no posterior: .*mean must be .*{dtype}"):
        GaussianPosterior.load(tmp_path / "p")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "p.safetensors"
    make(seed=1).save(path)
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dswag.core.atomic_files.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        make(seed=2).save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("between", [0.3, 0.1, 0.03, 3.0])
def test_a_variance_that_is_all_within_clients_has_nothing_between_them(between, rounded):
    """Such as that of a weight whose input is always 0, which weight decay moves alike in every client.

    Rounding may leave the part larger than the whole by one unit in the last place.
    """
    variance = 1e-6 * torch.rand(10_000, generator=generator_for(2))
    columns = variance.sqrt() * torch.randn(3, 10_000, generator=generator_for(3))
    posterior = GaussianPosterior(
        torch.zeros(10_000),
        variance,
        columns,
        count=3,
        variance_within=variance.nextafter(torch.ones(())) if rounded else variance.clone(),
        deviations_within=columns.clone(),
    )
    alone = replace(posterior, within_scale=0.0, between_scale=between)
    assert torch.equal(alone.sample(0, 2), torch.zeros(2, 10_000))
    both = replace(posterior, within_scale=0.3, between_scale=between)
    torch.testing.assert_close(both.factors("diagonal")[0], 0.3 * variance)
