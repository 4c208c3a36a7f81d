"""What `import dswag` brings, when, and what a missing extra says."""

import ast
import importlib
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import pytest

import dswag
from dswag.cli import main, overview
from dswag.cli.options import Options
from dswag.cli.parsing import parse
from dswag.core import extras


def test_every_public_name_is_what_its_home_says_also_for_type_checkers():
    tree = ast.parse(Path(dswag.__file__).read_text(encoding="utf-8"))
    checked = {
        alias.asname or alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert checked == dswag._HOMES
    assert set(dswag.__all__) == set(dswag._HOMES)
    assert all(getattr(dswag, name) is not None for name in dswag.__all__)
    assert dswag.update_batch_norm is importlib.import_module("dswag.client.batch_norm").update
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        dswag.trian  # noqa: B018


def test_dir_shows_the_public_names_and_the_rooms():
    rooms = {path.stem for path in Path(dswag.__file__).parent.iterdir() if not path.name.startswith(("_", "py."))}
    assert set(dir(dswag)) == {*dswag.__all__, *rooms, "__version__"}
    assert dswag.__version__ == version("dswag")
    assert dswag.lab.__name__ == "dswag.lab"


def test_a_name_of_a_function_is_no_module():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("dswag.regression")
    assert callable(dswag.regression)


PROBE = "import sys; from dswag.cli import main; code = main(sys.argv[1:]); sys.exit('torch' in sys.modules or code)"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--version"], 0, f"dswag {version('dswag')}"),
        (["--help"], 0, "usage: dswag COMMAND"),
        ([], 2, "usage: dswag COMMAND"),
        (["trian"], 2, "error: there is no command trian: did you mean train?"),
        (["zzz"], 2, "error: there is no command zzz: choose one of train, compare,"),
    ],
)
def test_what_needs_no_pytorch_is_answered_without_it(arguments, code, words):
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True)
    assert done.returncode == code
    assert (done.stdout if code == 0 else done.stderr).startswith(words)


def test_the_overview_names_every_command_that_there_is():
    assert {*overview.COMMANDS} == {command.__name__.lower() for command in get_args(Options)}
    for command in overview.COMMANDS:
        with pytest.raises(SystemExit) as stop:
            parse([command, "--help"])
        assert stop.value.code == 0


def test_a_missing_extra_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(extras, "find_spec", lambda package: None if package == "jinja2" else True)
    assert main(["report", "somewhere"]) == 1
    assert capsys.readouterr().err == "error: the command line needs jinja2: pip install 'dswag[cli]'\n"
    with pytest.raises(ImportError, match=r"^a page needs jinja2: pip install 'dswag\[cli\]'$"):
        extras.required("jinja2.ext", "a page")


WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"tyro", "rich", "jinja2", "matplotlib", "pooch", "PIL", "tomli_w", "scipy"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import torch, dswag
data = [(torch.randn(20, 3), torch.randint(0, 2, (20,))) for _ in range(2)]
model = torch.nn.Linear(3, 2)
run = dswag.train(model, data, dswag.Config(clients=2, rounds=1, explore_epochs=1))
assert run.predictive(model, data[0][0]).probabilities.shape == (20, 2)
run.posterior.save(sys.argv[1])
from dswag.data import datasets
assert len(datasets.load("mnist5k").train.inputs) > 0
"""


def test_the_library_works_without_what_the_commands_need(tmp_path):
    path = str(tmp_path / "posterior.safetensors")
    done = subprocess.run([sys.executable, "-c", WITHOUT, path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
