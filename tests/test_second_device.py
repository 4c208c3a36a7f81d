"""What is trained on a second device stays there, and comes to what the CPU comes to."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import dswag
from dswag import Config, GaussianPosterior, InProcess, Layout, Moments, Server
from dswag.core.randomness import generator_for
from dswag.data.augmentation import CropAndFlip
from dswag.data.examples import Examples
from dswag.engines.distributed import Distributed
from dswag.engines.ranks import Ranks
from dswag.lab.baselines.method import Problem, complete
from dswag.lab.experiments import measurements
from dswag.lab.experiments.recipe import Recipe, build
from dswag.lab.experiments.run import execute
from dswag.lab.experiments.trained import train
from dswag.posterior.combining import MixturePosterior, pooled
from dswag.runs import RunFolder

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")

SETTINGS = {
    "as they are": {},
    "several snapshots": {"cycles": 2, "snapshots_per_cycle": 2, "explore_epochs": 4},
    "momentum": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "clip_gradient": 1.0},
    "adamw": {"optimizer": "adamw", "learning_rate": 1e-3, "explore_learning_rate": 1e-3},
    "proximal": {"proximal": 0.1, "local_epochs": 2},
    "bfloat16 uploads": {"upload": "bfloat16"},
    "server momentum": {"server_optimizer": "momentum", "server_learning_rate": 0.5},
    "server adam": {"server_optimizer": "adam", "server_learning_rate": 0.01},
    "server yogi": {"server_optimizer": "yogi", "server_learning_rate": 0.01},
    "clipped updates": {"clip_update": 0.1},
    "weighted mean": {"aggregation": "weighted-mean"},
    "median": {"aggregation": "median", "moments": "median"},
    "trimmed mean": {"aggregation": "trimmed-mean", "moments": "trimmed", "byzantine": 1},
    "geometric median": {"aggregation": "geometric-median"},
    "krum": {"aggregation": "krum", "byzantine": 1},
    "multi-krum": {"aggregation": "multi-krum", "byzantine": 1},
    "threshold stop": {"stop_accuracy": 0.5},
}


def config_of(clients, **settings):
    given = {"clients": len(clients), "rounds": 2, "explore_epochs": 2, "batch_size": 8, "seed": 5, **settings}
    return Config(**given)


def there(clients, device):
    """The clients with their data on the device."""
    return [client.to(device) for client in clients]


def assert_same(found, expected, device, **tolerances):
    assert found.device == device
    torch.testing.assert_close(found.cpu(), expected, **tolerances)


def random_moments(device, *, seed=0, count=6):
    """Of random snapshots, the same on every device."""
    layout = Layout(("weight", "bias"), ((6, 5), (5,)))
    moments = Moments(layout=layout, rank=4)
    for number in range(count):
        snapshot = 1 + 0.1 * torch.randn(layout.d, generator=generator_for(seed, number))
        moments.add(snapshot.to(device), index=number // 2)
    return moments


# ---------------------------------------------------------------------------------------------------- the device


def test_a_tensor_left_behind_is_noticed(second_device):
    far, near = torch.ones(3, device=second_device), torch.ones(3)
    for operation in (
        lambda: far + near,
        lambda: near.add_(far),
        lambda: torch.cat([far, near]),
        lambda: torch.zeros(()).add_(far[0]),
        lambda: near[far.long()],
        lambda: far.expand(2, 3) @ near,
    ):
        with pytest.raises(RuntimeError, match="device"):
            operation()
    with pytest.raises((TypeError, RuntimeError), match="numpy"):
        far.numpy()
    with pytest.raises(RuntimeError, match="generator"):
        far.normal_(generator=torch.Generator())
    assert (far + torch.tensor(2.0) + far[torch.tensor([0, 1, 2])] + near.to(second_device)).tolist() == [5, 5, 5]


def test_a_device_without_float64_is_refused_before_any_training(monkeypatch, make_model, make_clients):
    pretended_device = pytest.importorskip("pretended_device", exc_type=ImportError)
    device = pretended_device.install(monkeypatch)
    call = pretended_device.call

    def refusing(func, args, kwargs):
        if kwargs.get("dtype") == torch.float64:
            raise TypeError("this device has no float64")
        return call(func, args, kwargs)

    monkeypatch.setattr(pretended_device, "call", refusing)
    with pytest.raises(ValueError, match=r"the model is on elsewhere:0, which has no float64, .* model.to\('cpu'\)"):
        InProcess(make_model().to(device), make_clients())


# ------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_training_comes_to_the_same(settings, second_device, make_model, make_clients):
    clients = make_clients((20, 33, 11, 26, 20))
    config = config_of(clients, **settings)
    expected = dswag.train(make_model(), clients, config).posterior.tensors()
    found = dswag.train(make_model().to(second_device), clients, config).posterior.tensors()
    for name, tensor in expected.items():
        assert_same(found[name], tensor, second_device, rtol=1e-4, atol=1e-6)


def test_training_comes_to_the_same_wherever_the_data_are(second_device, make_model, make_clients):
    clients = make_clients()
    model, config = make_model().to(second_device), config_of(clients)
    here, found = (dswag.train(model, data, config) for data in (clients, there(clients, second_device)))
    assert_same(found.posterior.mean, here.posterior.mean.cpu(), second_device)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_batch_norm_augmentation_and_calibration_work_there(precision, second_device):
    def outcome(device):
        generator = generator_for(3)
        images = torch.randint(256, (60, 3, 8, 8), dtype=torch.uint8, generator=generator).float() / 255
        targets = (images[:, 0, 2:6, 2:6].mean((1, 2)) > 0.5).long()
        examples = Examples(images, targets, augmentation=CropAndFlip(padding=1)).to(device)
        clients = [examples[part] for part in torch.arange(60).split(20)]
        layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)]
        for layer in layers:
            for parameter in layer.parameters():
                nn.init.normal_(parameter, 0.1, 0.1, generator=generator)
        model = nn.Sequential(*layers).to(device)
        config = config_of(clients, precision=precision, holdout=0.2, samples=2, batch_norm_examples=8)
        run = dswag.train(model, clients, config)
        posterior = dswag.calibrate(run.engine, run.posterior, config)
        return dswag.predict(model, posterior, images, engine=run.engine, samples=2, batch_norm_examples=16)

    found = outcome(second_device)
    assert found.device == second_device
    if precision == "float32":
        torch.testing.assert_close(found.cpu(), outcome("cpu"), rtol=1e-3, atol=1e-4)


class TakesParts(nn.Module):
    """A model of inputs that come in parts."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, inputs):
        first, more = inputs
        return self.layer(first + more["rest"][0])


