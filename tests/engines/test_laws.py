"""The laws that every engine passes; a new engine joins by a row in ENGINES."""

import math
import weakref
from copy import deepcopy
from functools import cache

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from folding import fold_answers, results_of
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.data import DataLoader, Dataset, TensorDataset

from dswag.client.evaluation import EvaluateTask, Tally
from dswag.client.statistics import PooledStatistics, StatisticsTask
from dswag.client.training import TrainTask
from dswag.core.parameters import Layout
from dswag.core.randomness import DrawFrom, derive_seed, generator_for
from dswag.data.examples import Examples
from dswag.engines.distributed import Distributed
from dswag.engines.in_process import InProcess
from dswag.engines.ranks import Ranks
from dswag.federation.contract import ClientError
from dswag.federation.folds import Snapshots
from dswag.federation.local_update import ClientUpdate

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")


@cache
def alone():
    """A process group of this process, without any network."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return Ranks()


def distributed(*arguments, **options):
    return Distributed(*arguments, ranks=alone(), **options)


def flower(*arguments, **options):
    return pytest.importorskip("flower_grid").on_flower(*arguments, **options)


ENGINES = [
    pytest.param(InProcess, id="in process"),
    pytest.param(distributed, id="distributed"),
    pytest.param(flower, id="flower"),
]
"""Each makes an engine of (model, clients, *, loss, workers), where `workers` is how many clients run at a time."""

each_engine = pytest.mark.parametrize("make_engine", ENGINES)

UPDATE = ClientUpdate(batch_size=8, momentum=0.9, weight_decay=0.01)
SIZES = (20, 33, 11, 26)
EVERYBODY = range(len(SIZES))


EVERYTHING = {}


class List:
    """A fold that keeps the results themselves; its state names them, so it cannot leave this process."""

    def __init__(self):
        self.results = []

    def add(self, result):
        self.results.append(result)

    def merge(self, other):
        self.results += other.results

    def result(self):
        return self.results

    def empty(self):
        return type(self)()

    def state(self):
        EVERYTHING.update({id(result): result for result in self.results})
        return {"results": torch.tensor([id(result) for result in self.results], dtype=torch.int64)}

    def load(self, state):
        self.results = [EVERYTHING[name] for name in state["results"].tolist()]


def train_task(index, client, **options):
    given = {
        "occasion": "round 3",
        "learning_rates": (0.1, 0.05, 0.02),
        "snapshots": (1, 3),
        "seed": derive_seed(7, client),
        "update": UPDATE,
    }
    return TrainTask(index=index, client=client, **{**given, **options})


def statistics_task(index, client):
    return StatisticsTask(index=index, client=client, occasion="a refresh", batch_size=9, max_examples=18, seed=client)


def evaluate_task(index, client):
    return EvaluateTask(index=index, client=client, occasion="an evaluation", batch_size=9)


def train_tasks(clients=EVERYBODY, **options):
    return [train_task(index, client, **options) for index, client in enumerate(clients)]


KINDS = {"train": train_task, "statistics": statistics_task, "evaluate": evaluate_task}
each_kind = pytest.mark.parametrize("make_task", KINDS.values(), ids=KINDS.keys())


def theta_of(model):
    return Layout.of(model).flatten(model)


def run(engine, model, tasks=None, **payload):
    """All snapshots of the tasks, one client after another if not given."""
    return fold_answers(engine, {"theta": theta_of(model), **payload}, tasks or train_tasks(), Snapshots()).result()


def tensors_in(result):
    """All that a result of any kind says, as tensors."""
    values = []
    for value in vars(result).values():
        if isinstance(value, tuple):
            values += [part for draw in value for seen in draw.values() for part in (seen.mean, seen.scatter)]
        else:
            values.append(torch.as_tensor(math.nan if value is None else value))
    return values


def same(results, others):
    pairs = [(a, b) for x, y in zip(results, others, strict=True) for a, b in zip(tensors_in(x), tensors_in(y))]  # noqa: B905
    return all(torch.equal(a, b) for a, b in pairs)


# ---------------------------------------------------------------------------------------------------- the exchange


@each_engine
@each_kind
@pytest.mark.parametrize("workers", [1, 3])
def test_every_task_has_one_result_folded_in_task_order(make_engine, make_task, workers, make_model, make_clients):
    model = make_model(batch_norm=True)
    engine = make_engine(model, make_clients(SIZES), workers=workers)
    clients = [3, 0, 1, 1, 2, 0]  # a client may be asked twice
    tasks = [make_task(index, client) for index, client in enumerate(clients)]
    results = results_of(engine, {"theta": theta_of(model)}, tasks)
    assert [(result.index, result.client) for result in results] == list(enumerate(clients))


@each_engine
def test_the_fold_given_is_the_fold_returned(make_engine, make_model, make_clients):
    model, fold = make_model(), List()
    engine = make_engine(model, make_clients())
    assert fold_answers(engine, {"theta": theta_of(model)}, train_tasks([0]), fold) is fold
    fold_answers(engine, {"theta": theta_of(model)}, train_tasks([1]), fold)
    assert [result.client for result in fold.results] == [0, 1]


@each_engine
def test_clients_are_counted(make_engine, make_model, make_clients):
    assert make_engine(make_model(), make_clients(SIZES)).num_clients == len(SIZES)


@each_engine
def test_no_tasks_are_an_error(make_engine, make_model, make_clients):
    model = make_model()
    with pytest.raises(ValueError, match="no tasks: sample at least one client"):
        results_of(make_engine(model, make_clients()), {"theta": theta_of(model)}, [])


@each_engine
@pytest.mark.parametrize("client", [-1, 3, 100])
def test_an_unknown_client_is_an_error_before_any_work(make_engine, client, make_model, make_clients):
    model, fold = make_model(), List()
    engine = make_engine(model, make_clients((5, 6, 7)))
    with pytest.raises(ValueError, match=rf"clients are numbered 0 to 2, got tasks for \[{client}\]"):
        fold_answers(engine, {"theta": theta_of(model)}, train_tasks([0, client]), fold)
    assert fold.results == []


@each_engine
@pytest.mark.parametrize("d", [1, 10])
def test_theta_of_another_model_is_an_error(make_engine, d, make_model, make_clients):
    with pytest.raises((ValueError, ClientError), match=rf"θ must have shape \[53\] for these parameters, got \[{d}\]"):
        results_of(make_engine(make_model(), make_clients()), {"theta": torch.zeros(d)}, train_tasks([0]))


@each_engine
@each_kind
def test_payload_model_and_data_are_read_only(make_engine, make_task, make_model, make_clients):
    model, clients = make_model(batch_norm=True, dropout=0.3), make_clients(SIZES)
    model[0].eval()
    payload = {"theta": theta_of(model), "buffer.1.running_mean": torch.full((5,), 0.5)}
    before = deepcopy((payload, model.state_dict(), [(c.inputs, c.targets) for c in clients]))
    modes = [m.training for m in model.modules()]
    engine = make_engine(model, clients, workers=2)
    results_of(engine, payload, [make_task(index, client) for index, client in enumerate([0, 1, 2, 3, 0])])
    assert all(torch.equal(payload[name], value) for name, value in before[0].items())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before[1].items())
    assert all(torch.equal(c.inputs, x) and torch.equal(c.targets, y) for c, (x, y) in zip(clients, before[2]))  # noqa: B905
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


@each_engine
def test_results_are_the_caller_s_own(make_engine, make_model, make_clients):
    model = make_model()
    engine = make_engine(model, make_clients(SIZES), workers=1)
    payload = {"theta": theta_of(model)}
    (first,) = results_of(engine, payload, train_tasks([0]))
    kept = first.thetas.clone()
    results_of(engine, payload, train_tasks([1]))
    assert torch.equal(first.thetas, kept)
    first.thetas.zero_()
    assert torch.equal(fold_answers(engine, payload, train_tasks([0]), Snapshots()).result(), kept)


@each_engine
def test_results_carry_no_graph_even_if_theta_does(make_engine, make_model, make_clients):
    model = make_model()
    engine = make_engine(model, make_clients(SIZES), workers=1)
    theta = parameters_to_vector(model.parameters())
    assert theta.requires_grad
    results = results_of(engine, {"theta": theta}, train_tasks([0, 1]))
    assert not any(result.thetas.requires_grad for result in results)
    assert torch.equal(torch.cat([r.thetas for r in results]), run(engine, model, train_tasks([0, 1])))


# --------------------------------------------------------------------------------------------------- same answers


MODELS = {
    "plain": {},
    "batch norm": {"batch_norm": True},
    "dropout": {"dropout": 0.4},
}


@each_engine
@each_kind
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS.keys())
def test_answers_do_not_depend_on_the_number_of_workers(make_engine, make_task, options, make_model, make_clients):
    model = make_model(**options)
    tasks = [make_task(index, client) for index, client in enumerate([2, 0, 3, 1, 0])]
    answers = []
    for workers in (1, 2, 3):
        engine = make_engine(model, make_clients(SIZES), workers=workers)
        answers.append(results_of(engine, {"theta": theta_of(model)}, tasks))
    assert same(answers[0], answers[1])
    assert same(answers[0], answers[2])


@each_engine
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS.keys())
def test_an_answer_depends_on_payload_and_task_alone(make_engine, options, make_model, make_clients):
    # not on what ran before in the same place (momentum, buffers, gradients), nor on who else takes part
    model = make_model(**options)
    engine = make_engine(model, make_clients(SIZES), workers=1)
    payload = {"theta": theta_of(model)}

    def answers(make_task):
        return results_of(engine, payload, [make_task(0, 2)])

    fresh = {kind: answers(make_task) for kind, make_task in KINDS.items()}
    results_of(engine, {"theta": torch.ones(Layout.of(model).d)}, train_tasks())
    results_of(engine, payload, [statistics_task(0, 1), evaluate_task(1, 3), *train_tasks()])
    assert all(same(answers(make_task), fresh[kind]) for kind, make_task in KINDS.items())
    beside = results_of(engine, payload, [train_task(0, 2), train_task(1, 1)])[:1]
    assert same(beside, fresh["train"])


@each_engine
def test_the_global_generator_is_neither_read_nor_advanced(make_engine, make_model, make_clients):
    model = make_model(dropout=0.4)
    engine = make_engine(model, make_clients(SIZES), workers=2)
    state = torch.get_rng_state()
    first = run(engine, model)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert torch.equal(run(engine, model), first)


@each_engine
@pytest.mark.parametrize("options", [{}, {"dropout": 0.4}], ids=["order of batches", "dropout"])
def test_another_seed_gives_another_answer(make_engine, options, make_model, make_clients):
    model = make_model(**options)
    engine = make_engine(model, make_clients(SIZES))
    assert not torch.equal(run(engine, model, train_tasks(seed=1)), run(engine, model, train_tasks(seed=2)))


@each_engine
def test_dropout_is_on_in_training_and_off_elsewhere(make_engine, make_model, make_clients):
    with_dropout, without = make_model(dropout=0.4), make_model()
    engines = [make_engine(model, make_clients(SIZES)) for model in (with_dropout, without)]
    assert not torch.equal(run(engines[0], with_dropout), run(engines[1], without))
    evaluated = [results_of(e, {"theta": theta_of(without)}, [evaluate_task(0, 1)]) for e in engines]
    assert same(*evaluated)


@each_engine
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_caller_s_gradient_mode_does_not_matter(make_engine, mode, workers, make_model, make_clients):
    model = make_model()
    engine = make_engine(model, make_clients(SIZES), workers=workers)
    expected = run(engine, model)
    with mode():
        assert torch.equal(run(engine, model), expected)


class Counting(nn.Module):
    """Keeps a state in its buffers and computes with it: what one client leaves there must not reach another."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.register_buffer("calls", torch.tensor(0), persistent=False)
        self.register_buffer("size", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.calls += 1
        self.size += x.detach().abs().mean()
        return self.linear(x) / (1 + 0.01 * self.calls + 0.01 * self.size)


@each_engine
def test_buffers_do_not_leak_from_one_client_into_another(make_engine, make_clients):
    with DrawFrom(generator_for(0)):
        model = Counting()
    engine = make_engine(model, make_clients(SIZES), workers=1)
    alone = torch.cat([run(make_engine(model, make_clients(SIZES)), model, [train_task(0, c)]) for c in range(4)])
    assert torch.equal(run(engine, model), alone)
    assert model.calls == 0


@each_engine
def test_batch_norm_statistics_of_training_do_not_reach_an_evaluation(make_engine, make_model, make_clients):
    model = make_model(batch_norm=True)
    engine = make_engine(model, make_clients(SIZES), workers=1)
    payload = {"theta": theta_of(model)}
    before = results_of(engine, payload, [evaluate_task(0, 0)])
    results_of(engine, payload, train_tasks())
    assert same(results_of(engine, payload, [evaluate_task(0, 0)]), before)


@each_engine
def test_buffers_in_the_payload_are_used_once(make_engine, make_model, make_clients):
    model = make_model(batch_norm=True)
    engine = make_engine(model, make_clients(SIZES), workers=1)
    payload = {"theta": theta_of(model)}
    own = results_of(engine, payload, [evaluate_task(0, 0)])
    given = results_of(engine, {**payload, "buffer.1.running_mean": torch.full((5,), 2.0)}, [evaluate_task(0, 0)])
    assert not same(given, own)
    plain = deepcopy(model).eval()
    plain[1].running_mean.fill_(2.0)
    data = make_clients(SIZES)[0]
    expected = F.cross_entropy(plain(data.inputs), data.targets, reduction="sum")
    assert given[0].loss_sum == pytest.approx(expected.item(), rel=1e-5)  # 20 float32 terms
    assert same(results_of(engine, payload, [evaluate_task(0, 0)]), own)


# ------------------------------------------------------------------------------------- equal to plain PyTorch


def plain_training(model, theta, client, task, loss=F.cross_entropy):
    """Algorithm 1, lines 5-10, the usual way: a module, `torch.optim.SGD`, and the same batches."""
    module = deepcopy(model).train()
    vector_to_parameters(theta.clone(), module.parameters())  # which makes them views
    update = task.update
    optimizer = torch.optim.SGD(module.parameters(), 1.0, momentum=update.momentum, weight_decay=update.weight_decay)
    generator = torch.Generator().manual_seed(task.seed)
    thetas = []
    for epoch, rate in enumerate(task.learning_rates, start=1):
        optimizer.param_groups[0]["lr"] = rate
        total = 0.0
        order = torch.randperm(len(client.targets), generator=generator)
        for rows in order.tensor_split(math.ceil(len(order) / update.batch_size)):
            optimizer.zero_grad()
            batch_loss = loss(module(client.inputs[rows]), client.targets[rows])
            batch_loss.backward()
            optimizer.step()
            total += len(rows) * batch_loss.item()
        if epoch in task.snapshots:
            thetas.append(parameters_to_vector(module.parameters()).detach())
    return torch.stack(thetas), total / len(order)


class Convolutions(nn.Module):
    """In the style of the tutorials: the feature maps are flattened by `view`, which needs them contiguous."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(2, 4, (2, 1)), nn.BatchNorm2d(4), nn.Tanh())
        self.head = nn.Linear(8, 3)
        self.skip = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.features(x).view(len(x), -1)) + self.skip(x.view(len(x), -1))


class TiedAndAttending(nn.Module):
    """A matrix used twice, parameters owned beside children, a parameter without axes."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.embed = nn.Linear(6, 6, bias=False)
        self.again = nn.Linear(6, 6)
        self.again.weight = self.embed.weight
        self.attention = nn.MultiheadAttention(3, 1, batch_first=True)

    def forward(self, x):
        x = self.again(self.embed(x).tanh()).view(-1, 2, 3)
        return self.scale * self.attention(x, x, x, need_weights=False)[0][:, 0]


REFERENCES = {
    "perceptron": (lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), (6,)),
    "batch norm": (lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), (6,)),
    "convolutions": (Convolutions, (2, 3, 1)),
    "tied and attending": (TiedAndAttending, (6,)),
}


