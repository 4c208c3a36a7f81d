"""What one client makes of one task, in a workspace that other tasks have used."""

import math
import threading
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from patience import PATIENCE
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dswag.client import work
from dswag.client.evaluation import EvaluateTask
from dswag.client.replica import Workspace
from dswag.client.statistics import StatisticsTask
from dswag.client.training import TrainTask
from dswag.core.parameters import Layout
from dswag.core.randomness import generator_for
from dswag.data.augmentation import CropAndFlip
from dswag.data.examples import Examples, client_data
from dswag.federation.contract import ClientError, Task
from dswag.federation.local_update import ClientUpdate
from dswag.posterior.draws import Draws
from dswag.posterior.gaussian import GaussianPosterior

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")

TRAIN = TrainTask(
    index=4,
    client=2,
    occasion="phase 2",
    learning_rates=(0.1, 0.05, 0.02, 0.01),
    snapshots=(1, 2, 4),
    seed=11,
    update=ClientUpdate(batch_size=8, momentum=0.9, weight_decay=0.01),
)
STATISTICS = StatisticsTask(index=4, client=2, occasion="a refresh", batch_size=8, max_examples=None, seed=3)
EVALUATE = EvaluateTask(index=4, client=2, occasion="an evaluation", batch_size=8)


@pytest.fixture
def data(make_clients):
    """33 examples, which make four or five batches of unequal size."""
    return make_clients()[1]


def theta_of(model):
    return Layout.of(model).flatten(model)


def trained(model, data, task=TRAIN, loss=F.cross_entropy, workspace=None):
    return work.run(task, {"theta": theta_of(model)}, data, workspace or Workspace(model, loss))


# ----------------------------------------------------------------------------------------------------- training


def test_snapshots_are_theta_after_the_epochs_named(make_model, data):
    model = make_model()
    result = trained(model, data)
    assert result.thetas.shape == (3, Layout.of(model).d)
    for row, epochs in enumerate(TRAIN.snapshots):
        shorter = replace(TRAIN, learning_rates=TRAIN.learning_rates[:epochs], snapshots=(epochs,))
        assert torch.equal(trained(model, data, shorter).thetas[0], result.thetas[row])


def test_each_epoch_has_its_own_learning_rate(make_model, data):
    model = make_model()
    result = trained(model, data, replace(TRAIN, learning_rates=(0.1, 1e-30, 0.02, 0.01)))
    # the rate of epoch 2 is below the spacing of any weight; only momentum could move θ, and the rate scales it as well
    assert torch.equal(result.thetas[1], result.thetas[0])
    assert not torch.equal(result.thetas[2], result.thetas[1])


def test_the_batches_of_an_epoch_are_shuffled_anew(make_model, data):
    seen = []

    def loss(outputs, targets):
        seen.append(targets.tolist())
        return F.cross_entropy(outputs, targets)

    trained(make_model(), data, replace(TRAIN, learning_rates=(0.1, 0.1), snapshots=(2,)), loss)
    first, second = [sum(seen[start : start + 5], []) for start in (0, 5)]  # noqa: RUF017
    assert sorted(first) == sorted(second) == sorted(data.targets.tolist())
    assert first != second
    assert data.targets.tolist() not in (first, second)


def test_the_loss_told_is_the_mean_over_the_last_epoch_s_examples(data):
    # rates too small to move θ: so the loss is that of θ itself, whatever the batches, of which some are smaller
    model = nn.Linear(6, 3)
    result = trained(model, data, replace(TRAIN, learning_rates=(1e-30, 1e-30), snapshots=(2,)))
    expected = F.cross_entropy(model(data.inputs).double(), data.targets).item()
    assert result.loss == pytest.approx(expected, rel=1e-6)  # 33 float32 terms
    assert (result.index, result.client, result.num_examples) == (4, 2, 33)


def test_momentum_starts_from_zero_in_every_task(make_model, data):
    model = make_model()
    workspace = Workspace(model)
    first = trained(model, data, workspace=workspace)
    assert torch.equal(trained(model, data, workspace=workspace).thetas, first.thetas)


