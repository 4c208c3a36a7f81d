"""The table of averaged explorers in docs/phase-2.md is that of the results."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_in_the_document_is_that_of_the_results():
    spec = importlib.util.spec_from_file_location("measure_exploration", ROOT / "tools" / "measure_exploration.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.table() in (ROOT / "docs" / "phase-2.md").read_text(encoding="utf-8")