@each_engine
@pytest.mark.parametrize(("make", "shape"), REFERENCES.values(), ids=REFERENCES.keys())
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_training_equals_plain_pytorch(make_engine, make, shape, momentum, weight_decay, make_clients):
    with DrawFrom(generator_for(5)):
        model = make().double()
    clients = [Examples(e.inputs.view(-1, *shape), e.targets) for e in make_clients(SIZES, dtype=torch.float64)]
    theta = theta_of(model)
    theta += 0.01 * torch.randn(theta.shape, generator=generator_for(6), dtype=theta.dtype)
    update = ClientUpdate(batch_size=8, momentum=momentum, weight_decay=weight_decay)
    tasks = train_tasks(learning_rates=(0.1, 0.05, 0.02, 0.01), snapshots=(1, 2, 4), update=update)
    results = results_of(make_engine(model, clients, workers=2), {"theta": theta}, tasks)
    for task, client, result in zip(tasks, clients, results, strict=True):
        thetas, loss = plain_training(model, theta, client, task)
        assert (thetas[-1] - theta).abs().max() > 1e-3
        # at most 20 steps of a few roundings of 2^-53; the map from one step to the next expands by less than 2
        torch.testing.assert_close(result.thetas, thetas, rtol=0, atol=1e-11)
        assert result.loss == pytest.approx(loss, rel=8 * 2**-24)  # a float32 sum over at most 5 batches
        assert result.num_examples == len(client)


