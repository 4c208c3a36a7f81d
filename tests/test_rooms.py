"""The page on which a newcomer lands: every room says what lives in it, and its example is true."""

import doctest
import importlib
from pathlib import Path

import pytest

import dswag

ROOMS = ["dswag", *sorted(f"dswag.{path.parent.name}" for path in Path(dswag.__file__).parent.glob("*/__init__.py"))]


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_opens_with_prose_and_an_example_that_holds(name):
    room = importlib.import_module(name)
    (example,) = doctest.DocTestFinder(recurse=False).find(room, name, module=False)
    assert len(example.docstring.split()) > 40
    assert example.examples
    found = doctest.DocTestRunner().run(example)
    assert (found.failed, found.attempted) == (0, len(example.examples))
