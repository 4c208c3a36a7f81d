"""State that training changes is pooled, computed from the weights, kept where it is frozen, or refused by name."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dswag
from dswag.client.batch_norm import collect, update
from dswag.client.replica import Workspace
from dswag.core.normalization import normalizing, training_modes
from dswag.core.parameters import Layout

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")


@pytest.fixture
def examples():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(120, 20, generator=generator)
    return inputs, (inputs[:, :3].sum(1) > 0).long()


def clients_of(examples, number=3):
    return list(zip(*(tensor.tensor_split(number) for tensor in examples), strict=True))


def trained(model, examples, **settings):
    return dswag.train(model, clients_of(examples), dswag.Config(clients=3, rounds=8, learning_rate=0.1, **settings))


class Shaped(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.shape = shape

    def forward(self, x):
        return x.reshape(len(x), *self.shape) + 3


# -------------------------------------------------------------------------------------------- what follows the weights

NORMS = {
    "old": torch.nn.utils.spectral_norm,
    "new": torch.nn.utils.parametrizations.spectral_norm,
    "new, in a stack": lambda layer: torch.nn.utils.parametrizations.spectral_norm(
        torch.nn.utils.parametrizations.weight_norm(layer)
    ),
}


def spectral(norm):
    torch.manual_seed(0)
    return nn.Sequential(
        NORMS[norm](nn.Linear(20, 40)), nn.ReLU(), Shaped(10, 4), NORMS[norm](nn.Conv1d(10, 8, 3)), nn.Flatten(),
        nn.Linear(16, 2),
    )  # fmt: skip


def norms_of(model):
    return [torch.linalg.matrix_norm(model[i].weight.detach().flatten(1), 2) for i in (0, 3)]


@pytest.mark.parametrize("norm", NORMS)
def test_spectrally_normalized_weights_have_norm_one_whatever_theta(norm, examples):
    model = spectral(norm)
    run = trained(model, examples)
    right = deepcopy(model)
    run.posterior.mean_into(right)
    update(right, [])  # no statistics to collect; the vectors follow from the weights
    right.eval()(examples[0])
    assert norms_of(right) == pytest.approx([1, 1], rel=1e-4)
    found = dswag.predict(model, run.posterior, examples[0], kind="mean")
    torch.testing.assert_close(found, right(examples[0]).softmax(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_a_frozen_spectral_norm_keeps_its_vectors(norm, examples):
    model = spectral(norm).train()
    model(examples[0])
    model[0].requires_grad_(False)
    model[3].eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    workspace = Workspace(model)
    workspace.load({"theta": 2 * workspace.snapshot()})
    assert all(torch.equal(before[name], buffer) for name, buffer in workspace.module.named_buffers())


@pytest.mark.parametrize("norm", NORMS)
def test_a_model_that_has_been_used_can_be_copied(norm, examples):
    model = spectral(norm)
    model(examples[0])  # leaves a computed weight in the layer, which deepcopy refuses
    assert trained(model, examples).history[-1].loss < 0.7


# ------------------------------------------------------------------------------------------------------ InstanceNorm


def instance_norm(layer=nn.InstanceNorm1d, shape=(4, 5)):
    torch.manual_seed(0)
    return nn.Sequential(
        Shaped(*shape), layer(shape[0], affine=True, track_running_stats=True), nn.Flatten(), nn.Linear(20, 2)
    )


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.InstanceNorm1d, (4, 5)), (nn.InstanceNorm2d, (5, 2, 2)), (nn.InstanceNorm3d, (5, 1, 2, 2))]
)
def test_statistics_of_instance_norm_are_the_limits_of_torch_s(layer, shape, examples):
    ours, torchs = instance_norm(layer, shape), instance_norm(layer, shape)
    torchs[1].momentum = 1.0
    torchs.train()(examples[0])  # of one batch alone, all of it
    update(ours, examples[0].split(50))
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours[1], name), getattr(torchs[1], name), rtol=1e-5, atol=1e-6)


def test_a_tracked_instance_norm_predicts_with_pooled_statistics(examples):
    model = instance_norm()
    run = trained(model, examples)
    right = deepcopy(model)
    with pytest.warns(UserWarning, match=r"layers \['1'\] belong to the weights from before.*update_batch_norm"):
        run.posterior.mean_into(right)
    right[1].momentum = 1.0
    right.train()(examples[0])
    found = run.predictive(model, examples[0], kind="mean").probabilities
    torch.testing.assert_close(found, right.eval()(examples[0]).softmax(1), rtol=0, atol=1e-5)
    with pytest.raises(
        ValueError, match="running statistics, such as BatchNorm, which belong to the weights: pass engine"
    ):
        dswag.predict(model, run.posterior, examples[0])


def test_collecting_leaves_an_instance_norm_as_it_was(examples):
    model = instance_norm()
    before = deepcopy(model.state_dict())
    collect(model, [examples[0]])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# ------------------------------------------------------------------------------------------------------ frozen layers


def pretrained():
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
    backbone[1].running_mean.fill_(0.7)
    backbone[1].running_var.fill_(2.0)
    return nn.Sequential(backbone, nn.Linear(8, 2))


def outside(model):
    model[0].requires_grad_(False)
    return


def in_evaluation_mode(model):
    model[0].eval()
    return


def not_selected(model):
    return Layout.of(model, only=["1.weight", "1.bias"])


def without_parameters(model):
    model[0][1] = nn.BatchNorm1d(8, affine=False)
    model[0][1].running_mean.fill_(0.7)
    model[0][1].running_var.fill_(2.0)
    model[0].requires_grad_(False)
    return


FROZEN = [outside, in_evaluation_mode, not_selected, without_parameters]


@pytest.mark.parametrize("freeze", FROZEN)
def test_a_frozen_batch_norm_is_used_as_it_is_everywhere(freeze, examples):
    model = pretrained()
    layout = freeze(model)
    engine = dswag.InProcess(model, clients_of(examples), layout=layout)
    layout = layout or Layout.of(model)
    theta = layout.flatten(model)
    assert normalizing(model, layout) == {}
    expected = deepcopy(model).eval()(examples[0])
    loss = dswag.evaluate(engine, theta, dswag.Config(clients=3)).loss
    assert loss == pytest.approx(F.cross_entropy(expected, examples[1]).item(), rel=1e-6)
    for options in ({}, {"engine": engine}):
        found = dswag.ensemble(model, theta[None], examples[0], layout=layout, **options).probabilities
        torch.testing.assert_close(found, expected.softmax(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("freeze", FROZEN)
def test_a_frozen_batch_norm_trains_as_in_evaluation_mode(freeze, examples):
    model = pretrained()
    model[0][3] = nn.Identity()
    layout = freeze(model)
    plain = deepcopy(model)
    config = dswag.Config(
        clients=1, rounds=1, cycles=5, batch_size=120, momentum=0.0, weight_decay=0.0, learning_rate=0.1
    )
    engine = dswag.InProcess(model, [examples], layout=layout)
    layout = layout or Layout.of(model)
    (after,) = dswag.synchronize(engine, dswag.Server(layout.flatten(model)), config)
    F.cross_entropy(plain.eval()(examples[0]), examples[1]).backward()  # one batch of all, so one step of SGD
    expected = layout.flatten(plain) - 0.1 * torch.cat([p.grad.flatten() for p in layout.select(plain)])
    torch.testing.assert_close(after.theta, expected, rtol=0, atol=1e-6)


def test_a_model_in_evaluation_mode_as_a_whole_is_trained_in_training_mode(examples):
    models = [pretrained(), pretrained().eval()]
    thetas = [trained(model, examples).theta for model in models]
    assert torch.equal(*thetas)
    assert not models[1][0][1].training


def test_what_a_model_keeps_in_evaluation_mode_stays_there():
    class Careful(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[0].eval()
            return self

    model = Careful(nn.BatchNorm1d(3), nn.Linear(3, 2))
    for given in (model.train(), model.eval()):
        assert training_modes(given) == {"": True, "0": False, "1": True}
    workspace = Workspace(model)
    workspace.train()
    assert not workspace.module[0].training


def test_dropout_in_evaluation_mode_stays_in_it(examples):
    model = pretrained()
    model[0].eval()
    workspace = Workspace(model)
    workspace.train()
    assert [part.training for part in workspace.module[0]] == [False] * 4
    assert workspace.module.training


# --------------------------------------------------------------------------------------------------- synchronized norms


def test_synchronized_batch_norm_is_plain_batch_norm_for_a_client_that_computes_alone(examples):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(deepcopy(plain))
    runs = [trained(model, examples) for model in (plain, synchronized)]
    assert torch.equal(runs[0].theta, runs[1].theta)
    found = [
        run.predictive(model, examples[0]).probabilities for run, model in zip(runs, (plain, synchronized), strict=True)
    ]
    assert torch.equal(*found)
    assert isinstance(synchronized[1], nn.SyncBatchNorm)


# ------------------------------------------------------------------------------------------------------ what is refused


class Counting(nn.Module):
    """Keeps something of what it sees, as codebooks, observers and loss balancers do."""

    def __init__(self, persistent=True):
        super().__init__()
        self.register_buffer("seen", torch.zeros(20), persistent=persistent)
        self.register_buffer("constant", torch.tensor([1.0, float("nan")]))

    def forward(self, x):
        if self.training:
            self.seen.mul_(0.9).add_(x.mean(0))
        return x


class Replacing(Counting):
    def forward(self, x):
        if self.training:
            self.seen = self.seen + x.mean(0)
        return x


class Averaging(nn.Module):
    """A teacher whose weights follow a student's."""

    def __init__(self, how):
        super().__init__()
        self.student, self.teacher, self.how = nn.Linear(20, 20), nn.Linear(20, 20).requires_grad_(False), how

    def forward(self, x):
        if self.training and self.how == "in place":
            with torch.no_grad():
                self.teacher.weight.mul_(0.9).add_(self.student.weight, alpha=0.1)
        elif self.training:
            self.teacher.weight.data = 0.9 * self.teacher.weight.data + 0.1 * self.student.weight.data
        return self.student(x)