@each_engine
def test_float32_training_equals_plain_pytorch_to_rounding(make_engine, make_model, make_clients):
    model, clients, tasks = make_model(), make_clients(SIZES), train_tasks()
    theta = theta_of(model)
    found = run(make_engine(model, clients), model)
    plain = torch.cat([plain_training(model, theta, c, t)[0] for c, t in zip(clients, tasks, strict=True)])
    # 15 steps, each with about 10 roundings of weights below 1 by 2^-24
    torch.testing.assert_close(found, plain, rtol=0, atol=150 * 2**-24)


@each_engine
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_evaluation_equals_one_pass_over_all_examples(make_engine, batch_size, make_model, make_clients):
    model, clients = make_model(dropout=0.4), make_clients(SIZES)
    tasks = [
        EvaluateTask(index=client, client=client, occasion="an evaluation", batch_size=batch_size)
        for client in range(4)
    ]
    found = fold_answers(make_engine(model, clients), {"theta": theta_of(model)}, tasks, Tally()).result()
    inputs = torch.cat([c.inputs for c in clients]).double()
    targets = torch.cat([c.targets for c in clients])
    logits = deepcopy(model).eval().double()(inputs)
    assert found.num_examples == sum(SIZES)
    assert found.accuracy == (logits.argmax(1) == targets).double().mean().item()
    assert found.loss == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-5)  # float32 beside float64


