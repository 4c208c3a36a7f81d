"""The example of federated adapters trains, predicts better than the model beneath, and leaves adapters that load."""

import importlib.util
from pathlib import Path

import pytest
import torch

import dswag
from dswag.posterior.collectors.checkpoint_files import moments_from_files

peft = pytest.importorskip("peft", reason="needs PEFT: pip install --group integrations")
pytestmark = [pytest.mark.filterwarnings("ignore::Warning"), pytest.mark.usefixtures("one_intra_op_thread")]

EXAMPLE = Path(__file__).parents[1] / "examples" / "lora" / "federated.py"


@pytest.fixture(scope="module")
def example():
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("federated", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def done(example, tmp_path_factory):
    """The folder that it wrote, and the scores."""
    folder = tmp_path_factory.mktemp("adapter")
    return folder, example.main(folder, rounds=6)


def test_the_posterior_is_over_the_adapter_and_predicts_the_dialect(done, example):
    folder, scores = done
    posterior = dswag.GaussianPosterior.load(folder / "posterior.safetensors")
    assert posterior.count == example.CLIENTS
    assert all("lora" in name or "classifier" in name for name in posterior.layout.names)
    assert scores["posterior"].accuracy > 0.5  # four topics: 0.25 by chance


def test_the_mean_is_an_adapter_that_loads_without_dswag(done, example):
    folder, _ = done
    loaded = peft.PeftModel.from_pretrained(example.pretrained(steps=1), folder / "mean").eval()
    posterior = dswag.GaussianPosterior.load(folder / "posterior.safetensors")
    model = example.with_adapter(example.pretrained(steps=1)).eval()
    posterior.mean_into(model)
    words = example.Texts(5, seed=0, dialect=True).words
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=words).logits, model(input_ids=words).logits)


def test_its_draws_are_snapshots_like_any_other(done):
    folder, _ = done
    moments = moments_from_files(sorted(folder.glob("draw-*")))
    assert moments.count == 3
    assert moments.layout.d == dswag.GaussianPosterior.load(folder / "posterior.safetensors").layout.d
