"""The page that results give: what it says in every state, and in which order; and the numbers beside it."""

import csv

import pytest
from lab.report.made_results import course, run, scores

from dswag.lab.report.result_tables import claims_table, comma_separated, markdown_table, short_table
from dswag.lab.report.results_page import Planned, claim_rows, results_page

COST = {"seconds": 20.0, "bytes": 5e6}
PLANNED = {
    "fig5-left": Planned("accuracy", "mnist", {"mnist": 4}),
    "fig7": Planned("NLL", "mnist", {"mnist": 4, "mnist5k": 4}),
    "fig8": Planned("skew", "mnist", {}),
    "table-mnist": Planned("methods", "mnist", {"mnist": 4}),
    "table-cifar10": Planned("VGG16", "cifar10", {}),
}


def page(**by_dataset):
    results = {name: {} for name in ("mnist", "mnist5k", "cifar10")} | by_dataset
    return results_page("# Results", "Settings.", PLANNED, results)


def fig7(clients, seed=0):
    methods = ("phase-1", "dswag", "swag-global", "swag-local")
    return run(clients, seed, **{name: scores(0.1) for name in methods})


def of_method(nll, **more):
    return scores(nll, calibrated_nll=nll, ece_equal_width=0.02, brier=0.1, cost=COST, **more)


def test_the_answer_comes_first_then_the_claims_then_the_figures():
    text = page(mnist={"fig7": [fig7(1), fig7(5)]})
    places = [text.index(heading) for heading in ("In short", "How claims are judged", "How it was run", "## fig7")]
    assert places == sorted(places)


def test_claims_are_counted_in_sentences_that_are_right_for_one_and_for_many():
    many = page(mnist={"fig5-left": [course(1, [0.98]), course(50, [0.9])]})
    assert "- **mnist, with the MLP**: of 11 claims of the paper, 2 hold and 9 have not been run." in many
    text = page(mnist={"fig5-left": [course(1, [0.98]), course(50, [0.985])]})
    assert "claims of the paper, 1 does not hold, 1 shows no difference either way and 9 have not been run." in text
    assert "- **cifar10, with VGG16**: nothing has been run." in text


def test_what_has_not_run_is_said_plainly():
    text = page()
    assert "- **mnist, with the MLP**: nothing has been run." in text
    assert text.count("\n\nThis has not been run.") == 5
    assert "| fig8 | – | – | – |" in text


def test_runs_are_counted_with_their_seeds_and_hours():
    text = page(mnist={"fig7": [fig7(1), fig7(5), fig7(5, 1)]}, mnist5k={"fig7": [fig7(1, 3)]})
    assert "| fig7 | 3 of 4 runs, seeds 0 and 1, 1.5 h | 1 of 4 runs, seed 3, 0.5 h | – |" in text
    assert "![NLL, mnist](../results/fig7.svg)" in text
    assert "![NLL, mnist5k](../results/mnist5k/fig7.svg)" in text


def test_a_third_data_set_is_taken_up_by_itself():
    runs = [run(w, model="vgg16", dswag=of_method(nll)) for w, nll in ((1, 0.4), (2, 0.3))]
    text = page(cifar10={"table-cifar10": runs})
    assert "| The NLL falls slightly from one worker to two | – | **holds (one seed)** |" in text
    assert "![VGG16, cifar10](../results/table-cifar10.svg)" in text
    assert "[all numbers](../results/table-cifar10.csv)" in text
    assert "| 2 | dswag | 0.9000 | 0.3000 |" in text


def test_a_budget_is_a_subject_of_its_own_with_its_pictures_beside_its_results():
    band = {"curve": {}, "low": [], "high": []}
    runs = [run(w, model="vgg16", dswag=of_method(nll, band=band)) for w, nll in ((1, 0.4), (2, 0.3))]
    text = page(**{"cifar10-short": {"table-cifar10": runs}})
    assert "- **cifar10-short, with VGG16**: of 2 claims of the paper, 1 holds and 1 shows no difference" in text
    assert (
        "![Reliability of some methods, cifar10-short](../results/cifar10-short/table-cifar10-reliability.svg)" in text
    )


def test_precision_and_gpus_are_named_where_they_are_not_what_a_reader_expects():
    cnn = course(5, [0.9], model="cnn")
    cnn = {**cnn, "config": {**cnn["config"], "precision": "bfloat16"}}
    assert "**mnist** (the CNN trained in bfloat16)" in page(mnist={"fig5-left": [course(5, [0.9]), cnn]})
    assert "**mnist**, [all numbers]" in page(mnist={"fig5-left": [course(5, [0.9])]})
    fast = {**fig7(5), "environment": {"gpu": "a GPU"}}
    assert "**mnist** (the MLP trained on a GPU)" in page(mnist={"fig7": [fast]})