def test_frozen_parameters_stay_as_they_are(make_model, data):
    model = make_model()
    model[0].requires_grad_(False)
    workspace = Workspace(model)
    before = workspace.module[0].weight.clone()
    result = trained(model, data, workspace=workspace)
    assert result.thetas.shape[1] == 5 * 3 + 3
    assert torch.equal(workspace.module[0].weight, before)


def test_sparse_gradients_train_as_dense_ones(make_clients):
    data = client_data((torch.randint(9, (33, 4)), make_clients()[1].targets))
    models = [
        nn.Sequential(nn.Embedding(9, 5, sparse=sparse), nn.Flatten(), nn.Linear(20, 3)) for sparse in (True, False)
    ]
    models[1].load_state_dict(models[0].state_dict())
    sparse, dense = (trained(model, data).thetas for model in models)
    torch.testing.assert_close(sparse, dense, rtol=0, atol=200 * 2**-24)  # 20 steps of 10 roundings, in another order


def test_a_stopped_run_ends_at_the_next_batch(make_model, data):
    workspace = Workspace(make_model())
    batches = []

    def loss(outputs, targets):
        batches.append(len(targets))
        if len(batches) == 7:  # five batches an epoch: in the middle of the second
            workspace.abort.set()
        return F.cross_entropy(outputs, targets)

    workspace.loss = loss
    with pytest.raises(ClientError, match="client 2 failed in phase 2, epoch 2: the run was stopped"):
        trained(make_model(), data, workspace=workspace)
    assert len(batches) == 7


def test_an_inverted_result_of_no_finite_weights_is_never_handed_out(make_model, data):
    with pytest.raises(ClientError, match=r"client 2 failed in phase 2, epoch 1: .*\(learning rate 1e\+38\)"):
        trained(nn.Linear(6, 3), client_data((1e3 * data.inputs, data.targets)), replace(TRAIN, learning_rates=(1e38,)))


@pytest.mark.parametrize("target", [3, -1, 1000])
def test_labels_out_of_range_are_named_in_training_and_evaluation(make_model, data, target):
    wrong = client_data((data.inputs, data.targets.index_fill(0, torch.tensor([7]), target)))
    model = make_model()
    for task in (TRAIN, EVALUATE):
        words = f"client 2 failed in {task.occasion}: IndexError: Target {target} is out of bounds"
        with pytest.raises(ClientError, match=words):
            work.run(task, {"theta": theta_of(model)}, wrong, Workspace(model))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.bool])
def test_labels_of_any_integer_type_train_alike(make_model, data, dtype):
    model = make_model()
    binary = data.targets.clamp_max(1)
    expected = trained(model, client_data((data.inputs, binary))).thetas
    assert torch.equal(trained(model, client_data((data.inputs, binary.to(dtype)))).thetas, expected)


# ---------------------------------------------------------------------------------------------------- workspaces


def test_a_workspace_is_a_copy_whose_parameters_are_views(make_model):
    model = make_model()
    before = theta_of(model)
    workspace = Workspace(model)
    workspace.weights.theta.fill_(0.5)
    assert all((p == 0.5).all() for p in workspace.module.parameters())
    assert torch.equal(theta_of(model), before)


def test_loading_sets_theta_and_every_buffer(make_model):
    model = make_model(batch_norm=True)
    model[1].running_mean.fill_(3.0)
    workspace = Workspace(model)
    for buffer in workspace.module.buffers():
        buffer.add_(9)
    theta = torch.randn(workspace.layout.d)
    workspace.load({"theta": theta, "buffer.1.running_var": torch.full((5,), 2.0), "mean": torch.zeros(7)})
    assert torch.equal(workspace.weights.theta, theta)
    assert workspace.module[1].running_mean.tolist() == [3.0] * 5  # the model's own
    assert workspace.module[1].running_var.tolist() == [2.0] * 5  # the payload's
    assert workspace.module[1].num_batches_tracked == 0
    workspace.load({"theta": theta})
    assert workspace.module[1].running_var.tolist() == [1.0] * 5  # not the payload's of last time


