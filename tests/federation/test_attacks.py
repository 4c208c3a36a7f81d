"""What malicious clients do to a run on real digits: 2 of 10, on `mnist5k`, with a small network and few rounds."""

from dataclasses import replace
from functools import cache

import pytest
from attackers import LIES, Attacked, noise, not_a_number
from real_digits import accuracy_of, scores_of, setting, start

from dswag import ClientError, Config, DivergenceError, TooFewClientsError, collect, explore, synchronize
from dswag.federation.aggregation import ROBUST

CONFIG = Config(clients=10, rounds=6, learning_rate=0.03, byzantine=2, explore_epochs=2, explore_learning_rate=0.02)
pytestmark = pytest.mark.usefixtures("one_intra_op_thread")


def engine_with(lie, attackers=2):
    engine = setting()[1]
    return engine if lie is None else Attacked(engine, attackers, lie)


def rounds(lie=None, **settings):
    """Phase 1 with the attackers telling this lie."""
    return list(synchronize(engine_with(lie), start(), replace(CONFIG, **settings)))


@cache
def without_attack(aggregation):
    return accuracy_of(rounds(aggregation=aggregation)[-1].theta)


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("aggregation", ROBUST)
def test_robust_rules_stay_within_two_points_of_the_run_without_attack(aggregation, lie):
    found = accuracy_of(rounds(LIES[lie], aggregation=aggregation)[-1].theta)
    assert found >= without_attack(aggregation) - 0.02


@pytest.mark.parametrize("lie", LIES)
def test_the_mean_collapses(lie):
    assert without_attack("mean") > 0.85
    with pytest.raises((DivergenceError, ClientError), match=r"diverged|in the first minibatch"):
        rounds(LIES[lie])


def test_clipped_updates_keep_the_mean_from_collapsing():
    # An honest step has a norm of 1 at first and of 0.4 in the end; liars then pull not much harder than the honest.
    found = accuracy_of(rounds(noise, clip_update=1.0)[-1].theta)
    assert found >= without_attack("mean") - 0.02


@pytest.mark.parametrize("aggregation", ["mean", "median"])
def test_nan_is_refused_at_the_door_whatever_the_rule(aggregation):
    done = rounds(not_a_number, aggregation=aggregation, on_failure="skip")
    assert all({client.client for client in each.missing} == {0, 1} for each in done)
    assert "not finite" in done[0].missing[0].cause
    assert accuracy_of(done[-1].theta) >= without_attack(aggregation) - 0.02
    with pytest.raises(ClientError, match=r"client \d failed in round 1: its answer was rejected: it is not finite"):
        rounds(not_a_number, aggregation=aggregation)


def test_too_few_answers_for_a_rule_end_the_run():
    with pytest.raises(TooFewClientsError, match="round 1 needs the results of at least 7 clients, got 6 of 10"):
        list(synchronize(engine_with(not_a_number, 4), start(), replace(CONFIG, aggregation="krum", on_failure="skip")))


# --------------------------------------------------------------------------------------------------- phases 2 and 3


@cache
def theta_after_phase_1():
    return rounds()[-1].theta


def posterior_scores(moments, lie=None):
    """Accuracy and NLL of draws from the posterior whose explorers include two that tell this lie."""
    config, theta = replace(CONFIG, moments=moments), theta_after_phase_1()
    return scores_of(explore(engine_with(lie), theta, config, collect(theta, config)).fold.posterior())


@cache
def posterior_scores_without_attack(moments):
    return posterior_scores(moments)


@pytest.mark.parametrize("moments", ["trimmed", "median"])
def test_robust_moments_give_without_attackers_what_plain_ones_give(moments):
    plain, robust = posterior_scores_without_attack("mean"), posterior_scores_without_attack(moments)
    assert abs(robust.accuracy - plain.accuracy) <= 0.01
    assert abs(robust.nll - plain.nll) <= 0.02


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("moments", ["trimmed", "median"])
def test_robust_moments_withstand_malicious_explorers(moments, lie):
    clean, found = posterior_scores_without_attack(moments), posterior_scores(moments, LIES[lie])
    assert found.accuracy >= clean.accuracy - 0.02
    assert found.nll <= clean.nll + 0.05


@pytest.mark.parametrize("lie", LIES)
def test_malicious_explorers_spoil_plain_moments(lie):
    clean, found = posterior_scores_without_attack("mean"), posterior_scores("mean", LIES[lie])
    assert found.nll > clean.nll + 0.05
    assert found.accuracy < clean.accuracy - 0.01