@each_engine
def test_statistics_of_all_clients_are_those_of_all_examples(make_engine, make_clients):
    model, clients = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)), make_clients(SIZES)
    tasks = [
        StatisticsTask(index=c, client=c, occasion="a refresh", batch_size=7, max_examples=None, seed=c)
        for c in range(4)
    ]
    (found,) = fold_answers(make_engine(model, clients), {"theta": theta_of(model)}, tasks, PooledStatistics()).result()
    inputs = torch.cat([c.inputs for c in clients]).double()
    torch.testing.assert_close(found["0.running_mean"].double(), inputs.mean(0), rtol=0, atol=12 * 2**-24)
    torch.testing.assert_close(found["0.running_var"].double(), inputs.var(0), rtol=12 * 2**-24, atol=0)


# ----------------------------------------------------------------------------------------------- forms of data


class Pairs(Dataset):
    """Examples one by one, as users' data sets give them; `wrap` says in which form the inputs are."""

    def __init__(self, examples, wrap=lambda x: x):
        self.examples, self.wrap = examples, wrap

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, i):
        return self.wrap(self.examples.inputs[i]), int(self.examples.targets[i])


FORMS = {
    "pair of tensors": lambda e: (e.inputs, e.targets),
    "tensor data set": lambda e: TensorDataset(e.inputs, e.targets),
    "data set": Pairs,
    "loader": lambda e: DataLoader(TensorDataset(e.inputs, e.targets), batch_size=7),
    "shuffling loader": lambda e: DataLoader(Pairs(e), batch_size=7, shuffle=True),
    "int32 labels": lambda e: (e.inputs, e.targets.int()),
    "uint8 labels": lambda e: (e.inputs, e.targets.to(torch.uint8)),
}


