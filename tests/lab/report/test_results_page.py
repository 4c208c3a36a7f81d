"""The page that results give: what it says in every state, and in which order."""

from lab.report.made_results import course, run, scores

from dswag.lab.report.result_tables import TABLES, markdown_table
from dswag.lab.report.results_page import Planned, results_page
from dswag.lab.report.verdicts import STANDARDS

COST = {"seconds": 20.0, "bytes": 5e6}
PLANNED = {
    "fig5-left": Planned("accuracy", "mnist", {"mnist": 4}),
    "fig7": Planned("NLL", "mnist", {"mnist": 4, "mnist5k": 4}),
    "fig8": Planned("skew", "mnist", {}),
    "table-mnist": Planned("methods", "mnist", {"mnist": 4}),
    "table-cifar10": Planned("VGG16", "cifar10", {}),
}


def page(**by_dataset):
    results = {name: {} for name in STANDARDS} | by_dataset
    return results_page("# Results", "Settings.", PLANNED, results)


def fig7(clients, seed=0):
    methods = ("phase-1", "dswag", "swag-global", "swag-local")
    return run(clients, seed, **{name: scores(0.1) for name in methods})


def of_method(nll, **more):
    return scores(nll, calibrated_nll=nll, ece_equal_width=0.02, brier=0.1, cost=COST, **more)


def test_the_answer_comes_first_then_the_claims_then_the_figures():
    text = page(mnist={"fig7": [fig7(1), fig7(5)]})
    places = [text.index(heading) for heading in ("In short", "The claims in numbers", "How it was run", "## fig7")]
    assert places == sorted(places)


def test_claims_are_counted_in_sentences_that_are_right_for_one_and_for_many():
    many = page(mnist={"fig5-left": [course(1, [0.98]), course(50, [0.9])]})
    assert "- **mnist, with the MLP**: of 11 claims of the paper, 2 hold and 9 have not been run." in many
    text = page(mnist={"fig5-left": [course(1, [0.98]), course(50, [0.985])]})
    assert "claims of the paper, 1 does not hold, 1 shows no difference either way and 9 have not been run." in text
    assert "- **cifar10, with VGG16**: nothing has been run." in text


def test_what_has_not_run_is_said_plainly():
    text = page()
    assert "On mnist, with the MLP, none of the claims has been tested yet." in text
    assert "On cifar10, with VGG16, none of the claims has been tested yet." in text
    assert text.count("\n\nThis has not been run.") == 4
    assert "needs a GPU, and none was available" in text
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
    assert "| 2 | dswag | 0.9000 | 0.3000 |" in text


def test_precision_and_gpus_are_named_where_they_are_not_what_a_reader_expects():
    cnn = course(5, [0.9], model="cnn")
    cnn = {**cnn, "config": {**cnn["config"], "precision": "bfloat16"}}
    assert "**mnist** (the CNN trained in bfloat16)" in page(mnist={"fig5-left": [course(5, [0.9]), cnn]})
    assert "**mnist**\n" in page(mnist={"fig5-left": [course(5, [0.9])]})
    fast = {**fig7(5), "environment": {"gpu": "a GPU"}}
    assert "**mnist** (the MLP trained on a GPU)" in page(mnist={"fig7": [fast]})


def test_every_method_of_a_table_has_a_difference_to_phase_1_of_another_file():
    runs = []
    for seed, (base, laplace) in enumerate(((0.30, 0.20), (0.40, 0.28), (0.50, 0.42))):
        together = {"to": "phase-1", "estimate": 0.01 + seed, "low": -0.5, "high": 1.0}
        dswag = of_method(base + 0.1, nll_difference=together)
        runs.append(run(10, seed, **{"phase-1": of_method(base), "dswag": dswag}))
        runs.append(run(10, seed, laplace=of_method(laplace)))
    table = TABLES["table-mnist"][2].make(runs)
    rows = {line.split(" | ")[0].strip("| "): line for line in table.splitlines()[2:]}
    assert list(rows) == ["laplace", "phase-1", "dswag"]  # the lowest NLL first
    # differences -0.1, -0.12, -0.08: standard error 0.02 / √3, t quantile 4.303
    assert "-0.1000 [-0.1497, -0.0503] | –" in rows["laplace"]
    assert "+0.0100 [-0.5000, +1.0000]" in rows["dswag"]  # of the lowest seed


def test_seconds_are_the_least_over_seeds_and_what_pools_the_data_is_marked():
    runs = [
        run(10, seed, swa={**of_method(0.2), "cost": {"seconds": seconds, "bytes": 3e6}})
        for seed, seconds in ((0, 31.0), (1, 25.4))
    ]
    assert "| swa * | – | – | – | 25 | 3 |" in TABLES["table-mnist"][1].make(runs)


def test_a_table_of_skew_has_a_row_a_setting_and_its_best_method_in_bold():
    runs = [
        run(10, seed, partition=partition, dswag=scores(nll), ensemble=scores(0.25))
        for partition, nll in ((("shards", 2), 0.5), (("iid", None), 0.125))
        for seed in (0, 1)
    ]
    assert TABLES["fig8"][0].make(runs).splitlines() == [
        "| W | epochs alone | partition | dswag | ensemble |",
        "| --- | --- | --- | --- | --- |",
        "| 10 | 20 | IID | **0.1250 ± 0.0000** | 0.2500 ± 0.0000 |",
        "| 10 | 20 | 2 shards | 0.5000 ± 0.0000 | **0.2500 ± 0.0000** |",
    ]


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
