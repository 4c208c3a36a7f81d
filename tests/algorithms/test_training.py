"""Algorithm 1 against the slow reference, and what a run promises."""

import math
import weakref
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from attackers import Attacked, constant
from folding import fold_answers
from slow_reference import (
    columns_as_printed,
    columns_centered_on_final_mean,
    local_sgd,
    two_pass_moments,
)
from torch import nn

from dswag import (
    ClientError,
    Config,
    InProcess,
    Layout,
    Server,
    collect,
    evaluate,
    explore,
    predict,
    predictive,
    synchronize,
    train,
)
from dswag.algorithms.schedules import linear
from dswag.algorithms.training import _train_tasks
from dswag.client.stability import DivergenceError, has_diverged
from dswag.core.randomness import derive_seed, generator_for
from dswag.federation.client_sampling import sample_clients
from dswag.federation.folds import Snapshots
from dswag.federation.round_trip import Missing, round_trip
from dswag.posterior.moments import Moments

SETTINGS = {
    "clients": 4,
    "seed": 5,
    "rounds": 3,
    "clients_per_round": 3,
    "local_epochs": 2,
    "learning_rate": 0.3,
    "final_learning_rate": 0.1,
    "explorers": "75%",
    "explore_epochs": 6,
    "explore_learning_rate": 0.2,
    "explore_final_learning_rate": 0.05,
    "cycles": 2,
    "snapshots_per_cycle": 2,
    "batch_size": 7,
    "momentum": 0.8,
    "weight_decay": 0.01,
    "rank": 5,
}
SIZES = (20, 33, 11, 26)


def slow_algorithm_1(model, clients, config):
    """Algorithm 1 in the order of its lines; batches and cohorts come from the run's seed, as data."""
    layout = Layout.of(model)

    def gradient(theta, batch):
        inputs, targets = batch
        leaf = theta.clone().requires_grad_()
        outputs = torch.func.functional_call(model, layout.views(leaf), (inputs,))
        return torch.autograd.grad(F.cross_entropy(outputs, targets), leaf)[0]

    def go(theta, client, rates, phase, round):
        generator = generator_from(derive_seed(config.seed, phase, round, client))
        epochs = [list(clients[client].batches(config.batch_size, generator=generator)) for _ in rates]
        return local_sgd(theta, epochs, rates, gradient, momentum=config.momentum, weight_decay=config.weight_decay)

    epochs = config.rounds * config.local_epochs
    theta, path = layout.flatten(model), []
    for t in range(config.rounds):  # l. 3
        cohort = sample_clients(config.clients_per_round, config.clients, seed=config.seed, phase=1, round=t)
        rates = [
            config.learning_rate + (config.final_learning_rate - config.learning_rate) * e / (epochs - 1)
            for e in range(t * config.local_epochs, (t + 1) * config.local_epochs)
        ]
        ends = [go(theta, client, rates, 1, t)[-1] for client in cohort]
        weights = [clients[client].num_examples if config.aggregation == "weighted-mean" else 1 for client in cohort]
        theta = sum(w * end for w, end in zip(weights, ends, strict=True)) / sum(weights)  # l. 12
        path.append(theta)
    cohort = sample_clients(config.explorers, config.clients, seed=config.seed, phase=2, round=0)  # l. 16
    c = config.explore_epochs // config.cycles
    a1, a2 = config.explore_learning_rate, config.explore_final_learning_rate
    rates = [(1 - (t % c) / c) * a1 + (t % c) / c * a2 for t in range(config.explore_epochs)]
    snapshots = []
    for client in cohort:
        after = go(theta, client, rates, 2, 0)
        # Epochs 1.5, 3, 4.5, 6 of 6, rounded down: two snapshots in each of two cycles.
        snapshots += [after[0], after[2], after[3], after[5]]
    return path, snapshots


