"""docs/results.md and its pictures are what the files of results give."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def write_results(*flags):
    program = [sys.executable, ROOT / "tools" / "write_results.py", *flags]
    return subprocess.run(program, check=False, capture_output=True, text=True)


def test_the_repository_s_page_is_what_its_results_give():
    """Regenerate with python tools/write_results.py."""
    done = write_results("--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_every_picture_of_the_page_is_there():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    shown = [part.split(")")[0] for part in page.split("](../results/")[1:] if ".svg)" in part]
    assert shown
    assert [name for name in shown if not (ROOT / "results" / name).exists()] == []


def test_a_page_of_other_results_is_written_and_its_pictures_drawn(tmp_path):
    results, page = tmp_path / "results", tmp_path / "page.md"
    shutil.copytree(ROOT / "results" / "fig4", results / "fig4")
    flags = ("--results", results, "--page", page)
    assert write_results(*flags, "--check").returncode == 1
    assert write_results(*flags).returncode == 0
    assert "| fig4 | 2 of 2 runs" in page.read_text(encoding="utf-8")
    assert (results / "fig4.svg").read_text(encoding="utf-8").startswith("<svg ")
    assert write_results(*flags, "--check").returncode == 0
    (result, _) = (results / "fig4").glob("*.json")
    outdated = json.loads(result.read_text(encoding="utf-8")) | {"options": {"points": 3}}
    result.write_text(json.dumps(outdated), encoding="utf-8")
    assert write_results(*flags, "--check").returncode == 1  # a result of other settings does not count
