"""A posterior over some parameters: θ is shorter, the rest of the model stays as it is."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from dswag import (
    Config,
    GaussianPosterior,
    InProcess,
    Layout,
    Moments,
    Server,
    collect,
    ensemble,
    explore,
    predict,
    synchronize,
)
from dswag.client.replica import Workspace
from dswag.core.randomness import generator_for

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")

HEAD = ("2.weight", "2.bias")
SELECTIONS = {"names": HEAD, "turned": HEAD[::-1], "predicate": lambda name: name.startswith("2.")}


def snapshots(model, n=5):
    """Copies of the model whose parameters all moved, around it."""
    layout, copies = Layout.of(model), []
    theta = layout.flatten(model)
    for number in range(n):
        copies.append(deepcopy(model))
        layout.write(theta + 0.1 * torch.randn(layout.d, generator=generator_for(number)), copies[-1])
    return copies


def whole_posterior(model):
    moments = Moments(rank=4, layout=Layout.of(model))
    for snapshot in snapshots(model):
        moments.add(snapshot)
    return moments.posterior()


def inputs(n=17):
    return torch.randn(n, 6, generator=generator_for(9))


def body(model):
    return [model[0].weight, model[0].bias]


# Layouts


@pytest.mark.parametrize("only", SELECTIONS.values(), ids=SELECTIONS)
def test_a_selection_keeps_the_modules_order(make_model, only):
    model = make_model()
    layout = Layout.of(model, only=only)
    assert (layout.names, layout.shapes, layout.d) == (HEAD, ((3, 5), (3,)), 18)
    assert layout == Layout.of(model).subset(only)


def test_a_single_name_is_one_parameter_not_its_letters(make_model):
    assert Layout.of(make_model(), only="2.bias").names == ("2.bias",)


def test_slices_tell_where_the_views_lie(make_model):
    layout = Layout.of(make_model())
    theta = torch.arange(float(layout.d))
    for name, view in layout.views(theta).items():
        assert torch.equal(theta[layout.slices[name]], view.flatten())


def test_unknown_names_are_refused_with_those_there_are(make_model):
    model = make_model()
    there = r"there are \['0\.weight', '0\.bias', '2\.weight', '2\.bias'\]"
    for select in (lambda only: Layout.of(model, only), Layout.of(model).subset, whole_posterior(model).subset):
        with pytest.raises(ValueError, match=rf"no trainable parameters \['head', '7'\] to select: {there}"):
            select(["head", "2.bias", "7"])
        for nothing in ([], lambda name: name == "head"):
            with pytest.raises(ValueError, match=f"none of the parameters was selected: {there}"):
                select(nothing)


def test_a_frozen_parameter_cannot_be_selected(make_model):
    model = make_model()
    model[2].bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"no trainable parameters \['2\.bias'\]"):
        Layout.of(model, only=HEAD)


def test_only_the_selected_parameters_must_agree_in_dtype(make_model):
    model = make_model()
    model[0].double()
    assert Layout.of(model, only=HEAD).flatten(model).dtype == torch.float32


def test_only_the_selected_parameters_are_written(make_model):
    model = make_model()
    before = [tensor.clone() for tensor in body(model)]
    Layout.of(model, only=HEAD).write(torch.full((18,), 2.0), model)
    assert all(torch.equal(*pair) for pair in zip(body(model), before, strict=True))
    assert (model[2].weight == 2).all()
    assert (model[2].bias == 2).all()


# Posteriors


@pytest.mark.parametrize("only", SELECTIONS.values(), ids=SELECTIONS)
def test_moments_of_a_part_are_the_part_of_the_moments(make_model, only):
    model = make_model()
    layout = Layout.of(model, only=only)
    moments = Moments(rank=4, layout=layout)
    for snapshot in snapshots(model):
        moments.add(snapshot)
    from_start, subset = moments.posterior(), whole_posterior(model).subset(only)
    assert (from_start.layout, from_start.count) == (subset.layout, subset.count) == (layout, 5)
    for name, tensor in from_start.tensors().items():
        assert torch.equal(subset.tensors()[name], tensor)


def test_a_subset_is_the_marginal(make_model):
    """Also of parameters that do not lie side by side, with scatter within clients and both scales."""
    model = make_model()
    posterior = whole_posterior(model)
    posterior = replace(
        posterior,
        variance_within=0.4 * posterior.variance,
        deviations_within=posterior.deviations.flip(0),
        within_scale=0.3,
        between_scale=0.7,
        temperature=2.0,
    )
    subset = posterior.subset(["0.bias", "2.bias"])
    slices = posterior.layout.slices
    places = torch.cat([torch.arange(53)[slices[name]] for name in ("0.bias", "2.bias")])
    assert torch.equal(subset.covariance(range(8)), posterior.covariance(places))
    assert torch.equal(subset.mean, posterior.mean[places])
    assert subset.temperature == 2.0


def test_a_subset_holds_no_more_memory_than_it_needs(make_model):
    for tensor in whole_posterior(make_model()).subset("2.bias").tensors().values():
        assert tensor.untyped_storage().nbytes() == 4 * tensor.numel()


def test_a_subset_of_all_is_the_whole(make_model):
    posterior = whole_posterior(make_model())
    subset = posterior.subset(lambda _: True)
    assert torch.equal(subset.sample(4, 2), posterior.sample(4, 2))


def test_without_a_layout_there_is_nothing_to_select_by():
    posterior = GaussianPosterior(torch.zeros(3), torch.ones(3), torch.zeros(0, 3), count=2)
    with pytest.raises(ValueError, match="without a layout has no names to select by"):
        posterior.subset(["a"])


def test_a_subset_goes_through_a_file(make_model, tmp_path):
    subset = whole_posterior(make_model()).subset(HEAD)
    subset.save(tmp_path / "head.safetensors")
    loaded = GaussianPosterior.load(tmp_path / "head.safetensors")
    assert loaded.layout == subset.layout
    assert torch.equal(loaded.sample(1), subset.sample(1))


def test_a_subset_writes_its_own_parameters_alone(make_model):
    model = make_model()
    subset = whole_posterior(model).subset(HEAD)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with subset.sampled(model, seed=3):
        assert torch.equal(subset.layout.flatten(model), subset.sample(3)[0])
        assert torch.equal(model[0].weight, before["0.weight"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    subset.mean_into(model)
    assert torch.equal(subset.layout.flatten(model), subset.mean)
    assert torch.equal(model[0].weight, before["0.weight"])


# Predicting and training


@pytest.mark.parametrize("kind", ["swag", "mean"])
def test_predictions_average_over_the_subset_with_the_rest_fixed(make_model, kind):
    model, x = make_model(), inputs()
    subset = whole_posterior(model).subset(HEAD)
    found = predict(model, subset, x, samples=4, seed=2, kind=kind)
    thetas = subset.mean[None] if kind == "mean" else subset.sample(2, 4)
    features = model[:2](x).double()
    views = [subset.layout.views(theta.double()) for theta in thetas]
    members = [(features @ view["2.weight"].T + view["2.bias"]).softmax(1) for view in views]
    torch.testing.assert_close(found.double(), sum(members) / len(members), rtol=1e-5, atol=1e-6)
    together = ensemble(model, thetas, x, layout=subset.layout).probabilities
    assert torch.equal(together, found)


def test_a_subset_for_another_model_is_refused(make_model):
    subset = whole_posterior(make_model()).subset(HEAD)
    with pytest.raises(ValueError, match=r"θ must have shape \[7\] for these parameters, got \[18\]"):
        predict(nn.Linear(6, 1), subset, inputs())
    same_size = nn.Sequential(nn.Linear(6, 3, bias=False))
    with pytest.raises(ValueError, match=r"parameters \['2\.weight', '2\.bias'\] are missing.*got \['0\.weight'\]"):
        predict(same_size, subset, inputs())


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_algorithm_runs_on_a_part_of_the_parameters(make_model, make_clients, batch_norm):
    model, clients = make_model(batch_norm=batch_norm), make_clients()
    layout = Layout.of(model, only=lambda name: name.startswith("3." if batch_norm else "2."))
    engine = InProcess(model, clients, layout=layout)
    theta = layout.flatten(model)
    config = Config(clients=3, rounds=2, explore_epochs=2)
    before = deepcopy(model.state_dict())
    for round in synchronize(engine, Server(theta), config):
        theta = round.theta
    posterior = explore(engine, theta, config, collect(theta, config, layout)).fold.posterior()
    assert len(posterior.mean) == 18
    assert (posterior.variance > 0).all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    probabilities = predict(model, posterior, inputs(), samples=3, engine=engine)
    assert predict(model, posterior, inputs(), samples=3, engine=engine).equal(probabilities)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(17))


def test_training_a_part_moves_it_as_if_the_rest_were_frozen(make_model, make_clients):
    model, clients = make_model(), make_clients()
    frozen = deepcopy(model)
    frozen[0].requires_grad_(False)
    config, layout = Config(clients=3, rounds=1), Layout.of(model, only=HEAD)
    theta = layout.flatten(model)
    (part,) = synchronize(InProcess(model, clients, layout=layout), Server(theta), config)
    (expected,) = synchronize(InProcess(frozen, clients), Server(theta), config)
    assert torch.equal(part.theta, expected.theta)
    assert not torch.equal(part.theta, theta)


def test_what_is_no_part_of_theta_needs_no_gradient_in_the_workspace_alone(make_model):
    model = make_model()
    workspace = Workspace(model, layout=Layout.of(model, only=HEAD))
    trained = [name for name, parameter in workspace.module.named_parameters() if parameter.requires_grad]
    assert tuple(trained) == HEAD
    assert all(parameter.requires_grad for parameter in model.parameters())