def generator_from(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("aggregation", ["mean", "weighted-mean"])
@pytest.mark.parametrize("centering", ["final", "running"])
def test_algorithm_1_agrees_with_the_slow_reference(make_model, make_clients, aggregation, centering):
    config = Config(**SETTINGS, aggregation=aggregation)
    model, clients = make_model().double(), make_clients(SIZES, dtype=torch.float64)
    path, snapshots = slow_algorithm_1(model, clients, config)
    run = train(model, clients, config)
    rounds = synchronize(run.engine, Server(Layout.of(model).flatten(model)), config)
    exact = {"rtol": 1e-11, "atol": 1e-13}  # float64, about a hundred steps of a contracting iteration
    for round, theta in zip(rounds, path, strict=True):
        torch.testing.assert_close(round.theta, theta, **exact)
    mean, variance = two_pass_moments(snapshots)
    layout = Layout.of(model)
    collector = Moments(run.theta, rank=config.rank, centering=centering, layout=layout, dtype=torch.float64)
    posterior = explore(run.engine, run.theta, config, collector).fold.posterior()
    columns = {"final": columns_centered_on_final_mean, "running": columns_as_printed}[centering]
    torch.testing.assert_close(run.posterior.mean, mean, **exact)
    torch.testing.assert_close(run.posterior.variance, variance, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(posterior.deviations, columns(snapshots, config.rank), rtol=1e-9, atol=1e-12)
    if centering == "final":
        assert torch.equal(run.posterior.deviations, posterior.deviations)
    assert run.posterior.count == 3 * 4


def test_single_precision_follows_the_reference(make_model, make_clients):
    config = Config(**SETTINGS)
    _, snapshots = slow_algorithm_1(make_model().double(), make_clients(SIZES, dtype=torch.float64), config)
    posterior = train(make_model(), make_clients(SIZES), config).posterior
    mean, _ = two_pass_moments(snapshots)
    # Rounding of 1e-7 a step, over a hundred steps of weights of size one.
    torch.testing.assert_close(posterior.mean.double(), mean, rtol=0, atol=2e-5)


def bits(run):
    return [run.theta, *run.posterior.tensors().values()]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_same_config_gives_the_same_bits_for_any_number_of_workers(make_model, make_clients, dropout):
    config, clients = Config(**SETTINGS), make_clients(SIZES)
    model = make_model(dropout=dropout, batch_norm=True)
    runs = [
        train(model, clients, config, engine=InProcess(model, clients, workers=workers)) for workers in (1, 2, 3, 2)
    ]
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(bits(run), bits(runs[0]), strict=True))


def test_another_seed_gives_another_posterior(make_model, make_clients):
    one, two = (train(make_model(), make_clients(SIZES), Config(**{**SETTINGS, "seed": seed})) for seed in (1, 2))
    assert not torch.equal(one.posterior.mean, two.posterior.mean)


def test_training_changes_neither_the_model_nor_the_global_generator(make_model, make_clients):
    model = make_model(batch_norm=True, dropout=0.2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    train(model, make_clients(SIZES), Config(**SETTINGS))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_parts_make_the_whole(make_model, make_clients):
    """Those who own the loop get what `train` gives, and may resume it at any round."""
    config, model, clients = Config(**SETTINGS), make_model(), make_clients(SIZES)
    whole = train(model, clients, config)
    engine, theta = InProcess(model, clients), Layout.of(model).flatten(model)
    for round in synchronize(engine, Server(theta), config):
        theta = round.theta
        if round.number == 2:
            break
    for rest in synchronize(engine, round.server, config):
        theta = rest.theta
    posterior = explore(engine, theta, config, collect(theta, config)).fold.posterior()
    assert all(torch.equal(a, b) for a, b in zip((theta, *posterior.tensors().values()), bits(whole), strict=True))


def test_one_worker_works_with_several_snapshots(make_model, make_clients):
    config = Config(clients=1, rounds=2, explore_epochs=6, cycles=3, batch_size=10)
    posterior = train(make_model(), make_clients((40,)), config).posterior
    assert posterior.count == 3
    assert posterior.variance.sum() > 0


def test_only_a_part_of_the_clients_takes_part(make_model, make_clients):
    config = Config(clients=5, rounds=30, clients_per_round="40%", explorers=2, explore_epochs=1, batch_size=50)
    run = train(make_model(), make_clients((8,) * 5), config)
    cohorts = [round.clients for round in run.history]
    assert all(len(set(cohort)) == 2 for cohort in cohorts)
    assert {client for cohort in cohorts for client in cohort} == set(range(5))
    assert run.posterior.count == 2


def test_training_stops_once_the_accuracy_is_reached(make_model, make_clients):
    config = Config(clients=3, rounds=200, learning_rate=0.1, stop_accuracy=0.8, batch_size=10)
    run = train(make_model(batch_norm=True), make_clients(), config)
    assert 1 < len(run.history) < 200
    assert run.history[-1].accuracy >= 0.8 > max(round.accuracy for round in run.history[:-1])
    evaluation = evaluate(run.engine, run.theta, config)
    assert evaluation.accuracy == run.history[-1].accuracy
    assert evaluation.num_examples == 20 + 33 + 11


def test_what_has_no_classes_cannot_stop_at_an_accuracy_or_be_calibrated():
    clients = [(x, x[:, :1]) for x in torch.randn(2, 10, 3, generator=generator_for(0))]
    for settings, words in (
        ({"stop_accuracy": 0.9}, r"stop_accuracy takes scores \[b, c\] and the class of each example"),
        ({"calibrate": True, "holdout": 0.2}, r"calibration takes scores \[b, c\] and .*: set calibrate=False"),
    ):
        for loss in (lambda outputs, targets: F.mse_loss(outputs, targets), F.mse_loss):  # PyTorch's own is known
            early = "is for classes and yes-or-no labels"
            with pytest.raises((ValueError, ClientError), match=early if loss is F.mse_loss else words):
                train(nn.Linear(3, 1), clients, Config(clients=2, rounds=1, **settings), loss=loss)


def test_a_run_predicts_as_its_config_says(make_model, make_clients):
    model, x = make_model(batch_norm=True), torch.randn(7, 6, generator=generator_for(1))
    config = Config(clients=3, rounds=1, samples=3, scale=0.5, batch_norm_examples=10)
    run = train(model, make_clients(), config)
    options = {"samples": 3, "scale": 0.5, "batch_norm_examples": 10, "engine": run.engine}
    expected = predictive(model, run.posterior, x, **options)
    assert torch.equal(run.predictive(model, x).probabilities, expected.probabilities)
    other = predictive(model, run.posterior, x, **{**options, "scale": 0.1}, seed=4)
    assert torch.equal(run.predictive(model, x, scale=0.1, seed=4).probabilities, other.probabilities)


def test_evaluation_is_that_of_all_examples_together(make_model, make_clients):
    model, clients = make_model(), make_clients()
    config = Config(clients=3)
    evaluation = evaluate(InProcess(model, clients), Layout.of(model).flatten(model), config)
    inputs = torch.cat([client.inputs for client in clients])
    targets = torch.cat([client.targets for client in clients])
    with torch.no_grad():
        outputs = model(inputs)
    assert evaluation.loss == pytest.approx(F.cross_entropy(outputs, targets).item(), rel=1e-6)
    assert evaluation.accuracy == (outputs.argmax(1) == targets).float().mean().item()


def test_history_tells_the_mean_training_loss(make_model, make_clients):
    """With a learning rate of nearly nothing it is the loss of θ_0."""
    model, clients = make_model(), make_clients()
    run = train(model, clients, Config(clients=3, rounds=1, learning_rate=1e-12, weight_decay=0.0))
    expected = evaluate(run.engine, Layout.of(model).flatten(model), run.config).loss
    assert run.history[0].loss == pytest.approx(expected, rel=1e-5)


def test_every_snapshot_can_be_kept_beside_the_moments(make_model, make_clients):
    config, model, clients = Config(**SETTINGS), make_model(), make_clients(SIZES)
    theta = Layout.of(model).flatten(model)
    thetas = explore(InProcess(model, clients), theta, config, Snapshots()).fold.result()
    moments = explore(InProcess(model, clients), theta, config, collect(theta, config)).fold
    assert thetas.shape == (12, len(theta))
    mean, _ = two_pass_moments(list(thetas))
    assert torch.equal(moments.posterior().mean, mean.float())


# Bad input


def test_divergence_names_client_round_epoch_and_rate(make_model, make_clients):
    config = Config(clients=3, rounds=2, learning_rate=1e30, local_epochs=2)
    with pytest.raises(ClientError, match=r"client \d failed in round 1, epoch [12]: .*(learning rate 1e\+30)"):
        train(make_model(), make_clients(), config)


def test_explorers_are_averaged_after_every_round_trip_but_the_last(make_model, make_clients):
    config = Config(clients=3, rounds=2, explore_epochs=4, explore_rounds=2, snapshots_per_cycle=2, rank=4)
    engine = InProcess(make_model(), make_clients())
    theta = Layout.of(make_model()).flatten(make_model())
    rates = linear(config.learning_rate, config.learning_rate / 10, 4)
    clients = sample_clients("all", 3, seed=config.seed, phase=2, round=0)
    seeds = [[derive_seed(config.seed, 2, number, client) for client in clients] for number in range(2)]

    def snapshots(start, number, after):
        tasks = [
            replace(task, learning_rates=rates[2 * number : 2 * number + 2], snapshots=after, seed=seed)
            for task, seed in zip(_train_tasks(config, clients, (), (), phase=2, round=0), seeds[number], strict=True)
        ]
        return round_trip(engine, {"theta": start}, tasks, Snapshots()).fold.result()

    average = snapshots(theta, 0, (2,)).double().mean(0).float()
    done = explore(engine, theta, config, Snapshots())
    torch.testing.assert_close(done.fold.result(), snapshots(average, 1, (1, 2)))
    assert done.bytes_up == 3 * (4 * len(theta) + 8 * 4) + 3 * (2 * 4 * len(theta) + 8 * 4)


def test_one_exchange_of_exploring_is_the_paper_s(make_model, make_clients):
    engine = InProcess(make_model(), make_clients())
    theta = Layout.of(make_model()).flatten(make_model())
    printed = Config.paper(clients=3, explore_epochs=3)
    alone = Config(clients=3, explore_epochs=3, explore_rounds=1)  # a fifth of phase 1's rate, down to a tenth of that
    outcomes = [explore(engine, theta, config, Snapshots()).fold.result() for config in (printed, alone)]
    assert torch.equal(*outcomes)


def test_every_average_of_explorers_withstands_malicious_ones(make_model, make_clients):
    config = Config(
        clients=5, byzantine=1, aggregation="median", moments="median", explore_epochs=2, explore_learning_rate=0.01
    )
    engine = InProcess(make_model(), make_clients((20, 33, 11, 26, 30)))
    theta = Layout.of(make_model()).flatten(make_model())
    honest, attacked = (
        explore(each, theta, config, collect(theta, config)).fold.finish()
        for each in (engine, Attacked(engine, 1, constant))
    )
    assert (attacked.mean - honest.mean).norm() < 0.1 * (honest.mean - theta).norm() + 0.1


def test_divergence_in_phase_2_is_named(make_model, make_clients):
    config = Config(clients=3, rounds=1, explore_learning_rate=1e30, explore_final_learning_rate=1e30)
    with pytest.raises(ClientError, match=r"client \d failed in phase 2, round \d, epoch"):
        train(make_model(), make_clients(), config)


def test_a_config_for_another_number_of_clients_is_refused(make_model, make_clients):
    with pytest.raises(ValueError, match=r"the config is for 10 clients, got 3: pass Config\(clients=3, ...\)"):
        train(make_model(), make_clients(), Config())


def test_a_client_with_nan_inputs_is_named(make_model):
    good = (torch.zeros(4, 6), torch.zeros(4, dtype=torch.int64))
    bad = (torch.full((4, 6), math.nan), good[1])
    with pytest.raises(ValueError, match="client 1: inputs must be finite"):
        train(make_model(), [good, bad], Config(clients=2))


def test_labels_out_of_range_are_named(make_model):
    clients = [(torch.zeros(4, 6), torch.tensor([0, 1, 2, 2])), (torch.zeros(4, 6), torch.tensor([0, 1, 2, 3]))]
    with pytest.raises(ClientError, match=r"client 1 failed in round 1: .*3.*out of bounds"):
        train(make_model(), clients, Config(clients=2))


# Resuming, faults and divergence


@pytest.mark.parametrize("server_optimizer", ["plain", "momentum", "nesterov", "adagrad", "yogi", "adam"])
def test_a_loop_that_goes_on_from_any_round_gives_the_same(make_model, make_clients, server_optimizer):
    config = Config(**SETTINGS, server_optimizer=server_optimizer)
    model, engine = make_model(), InProcess(make_model(), make_clients(SIZES))
    whole = list(synchronize(engine, Server(Layout.of(model).flatten(model)), config))
    for stopped in whole[:-1]:
        rest = list(synchronize(engine, stopped.server, config))
        assert [round.number for round in rest] == list(range(stopped.number + 1, 4))
        assert torch.equal(rest[-1].theta, whole[-1].theta)
        assert [(round.loss, round.clients) for round in rest] == [
            (round.loss, round.clients) for round in whole[stopped.number :]
        ]
    assert list(synchronize(engine, whole[-1].server, config)) == []


def test_a_loop_that_had_reached_the_accuracy_does_not_go_on(make_model, make_clients):
    config = Config(clients=3, rounds=200, learning_rate=0.1, stop_accuracy=0.8, batch_size=10)
    model, engine = make_model(), InProcess(make_model(), make_clients())
    *_, before, reached = synchronize(engine, Server(Layout.of(model).flatten(model)), config)
    assert list(synchronize(engine, reached.server, config)) == []
    (last,) = synchronize(engine, before.server, config)
    assert torch.equal(last.theta, reached.theta)


class Failing:
    """An engine of which some clients fail in some rounds."""

    def __init__(self, engine, fails):
        self.engine, self.fails, self.num_clients = engine, fails, engine.num_clients
        self.batch_norm_layers = engine.batch_norm_layers

    def answers(self, payload, tasks):
        left = [task for task in tasks if not self.fails(task)]
        answers = self.engine.answers(payload, left) if left else iter(())
        for task in tasks:
            yield next(answers) if task in left else ClientError(task, "vanished")

    def combine(self, fold, failure=None):
        pass


def test_rounds_and_phase_2_go_on_without_clients_that_fail(make_model, make_clients):
    """Expected: the mean over the others, from an engine that has only them to ask."""
    config = Config(clients=4, rounds=2, explore_epochs=1, batch_size=7, on_failure="skip", min_clients=2)
    model = make_model()
    theta, whole = Layout.of(model).flatten(model), InProcess(model, make_clients(SIZES))
    engine = Failing(whole, lambda task: task.client == 2 and task.occasion in ("round 2", "phase 2"))
    first, second = synchronize(engine, Server(theta), config)
    assert (first.missing, second.missing) == ((), (Missing(2, "vanished"),))
    assert sorted(second.clients) == [0, 1, 2, 3]
    ends = []
    for start in (Server(theta), first.server):
        tasks = _train_tasks(config, (0, 1, 3), (config.learning_rate,), (1,), phase=1, round=start.round)
        ends.append(fold_answers(whole, {"theta": start.theta}, tasks, Snapshots()).result().double().mean(0))
    torch.testing.assert_close(second.theta.double(), ends[1], rtol=0, atol=1e-6)
    assert not torch.allclose(first.theta.double(), ends[0], rtol=0, atol=1e-4)  # there client 2 took part
    explored = explore(engine, second.theta, config, collect(second.theta, config))
    assert explored.missing == (Missing(2, "vanished"),)
    assert explored.fold.posterior().count == 3


def test_clients_that_a_robust_rule_needs_are_asked_once_more(make_model, make_clients):
    class Once(Failing):
        """Clients fail the first time that they are asked."""

        def answers(self, payload, tasks):
            yield from super().answers(payload, tasks)
            self.fails = lambda task: False

    config = Config(
        clients=4, rounds=1, explore_epochs=1, aggregation="median", moments="median", on_failure="skip", min_clients=1
    )
    model = make_model()
    whole, theta = InProcess(model, make_clients(SIZES)), Layout.of(model).flatten(model)
    (round,) = synchronize(Once(whole, lambda task: task.client > 1), Server(theta), config)
    assert round.missing == ()
    explored = explore(Once(whole, lambda task: task.client > 1), theta, config, collect(theta, config))
    assert explored.fold.posterior().count == 4


def test_a_run_that_must_hear_everybody_ends_with_the_first_failure(make_model, make_clients):
    engine = Failing(InProcess(make_model(), make_clients()), lambda task: task.client == 1)
    model = make_model()
    with pytest.raises(ClientError, match="client 1 failed in round 1: vanished"):
        train(model, [], Config(clients=3), engine=engine)


@pytest.fixture
def swinging():
    """A regression whose error grows from round to round, for the server steps far past what its clients came to."""
    inputs = torch.randn(3, 20, 6, generator=generator_from(0))
    config = Config(
        clients=3, rounds=30, learning_rate=0.02, server_optimizer="momentum", server_learning_rate=100.0, momentum=0.0
    )
    engine = InProcess(nn.Linear(6, 1), [(x, x.sum(1, keepdim=True)) for x in inputs], loss=F.mse_loss)
    return engine, Server(torch.zeros(7)), config


def test_a_server_rate_that_is_too_high_stops_the_run_with_advice(swinging):
    with pytest.raises(
        DivergenceError,
        match=r"round \d+ diverged: the mean training loss is [\d.e+]+, after [\d.]+ in the first round: "
        r"lower server_learning_rate \(100\), or lower learning_rate \(0.02 in this round\), or set clip_gradient",
    ):
        list(synchronize(*swinging))


def test_weights_that_overflow_on_the_server_stop_the_run(make_model, make_clients):
    config = Config(clients=3, rounds=3, learning_rate=1.0, local_epochs=9, server_learning_rate=3e38)
    with pytest.raises(DivergenceError, match="round 1 diverged: θ is not finite: lower server_learning_rate"):
        train(make_model(), make_clients(), config)


def test_a_client_whose_loss_explodes_is_named_with_its_rate(make_model, make_clients):
    config = Config(clients=3, rounds=2, learning_rate=300.0, local_epochs=3)
    with pytest.raises(
        ClientError,
        match=r"client \d failed in round 1, epoch \d: loss is [\d.]+, after [\d.]+ in the first minibatch "
        r"\(learning rate 300\): lower the learning rate, or set clip_gradient",
    ):
        train(make_model(), make_clients(), config)


def test_where_a_run_was_left_does_not_decide_whether_it_diverged(swinging):
    engine, first, config = swinging
    rounds = []

    def follow(start):
        for round in synchronize(engine, start, config):
            rounds.append(round)

    with pytest.raises(DivergenceError) as whole:
        follow(first)
    with pytest.raises(DivergenceError) as rest:
        follow(rounds[-1].server)
    assert str(rest.value) == str(whole.value)


@pytest.mark.parametrize(
    ("loss", "first", "diverged"),
    [
        (23.1, 2.3, True),
        (22.9, 2.3, False),
        (9.9, 1e-4, False),  # from trained weights, or on one class alone
        (10.1, 1e-4, True),
        (1e6, 2e5, False),  # a loss in large units
        (math.nan, 1.0, True),
        (math.inf, 1.0, True),
        (-5.0, -6.0, False),  # log-densities
        (10.1, -6.0, True),
    ],
)
def test_a_loss_has_diverged_at_ten_times_the_first_one_and_ten_at_least(loss, first, diverged):
    assert has_diverged(loss, first, 10.0) is diverged


@pytest.mark.parametrize("seed", range(3))
def test_healthy_training_of_one_noisy_client_a_round_is_not_called_diverged(make_model, seed):
    """Each client has examples of one class alone, so the loss swings by two orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(90, 6, generator=generator)
    inputs[torch.arange(90), torch.arange(90) // 30] += 3
    clients = [(inputs[start : start + 30], torch.full((30,), start // 30)) for start in (0, 30, 60)]
    config = Config(clients=3, seed=seed, rounds=30, clients_per_round=1, local_epochs=4, batch_size=1)
    losses = [round.loss for round in train(make_model(), clients, config).history]
    assert max(losses) > 50 * min(losses)


def test_a_run_is_shown_without_its_weights(make_model, make_clients):
    run = train(make_model(), make_clients(), Config(clients=3, rounds=2))
    for shown in (run, run.posterior, run.history[-1]):
        assert "tensor(" not in repr(shown)
    assert "count=3" in repr(run)
    assert "number=2" in repr(run.history[-1])


def test_a_run_keeps_the_weights_of_its_last_round_alone(make_model, make_clients):
    rounds = []

    class Watching(InProcess):
        def answers(self, payload, tasks):
            rounds.append(weakref.ref(payload["theta"]))
            return super().answers(payload, tasks)

    model, config = make_model(), Config.paper(clients=3, rounds=5)
    run = train(model, (), config, engine=Watching(model, make_clients()))
    assert [round.number for round in run.history] == [1, 2, 3, 4, 5]
    assert [theta() is None for theta in rounds] == [True] * 5 + [False]  # phase 2 starts from θ_T
    assert rounds[-1]() is run.theta


@pytest.mark.usefixtures("one_intra_op_thread")
@pytest.mark.parametrize("aggregation", ["mean", "krum", "multi-krum", "geometric-median"])
def test_the_caller_s_default_device_does_not_matter(make_model, make_clients, aggregation):
    """Tensors on the meta device have no values: one that came in between would be an error, or another result."""
    model, clients = make_model(batch_norm=True), make_clients((20, 33, 11, 26, 30))
    config = Config(clients=5, rounds=2, aggregation=aggregation, byzantine=1, holdout=0.2, calibrate=True, rank=2)

    def outcome():
        run = train(model, clients, config)
        return predict(model, run.posterior, clients[0].inputs, engine=run.engine, samples=3)

    expected = outcome()
    with torch.device("meta"):
        assert torch.equal(outcome(), expected)
