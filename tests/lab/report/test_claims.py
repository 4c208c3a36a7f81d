"""What is concluded from results that are made up."""

import pytest
from lab.report.made_results import course, run, scores

from dswag.lab.report.claims import OURS, PAPER, subjects
from dswag.lab.report.verdicts import Standard, certainty, listed

ROUNDS, ENDS, CALIBRATED, TWO_CALIBRATED, CONFIDENT, FLAT, LESS_FLAT, GROWS, FALLS, *AGAINST = PAPER
GLOBAL_ECE, GLOBAL_NLL, LOCAL_ECE, LOCAL_NLL = AGAINST


def judged(dataset="mnist", model="mlp", **results):
    """By claim, what results of figures say."""
    by_figure = {name.replace("_", "-"): runs for name, runs in results.items()}
    (subject,) = [each for each in subjects({dataset: by_figure}) if each.model == model]
    return {found.claim: found.judgement for found in subject.findings}


def test_without_results_every_claim_made_on_the_data_set_has_not_run():
    found = judged()
    assert {judgement.verdict for judgement in found.values()} == {"has not run"}
    assert set(found) == {*PAPER, *OURS} - {TWO_CALIBRATED, FALLS}
    assert set(judged("cifar10", "vgg16")) == {TWO_CALIBRATED, FALLS}
    assert list(subjects({"mnist5k": {}})) == []


def test_rounds_are_counted_to_the_first_that_is_good_enough():
    slow, fast = course(50, [0.9, 0.95, 0.97, 0.981]), course(1, [0.98, 0.97])
    found = judged(fig5_left=[slow, fast])[ROUNDS]
    assert found.verdict == "holds (one seed)"
    assert found.numbers == "rounds to a test accuracy of 98%: W = 1: 1.0; W = 50: 4.0"
    never = judged(fig5_left=[course(50, [0.9]), fast])[ROUNDS]
    assert never.numbers.endswith("W = 50: not within the rounds")
    assert never.verdict == "holds (one seed)"


def test_results_against_the_claim_are_called_so():
    against = judged(fig5_left=[course(1, [0.97]), course(50, [0.99])])[ENDS]
    assert (against.outcome, against.verdict) == ("does not hold", "does not hold: the other way round (one seed)")
    equal = judged(fig5_left=[course(1, [0.980]), course(50, [0.981])])[ENDS]
    assert equal.verdict == "no difference between W = 1 and 50 (one seed)"
    assert equal.brief == "no difference (one seed)"


def test_each_model_is_judged_by_its_own_runs():
    runs = [course(1, [0.97]), course(50, [0.99]), course(1, [0.99], model="cnn"), course(50, [0.9], model="cnn")]
    assert judged(fig5_left=runs)[ENDS].outcome == "does not hold"
    found = judged(model="cnn", fig5_left=runs)
    assert found[ENDS].outcome == "holds"
    assert set(found) == {ROUNDS, ENDS}
    assert [each.name for each in subjects({"mnist": {"fig5-left": runs}})] == [
        "mnist, with the MLP",
        "mnist, with the CNN",
    ]


def test_seeds_give_the_error_that_a_difference_is_held_against():
    others = {"swag-global": scores(0.5, 0.2), "swag-local": scores(0.5, 0.05)}

    def runs(one, fifty):
        return [
            run(clients, seed, dswag=scores(nll, 0.1), **others)
            for clients, values in ((1, one), (50, fifty))
            for seed, nll in enumerate(values)
        ]

    assert judged(fig7=runs((0.1, 0.3), (0.2, 0.4)))[GROWS].verdict == "no difference between W = 1 and 50"
    found = judged(fig7=runs((0.1, 0.11), (0.2, 0.21)))
    assert found[GROWS].verdict == "holds"
    assert "W = 1: 0.1050 ± 0.0071" in found[GROWS].numbers
    assert found[GLOBAL_ECE].verdict == "holds"
    assert found[LOCAL_ECE].verdict == "does not hold: worse for W = 50"


