"""Laws of all aggregation rules: one law, a row for each rule, with and without clipped updates."""

import math
from copy import deepcopy
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from math import ulp

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranges import in_ranges, spread_copy
from training_results import folded, make_results, results_of

from dswag.config import Config, ConfigError
from dswag.core.randomness import generator_for
from dswag.core.threads import computing_with
from dswag.federation.aggregation import ROBUST, RULES, aggregator

N, F, D = 11, 2, 40
EXACT = ("median", "trimmed-mean", "krum")
"""Rules whose outcome is one value, or one rounded mean of values, whatever the order of computation."""
CLIPPED = 3.0
"""A norm that some updates of the tests exceed and others do not."""

each_rule = pytest.mark.parametrize("rule", RULES)
each_robust_rule = pytest.mark.parametrize("rule", ROBUST)
each_fold = pytest.mark.parametrize(
    "make",
    [
        pytest.param(
            lambda anchor, rule=rule, limit=limit: aggregator(rule, anchor, byzantine=F, clip_update=limit),
            id=f"{rule} {limit}",
        )
        for rule in RULES
        for limit in (None, CLIPPED)
    ],
)


def grid_rows(n=N, d=D, seed=0):
    """Rows of multiples of 1/1024 between -4 and 4: adding small integers to them rounds nothing in float32."""
    return torch.randint(-4096, 4097, (n, d), generator=generator_for(seed)) / 1024


def outcome(rule, rows, anchor=None, **settings):
    anchor = torch.zeros_like(rows[0]) if anchor is None else anchor
    return folded(aggregator(rule, anchor, **{"byzantine": F, **settings}), results_of(rows)).result().theta


def assert_same(rule, actual, expected):
    if rule in EXACT:
        assert torch.equal(actual, expected)
    else:  # iterated or summed in another order: float64, then rounded once; the geometric median to its tolerance
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-4 if "geometric" in rule else 1e-6)


def test_every_rule_is_a_setting():
    for rule in RULES:
        assert Config(aggregation=rule).aggregation == rule
    with pytest.raises(ConfigError, match=", ".join(f"'{rule}'" for rule in RULES[:-1])):  # these and no others
        Config(aggregation="none of them")


@each_rule
@settings(max_examples=20)
@given(order=st.permutations(range(N)))
def test_no_rule_depends_on_which_client_is_which(rule, order):
    rows = grid_rows()
    assert_same(rule, outcome(rule, rows[list(order)]), outcome(rule, rows))


@each_fold
@settings(max_examples=20)
@given(order=st.permutations(range(N)), cuts=st.sets(st.integers(1, N - 1)))
def test_merging_parts_is_adding_all_whatever_the_order_of_arrival(make, order, cuts):
    results = make_results(N)
    edges = [0, *sorted(cuts), N]
    first, *others = [folded(make(torch.zeros(D)), [results[i] for i in order[a:b]]) for a, b in pairwise(edges)]
    for other in others:
        first.merge(other)
    expected = folded(make(torch.zeros(D)), results).result()
    torch.testing.assert_close(first.result().theta, expected.theta, rtol=2e-7, atol=1e-12)  # two roundings
    assert first.result().num_examples == expected.num_examples


@each_rule
@pytest.mark.parametrize("shift", [1.0, -3.0, 1000.0])
def test_a_shift_of_all_weights_shifts_the_outcome(rule, shift):
    rows, anchor = grid_rows().double(), grid_rows(1)[0].double()
    expected = outcome(rule, rows, anchor) + shift
    torch.testing.assert_close(outcome(rule, rows + shift, anchor + shift), expected, rtol=1e-12, atol=1e-12)


@each_rule
@pytest.mark.parametrize("factor", [2.0**-20, 4.0, -2.0])
def test_scaled_weights_scale_the_outcome(rule, factor):
    rows, anchor = grid_rows(), grid_rows(1)[0]
    assert_same(rule, outcome(rule, factor * rows, factor * anchor) / factor, outcome(rule, rows, anchor))


