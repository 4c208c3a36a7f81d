"""Runs in federations of real processes are those of one process, bit for bit."""

import subprocess
import sys
import tomllib

import pytest
import torch
from safetensors.torch import save_file

from dswag.lab.experiments.recipe import Recipe, build
from dswag.lab.experiments.run import execute
from dswag.runs import RunFolder

pytest.importorskip("flower_grid", reason="needs flwr: pip install 'dswag[flower]'")
pytestmark = pytest.mark.usefixtures("one_intra_op_thread")

from flower_grid import InProcessGrid  # noqa: E402
from flower_processes import EXAMPLE, Federation, environment  # noqa: E402
from flwr.app import Context, RecordDict  # noqa: E402
from patience import PATIENCE  # noqa: E402


def in_one_process(recipe, folder):
    for _ in execute(build(recipe), RunFolder.create(folder, recipe)):
        pass
    return RunFolder.open(folder)


def same(found, expected):
    pairs = (found.posterior().tensors(), expected.posterior().tensors())
    return all(torch.equal(pairs[0][name], tensor) for name, tensor in pairs[1].items())


class DyingGrid(InProcessGrid):
    """A federation whose server dies when it sends a message of training for the `last`-th time."""

    last = None

    def push_messages(self, messages):
        if messages[0].metadata.message_type == "train" and self.last is not None:
            self.last -= 1
            if not self.last:
                raise KeyboardInterrupt
        return super().push_messages(messages)


def test_the_example_s_server_goes_on_where_it_died(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE)
    from digits import client_app, server_app

    settings = {"clients": 2, "rounds": 2, "explore_epochs": 2, "samples": 2, "seed": 3, "on_failure": "fail"}
    config = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    config |= {**settings, "output": str(tmp_path / "run")}
    grid = DyingGrid(client_app.app, 2)
    for context in grid.contexts.values():
        context.run_config = config

    def served(**more):
        given = {"node_config": {}, "state": RecordDict(), "run_config": config | more}
        server_app.app(grid, Context(run_id=1, node_id=0, **given))

    grid.last = 3  # in the second round
    with pytest.raises(KeyboardInterrupt):
        served()
    assert RunFolder.open(tmp_path / "run").checkpoint().server.round == 1
    grid.last = None
    served(resume=True)
    recipe = Recipe(**{name: value for name, value in config.items() if name not in ("output", "timeout", "resume")})
    assert same(RunFolder.open(tmp_path / "run"), in_one_process(recipe, tmp_path / "reference"))


def test_a_simulated_federation_gives_the_posterior_of_one_process(tmp_path):
    pytest.importorskip("ray", reason="needs Ray: pip install 'flwr[simulation]'")
    settings = {"clients": 4, "rounds": 2, "explore_epochs": 2, "cycles": 2, "samples": 2, "seed": 3}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "dswag", "train", "--engine", "flower", "--output", tmp_path / "run", *flags]
    done = subprocess.run(command, env=environment(tmp_path / "home"), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert same(RunFolder.open(tmp_path / "run"), in_one_process(Recipe(**settings), tmp_path / "reference"))


def test_a_deployment_over_tls_gives_the_posterior_of_one_process(tmp_path):
    settings = {"clients": 2, "rounds": 1, "explore_epochs": 2, "samples": 2, "seed": 3}
    settings |= {"on_failure": "fail", "learning_rate": 0.05}
    recipe = Recipe(**settings)
    experiment = build(recipe)
    own = experiment.dataset.train[experiment.parts[1]]
    save_file({"inputs": own.inputs.contiguous(), "targets": own.targets}, tmp_path / "own.safetensors")
    federation = Federation(tmp_path, ["partition-id=0", f'partition-id=1 data="{tmp_path}/own.safetensors"'])
    with federation.running():
        printed = federation.run(EXAMPLE, output=str(tmp_path / "run"), timeout=float(PATIENCE), **settings)
    assert (tmp_path / "run" / "metrics.json").exists(), printed
    found = RunFolder.open(tmp_path / "run")
    assert same(found, in_one_process(recipe, tmp_path / "reference"))
    assert found.metrics().scores == RunFolder.open(tmp_path / "reference").metrics().scores
    assert (tmp_path / "run" / "report.html").exists()