def test_inputs_in_parts_are_brought_there(second_device):
    inputs = torch.randn(24, 6, generator=generator_for(0))
    pairs = [((x / 2, {"rest": [x / 2], "note": "as it is"}), int(x[0] > 0)) for x in inputs]
    config = config_of([0, 1], batch_size=4)

    def outcome(device):
        layer = nn.Linear(6, 2)
        nn.init.constant_(layer.weight, 0.1), nn.init.zeros_(layer.bias)
        model = TakesParts(layer).to(device)
        run = dswag.train(model, [Pairs(pairs[:10]), Pairs(pairs[10:])], config)
        return dswag.predict(model, run.posterior, Pairs(pairs), samples=3)

    assert_same(outcome(second_device), outcome("cpu"), second_device, rtol=1e-4, atol=1e-6)


class Pairs(torch.utils.data.Dataset):
    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, row):
        return self.pairs[row]


def test_dropout_there_is_seeded_by_the_run(second_device, make_model, make_clients):
    clients = make_clients()
    first, again = (
        dswag.train(make_model(dropout=0.5).to(second_device), clients, config_of(clients)).theta for _ in range(2)
    )
    assert torch.equal(first.cpu(), again.cpu())
    assert not torch.equal(
        first.cpu(), dswag.train(make_model().to(second_device), clients, config_of(clients)).theta.cpu()
    )