def test_a_buffer_that_is_called_theta_is_not_mistaken_for_theta():
    model = nn.Linear(2, 1)
    model.register_buffer("theta", torch.full((3,), 7.0))
    workspace = Workspace(model)
    workspace.load({"theta": torch.ones(3)})
    assert workspace.module.theta.tolist() == [7, 7, 7]
    assert workspace.weights.theta.tolist() == [1, 1, 1]


@pytest.mark.parametrize("shape", [(52,), (1,), (1, 53)])
def test_theta_of_another_shape_is_refused_and_not_broadcast(make_model, shape):
    workspace = Workspace(make_model())
    before = workspace.weights.theta.clone()
    with pytest.raises(ValueError, match=r"θ must have shape \[53\]"):
        workspace.load({"theta": torch.zeros(shape)})
    assert torch.equal(workspace.weights.theta, before)


def test_images_reach_the_model_as_they_are():
    # channels last would break a model that takes a `view` of them
    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    placed = Workspace(nn.Linear(2, 1)).place(images)
    assert placed.is_contiguous()
    assert placed.dtype == torch.uint8


def test_an_unknown_task_is_named(make_model, data):
    task = Task(index=0, client=5, occasion="round 1")
    with pytest.raises(ClientError, match="client 5 failed in round 1: TypeError: a client knows no Task"):
        work.run(task, {"theta": theta_of(make_model())}, data, Workspace(make_model()))


# ---------------------------------------------------------------------------------------------------- evaluation


def test_evaluation_sums_over_examples_whatever_the_batches(make_model, data):
    model = make_model(dropout=0.5)
    logits = model.eval()(data.inputs).double()
    for batch_size in (1, 8, 33, 100):
        task = replace(EVALUATE, batch_size=batch_size)
        result = work.run(task, {"theta": theta_of(model)}, data, Workspace(model.train()))
        assert result.num_examples == 33
        assert result.num_correct == int((logits.argmax(1) == data.targets).sum())
        expected = F.cross_entropy(logits, data.targets, reduction="sum").item()
        assert result.loss_sum == pytest.approx(expected, rel=1e-6)


NO_CLASSES = {
    "regression": (lambda e: e.inputs.sum(1, keepdim=True), lambda o, y: F.mse_loss(o[:, :1], y)),
    "soft targets": (lambda e: F.one_hot(e.targets, 3).float(), F.cross_entropy),
    "outputs that are no tensor": (lambda e: e.targets, lambda o, y: F.cross_entropy(o["logits"], y)),
    "outputs that are a tuple": (lambda e: e.targets, lambda o, y: F.cross_entropy(o[0], y)),
    "a score for each example": (
        lambda e: e.targets.clamp_max(1),
        lambda o, y: F.binary_cross_entropy_with_logits(o, y.float()),
    ),
}


class Wrapped(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.linear, self.form = nn.Linear(6, 3), form

    def forward(self, x):
        scores = self.linear(x)
        forms = {"no tensor": {"logits": scores}, "a tuple": (scores, x), "each example": scores[:, 0]}
        return next((value for ending, value in forms.items() if self.form.endswith(ending)), scores)


@pytest.mark.parametrize("form", NO_CLASSES)
def test_accuracy_is_none_where_it_makes_no_sense(data, form):
    targets, loss = NO_CLASSES[form]
    model = Wrapped(form)
    examples = client_data((data.inputs, targets(data)))
    result = work.run(EVALUATE, {"theta": theta_of(model)}, examples, Workspace(model, loss))
    assert result.num_correct is None
    assert math.isfinite(result.loss_sum)
    assert result.loss_sum > 0


def test_a_loss_that_is_not_finite_is_no_evaluation(make_model, data):
    model = make_model()
    theta = torch.full_like(theta_of(model), math.nan)
    with pytest.raises(ClientError, match="client 2 failed in an evaluation: loss is nan"):
        work.run(EVALUATE, {"theta": theta}, data, Workspace(model))


# --------------------------------------------------------------------------------------------- BatchNorm statistics


@pytest.mark.parametrize(
    ("max_examples", "count"),
    [(None, 33), (33, 33), (1000, 33), (2, 7), (7, 7), (8, 14), (14, 14), (15, 21)],  # batches of 7, 7, 7, 6, 6
)
def test_at_most_so_many_examples_are_used_rounded_up_to_batches(make_model, data, max_examples, count):
    model = make_model(batch_norm=True)
    task = replace(STATISTICS, max_examples=max_examples)
    (statistics,) = work.run(task, {"theta": theta_of(model)}, data, Workspace(model)).statistics
    assert statistics["1"].count == count


def test_which_examples_are_used_depends_on_the_seed(data):
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3))

    def mean(seed):
        task = replace(STATISTICS, max_examples=7, seed=seed)
        return work.run(task, {"theta": theta_of(model)}, data, Workspace(model)).statistics[0]["0"].mean

    assert torch.equal(mean(1), mean(1))
    assert not torch.equal(mean(1), mean(2))


