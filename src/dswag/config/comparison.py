"""In what the settings of two runs differ, also where one of them was written by an earlier version."""

import json
from collections.abc import Mapping

from dswag.config.whole import SHARES, Config
from dswag.core.validation import defaults
from dswag.federation.client_sampling import share_of

_RETIRED = {"centering": "final"}
"""Settings that no longer exist, with the value of which they all are now."""
_BEFORE = {"explore_rounds": 1}
"""Settings that are not at their default where they were not written: what was done before they existed."""


def differences(
    settings: Mapping[str, object], before: Mapping[str, object], *, kind: type[Config] = Config
) -> tuple[str, ...]:
    """The settings in which a run differs from one that was written before, such as "rounds (20, not 30)".

    A setting of `kind` that was not written did not exist then and counts as its default. Some of the clients, once
    written as a fraction such as 0.3, are written "30%" now.
    """
    now, then = {**_RETIRED, **settings}, {**_RETIRED, **defaults(kind), **_BEFORE, **before}
    names = [name for name in {**now, **before} if name in settings or name in before]
    pairs = [(name, _as_json(name, now.get(name)), _as_json(name, then.get(name))) for name in names]
    return tuple(f"{name} ({one}, not {other})" for name, one, other in pairs if one != other)


def _as_json(name: str, value: object) -> str:
    return json.dumps(share_of(value) if name in SHARES and isinstance(value, float) else value)
