"""Where each parameter lies in the vectors of a payload: said in the payload, so that none meet without their names."""

import json
from collections.abc import Mapping

from torch import Tensor

from dswag.core.parameters import Layout
from dswag.core.serialization import as_bytes, as_text
from dswag.federation.contract import Payload

LAYOUT = "layout"
"""The name in a payload."""


def with_layout(vectors: Mapping[str, Tensor], layout: Layout | None) -> dict[str, Tensor]:
    """A payload of vectors over θ's coordinates, with their layout where it is known."""
    if layout is None:
        return dict(vectors)
    return {**vectors, LAYOUT: as_bytes(json.dumps([layout.names, layout.shapes]))}


def layout_of(payload: Payload) -> Layout | None:
    """The layout of a payload's vectors; None if they are in the order of the client's own model."""
    if LAYOUT not in payload:
        return None
    names, shapes = json.loads(as_text(payload[LAYOUT]))
    return Layout(tuple(names), tuple(tuple(shape) for shape in shapes))


def in_layout_of(payload: Payload, theta: Tensor) -> dict[str, Tensor]:
    """A payload of a θ that was made from the vectors of another one."""
    return {"theta": theta, **({LAYOUT: payload[LAYOUT]} if LAYOUT in payload else {})}
