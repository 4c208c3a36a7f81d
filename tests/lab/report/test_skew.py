"""What is concluded of clients that differ, from results that are made up."""

import pytest
from lab.report.made_results import run, scores

from dswag.lab.report.reproduced import by_skew
from dswag.lab.report.skew import hurts, shorter_helps, undone_by
from dswag.lab.report.verdicts import Standard

STANDARD = Standard(10_000, 0.98)
IID, MILD, STRONG, SHARDS = ("iid", None), ("dirichlet", 1.0), ("dirichlet", 0.1), ("shards", 2)


def case(partition, gain, other=0.0, *, clients=10, epochs=20, seed=0):
    """A run in which phase 1 has an NLL of 0.1 (plus something of the seed), and other methods so much more."""
    base = 0.1 + 0.01 * seed
    return run(
        clients,
        seed,
        partition=partition,
        epochs=epochs,
        **{"phase-1": scores(base), "dswag": scores(base + gain), "other": scores(base + other)},
    )


def test_harm_is_told_from_the_mildest_skew_on_and_by_how_much():
    runs = [case(SHARDS, 0.5), case(STRONG, 0.02), case(MILD, 0.001), case(IID, -0.01)]
    found = hurts(runs, STANDARD)
    assert found.verdict == "does not hold from Dirichlet 0.1 on (one seed)"
    assert found.numbers == (
        "where the NLL is higher than that of phase 1 by more than chance: "
        "W = 10, 20 epochs alone: from Dirichlet 0.1 on, by up to 0.5000 (2 shards)"
    )
    assert hurts([case(MILD, 0.0), case(STRONG, -0.1)], STANDARD).verdict == "holds up to Dirichlet 0.1 (one seed)"
    assert hurts([case(MILD, 0.1), case(SHARDS, 0.1)], STANDARD).verdict == "does not hold everywhere (one seed)"
    assert hurts([case(MILD, 0.1), case(SHARDS, 0.0)], STANDARD).verdict == "does not hold for Dirichlet 1.0 (one seed)"


@pytest.mark.parametrize("judge", [hurts, shorter_helps, undone_by("other")])
def test_clients_that_are_alike_say_nothing_of_those_that_differ(judge):
    runs = [case(IID, gain, epochs=epochs) for epochs, gain in ((2, 0.0), (20, 0.5))]
    assert judge(runs, STANDARD).verdict == "has not run where clients differ"


def test_each_number_of_workers_and_length_of_phase_2_is_told_apart():
    runs = [
        case(partition, gain * epochs, clients=w, epochs=epochs)
        for w in (10, 50)
        for epochs in (1, 20)
        for partition, gain in ((IID, 0.0), (SHARDS, 0.0004 * w / 10))
    ]
    assert hurts(runs, STANDARD).numbers.endswith(
        "W = 10, 1 epoch alone: nowhere; W = 10, 20 epochs alone: for 2 shards, by up to 0.0080 (2 shards); "
        "W = 50, 1 epoch alone: nowhere; W = 50, 20 epochs alone: for 2 shards, by up to 0.0400 (2 shards)"
    )


def test_harm_is_paired_by_seed():
    """The seeds differ by more than the harm, but each is harmed alike."""
    assert (
        hurts([case(SHARDS, 0.004, seed=seed) for seed in (0, 1, 5)], STANDARD).verdict == "does not hold for 2 shards"
    )


def test_the_harm_that_is_told_is_one_that_is_no_chance():
    """With two shards it is larger, but one of the two seeds has all of it."""
    runs = [case(STRONG, gain, seed=seed) for seed, gain in enumerate((0.02, 0.0201))]
    runs += [case(SHARDS, gain, seed=seed) for seed, gain in enumerate((0.0, 0.5))]
    found = hurts(runs, STANDARD)
    assert found.verdict == "does not hold for Dirichlet 0.1"
    assert found.numbers.endswith("W = 10, 20 epochs alone: for Dirichlet 0.1, by up to 0.0200 (Dirichlet 0.1)")


