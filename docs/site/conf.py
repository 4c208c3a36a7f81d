"""Settings of Sphinx, which makes the documentation site of the pages in docs/ and of docstrings: `make site`."""

import importlib.metadata
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

project = "dswag"
author = "the authors of dswag"
version = release = importlib.metadata.version("dswag")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["site"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
myst_html_meta = {"description": "Distributed SWAG: Bayesian deep learning where the data is spread"}

default_role = "code"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "inherited-members": False, "exclude-members": "model_config"}
python_maximum_signature_line_length = 88
add_module_names = False
maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"dswag {release}"
html_show_sourcelink = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

ROOT = Path(__file__).resolve().parents[2]

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/flower/README.md": "flower-example.md",
}
"""The pages that show a file from outside of docs/."""

LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)")


def linked(text: str, folder: Path) -> str:
    """The text of a file in this folder with its links as the site has them: to a page, or to a copy of the file."""

    def place(match: re.Match[str]) -> str:
        target = (folder / match[1]).resolve()
        if not target.is_relative_to(ROOT):
            return match[1]
        name = target.relative_to(ROOT).as_posix()
        return PAGES.get(name) or (name.removeprefix("docs/") if name.startswith("docs/") else f"../{name}")

    return LINK.sub(place, text)


def on_include(app: Sphinx, path: Path, parent: str, content: list[str]) -> None:
    """Turns the links of a page's included file, in place."""
    content[0] = linked(content[0], (Path(app.srcdir) / path).resolve().parent)


def on_source(app: Sphinx, name: str, content: list[str]) -> None:
    """Turns the links of a page, in place."""
    content[0] = linked(content[0], Path(app.srcdir))


def words_of_attributes() -> tuple[Any, Any]:
    """What runs before and after napoleon, which takes an attribute's words before a colon for its type."""
    kept: dict[str, list[str]] = {}

    def before(app: Sphinx, what: str, name: str, _: Any, options: Any, lines: list[str]) -> None:
        if what == "attribute":
            kept[name] = list(lines)

    def after(app: Sphinx, what: str, name: str, _: Any, options: Any, lines: list[str]) -> None:
        if what == "attribute":
            lines[:] = kept.pop(name)

    return before, after


def setup(app: Sphinx) -> None:
    """Connects the above."""
    before, after = words_of_attributes()
    app.connect("autodoc-process-docstring", before, priority=400)
    app.connect("autodoc-process-docstring", after, priority=600)
    app.connect("include-read", on_include)
    app.connect("source-read", on_source)
