"""What the server makes of the clients' weights (Algorithm 1, line 12): a file for each family of rules."""

from dswag.federation.aggregation.coordinates import median, trimmed_mean
from dswag.federation.aggregation.geometric import geometric_median
from dswag.federation.aggregation.krum import krum, multi_krum
from dswag.federation.aggregation.mean import Aggregate, Mean
from dswag.federation.aggregation.robust import Robust, Rule, Total
from dswag.federation.aggregation.rules import ROBUST, RULES, aggregator

__all__ = [
    "ROBUST",
    "RULES",
    "Aggregate",
    "Mean",
    "Robust",
    "Rule",
    "Total",
    "aggregator",
    "geometric_median",
    "krum",
    "median",
    "multi_krum",
    "trimmed_mean",
]
