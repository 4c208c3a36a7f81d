"""`dswag train` with clients whose data differ: what they have is saved, and the report shows it."""

import pytest

from dswag.cli import main
from dswag.data.class_counts import ClassCounts
from dswag.lab.experiments.recipe import Recipe, build
from dswag.runs import RunFolder

TINY = ["--clients", "3", "--rounds", "1", "--explore-epochs", "1", "--samples", "2", "--landscape-examples", "50"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--partition", "dirichlet", "--concentration", "0.3", "--min-examples", "10"],
        ["--partition", "shards", "--shards-per-client", "2"],
        ["--partition", "quantity", "--concentration", "0.5", "--holdout", "0.1"],
    ],
)
def test_the_partition_is_saved_and_reported(flags, tmp_path):
    assert main(["train", *TINY, *flags, "--output", str(tmp_path / "run")]) == 0
    folder = RunFolder.open(tmp_path / "run")
    recipe = folder.config(Recipe)
    assert recipe.partition == flags[1]
    experiment = build(recipe)
    counts = ClassCounts.of(experiment.parts, experiment.dataset.train.targets, experiment.dataset.class_names)
    assert folder.partition() == counts
    written = (folder.path / "report.html").read_text()
    assert "Heat map of the examples of each client by class" in written
    for row in counts.counts:
        assert "".join(f"<td>{count:,}</td>" for count in (*row, sum(row))) in written


def test_a_report_on_a_run_without_a_saved_partition_is_written_without_it(tmp_path):
    assert main(["train", *TINY, "--output", str(tmp_path / "run")]) == 0
    folder = RunFolder.open(tmp_path / "run")
    assert "Heat map" in (folder.path / "report.html").read_text()
    (folder.path / "partition.json").unlink()
    assert main(["report", str(folder.path)]) == 0
    assert "Heat map" not in (folder.path / "report.html").read_text()


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--partition", "dirichlet"], "error: flags: partition dirichlet needs concentration: set it, such as 0.3"),
        (["--concentration", "0.3"], "error: flags: concentration is a setting of partition dirichlet and quantity"),
        (
            ["--partition", "quantity", "--concentration", "1", "--min-examples", "2000"],
            "at least 2000 examples, got 3",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_any_work(flags, fault, tmp_path, capsys):
    assert main(["train", *TINY, *flags, "--output", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert fault in line
    assert not (tmp_path / "run").exists()
