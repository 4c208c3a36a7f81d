"""Sampled clients: how many, and that nothing but seed, phase and round decides."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dswag.federation.client_sampling import cohort_size, fewest_withstanding, malicious_number, sample_clients


@pytest.mark.parametrize(
    ("share", "clients", "size"),
    [
        (1, 10, 1),  # a number
        (10, 10, 10),
        ("all", 10, 10),
        ("100%", 10, 10),
        ("50%", 10, 5),
        ("26%", 10, 3),
        ("24%", 10, 2),
        ("0.1%", 10, 1),  # at least one
        ("10%", 1, 1),
        ("all", 1, 1),
    ],
)
def test_a_share_is_a_number_or_a_percentage(share, clients, size):
    assert cohort_size(share, clients) == size


PERCENTAGES = st.decimals(0, 100, places=2).filter(bool).map("{}%".format)


@given(PERCENTAGES, st.integers(1, 500))
def test_a_percentage_is_off_by_at_most_half_a_client(share, clients):
    size = cohort_size(share, clients)
    assert 1 <= size <= clients
    assert abs(size - float(share[:-1]) / 100 * clients) <= 0.5 + 1e-9 or size == 1


@pytest.mark.parametrize("share", [0, -1, 11])
def test_more_clients_than_there_are_is_an_error(share):
    with pytest.raises(ValueError, match=f"number of clients must be between 1 and 10, got {share}"):
        cohort_size(share, 10)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0, -0.5, 1.5, math.nan, math.inf, True, None, "0%", "101%", "3", "-1%"])
def test_what_is_no_share_is_an_error_that_says_what_is(share):
    meant = "30%"
    with pytest.raises(ValueError, match=f'must be a number of clients such as 3, a share such as "{meant}", or "all"'):
        cohort_size(share, 10)


@given(st.integers(1, 5) | st.integers(1, 49).map("{}%".format), st.integers(1, 60), st.integers(1, 3))
def test_from_the_fewest_on_every_number_of_clients_withstands_and_one_less_does_not(byzantine, clients, spare):
    def withstands(number):
        try:
            malicious_number(byzantine, number, spare=spare, rule="a rule")
        except ValueError:
            return False
        return True

    fewest = fewest_withstanding(byzantine, clients, spare=spare)
    assert all(map(withstands, range(fewest, clients)))
    assert fewest == 1 or not withstands(fewest - 1)


@given(st.integers(1, 60), st.data())
def test_sampled_clients_are_distinct_and_exist(clients, data):
    share = data.draw(st.integers(1, clients) | PERCENTAGES)
    sampled = sample_clients(share, clients, seed=data.draw(st.integers(0)), phase=1, round=0)
    assert len(set(sampled)) == len(sampled) == cohort_size(share, clients)
    assert all(0 <= client < clients for client in sampled)
    assert all(type(client) is int for client in sampled)  # NumPy's integers would not survive JSON


def test_a_sample_depends_on_seed_phase_and_round_alone():
    place = {"seed": 3, "phase": 1, "round": 7}
    sample = sample_clients(10, 100, **place)
    assert sample_clients(10, 100, **place) == sample
    for key in place:
        assert sample_clients(10, 100, **{**place, key: 2}) != sample


def test_a_smaller_sample_is_the_start_of_a_larger_one():
    # so that raising clients_per_round adds clients to a round instead of replacing them
    assert sample_clients(20, 50, seed=0, phase=1, round=0)[:5] == sample_clients(5, 50, seed=0, phase=1, round=0)


def test_every_client_is_sampled_equally_often():
    # binomial(4000, 0.3) for each of 10 clients: within 5 standard errors
    counts = Counter(c for t in range(4000) for c in sample_clients(3, 10, seed=0, phase=1, round=t))
    assert sorted(counts) == list(range(10))
    assert all(abs(n - 1200) < 5 * math.sqrt(4000 * 0.3 * 0.7) for n in counts.values())


def test_all_clients_come_in_an_order_that_changes_with_the_round():
    orders = {sample_clients("all", 10, seed=0, phase=1, round=t) for t in range(20)}
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len(orders) == 20