@pytest.mark.parametrize("layer", [Counting, Replacing])
def test_a_buffer_that_training_changes_is_refused_by_name(layer, examples):
    model = nn.Sequential(layer(), nn.Linear(20, 2))
    with pytest.raises(dswag.ClientError, match=r"training changes the buffers \['0\.seen'\].*into evaluation mode"):
        trained(model, examples)
    model[0].eval()
    assert trained(model, examples).history[-1].loss < 0.7


def test_a_cache_may_change(examples):
    model = nn.Sequential(Counting(persistent=False), nn.Linear(20, 2))
    assert trained(model, examples).history[-1].loss < 0.7


def test_a_buffer_that_changes_late_is_refused_too(examples):
    class Late(Counting):
        steps = 0

        def forward(self, x):
            Late.steps += 1
            return super().forward(x) if Late.steps > 5 else x

    with pytest.raises(dswag.ClientError, match=r"buffers \['0\.seen'\]"):
        trained(nn.Sequential(Late(), nn.Linear(20, 2)), examples)


@pytest.mark.parametrize("how", ["in place", "anew"])
def test_a_frozen_parameter_that_training_changes_is_refused_by_name(how, examples):
    model = nn.Sequential(Averaging(how), nn.Linear(20, 2))
    with pytest.raises(dswag.ClientError, match=r"changes the frozen parameters \['0\.teacher\.weight'\] in place"):
        trained(model, examples)


# ------------------------------------------------------------------------------------------------------- what is shared


def test_replicas_share_the_memory_of_what_they_do_not_train():
    model = nn.Sequential(nn.Linear(30, 30).requires_grad_(False), nn.Linear(30, 2))
    first = Workspace(model)
    second = first.another()
    assert second.module[0].weight.data_ptr() == first.module[0].weight.data_ptr() != model[0].weight.data_ptr()
    assert second.module[1].weight.data_ptr() != first.module[1].weight.data_ptr()
    assert Workspace(model, trains=False).module[0].weight.data_ptr() == model[0].weight.data_ptr()
    assert Workspace(model, trains=False).weights.gradient.numel() == 0


def test_another_workspace_is_as_the_first_was_at_first(examples):
    model = nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    first = Workspace(model)
    first.train()
    first.module(examples[0])
    first.eval()
    second = first.another()
    assert second.modes == first.modes == {"": True, "0": True, "1": True, "2": True}
    assert torch.equal(second.state.buffers["1.running_mean"], model[1].running_mean)