@each_engine
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_every_form_of_data_is_repeatable_and_leaves_the_global_generator(make_engine, form, make_model, make_clients):
    model, clients = make_model(dropout=0.2), [form(examples) for examples in make_clients(SIZES)]
    first = run(make_engine(model, clients, workers=1), model)
    state = torch.get_rng_state()
    engine = make_engine(model, clients, workers=2)
    assert torch.equal(run(engine, model), first)
    assert torch.equal(run(engine, model), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(run(engine, model, train_tasks(seed=1)), first)


@each_engine
@pytest.mark.parametrize("form", ["pair of tensors", "tensor data set", "int32 labels", "uint8 labels"])
def test_tensors_give_the_same_in_every_form(make_engine, form, make_model, make_clients):
    model, clients = make_model(), make_clients(SIZES)
    expected = run(make_engine(model, clients), model)
    assert torch.equal(run(make_engine(model, [FORMS[form](e) for e in clients]), model), expected)


class OfDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, x):
        return self.left(x["left"]) + self.right(x["right"])


@each_engine
def test_inputs_may_be_a_dict(make_engine, make_clients):
    with DrawFrom(generator_for(0)):
        model = OfDict()
    clients = [Pairs(e, lambda x: {"left": x[:4], "right": x[4:]}) for e in make_clients(SIZES)]
    engine = make_engine(model, clients, workers=2)
    payload = {"theta": theta_of(model)}
    tasks = train_tasks(learning_rates=(0.1,) * 5, snapshots=(5,))
    before = fold_answers(engine, payload, [evaluate_task(0, 1)], Tally()).result()
    (_, theta, *_) = fold_answers(engine, payload, tasks, Snapshots()).result()
    after = fold_answers(engine, {"theta": theta}, [evaluate_task(0, 1)], Tally()).result()
    assert after.loss < before.loss
    assert after.num_examples == 33


