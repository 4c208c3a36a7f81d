"""What holds for every method: the budget, what is shared, and that the same problem gives the same predictions."""

import pytest
import torch

from dswag.algorithms.training import explore
from dswag.federation.contract import ClientError
from dswag.federation.folds import Snapshots
from dswag.lab.baselines import METHODS
from dswag.lab.baselines.costs import Cost, Ledger, Metered
from dswag.lab.baselines.method import Trial, complete
from dswag.lab.baselines.phases import explored, federated, phase_1

BUDGET = (2 + 3) * 4 * 16
"""Examples: epochs of both phases, on clients of 20 with a fifth held out."""


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_the_gradients_that_algorithm_1_does(classification, name):
    problem = classification()
    predictor, cost = complete(METHODS[name], problem)
    assert cost.examples == BUDGET
    assert problem.num_examples == 4 * 16
    predicted = predictor(problem.clients[0].inputs).probabilities
    assert predicted.shape == (20, 3)
    torch.testing.assert_close(predicted.sum(1), torch.ones(20))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_predicts_the_same_alone_and_after_others(classification, name):
    alone, shared = classification(), classification()
    Trial(shared).shared(federated)
    inputs = alone.clients[0].inputs
    first, again = (complete(METHODS[name], problem)[0](inputs) for problem in (alone, shared))
    assert torch.equal(first.probabilities, again.probabilities)


@pytest.mark.parametrize("name", ["dswag", "ensemble", "swag-global", "swag-local", "swag", "swap", "laplace", "noise"])
def test_methods_refresh_batch_norm_where_the_model_has_it(classification, make_model, name):
    problem = classification(model=make_model(batch_norm=True))
    predicted = complete(METHODS[name], problem)[0](problem.clients[0].inputs)
    torch.testing.assert_close(predicted.probabilities.sum(1), torch.ones(20))


@pytest.mark.parametrize("name", ["dswag", "ensemble"])
def test_batch_norm_is_refreshed_once_for_all_inputs(classification, make_model, name, monkeypatch):
    problem = classification(model=make_model(batch_norm=True))
    predictor, _ = complete(METHODS[name], problem)
    inputs = problem.clients[0].inputs
    first = predictor(inputs).probabilities
    monkeypatch.setattr(Metered, "answers", lambda *_: pytest.fail("refreshed again"))
    torch.testing.assert_close(predictor(inputs[:7]).probabilities, first[:7])


def test_shared_parts_are_trained_once_and_paid_for_by_every_method_that_uses_them(classification, monkeypatch):
    problem = classification()
    first, second = Trial(problem), Trial(problem)
    thetas = first.shared(explored)
    monkeypatch.setattr(Metered, "answers", lambda *_: pytest.fail("trained again"))
    assert second.shared(explored) is thetas
    second.shared(phase_1)  # a part of the other, paid for already
    assert first.cost.examples == second.cost.examples == BUDGET
    assert first.cost.bytes == second.cost.bytes


def test_meter_counts_what_the_exchange_counts(classification):
    problem = classification((20, 30, 11, 20))
    trial, ledger = Trial(problem), Ledger()
    metered = Metered(trial.engine(), ledger)
    done = explore(metered, trial.theta, problem.config, Snapshots())
    assert ledger.cost.bytes == done.bytes_down + done.bytes_up
    assert ledger.cost.examples == 3 * (16 + 24 + 9 + 16)
    assert ledger.cost.steps == 3 * 3  # of the client with 24 examples in batches of 8


def test_meter_hands_failures_on(classification):
    problem = classification(learning_rate=1e30)
    with pytest.raises(ClientError, match="failed in round 1"):
        Trial(problem).shared(phase_1)


def test_costs_add_up_and_keep_the_largest_memory():
    assert Cost(1, 2, 3, 4.0, 5) + Cost(10, 20, 30, 40.0, 4) == Cost(11, 22, 33, 44.0, 5)


def test_unpaired_names_are_not_possible():
    assert all(name == method.name for name, method in METHODS.items())
    assert len({method.description for method in METHODS.values()}) == len(METHODS)