def test_a_method_that_is_better_for_some_numbers_of_workers_is_said_to_be_so():
    def runs(**nll):
        return [
            run(w, dswag=scores(0.1), **{"swag-global": scores(0.1), "swag-local": scores(value)})
            for w, value in zip((1, 5, 10, 50), nll["local"], strict=True)
        ]

    found = judged(fig7=runs(local=(0.5, 0.2, 0.1, 0.2)))
    assert found[LOCAL_NLL].verdict == "holds in part: for W = 5 and 50; no difference elsewhere (one seed)"
    assert found[GLOBAL_NLL].verdict == "no difference (one seed)"
    mixed = judged(fig7=runs(local=(0.5, 0.2, 0.05, 0.2)))[LOCAL_NLL]
    assert mixed.verdict == "holds in part: better for W = 5 and 50, worse for W = 10 (one seed)"
    alone = judged(fig7=[run(1, dswag=scores(0.1), **{"swag-global": scores(0.1), "swag-local": scores(0.1)})])
    assert alone[LOCAL_NLL].outcome == "has not run"


def test_methods_are_compared_run_by_run():
    """Seeds differ by more than the methods do, but in each the difference is the same."""
    runs = [
        run(5, seed, dswag=scores(nll), **{"swag-global": scores(nll + 0.02), "swag-local": scores(nll)})
        for seed, nll in enumerate((0.1, 0.5, 0.9))
    ]
    found = judged(fig7=runs)
    assert found[GLOBAL_NLL].verdict == "holds"
    assert found[LOCAL_NLL].verdict == "no difference"


def test_two_workers_are_held_against_one_whatever_more_have_run():
    runs = [run(w, model="vgg16", dswag=scores(nll, ece)) for w, nll, ece in ((1, 0.4, 0.1), (2, 0.3, 0.2), (8, 9, 0))]
    for name in ("fig7", "table_cifar10"):
        found = judged("cifar10", "vgg16", **{name: runs})
        assert found[FALLS].verdict == "holds (one seed)"
        assert found[FALLS].numbers == "test NLL of dswag: W = 1: 0.4000; W = 2: 0.3000"
        assert found[TWO_CALIBRATED].verdict == "does not hold: the other way round (one seed)"
    alone = judged("cifar10", "vgg16", fig7=runs[:1], table_cifar10=runs)
    assert alone[FALLS].outcome == "holds"  # by the first of its figures that has both
    assert judged("cifar10", "vgg16", fig7=runs[:1])[FALLS].outcome == "has not run"


def test_flatness_is_what_is_lost_on_the_way():
    def line(accuracies):
        return {"at": [0, 50, 100], "directions": {"every element": {"accuracy": accuracies}}}

    flat = [run(5, **line([0.98, 0.98, 0.97])), run(50, **line([0.98, 0.97, 0.969]))]
    steep = [run(5, **line([0.98, 0.9, 0.5])), run(50, **line([0.98, 0.7, 0.3]))]
    assert judged(fig6=flat)[FLAT].verdict == "holds (one seed)"
    assert judged(fig6=[*flat, run(5, seed=1, **line([0.98, 0.97, 0.949]))])[FLAT].outcome == "does not hold"
    found = judged(fig6=steep)
    assert found[FLAT].outcome == "does not hold"
    assert found[LESS_FLAT].verdict == "holds (one seed)"


def test_confidence_is_weighted_by_the_examples_of_each_bin():
    def curve(confidence):
        band = {"curve": {"count": [1, 3], "confidence": [0.6, confidence], "accuracy": [0.5, 0.9]}}
        return {"dswag": {"band": band, "ece_equal_mass": 0.1}}

    found = judged(fig5_right=[run(1, **curve(0.9)), run(50, **curve(1.0))])[CONFIDENT]
    assert "W = 1: 0.0250; W = 50: 0.1000" in found.numbers  # (0.1 + 3 · 0) / 4, (0.1 + 3 · 0.1) / 4
    assert found.verdict == "holds (one seed)"


def test_fewer_test_examples_need_larger_differences():
    assert Standard(10_000, 0.98).least("NLL") == 0.003
    assert Standard(100, 0.98).least("NLL") == pytest.approx(0.03)
    assert Standard(100, 0.98).least("rounds") == 1.0


def test_numbers_of_one_seed_are_called_so():
    assert certainty([[1.0], [2.0]]) == "one seed"
    assert certainty([[1.0, 1.1], [2.0]]) == "one seed in part"
    assert certainty([[1.0, 1.1]]) == ""


def test_lists_read_as_sentences():
    assert [listed(words) for words in (["a"], ["a", "b"], [1, 2, 3])] == ["a", "a and b", "1, 2 and 3"]