@pytest.mark.parametrize("kind", ["swag", "diagonal", "low_rank"])
def test_statistics_of_draws_are_those_of_each_draw_alone(make_model, data, kind):
    model = make_model(batch_norm=True)
    layout = Layout.of(model)
    posterior = GaussianPosterior(
        mean=layout.flatten(model),
        variance=torch.full((layout.d,), 0.04),
        deviations=0.2 * torch.randn(3, layout.d, generator=torch.Generator().manual_seed(0)),
        count=3,
        layout=layout,
    )
    draws = Draws(seed=8, first=5, count=3, kind=kind, scale=0.5)
    found = work.run(replace(STATISTICS, draws=(draws,)), posterior.tensors(), data, Workspace(model)).statistics
    assert len(found) == 3
    means = set()
    for number, statistics in enumerate(found):
        theta = posterior.sample(8, first=5 + number, kind=kind, scale=0.5)[0]
        (alone,) = work.run(STATISTICS, {"theta": theta}, data, Workspace(model)).statistics
        assert torch.equal(statistics["1"].mean, alone["1"].mean)
        assert torch.equal(statistics["1"].scatter, alone["1"].scatter)
        means.add(statistics["1"].mean[0].item())
    assert len(means) == 3


def test_statistics_that_are_not_finite_name_client_and_layer(make_model, data):
    model = make_model(batch_norm=True)
    theta = theta_of(model)
    theta[0] = math.inf
    with pytest.raises(
        ClientError, match=r"client 2 failed in a refresh: inputs of the BatchNorm layers \['1'\] are not"
    ):
        work.run(STATISTICS, {"theta": theta}, data, Workspace(model))


def test_a_model_without_batch_norm_has_no_statistics_and_reads_no_data(make_model):
    class Unread:
        num_examples = 9

        def batches(self, batch_size, *, generator=None, augment=False):
            pytest.fail("nobody needs these")
            yield

    model = make_model()
    assert work.run(STATISTICS, {"theta": theta_of(model)}, Unread(), Workspace(model)).statistics == ({},)


def test_augmentation_is_for_training_alone(make_model, data):
    asked = []

    class Recording:
        num_examples = len(data)

        def batches(self, batch_size, *, generator=None, augment=False):
            asked.append((augment, generator is not None))
            return data.batches(batch_size, generator=generator, augment=augment)

    model = make_model(batch_norm=True)
    for task in (TRAIN, STATISTICS, EVALUATE):
        work.run(task, {"theta": theta_of(model)}, Recording(), Workspace(model))
    assert asked == [(True, True)] * 4 + [(False, True), (False, False)]


def test_a_client_error_is_not_wrapped_again(make_model, data):
    inner = ClientError(TRAIN, "of its own", epoch=9)

    def loss(outputs, targets):
        raise inner

    with pytest.raises(ClientError) as caught:
        trained(make_model(), data, loss=loss)
    assert caught.value is inner


def test_interruption_is_not_taken_for_a_failure_of_the_client(make_model, data):
    def loss(outputs, targets):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(make_model(), data, loss=loss)


