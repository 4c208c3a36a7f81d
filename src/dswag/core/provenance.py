"""What made a file: the version of dswag, its commit, and the version of its numbers."""

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from json import loads
from pathlib import Path

RESULTS_VERSION = 2
"""Raised when a fix changes numbers; results that name no version are of 1.

The plan of each figure that the fix touches then asks for the new version (`results_version` in its TOML file), so that
`dswag reproduce` measures it again.
"""


@cache
def provenance() -> dict[str, str]:
    """By name, as texts: "dswag" and "commit", each "unknown" where it cannot be told, and "results_version"."""
    return {"dswag": _version(), "commit": _commit(), "results_version": str(RESULTS_VERSION)}


def _version() -> str:
    try:
        return distribution("dswag").version
    except PackageNotFoundError:
        return "unknown"


def _commit() -> str:
    """Of the checkout in which this file lies, with "-dirty" where it was changed; else that of the installation."""
    checkout = Path(__file__).parents[3]
    if (checkout / ".git").exists() and (checkout / "src" / "dswag").is_dir():
        asked = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        try:
            return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return "unknown"
    return _commit_of(_direct_url())


def _commit_of(direct_url: str | None) -> str:
    """What pip notes of an installation from a repository (PEP 610)."""
    return str(loads(direct_url or "{}").get("vcs_info", {}).get("commit_id", "unknown"))


def _direct_url() -> str | None:
    try:
        return distribution("dswag").read_text("direct_url.json")
    except PackageNotFoundError:
        return None
