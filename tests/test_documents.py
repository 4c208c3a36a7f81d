"""What the documents point to exists."""

import re
from pathlib import Path

import pytest

import dswag

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/*.md")])


def test_every_test_that_the_documents_name_exists():
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"def (test_\w+)", sources))
    files = [*DOCUMENTS, *(ROOT / "src").rglob("*.py")]
    named = {name for path in files for name in re.findall(r"`(test_[a-z0-9]+_\w+)`", path.read_text())}
    assert len(named) > 15
    assert named <= defined


def test_every_known_defect_has_a_test():
    rows = [line for line in (ROOT / "docs/defects.md").read_text().splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 20
    assert [row for row in rows if not re.search(r"`test_\w+`", row.split("|")[3])] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_links_to_exists(document):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_heading_that_a_document_links_to_exists(document):
    links = re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", document.read_text())
    assert [
        anchor for path, anchor in links if anchor not in anchors(document.parent / path if path else document)
    ] == []


def anchors(document):
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_reference_has_every_public_name():
    listed = re.findall(r"^\.\. auto\w+:: dswag\.(\w+)$", (ROOT / "docs/reference.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(dswag.__all__)