def test_workspaces_of_one_model_do_not_share_anything(make_model, data):
    model = make_model(batch_norm=True, dropout=0.3)
    expected = trained(model, data).thetas
    barrier = threading.Barrier(2, timeout=PATIENCE)
    found = []

    def work(workspace):
        barrier.wait()
        found.append(trained(model, data, workspace=workspace).thetas)

    threads = [threading.Thread(target=work, args=(Workspace(model),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert all(torch.equal(thetas, expected) for thetas in found)


# ------------------------------------------------------------------------------------------------- time and divergence


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(work.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.mark.parametrize(("limit", "epoch"), [(17.0, 4), (4.5, 2), (0.5, 1), (8.0, 2), (1e6, None)])
def test_a_client_gives_up_at_the_first_minibatch_after_its_time_limit(make_model, data, clock, limit, epoch):
    """33 examples make five minibatches an epoch, and each takes a second here: minibatch n starts after n - 1."""

    def loss(outputs, targets):
        clock.now += 1
        return F.cross_entropy(outputs, targets)

    task = replace(TRAIN, time_limit=limit)
    if epoch is None:
        assert torch.equal(trained(make_model(), data, task, loss).thetas, trained(make_model(), data).thetas)
        return
    with pytest.raises(ClientError) as caught:
        trained(make_model(), data, task, loss)
    assert str(caught.value) == (
        f"client 2 failed in phase 2, epoch {epoch}: it took longer than its time limit of {limit:g} s"
    )
    assert clock.now == 100 + math.floor(limit) + 1


def test_a_time_limit_is_each_task_s_own(make_model, data, clock):
    def loss(outputs, targets):
        clock.now += 1
        return F.cross_entropy(outputs, targets)

    workspace = Workspace(make_model(), loss)
    for _ in range(3):
        trained(make_model(), data, replace(TRAIN, time_limit=20.0), workspace=workspace)
    trained(make_model(), data, TRAIN, workspace=workspace)  # and the one before leaves none behind
    assert clock.now == 100 + 4 * 20


def test_evaluation_keeps_to_its_time_limit(make_model, data, clock):
    def loss(outputs, targets):
        clock.now += 1
        return F.cross_entropy(outputs, targets)

    with pytest.raises(ClientError, match="an evaluation: it took longer than its time limit of 2 s"):
        trained(make_model(), data, replace(EVALUATE, time_limit=2.0), loss)


@pytest.mark.parametrize(("factor", "fails"), [(9.0, False), (11.0, True)])
def test_a_loss_ten_times_that_of_the_first_minibatch_is_divergence(make_model, data, factor, fails):
    batches = []

    def loss(outputs, targets):  # 1.5 in the first minibatch, and so many times as much in epoch 2
        batches.append(len(targets))
        return outputs.mean() * 0 + (1.5 * factor if len(batches) > 5 else 1.5)

    task = replace(TRAIN, learning_rates=(0.1, 0.05), snapshots=(2,))
    if not fails:
        assert trained(make_model(), data, task, loss).loss == pytest.approx(1.5 * factor)
        return
    with pytest.raises(ClientError) as caught:
        trained(make_model(), data, task, loss)
    assert str(caught.value) == (
        "client 2 failed in phase 2, epoch 2: loss is 16.5, after 1.5 in the first minibatch (learning rate 0.05): "
        "lower the learning rate, or set clip_gradient"
    )


# ------------------------------------------------------------------------------------------- waiting for the device


class Looks(TorchDispatchMode):
    """Counts how often the host looks at a value on the device, which on a GPU waits until all work there is done."""

    LOOKING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default)

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in self.LOOKING
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "task",
    [
        replace(TRAIN, update=ClientUpdate(batch_size=4, clip_gradient=1.0, proximal=0.1)),
        replace(TRAIN, update=ClientUpdate(batch_size=4, optimizer="adamw", precision="bfloat16")),
        replace(EVALUATE, batch_size=4),
        replace(STATISTICS, batch_size=4),
    ],
    ids=["sgd", "adamw", "evaluation", "statistics"],
)
def test_the_host_does_not_wait_for_a_device_batch_by_batch(task):
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(3 * 36, 2)
    )

    def looks(num_batches):
        images = torch.rand(4 * num_batches, 1, 8, 8, generator=generator_for(1))
        examples = Examples(images, torch.arange(4 * num_batches) % 2, CropAndFlip(2))
        with Looks() as looking:
            work.run(task, {"theta": theta_of(model)}, examples, Workspace(model))
        return looking.count

    assert looks(30) == looks(2)
