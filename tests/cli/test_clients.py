"""What commands say of each client, and the sets of classes of runs whose clients held examples out."""

import csv
import io
import json

import numpy as np
import pytest
import torch

from dswag.cli import main
from dswag.lab.experiments.recipe import Recipe, build
from dswag.lab.experiments.scoring import parts_of_the_test_set
from dswag.lab.experiments.sets import sets_of
from dswag.runs import RunFolder

SKEWED = ["--clients", "4", "--rounds", "2", "--explore-epochs", "2", "--samples", "3", "--landscape-examples", "0"]
SKEWED += ["--partition", "dirichlet", "--concentration", "0.3", "--holdout", "0.2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose clients differ, and held examples out."""
    path = tmp_path_factory.mktemp("runs") / "skewed"
    assert main(["train", *SKEWED, "--output", str(path), "--json"]) == 0
    return path


def out_of(capsys, *arguments):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_evaluate_tells_each_clients_scores_on_its_own_test_part(run, capsys):
    clients = json.loads(out_of(capsys, "evaluate", run, "--per-client", "--json"))["clients"]
    assert list(clients) == ["phase-1 model", "DSWAG"]
    folder = RunFolder.open(run)
    experiment = build(folder.config(Recipe))
    parts = parts_of_the_test_set(experiment)
    assert sum(client["num_examples"] for client in clients["DSWAG"]) == len(experiment.dataset.test)
    assert [client["num_examples"] for client in clients["DSWAG"]] == list(map(len, parts))
    share = experiment.dataset.train.targets[experiment.parts[0]].bincount(minlength=10) / 4000
    own = experiment.dataset.test.targets[parts[0]].bincount(minlength=10) / 1000
    assert (
        share - own
    ).abs().max() < 0.0025  # rounded to whole examples of 1,000, of which classes have unequal numbers
    mean = sum(client["accuracy"] * client["num_examples"] for client in clients["DSWAG"]) / 1000
    assert mean == pytest.approx(folder.metrics().scores["DSWAG"].accuracy)
    table = out_of(capsys, "evaluate", run, "--per-client")
    assert f"{min(client['accuracy'] for client in clients['DSWAG']):.2%}" in table
    assert "4 clients, each with" in table


def test_predict_tells_the_set_of_classes(run, capsys, tmp_path):
    experiment = build(RunFolder.open(run).config(Recipe))
    np.save(tmp_path / "images.npy", experiment.dataset.test.inputs[:40].numpy())
    rows = json.loads(out_of(capsys, "predict", run, tmp_path / "images.npy", "--json", "--alpha", "0.02"))
    names = experiment.dataset.class_names
    probabilities = torch.tensor([[row["probabilities"][name] for name in names] for row in rows])
    sets = sets_of(RunFolder.open(run).metrics().sets, probabilities, 0.02)
    assert [row["set"] for row in rows] == [[names[i] for i in own.nonzero().flatten().tolist()] for own in sets]
    assert all(row["class"] in row["set"] for row in rows)
    written = list(csv.DictReader(io.StringIO(out_of(capsys, "predict", run, tmp_path / "images.npy"))))
    assert [row["set"].split()[0] for row in written]
    assert sum(len(row["set"].split()) for row in written) < sum(len(row["set"]) for row in rows)
    assert main(["predict", str(run), str(tmp_path / "images.npy"), "--alpha", "1"]) == 2


def test_the_run_keeps_how_often_sets_cover(run):
    metrics = RunFolder.open(run).metrics()
    sets, dataset = metrics.sets, build(RunFolder.open(run).config(Recipe)).dataset
    assert sum(count for _, count in sets.counts) == pytest.approx(0.2 * 4000, abs=4)  # a share of each client's
    assert sum(sets.sizes) == len(dataset.test)
    assert sets.sizes[0] == 0
    sizes = dataset.test.targets.bincount(minlength=10).tolist()
    assert sum(share * n for share, n in zip(sets.classes.values(), sizes, strict=True)) / 1000 == pytest.approx(
        sets.coverage
    )
    held_out, tested = 800, 1000
    assert sets.coverage == pytest.approx(0.9, abs=5 * (0.09 / held_out + 0.09 / tested) ** 0.5 + 0.01)
    html = (run / "report.html").read_text()
    assert "How each client fares" in html
    assert f"hold it for {100 * sets.coverage:.1f}" in html