def test_every_method_of_a_table_has_a_difference_to_phase_1_of_another_file():
    runs = []
    for seed, (base, laplace) in enumerate(((0.30, 0.20), (0.40, 0.28), (0.50, 0.42))):
        together = {"to": "phase-1", "estimate": 0.01 + seed, "low": -0.5, "high": 1.0}
        dswag = of_method(base + 0.1, nll_difference=together)
        runs.append(run(10, seed, **{"phase-1": of_method(base), "dswag": dswag}))
        runs.append(run(10, seed, laplace=of_method(laplace)))
    rows = {row["method"]: row for row in numbers(runs)}
    assert list(rows) == ["phase-1", "dswag", "laplace"]
    # differences -0.1, -0.12, -0.08: standard error 0.02 / √3, t quantile 4.303
    difference = [float(rows["laplace"][name]) for name in DIFFERENCE]
    assert difference == pytest.approx([-0.1, -0.1497, -0.0503], abs=1e-4)
    of_examples = [rows[name]["NLL less phase-1, over examples"] for name in ("dswag", "laplace")]
    assert of_examples == ["0.01", ""]  # of the lowest seed, where both are in one file
    assert short_table(runs).splitlines()[2].startswith("| laplace | 0.9000 ± 0.0000 | 0.3000 ± 0.1114 |")


DIFFERENCE = ("NLL less phase-1, over seeds", "low", "high")


def numbers(runs, name="table-mnist"):
    """The rows of the file with all numbers; of columns of one name, the first."""
    header, *rows = csv.reader(comma_separated(name, runs).splitlines())
    return [dict(reversed(list(zip(header, row, strict=True)))) for row in rows]


def test_numbers_have_their_spread_over_seeds_and_what_pools_the_data_is_marked():
    runs = [
        run(10, seed, swa={**of_method(nll), "cost": {"seconds": 31.0, "bytes": 3e6}})
        for seed, nll in ((0, 0.2), (1, 0.4))
    ]
    (row,) = numbers(runs)
    assert (row["NLL"], row["seconds"], row["MB sent"], row["seeds"]) == ("0.3", "31", "3", "2")
    assert float(row["NLL (sd)"]) == pytest.approx(0.02**0.5, rel=1e-5)
    assert row["AUROC, OOD"] == row["AUROC, OOD (sd)"] == ""
    assert "| swa * | 0.9000 ± 0.0000 | 0.3000 ± 0.1414 |" in short_table(runs)


def test_every_setting_has_its_rows_from_the_least_skew_on():
    runs = [
        run(10, seed, partition=partition, dswag=scores(nll), ensemble=scores(0.25))
        for partition, nll in ((("shards", 2), 0.5), (("iid", None), 0.125))
        for seed in (0, 1)
    ]
    found = [(row["workers"], row["partition"], row["method"], row["NLL"]) for row in numbers(runs, "fig8")]
    assert found == [
        ("10", "IID", "dswag", "0.125"),
        ("10", "IID", "ensemble", "0.25"),
        ("10", "2 shards", "dswag", "0.5"),
        ("10", "2 shards", "ensemble", "0.25"),
    ]


def test_claims_have_their_numbers_in_a_file():
    results = {"mnist": {"fig7": [fig7(1), fig7(5)]}, "cifar10-short": {}}
    header, *rows = csv.reader(claims_table(claim_rows(results)).splitlines())
    assert header == ["subject", "claim", "in the paper", "here", "verdict", "numbers"]
    assert {row[0] for row in rows} == {"mnist, with the MLP"}
    (nll,) = [row for row in rows if row[1] == "The NLL grows with the number of workers"]
    verdict, told = nll[4:]
    assert verdict == "no difference between W = 1 and 5 (one seed)"
    assert told == "test NLL of dswag: W = 1: 0.1000; W = 5: 0.1000"


def test_the_length_of_100_standard_deviations_is_told_for_each_data_set():
    def line(length):
        kinds = {"every element": {"accuracy": [0.9] * 5}, "random signs": {"accuracy": [0.9, 0.9, 0.95, 0.5, 0.1]}}
        return run(5, at=[0, 1, 10, 50, 100], directions=kinds, lengths={"every element": length}, mean_norm=10.0)

    planned = {"fig6": Planned("distance", "mnist", {"mnist": 2})}
    results = {"mnist": {"fig6": [line(0.2), line(0.3)]}, "mnist5k": {"fig6": [line(0.05)]}}
    text = results_page("", "", planned, results)
    assert "the mean itself, 2.0 to 3.0 times as long on mnist and 0.5 to 0.5 times as long on mnist5k.\n" in text
    assert "random signs leave an accuracy of 0.950 on mnist and 0.950 on mnist5k;\n" in text


def test_no_cell_breaks_its_table():
    assert markdown_table(["a"], [["b|c"]]).splitlines() == ["| a |", "| --- |", "| b¦c |"]


def test_methods_are_held_against_dswag_where_they_differ_by_more_than_chance():
    nll = {"near": (0.202, 0.4), "ahead": (0.1, 0.31), "dswag": (0.2, 0.4), "behind": (0.25, 0.45)}
    seeds = [run(10, seed, **{name: of_method(values[seed]) for name, values in nll.items()}) for seed in (0, 1)]
    text = page(mnist={"table-mnist": seeds})
    place = "- **mnist, table-mnist**, W = 10: by NLL, `dswag` is number"
    assert f"{place} 2 of 4. By more than chance, better: `ahead`; worse: `behind`." in text
    alone = page(mnist={"table-mnist": [run(10, dswag=of_method(0.2), near=of_method(0.201))]})
    assert f"{place} 1 of 2. By more than chance (one seed), better: none; worse: none." in alone