@each_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equal_clients_give_what_each_of_them_has(rule, dtype):
    row = torch.randn(D, generator=generator_for(1)).to(dtype)
    found = outcome(rule, row.expand(N, D), torch.ones(D, dtype=dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found, row, rtol=4e-16 if dtype == torch.float64 else 0, atol=0)  # weights of sum 1 ± ε


@each_fold
def test_the_last_snapshot_counts(make):
    results = make_results(N)
    last = [replace(result, thetas=result.thetas[-1:]) for result in results]
    expected = folded(make(torch.zeros(D)), last).result().theta
    assert torch.equal(folded(make(torch.zeros(D)), results).result().theta, expected)


@pytest.mark.parametrize("rule", ["mean", "weighted-mean"])
def test_the_loss_of_means_is_that_of_all_examples(rule):
    results = make_results(N)
    examples = sum(result.num_examples for result in results)
    expected = sum(Fraction(result.loss) * result.num_examples for result in results) / examples
    aggregate = folded(aggregator(rule, torch.zeros(D)), results).result()
    assert abs(aggregate.loss - float(expected)) <= N * ulp(1.0)  # so many products and sums, below 1 at the end
    assert (aggregate.num_clients, aggregate.num_examples) == (N, examples)


@each_robust_rule
def test_the_loss_of_robust_rules_is_no_liar_s(rule):
    results = make_results(N)
    lies = [replace(result, loss=1e9, num_examples=10**12) for result in results[:F]]
    aggregate = folded(aggregator(rule, torch.zeros(D), byzantine=F), lies + results[F:]).result()
    honest = sorted(result.loss for result in results[F:])
    assert aggregate.loss == sorted([1e9] * F + honest)[N // 2] <= honest[-1]
    assert aggregate.num_clients == N


@each_fold
def test_result_may_be_asked_at_any_time_and_changes_nothing(make):
    results = make_results(N + 3)
    fold = folded(make(torch.zeros(D)), results[:N])
    early = fold.result()
    assert torch.equal(early.theta, fold.result().theta)
    folded(fold, results[N:])
    assert torch.equal(fold.result().theta, folded(make(torch.zeros(D)), results).result().theta)
    assert torch.equal(early.theta, folded(make(torch.zeros(D)), results[:N]).result().theta)


@each_fold
def test_results_merged_folds_and_anchor_are_read_only(make):
    results, anchor = make_results(2 * N), torch.ones(D)
    before = deepcopy([result.thetas for result in results])
    fold, other = folded(make(anchor), results[:N]), folded(make(torch.ones(D)), results[N:])
    others = other.result().theta
    fold.merge(other)
    fold.result()
    assert all(torch.equal(result.thetas, b) for result, b in zip(results, before, strict=True))
    assert torch.equal(anchor, torch.ones(D))
    assert torch.equal(other.result().theta, others)


@each_fold
def test_a_fold_does_not_hold_on_to_results(make):
    results = make_results(N)
    fold = folded(make(torch.zeros(D)), results)
    expected = fold.result().theta
    for result in results:
        result.thetas.zero_()
    assert torch.equal(fold.result().theta, expected)


@each_fold
def test_an_empty_fold_merges_as_nothing(make):
    fold = folded(make(torch.zeros(D)), make_results(N))
    expected = fold.result().theta
    fold.merge(make(torch.zeros(D)))
    assert torch.equal(fold.result().theta, expected)


@each_fold
def test_a_fold_crosses_to_another_process_and_goes_on_there(make):
    results = make_results(N)
    here = folded(make(torch.ones(D)), results[:5])
    there = here.empty()
    with pytest.raises(ValueError, match="add a result first"):
        there.result()
    there.load(here.state())
    expected = folded(here, results[5:]).result()
    found = folded(there, results[5:]).result()
    assert torch.equal(found.theta, expected.theta)
    assert (found.loss, found.num_clients, found.num_examples) == (
        expected.loss,
        expected.num_clients,
        expected.num_examples,
    )


@each_fold
def test_the_outcome_of_no_clients_is_refused(make):
    with pytest.raises(ValueError, match="of no clients: add a result first"):
        make(torch.zeros(3)).result()


@each_rule
def test_the_number_of_threads_changes_no_bit(rule):
    rows = torch.randn(N, 100_000, generator=generator_for(2))  # several parts
    with computing_with(1):
        alone = outcome(rule, rows)
    with computing_with(3):
        assert torch.equal(outcome(rule, rows), alone)


@each_robust_rule
@pytest.mark.parametrize("limit", [None, CLIPPED])
def test_processes_that_hold_a_range_of_the_coordinates_each_agree_with_one_that_holds_all(rule, limit):
    fold = folded(aggregator(rule, torch.ones(D), byzantine=F, clip_update=limit), make_results(N))
    expected = fold.result()
    for found in in_ranges((0, 7, 30, D), lambda coordinates: spread_copy(fold, coordinates).result()):
        assert_same(rule, found.theta, expected.theta)
        assert {**vars(found), "theta": None} == {**vars(expected), "theta": None}


# ------------------------------------------------------------------------------------------------- malicious clients

# How far from the mean of the honest clients the outcome can be, in radii of the ball that holds them, whatever F of N
# clients send. A coordinate between the lowest and the highest honest one: √D. The geometric median: Minsker 2015,
# Lemma 2.1. Krum: the F of N cannot be among the chosen unless one of at least N - 2F - 1 honest neighbors is near.
REACH = {
    "median": math.sqrt(D),
    "trimmed-mean": math.sqrt(D),
    "geometric-median": (1 - F / N) / math.sqrt(1 - 2 * F / N),
    "krum": 1 + 2 * math.sqrt((N - F - 2) / (N - 2 * F - 1)),
    "multi-krum": 1 + 2 * math.sqrt((N - F - 2) / (N - 2 * F - 1)),
}
# Mixed honest rows are means of N - F rows, of which at most F are not honest. Those lie no further from the row in
# question than the furthest honest one, which is at most two radii away: so no further than three from the middle.
REACH |= {f"nnm-{rule}": (1 + 2 * F / (N - F)) * REACH[rule] for rule in REACH if f"nnm-{rule}" in ROBUST}


@st.composite
def attacks(draw):
    """What F clients send: far away or near, apart or together, on an honest client or opposite to it."""
    honest = torch.randn(N - F, D, generator=generator_for(draw(st.integers(0, 99))))
    scale = 10.0 ** draw(st.integers(-3, 15))
    lies = {
        "noise": scale * torch.randn(F, D, generator=generator_for(7)),
        "together": (scale * torch.randn(D, generator=generator_for(8))).expand(F, D),
        "flip": -scale * honest[:F],
        "on an honest client": honest[0].expand(F, D),
        "constant": torch.full((F, D), scale),
        "one coordinate": scale * torch.eye(D)[:F],
    }
    lie = lies[draw(st.sampled_from(sorted(lies)))]
    order = draw(st.permutations(range(N)))
    return honest, torch.cat([honest, lie])[list(order)]


@each_robust_rule
@given(attack=attacks())
def test_the_outcome_stays_with_the_honest_clients(rule, attack):
    honest, rows = attack
    found = outcome(rule, rows, torch.zeros(D))
    mean = honest.mean(0)
    radius = (honest - mean).norm(dim=1).max()
    assert (found - mean).norm() <= (1 + 1e-3) * REACH[rule] * radius  # of the median's smoothing and of rounding
    if rule in ("median", "trimmed-mean"):
        assert ((honest.min(0).values <= found) & (found <= honest.max(0).values)).all()


@pytest.mark.parametrize("rule", ["krum", "multi-krum"])
def test_krum_takes_none_of_those_that_are_far_away(rule):
    honest = torch.randn(N - F, D, generator=generator_for(4))
    rows = torch.cat([1e4 * torch.randn(F, D, generator=generator_for(5)), honest])
    found = outcome(rule, rows)
    expected = honest.double().mean(0).float() if rule == "multi-krum" else honest[(honest == found).all(1)][0]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_a_single_client_takes_the_mean_wherever_it_likes():
    rows = torch.cat([torch.randn(N - 1, D, generator=generator_for(6)), torch.full((1, D), 1e6)])
    assert outcome("mean", rows).min() > 1e6 / N - 4


@each_rule
def test_clipped_updates_take_the_mean_no_further_than_their_share(rule):
    rows = torch.cat([torch.zeros(N - F, D), torch.full((F, D), 1e6)])
    assert outcome(rule, rows, clip_update=CLIPPED).norm() <= CLIPPED * F / N * (1 + 1e-6)


@pytest.mark.parametrize(
    ("rule", "needed"), [("median", 5), ("trimmed-mean", 5), ("geometric-median", 5), ("krum", 7), ("multi-krum", 7)]
)
def test_too_few_clients_for_a_rule_are_refused(rule, needed):
    assert outcome(rule, grid_rows(needed)).shape == (D,)
    words = f"^{rule} needs at least {needed} clients where 2 may be malicious, got {needed - 1}: let more clients take"
    with pytest.raises(ValueError, match=words):
        outcome(rule, grid_rows(needed - 1))
    with pytest.raises(ValueError, match=rf"{rule} needs at least \d+ clients where 10 may be malicious, got 20"):
        outcome(rule, grid_rows(20), byzantine="50%")


@each_robust_rule
def test_a_fraction_is_of_those_that_answered(rule):
    rows = grid_rows(20)
    assert torch.equal(outcome(rule, rows, byzantine="10%"), outcome(rule, rows, byzantine=2))
