"""Runs the Python examples in the documents; the examples of one document share their names."""

import os

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser


@pytest.fixture(scope="module")
def in_an_empty_folder(tmp_path_factory):
    """Examples may write files."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("examples"))
    yield
    os.chdir(before)


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()], patterns=["*.md"], fixtures=["in_an_empty_folder"]
).pytest()
