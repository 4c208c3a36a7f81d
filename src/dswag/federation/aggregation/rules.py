"""The rules by name."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from dswag.core.choices import check_choice
from dswag.federation.aggregation.coordinates import median, trimmed_mean
from dswag.federation.aggregation.geometric import geometric_median
from dswag.federation.aggregation.krum import krum, multi_krum
from dswag.federation.aggregation.mean import Mean
from dswag.federation.aggregation.mixing import mixing
from dswag.federation.aggregation.robust import Robust, Rule

_PLAIN = (
    Rule("median", median, spare=1),
    Rule("trimmed-mean", trimmed_mean, spare=1),
    Rule("geometric-median", geometric_median, spare=1),
    Rule("krum", krum, spare=3),
    Rule("multi-krum", multi_krum, spare=3),
)

ROBUST: Mapping[str, Rule] = {rule.name: rule for rule in (*_PLAIN, *map(mixing, _PLAIN[:4]))}
"""Those that withstand a minority of malicious clients; those named "nnm-..." after nearest-neighbor mixing."""

RULES = ("mean", "weighted-mean", *ROBUST)
"""Line 12's Update by name."""


def aggregator(
    name: str, anchor: Float[Tensor, "d"], *, byzantine: int | str = "20%", clip_update: float | None = None
) -> Mean | Robust:
    """An empty fold of the rule with this name.

    Args:
        name: one of `RULES`.
        anchor: the θ that the clients start from.
        byzantine: how many clients may be malicious, a number or a percentage; only the robust rules ask.
        clip_update: the largest norm of a client's update; no limit if None.

    Raises:
        ValueError: an unknown name.
    """
    check_choice("aggregation", name, RULES)
    if name in ROBUST:
        return Robust(anchor, ROBUST[name], byzantine=byzantine, clip_update=clip_update)
    return Mean(anchor, weighted=name == "weighted-mean", clip_update=clip_update)
