"""Files say what made them, and do not guess."""

import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import dswag
from dswag.core import provenance as module
from dswag.core.provenance import RESULTS_VERSION, provenance

CHECKOUT = Path(module.__file__).parents[3]


@pytest.mark.skipif(not (CHECKOUT / ".git").exists(), reason="not in a checkout")
def test_in_a_checkout_the_commit_is_gits():
    head = subprocess.run(["git", "-C", CHECKOUT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert module._commit().removesuffix("-dirty") == head.stdout.strip()


def test_elsewhere_it_is_what_pip_noted_or_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "__file__", str(tmp_path / "a" / "b" / "c" / "provenance.py"))
    monkeypatch.setattr(module, "_direct_url", lambda: None)
    assert module._commit() == "unknown"
    monkeypatch.setattr(module, "_direct_url", lambda: '{"url": "", "vcs_info": {"vcs": "git", "commit_id": "abc"}}')
    assert module._commit() == "abc"
    monkeypatch.setattr(module, "_direct_url", lambda: '{"url": "", "dir_info": {"editable": true}}')
    assert module._commit() == "unknown"


def test_a_posterior_and_a_checkpoint_name_what_made_them(tmp_path):
    zeros = torch.zeros(3)
    dswag.GaussianPosterior(zeros, torch.ones(3), torch.zeros(0, 3), count=2).save(tmp_path / "posterior.safetensors")
    dswag.Checkpoint(dswag.Server(zeros, 1)).save(tmp_path / "checkpoint.safetensors")
    for name in ("posterior", "checkpoint"):
        with safe_open(tmp_path / f"{name}.safetensors", framework="pt") as file:
            assert provenance().items() <= file.metadata().items()
    assert provenance()["results_version"] == str(RESULTS_VERSION)