def test_ranks_on_devices_of_their_own_come_to_the_same(second_device, make_model, make_clients, one_rank):
    clients = make_clients((20, 33, 11, 26))
    config = config_of(clients, aggregation="median", moments="median")

    def outcome(make_engine, device):
        model = make_model().to(device)
        engine, layout = make_engine(model, clients), Layout.of(model)
        *_, last = dswag.synchronize(engine, Server(layout.flatten(model)), config)
        return dswag.explore(engine, last.theta, config, dswag.collect(last.theta, config, layout)).fold.posterior()

    one_rank.device = second_device
    found, expected = outcome(partial(Distributed, ranks=one_rank), second_device), outcome(InProcess, "cpu")
    assert_same(found.mean, expected.mean, second_device)
    assert_same(found.variance, expected.variance, second_device, rtol=1e-4, atol=1e-9)


@pytest.fixture
def one_rank():
    """A process group of this process, unless another test made one."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return Ranks()


# ------------------------------------------------------------------------------------------------------ posteriors

OF_A_POSTERIOR = {
    "diagonal draws": lambda p, q: p.sample(3, 5, kind="diagonal"),
    "low-rank draws": lambda p, q: p.sample(3, 5, kind="low_rank"),
    "distance": lambda p, q: p.mahalanobis(q.mean),
    "subset": lambda p, q: p.subset(["bias"]).sample(1, 2),
    "compressed pool": lambda p, q: pooled([p, q], rank=3).variance,
    "log density of a mixture": lambda p, q: MixturePosterior([p, q]).log_prob(p.mean),
}
"""What the tests of posteriors, of densities and of combining do not compute on a second device themselves."""


@pytest.mark.parametrize("function", OF_A_POSTERIOR.values(), ids=OF_A_POSTERIOR)
def test_posteriors_come_to_the_same(function, second_device):
    def outcome(device):
        return function(*(random_moments(device, seed=seed).posterior() for seed in (0, 1)))

    assert_same(outcome(second_device), outcome("cpu"), second_device, rtol=1e-4, atol=1e-5)


def test_moments_there_are_added_up_and_carried(second_device):
    def outcome(device):
        moments = random_moments(device)
        moments.merge(random_moments(device, seed=1))
        carried = moments.empty()
        carried.load(moments.state())
        return carried.posterior()

    assert_same(outcome(second_device).variance, outcome("cpu").variance, second_device)


def test_a_snapshot_there_can_be_removed(second_device):
    moments = random_moments(second_device, count=3)
    snapshot = torch.full((35,), 2.0, device=second_device)
    moments.add(snapshot, index=7)
    moments.remove(snapshot, index=7)
    assert_same(moments.posterior().mean, random_moments("cpu", count=3).posterior().mean, second_device)


def test_files_forget_the_device(second_device, tmp_path):
    posterior = random_moments(second_device).posterior()
    posterior.save(tmp_path / "posterior.safetensors")
    loaded = GaussianPosterior.load(tmp_path / "posterior.safetensors")
    assert_same(posterior.sample(0, 2), loaded.sample(0, 2), second_device)


# ------------------------------------------------------------------------------------------------------ predictions


@pytest.mark.parametrize("posterior_there", [True, False], ids=["posterior there", "posterior here"])
@pytest.mark.parametrize("inputs_there", [True, False], ids=["inputs there", "inputs here"])
def test_predictions_are_where_the_model_is(posterior_there, inputs_there, second_device, make_model, make_clients):
    clients = make_clients()
    model = make_model()
    posterior = dswag.train(model, clients, config_of(clients)).posterior
    inputs = torch.randn(50, 6, generator=generator_for(1))
    expected = dswag.predictive(model, posterior, inputs, samples=4)
    model.to(second_device)
    posterior = posterior.to(device=second_device) if posterior_there else posterior
    inputs = inputs.to(second_device) if inputs_there else inputs
    found = dswag.predictive(model, posterior, inputs, samples=4)
    for name in ("probabilities", "entropy", "mutual_information"):
        assert_same(getattr(found, name), getattr(expected, name), second_device, rtol=1e-4, atol=1e-6)
    streamed = dswag.predictive_stream(model, posterior, inputs.split(20), samples=4)
    assert_same(torch.cat([part.probabilities for part in streamed]), expected.probabilities, second_device)
    with posterior.sampled(model, seed=0):
        assert next(model.parameters()).device == second_device
    posterior.mean_into(model)
    assert_same(Layout.of(model).flatten(model), posterior.mean.cpu(), second_device)


def test_regression_there_comes_to_the_same(second_device, make_clients):
    clients = [(client.inputs, client.inputs[:, :1]) for client in make_clients()]
    inputs = torch.randn(50, 6, generator=generator_for(1))

    def outcome(device):
        model = nn.Linear(6, 1)
        nn.init.constant_(model.weight, 0.1), nn.init.zeros_(model.bias)
        run = dswag.train(model.to(device), clients, config_of(clients), loss=F.mse_loss)
        return dswag.regression(model, run.posterior, inputs, noise=0.1).variance

    assert_same(outcome(second_device), outcome("cpu"), second_device, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------- methods and experiments

DRAWING_IN_TRAINING = {"sgld", "vi", "mc-dropout", "snep"}
"""Methods that draw on the device, from its own generator."""


@pytest.mark.parametrize("name", measurements.OWN)
def test_every_method_works_there(name, second_device, make_model, make_clients):
    inputs = torch.randn(30, 6, generator=generator_for(1))

    def outcome(device):
        clients = make_clients((20, 20, 20, 20))
        config = config_of(clients, holdout=0.2, samples=4, learning_rate=0.1, weight_decay=1e-3)
        problem = Problem(make_model().to(device), there(clients, device), config)
        predictor, _ = complete(measurements.OWN[name], problem)
        return predictor(inputs.to(device)).probabilities

    found = outcome(second_device)
    assert found.device == second_device
    torch.testing.assert_close(found.sum(1).cpu(), torch.ones(30))
    if name not in DRAWING_IN_TRAINING:
        torch.testing.assert_close(found.cpu(), outcome("cpu"), rtol=1e-3, atol=1e-4)


def measured_there(device):
    """An experiment of a few digits on the device."""
    recipe = Recipe(clients=4, rounds=2, explore_epochs=2, samples=3, holdout=0.1, landscape_examples=10)
    whole = build(recipe)
    model, digits = whole.model.to(device), whole.dataset.train[:200].to(device)
    parts = [part[part < 200] for part in whole.parts]
    return replace(
        whole,
        model=model,
        dataset=replace(whole.dataset, train=digits, test=whole.dataset.test[:50]),
        engine=InProcess(model, [digits[part] for part in parts]),
        parts=parts,
    )


def test_a_run_there_is_saved_and_scored(second_device, tmp_path):
    experiment = measured_there(second_device)
    folder = RunFolder.create(tmp_path / "run", experiment.recipe)
    for _ in execute(experiment, folder):
        pass
    assert folder.posterior().mean.device.type == "cpu"
    assert len(folder.metrics().scores) == 5
    assert folder.landscape() is not None


def test_figures_are_measured_there(second_device, tmp_path):
    trained = train(measured_there(second_device), tmp_path)
    assert trained.theta.device == trained.snapshots.device == second_device
    assert measurements.distances(trained, at=[0.0, 1.0])["at"] == [0.0, 1.0]
    assert measurements.surroundings(trained, points=3, examples=50, eigenvectors=2)
    assert measurements.calibration(trained, methods=["dswag"], resamples=3)
    assert measurements.methods(trained, methods=["dswag"], shifted_examples=10)["dswag"]["shift"]