@each_engine
def test_a_loss_of_one_s_own_trains_a_regression(make_engine, make_clients):
    def loss(outputs, targets):
        return F.huber_loss(outputs.squeeze(1), targets)

    with DrawFrom(generator_for(0)):
        model = nn.Linear(6, 1).double()
    clients = [Examples(e.inputs, e.inputs.sum(1)) for e in make_clients(SIZES, dtype=torch.float64)]
    engine = make_engine(model, clients, loss=loss, workers=2)
    theta, tasks = theta_of(model), train_tasks()
    found = fold_answers(engine, {"theta": theta}, tasks, Snapshots()).result()
    expected = [plain_training(model, theta, c, t, loss)[0] for c, t in zip(clients, tasks, strict=True)]
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-11)
    assert fold_answers(engine, {"theta": theta}, [evaluate_task(0, 1)], Tally()).result().accuracy is None


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean, self.spread = nn.Linear(6, 1), nn.Linear(6, 1)

    def forward(self, x):
        return {"mean": self.mean(x).squeeze(1), "variance": F.softplus(self.spread(x)).squeeze(1)}


@each_engine
def test_outputs_may_be_whatever_the_loss_takes(make_engine, make_clients):
    with DrawFrom(generator_for(0)):
        model = TwoHeads()
    clients = [Examples(e.inputs, e.inputs.sum(1)) for e in make_clients(SIZES)]
    engine = make_engine(model, clients, loss=lambda o, y: F.gaussian_nll_loss(o["mean"], y, o["variance"]))
    payload = {"theta": theta_of(model)}
    before = fold_answers(engine, payload, [evaluate_task(0, 1)], Tally()).result()
    theta = fold_answers(engine, payload, train_tasks([1]), Snapshots()).result()[-1]
    after = fold_answers(engine, {"theta": theta}, [evaluate_task(0, 1)], Tally()).result()
    assert after.accuracy is None
    assert after.loss < before.loss