def test_too_few_seeds_to_show_a_harm_are_no_sign_that_there_is_none():
    runs = [case(SHARDS, 0.1, other, seed=seed) for seed, other in enumerate((0.0, 0.2))]
    assert undone_by("other")(runs, STANDARD).verdict == "does not hold: hurts wherever dswag does"


def test_another_method_is_judged_where_dswag_hurts_alone():
    def verdict(*pairs):
        runs = [
            case(p, *pair, clients=w)
            for (p, w), pair in zip(((IID, 10), (SHARDS, 10), (SHARDS, 50)), pairs, strict=True)
        ]
        return undone_by("other")(runs, STANDARD)

    found = verdict((0.0, 9.0), (0.2, 0.0), (0.3, -0.01))
    assert found.verdict == "holds (one seed)"
    assert found.numbers.endswith(
        "of dswag and other: W = 10, 20 epochs alone, 2 shards: +0.2000 and +0.0000; "
        "W = 50, 20 epochs alone, 2 shards: +0.3000 and -0.0100"
    )
    some = verdict((0.0, 0.0), (0.2, 0.0), (0.3, 0.1))
    assert some.verdict == "holds in part: hurts in 1 of the 2 settings in which dswag does (one seed)"
    less = verdict((0.0, 0.0), (0.2, 0.3), (0.3, 0.1))
    assert less.verdict == "holds in part: hurts wherever dswag does, but less in 1 of 2 settings (one seed)"
    more = verdict((0.0, 0.0), (0.2, 0.3), (0.3, 0.3))
    assert more.verdict == "does not hold: hurts wherever dswag does (one seed)"
    assert verdict((0.0, 0.0), (0.0, 0.1), (0.0, 0.1)).verdict == "no difference: there is no harm to undo"


def test_another_method_is_compared_run_by_run():
    """The harm differs between seeds by more than what the other method spares, which is the same in each."""
    runs = [case(SHARDS, harm, harm - 0.02, seed=seed) for seed, harm in enumerate((0.3, 0.4, 0.5))]
    found = undone_by("other")(runs, STANDARD)
    assert found.verdict == "holds in part: hurts wherever dswag does, but less in 1 of 1 settings"


def test_a_shorter_phase_2_helps_where_it_has_less_of_the_harm():
    def verdict(*gains):
        runs = [case(SHARDS, gain, epochs=epochs) for epochs, gain in zip((2, 6, 20), gains, strict=True)]
        return shorter_helps(runs, STANDARD)

    found = verdict(0.0, 0.02, 0.3)
    assert found.verdict == "holds (one seed)"
    assert found.numbers.endswith(
        "W = 10, 2 shards: +0.0000 after 2 epochs, +0.0200 after 6 epochs and +0.3000 after 20 epochs"
    )
    assert verdict(0.3, 0.3, 0.3).verdict == "no difference (one seed)"
    assert verdict(0.3, 0.02, 0.0).verdict == "does not hold (one seed)"
    assert verdict(0.0, 0.0, 0.0).verdict == "no difference: there is no harm to lessen"
    alone = case(SHARDS, 0.1)
    assert shorter_helps([alone], STANDARD).verdict == "has not run with several lengths of phase 2"
    elsewhere = shorter_helps([alone, case(MILD, 0.0, epochs=2)], STANDARD)
    assert elsewhere.verdict == "has not run with several lengths of phase 2 where it hurts"


def test_lengths_of_phase_2_are_compared_seed_by_seed():
    """Seeds differ by more than what a longer phase 2 adds, which is the same in each; their order does not matter."""
    harm = {0: 0.2, 1: 0.3, 2: 0.4}
    runs = [case(SHARDS, harm[seed], epochs=2, seed=seed) for seed in (0, 1, 2)]
    runs += [case(SHARDS, harm[seed] + 0.02, epochs=20, seed=seed) for seed in (2, 0, 1)]
    assert shorter_helps(runs, STANDARD).verdict == "holds"


def test_partitions_are_in_the_order_of_their_skew():
    runs = [case(partition, 0.0) for partition in (SHARDS, STRONG, IID, MILD, ("dirichlet", 0.3))]
    assert list(by_skew(runs)) == ["IID", "Dirichlet 1.0", "Dirichlet 0.3", "Dirichlet 0.1", "2 shards"]
