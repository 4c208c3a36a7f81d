"""Names of which only some are known."""

from collections.abc import Iterable


def check_choice(what: str, name: str, known: Iterable[str]) -> None:
    """Raises ValueError, with those that there are, for a name that is not known."""
    names = list(known)
    if name not in names:
        raise ValueError(f"{what} must be one of {', '.join(names)}, got {name!r}")