@each_engine
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("workers", [1, 2])
def test_bfloat16_stays_near_float32_and_keeps_float32_weights(make_engine, options, workers, make_model, make_clients):
    model = make_model(**options)
    engine = make_engine(model, make_clients(SIZES), workers=workers)
    half = ClientUpdate(batch_size=8, momentum=0.9, weight_decay=0.01, precision="bfloat16")
    theta, single, mixed = theta_of(model), run(engine, model), run(engine, model, train_tasks(update=half))
    assert mixed.dtype == torch.float32
    assert not torch.equal(mixed, single)
    # gradients are off by a few roundings of 2^-9 = 0.2 % each, activations included: 5 % of the way gone is ample
    assert (mixed - single).norm() < 0.05 * (single - theta).norm()


# ------------------------------------------------------------------------------------------------- clients fail


def with_bad_client(clients, number, **changes):
    bad = clients[number]
    return [
        *clients[:number],
        Examples(**{"inputs": bad.inputs, "targets": bad.targets, **changes}),
        *clients[number + 1 :],
    ]


def failure(make_engine, model, clients, tasks=None, workers=2, **options):
    engine = make_engine(model, clients, workers=workers, **options)
    with pytest.raises(ClientError) as caught:
        results_of(engine, {"theta": theta_of(model)}, tasks or train_tasks())
    return str(caught.value)


@each_engine
@pytest.mark.parametrize("label", [3, 250, -1])
def test_a_label_out_of_range_names_client_and_occasion(make_engine, label, make_model, make_clients):
    clients = make_clients(SIZES)
    targets = clients[2].targets.clone()
    targets[4] = label
    words = failure(make_engine, make_model(), with_bad_client(clients, 2, targets=targets))
    assert words.startswith(f"client 2 failed in round 3: IndexError: Target {label} is out of bounds. (the loss was ")
    assert f" from {min(label, 0)} to {max(label, 2)})" in words


@each_engine
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_client_round_epoch_and_rate(make_engine, bad, make_model, make_clients):
    def loss(outputs, targets):  # the large rate of epoch 2 makes large outputs, and these the loss
        return F.cross_entropy(outputs, targets) + (bad if outputs.abs().max() > 1e4 else 0.0)

    tasks = train_tasks([1], learning_rates=(0.1, 1e7, 0.1))
    words = failure(make_engine, make_model(), make_clients(SIZES), tasks, loss=loss)
    assert words.startswith(f"client 1 failed in round 3, epoch 2: loss is {bad} (learning rate 1e+07): lower the ")


@each_engine
def test_weights_that_overflow_name_client_round_epoch_and_rate(make_engine, make_clients):
    model = nn.Linear(6, 3)
    tasks = train_tasks([0, 3], learning_rates=(0.1, 1e38), snapshots=(2,))
    words = failure(make_engine, model, make_clients(SIZES), tasks, workers=1)
    assert words.startswith("client 0 failed in round 3, epoch 2: ")
    assert " (learning rate 1e+38): lower the learning rate, " in words


class WithNan(Pairs):
    """Not checked when it is given, as its examples are made one by one."""

    def __getitem__(self, i):
        inputs, target = super().__getitem__(i)
        return (inputs * math.nan if i % 2 else inputs), target


NAN = {
    "train": "client 2 failed in round 3, epoch 1: loss is nan before the first step: "
    "look for NaN or infinity in the data",
    "statistics": "client 2 failed in a refresh: inputs of the BatchNorm layers ['1'] are not finite",
    "evaluate": "client 2 failed in an evaluation: loss is nan",
}


@each_engine
@pytest.mark.parametrize("kind", KINDS)
def test_nan_among_a_data_set_s_inputs_names_the_client(make_engine, kind, make_model, make_clients):
    clients = make_clients(SIZES)
    clients[2] = WithNan(clients[2])
    tasks = [KINDS[kind](index, client) for index, client in enumerate(range(4))]
    assert failure(make_engine, make_model(batch_norm=True), clients, tasks) == NAN[kind]


@each_engine
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_of_several_failing_clients_the_first_task_is_named(make_engine, workers, make_model, make_clients):
    clients = make_clients(SIZES)
    for number in (0, 2, 3):
        clients = with_bad_client(clients, number, targets=clients[number].targets + 5)
    words = failure(make_engine, make_model(), clients, train_tasks([1, 3, 0, 2]), workers=workers)
    assert words.startswith("client 3 failed in round 3: IndexError")


