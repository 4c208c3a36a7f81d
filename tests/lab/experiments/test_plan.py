"""What the recipes of figures and tables ask for."""

from dataclasses import replace

import pytest

from dswag.lab.baselines.phases import further
from dswag.lab.experiments.measurements import MEASURES, OWN
from dswag.lab.experiments.plan import NAMES, load
from dswag.lab.report.figures import FIGURES


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_plan_can_be_run_and_drawn(name, quick):
    plan = load(name, quick=quick)
    assert plan.measure in MEASURES
    assert name in FIGURES
    names = [case.name for case in plan.cases]
    assert len(names) == len(set(names)) > 0
    assert all(method in OWN for case in plan.cases for method in case.options.get("methods", ()))
    assert {case.recipe.dataset for case in plan.cases} <= ({"mnist5k"} if quick else {"mnist", "cifar10"})


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_the_paper_s_numbers_of_workers_are_all_there(model):
    cases = [case for case in load("fig5-left").cases if case.recipe.model == model]
    assert {case.recipe.clients for case in cases} == {1, 5, 10, 30, 50}
    assert all(case.recipe.rounds == 100 and case.recipe.stop_accuracy == 1.0 for case in cases)  # Section 6.1
    assert all(case.recipe.explore_epochs == 20 for case in cases)  # Section 6
    taken = {case.recipe.clients: case.recipe.snapshots_per_cycle for case in cases}
    assert taken == {1: 20, 5: 1, 10: 1, 30: 1, 50: 1}


def test_figures_of_the_same_runs_ask_for_the_same_training():
    recipes = [{case.recipe for case in load(name).cases if case.recipe.model == "mlp"} for name in NAMES[1:5]]
    assert recipes[0] == recipes[1] == recipes[3] >= recipes[2]


@pytest.mark.parametrize("name", ["fig5-right", "fig7"])
def test_figures_on_cifar10_are_of_the_runs_of_its_table(name):
    plan, table, own = load(name, dataset="cifar10"), load("table-cifar10"), load(name)
    assert [case.recipe for case in plan.cases] == [case.recipe for case in table.cases]
    assert (plan.measure, plan.cases[0].options) == (own.measure, own.cases[0].options)
    assert {case.recipe.dataset for case in load(name, quick=True, dataset="cifar10").cases} == {"mnist5k"}


def test_another_data_set_gets_the_plan_s_own_runs():
    cases, own = (load("fig7", dataset=dataset).cases for dataset in ("fashion-mnist", None))
    assert [replace(case.recipe, dataset="mnist") for case in cases] == [case.recipe for case in own]


def test_cifar10_has_the_published_recipe_of_swag_for_one_worker():
    """Izmailov et al. 2018 and Maddox et al. 2019: 300 epochs, of which those from the 161st on give snapshots."""
    (one,) = [case.recipe for case in load("table-cifar10").cases if case.recipe.clients == 1]
    assert one.rounds * one.local_epochs + one.explore_epochs == 300
    assert one.rounds == 161
    assert (one.learning_rate, one.weight_decay, one.batch_size, one.momentum) == (0.05, 5e-4, 128, 0.9)
    assert one.explore_learning_rate == one.explore_final_learning_rate == 0.01
    assert (one.snapshots_per_cycle, one.rank, one.samples) == (139, 20, 30)
    assert {case.recipe.clients for case in load("table-cifar10").cases} == {1, 2, 4, 8}


def test_budgets_on_two_cores_spend_as_many_epochs_on_every_number_of_workers():
    budgets = {}
    for budget in ("short", "long"):
        cases = load("table-cifar10", budget=budget).cases
        recipes = {case.recipe for case in cases}
        assert {(recipe.clients, recipe.seed) for recipe in recipes} >= {(1, 0), (2, 0)}
        assert all(
            (recipe.model, recipe.device, recipe.precision) == ("vgg16", "cpu", "bfloat16") for recipe in recipes
        )
        assert all(recipe.final_learning_rate <= 0.02 * recipe.learning_rate for recipe in recipes)
        assert {case.options["rival"] for case in cases} == {"fedavg"}
        (budgets[budget],) = {(recipe.rounds * recipe.local_epochs, recipe.explore_epochs) for recipe in recipes}
        for recipe in recipes:  # what goes on instead of exploring has as many rounds
            assert further(recipe).rounds - recipe.rounds == recipe.explore_epochs
    assert budgets == {"short": (10, 3), "long": (24, 6)}


def test_a_plan_without_the_budget_says_which_ones_have_any():
    with pytest.raises(ValueError, match="fig7 has no budget 'short': table-cifar10 has short, long"):
        load("fig7", budget="short")


def test_a_group_stands_for_its_methods_and_is_no_setting():
    cases = {case.name: case for case in load("table-mnist").cases}
    case = cases["seed-2_group-after"]
    assert case.options["methods"] == ["fedavg", "swag-global", "swag-local"]
    assert "groups" not in case.options
    assert case.recipe.seed == 2


def test_an_unknown_figure_lists_the_known_ones():
    with pytest.raises(ValueError, match="there is no 'fig9' to reproduce: choose one of fig4, fig5-left"):
        load("fig9")