@each_engine
def test_after_a_failure_the_engine_answers_as_before(make_engine, make_model, make_clients):
    model, clients = make_model(batch_norm=True, dropout=0.3), make_clients(SIZES)
    engine = make_engine(model, with_bad_client(clients, 3, targets=clients[3].targets + 5), workers=2)
    tasks = [train_task(0, 0), statistics_task(1, 1), evaluate_task(2, 2)]
    payload = {"theta": theta_of(model)}
    before = results_of(engine, payload, tasks)
    for bad in ([*tasks, train_task(3, 3)], [train_task(0, 3), *tasks]):
        with pytest.raises(ClientError):
            results_of(engine, payload, bad)
        assert same(results_of(engine, payload, tasks), before)


@each_engine
def test_a_fold_s_own_error_comes_through_and_leaves_the_engine_whole(make_engine, make_model, make_clients):
    class Refusing(List):
        def add(self, result):
            if len(self.results) == 1:
                raise KeyError("enough")
            super().add(result)

    model = make_model()
    engine = make_engine(model, make_clients(SIZES), workers=2)
    before = run(engine, model)
    threads = torch.get_num_threads()
    with pytest.raises(KeyError, match="enough"):
        fold_answers(engine, {"theta": theta_of(model)}, train_tasks(), Refusing())
    assert torch.get_num_threads() == threads
    assert torch.equal(run(engine, model), before)


# ---------------------------------------------------------------------------------------------- batches and memory


@each_engine
def test_fifty_one_examples_in_batches_of_fifty_leave_no_lone_one_to_batch_norm(make_engine, make_model, make_clients):
    model = make_model(batch_norm=True)
    engine = make_engine(model, make_clients((51,)))
    update = ClientUpdate(batch_size=50)
    assert run(engine, model, train_tasks([0], update=update)).isfinite().all()
    task = StatisticsTask(index=0, client=0, occasion="a refresh", batch_size=50, max_examples=None, seed=0)
    (found,) = fold_answers(engine, {"theta": theta_of(model)}, [task], PooledStatistics()).result()
    assert (found["1.running_var"] > 0).all()


@each_engine
@each_kind
def test_a_client_with_one_example_fails_batch_norm_by_name_or_is_evaluated(
    make_engine, make_task, make_model, make_clients
):
    model = make_model(batch_norm=True)
    tasks = [make_task(0, 0), make_task(1, 1)]
    if make_task is evaluate_task:
        results = results_of(make_engine(model, make_clients((9, 1))), {"theta": theta_of(model)}, tasks)
        assert results[1].num_examples == 1
    else:
        words = failure(make_engine, model, make_clients((9, 1)), tasks)
        assert words.startswith(
            f"client 1 failed in {tasks[1].occasion}: ValueError: Expected more than 1 value per ch"
        )


@each_engine
def test_a_client_with_one_example_trains_a_model_without_batch_norm(make_engine, make_model, make_clients):
    model = make_model()
    assert run(make_engine(model, make_clients((9, 1))), model, train_tasks([0, 1])).isfinite().all()


class Living:
    """A fold that keeps nothing of a result, and counts how many it was given are still alive somewhere."""

    def __init__(self):
        self.references, self.most, self.count = [], 0, 0

    def add(self, result):
        self.count += 1
        self.references.append(weakref.ref(result.thetas))
        self.most = max(self.most, sum(reference() is not None for reference in self.references))

    def merge(self, other):
        self.count, self.most = self.count + other.count, max(self.most, other.most)

    def empty(self):
        return type(self)()

    def state(self):
        return {"numbers": torch.tensor([self.count, self.most])}

    def load(self, state):
        self.count, self.most = state["numbers"].tolist()


@each_engine
@pytest.mark.parametrize("workers", [1, 3])
def test_results_that_were_folded_are_let_go(make_engine, workers, make_model, make_clients):
    model, fold = make_model(), Living()
    engine = make_engine(model, make_clients((4,) * 40), workers=workers)
    fold_answers(engine, {"theta": theta_of(model)}, train_tasks(range(40)), fold)
    assert fold.count == 40
    assert fold.most <= 2  # the one being folded, and the one that the loop's variable still names
