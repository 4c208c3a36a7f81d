"""θ and the module whose parameters are views into it."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from dswag.client.weights import Weights
from dswag.core.parameters import Layout
from dswag.core.randomness import DrawFrom, generator_for

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")


class ClassToken(nn.Module):
    """Owns a parameter and children, as a vision transformer does: `apply` and `parameters` order them differently."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(3, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.temperature = nn.Parameter(torch.tensor(0.7))  # no axes at all

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), self.encode(x)], 1)
        return self.temperature * self.attention(x, x, x, need_weights=False)[0][:, 0]


class Tied(nn.Module):
    """One matrix that embeds and that gives the logits."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.hidden = nn.Linear(4, 4)
        self.logits = nn.Linear(4, 7, bias=False)
        self.logits.weight = self.embed.weight

    def forward(self, x):
        return self.logits(self.hidden(self.embed(x)).tanh())


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Linear(3, 4)
        self.features.requires_grad_(False)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.features(x))


MODELS = {
    "linear": (lambda: nn.Linear(3, 2), torch.randn(5, 3)),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)), torch.randn(5, 3, 6, 6)),
    "class token": (ClassToken, torch.randn(5, 6, 3)),
    "tied": (Tied, torch.randint(7, (5, 6))),
    "frozen": (Frozen, torch.randn(5, 3)),
    "LSTM": (lambda: nn.LSTM(3, 4, 2, bidirectional=True), torch.randn(5, 6, 3)),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), torch.randn(5, 3)),
}
every_model = pytest.mark.parametrize(("make", "inputs"), MODELS.values(), ids=MODELS.keys())


def built(make, seed=0):
    with DrawFrom(generator_for(seed)):
        return make()


def bound(layout, module):
    """θ and its gradient, of which the module's parameters and their gradients are views."""
    weights = Weights(layout, module)
    return weights.theta, weights.gradient


def outputs(module, inputs):
    found = module(inputs)
    return found[0] if isinstance(found, tuple) else found


@every_model
def test_theta_moves_a_model_into_another_of_its_kind(make, inputs):
    first, second = built(make, 1), built(make, 2)
    second.load_state_dict({**second.state_dict(), **{n: b for n, b in first.state_dict().items() if "features" in n}})
    assert not torch.equal(outputs(first, inputs), outputs(second, inputs))
    layout = Layout.of(first)
    layout.write(layout.flatten(first), second)
    assert torch.equal(outputs(first, inputs), outputs(second, inputs))


@every_model
def test_each_element_of_theta_is_one_element_of_one_named_parameter(make, inputs):
    module = built(make)
    layout = Layout.of(module)
    theta = torch.arange(layout.d, dtype=torch.float32)
    layout.write(theta, module)
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert layout.d == sum(p.numel() for p in trainable.values())
    assert torch.cat([p.detach().flatten() for p in trainable.values()]).tolist() == theta.tolist()
    assert {n: v.tolist() for n, v in layout.views(theta).items()} == {n: p.tolist() for n, p in trainable.items()}


@every_model
def test_flatten_gives_back_what_write_wrote(make, inputs):
    module = built(make)
    layout = Layout.of(module)
    theta = torch.randn(layout.d)
    layout.write(theta, module)
    assert torch.equal(layout.flatten(module), theta)
    assert torch.equal(layout.flatten(module.state_dict()), theta)


OF_ANOTHER_KERNEL = {"rtol": 1e-4, "atol": 1e-4}
"""Convolutions whose channels lie last add up in another order, and BatchNorm's gradients cancel to a thousandth."""


@every_model
def test_a_bound_module_computes_what_it_computed(make, inputs):
    module = built(make)
    before = outputs(module, inputs)
    _, gradient = bound(Layout.of(module), module)
    torch.testing.assert_close(outputs(module, inputs), before, **OF_ANOTHER_KERNEL)
    assert not gradient.any()


@every_model
def test_a_bound_module_reads_theta_and_fills_the_gradient(make, inputs):
    module = built(make)
    plain = deepcopy(module)
    layout = Layout.of(module)
    weights = Weights(layout, module)
    weights.theta.mul_(0.5).add_(0.01)
    layout.write(weights.snapshot(), plain)
    torch.testing.assert_close(outputs(module, inputs), outputs(plain, inputs), **OF_ANOTHER_KERNEL)
    outputs(module, inputs).square().sum().backward()
    outputs(plain, inputs).square().sum().backward()
    expected = [p.grad for p in plain.parameters() if p.requires_grad]
    for found, wanted in zip(weights.gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted, **OF_ANOTHER_KERNEL)
    assert weights.gradient.any()


@every_model
def test_views_share_memory_with_theta(make, inputs):
    layout = Layout.of(built(make))
    theta = torch.zeros(layout.d)
    for view in layout.views(theta).values():
        view.add_(1)
    assert torch.equal(theta, torch.ones(layout.d))  # each element is in exactly one view


def test_flatten_is_a_copy_even_of_a_single_parameter():
    module = nn.Linear(3, 1, bias=False)
    before = module.weight.detach().clone()
    layout = Layout.of(module)
    theta = layout.flatten(module)
    assert not theta.requires_grad
    theta.zero_()
    assert torch.equal(module.weight, before)


def test_write_is_a_copy():
    module = nn.Linear(3, 1, bias=False)
    theta = torch.ones(3)
    Layout.of(module).write(theta, module)
    theta.zero_()
    assert module.weight.tolist() == [[1, 1, 1]]
    assert module.weight.requires_grad


def test_a_deep_copy_of_a_bound_module_is_on_its_own():
    module = nn.Linear(3, 2)
    theta, _ = bound(Layout.of(module), module)
    copy = deepcopy(module)
    before = copy.weight.detach().clone()
    theta.zero_()
    assert torch.equal(copy.weight, before)


def test_tied_weights_count_once_and_stay_tied():
    module = built(Tied)
    layout = Layout.of(module)
    assert layout.names == ("embed.weight", "hidden.weight", "hidden.bias")
    assert layout.d == 7 * 4 + 4 * 4 + 4
    theta, gradient = bound(layout, module)
    assert module.logits.weight is module.embed.weight
    theta.fill_(0.25)
    assert torch.equal(module.logits.weight, torch.full((7, 4), 0.25))
    module(torch.tensor([[1, 2]])).sum().backward()
    assert gradient[:28].view(7, 4)[5].any()  # row 5 is in no input: its gradient comes through the logits alone


def test_tied_weights_are_found_under_either_name():
    module = built(Tied)
    for name in ("embed.weight", "logits.weight"):  # the name depends on which of the two a model registers first
        layout = Layout((name,), ((7, 4),))
        assert torch.equal(layout.flatten(module.state_dict()), module.embed.weight.flatten())
        assert torch.equal(layout.flatten(module), module.embed.weight.flatten())
        theta = torch.randn(28)
        layout.write(theta, module)
        assert torch.equal(module.embed.weight, theta.view(7, 4))


def test_frozen_parameters_and_buffers_are_no_part_of_theta():
    module = nn.Sequential(built(Frozen), nn.BatchNorm1d(2))
    layout = Layout.of(module)
    assert layout.names == ("0.head.weight", "0.head.bias", "1.weight", "1.bias")
    features = module[0].features.weight.clone()
    layout.write(torch.zeros(layout.d), module)
    bound(layout, module)
    assert torch.equal(module[0].features.weight, features)
    assert module[0].features.weight.grad is None


def test_a_parameter_without_axes_is_one_element():
    module = built(ClassToken)
    layout = Layout.of(module)
    views = layout.views(torch.arange(layout.d, dtype=torch.float32))
    assert views["temperature"].shape == ()
    theta, gradient = bound(layout, module)
    assert module.temperature.item() == layout.views(theta)["temperature"].item() == pytest.approx(0.7)
    module(torch.randn(2, 3, 3)).sum().backward()
    assert layout.views(gradient)["temperature"] == module.temperature.grad != 0


def test_parameters_with_channels_last_strides_are_read_in_logical_order():
    module = nn.Conv2d(3, 2, 3)
    expected = Layout.of(module).flatten(module)
    module = module.to(memory_format=torch.channels_last)
    layout = Layout.of(module)
    assert torch.equal(layout.flatten(module), expected)
    bound(layout, module)
    assert torch.equal(layout.flatten(module), expected)


def test_a_state_dict_is_matched_by_name_not_by_position():
    module = built(ClassToken)
    layout = Layout.of(module)
    turned = dict(reversed(module.state_dict().items()))
    assert list(turned) != list(module.state_dict())
    assert torch.equal(layout.flatten(turned), layout.flatten(module))


def test_a_module_is_matched_by_name_not_by_position():
    one, other = nn.Module(), nn.Module()
    one.a, one.b = nn.Linear(3, 3), nn.Linear(3, 3)
    other.b, other.a = nn.Linear(3, 3), nn.Linear(3, 3)
    layout = Layout.of(one)
    layout.write(layout.flatten(one), other)
    assert torch.equal(other.a.weight, one.a.weight)
    assert torch.equal(other.b.bias, one.b.bias)


def test_entries_of_a_state_dict_that_are_no_parameters_are_passed_over():
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    layout = Layout.of(module)
    assert torch.equal(layout.flatten({**module.state_dict(), "more": torch.ones(9)}), layout.flatten(module))


WRAPPERS = {
    "compiled": lambda module: torch.compile(module, backend="eager"),
    "parallel": nn.DataParallel,
    "both": lambda module: torch.compile(nn.DataParallel(module), backend="eager"),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_model_has_the_layout_and_the_theta_of_the_model_inside(wrap):
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    layout = Layout.of(module)
    wrapped = wrap(module)
    assert Layout.of(wrapped) == layout
    assert torch.equal(layout.flatten(wrapped), layout.flatten(module))
    layout.write(torch.arange(float(layout.d)), wrapped)
    assert torch.equal(layout.flatten(module), torch.arange(float(layout.d)))


def test_a_module_of_its_own_that_is_called_module_is_no_wrapper():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(3, 2)

    assert Layout.of(Holder()).names == ("module.weight", "module.bias")


def test_a_layer_that_is_not_initialized_yet_is_refused_by_name():
    module = nn.Sequential(nn.Linear(3, 2), nn.LazyLinear(2))
    with pytest.raises(ValueError, match=r"parameter 1\.weight has no shape yet: pass one batch of inputs"):
        Layout.of(module)
    module(torch.ones(1, 3))
    assert Layout.of(module).d == 14


def test_complex_parameters_are_refused_by_name():
    module = nn.ParameterDict({"spectrum": nn.Parameter(torch.ones(3, dtype=torch.complex64))})
    with pytest.raises(ValueError, match=r"parameter spectrum is torch\.complex64: θ is of real numbers"):
        Layout.of(module)


def test_a_model_without_values_has_a_layout_but_no_theta():
    module = nn.Linear(3, 2, device="meta")
    layout = Layout.of(module)
    assert layout == Layout.of(nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"parameters \['weight', 'bias'\] are on the meta device, without values"):
        layout.flatten(module)


def test_of_many_missing_parameters_the_first_are_named():
    layout = Layout.of(nn.Sequential(*(nn.Linear(1, 1) for _ in range(9))))
    named = r"\['0.weight', '0.bias', '1.weight', '1.bias'\] and 14 more"
    with pytest.raises(ValueError, match=f"parameters {named} are missing: expected {named}, got \\['weight'\\]$"):
        layout.flatten({"weight": torch.ones(1, 1)})


def test_a_layout_shows_its_first_parameters_and_how_many_there_are():
    assert repr(Layout.of(nn.Linear(300, 7))) == "Layout(2,107 weights: weight [7, 300], bias [7])"
    long = repr(Layout.of(nn.Sequential(*(nn.Linear(1, 1) for _ in range(9)))))
    assert long == "Layout(18 weights: 0.weight [1, 1], 0.bias [1], 1.weight [1, 1], 1.bias [1], ... (18 parameters))"


def test_a_missing_parameter_is_named():
    layout = Layout.of(nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"parameters \['bias'\] are missing: expected \['weight', 'bias'\]"):
        layout.flatten({"weight": torch.ones(2, 3)})
    with pytest.raises(ValueError, match=r"\['bias'\] are missing.*got \['weight'\]"):
        layout.write(torch.ones(8), nn.Linear(3, 2, bias=False))


def test_a_misshapen_parameter_is_named_even_if_it_has_as_many_elements():
    layout = Layout.of(nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"parameter weight must have shape \[2, 3\], got \[3, 2\]: this is not the"):
        layout.flatten({"weight": torch.ones(3, 2), "bias": torch.ones(2)})
    with pytest.raises(ValueError, match=r"parameter bias must have shape \[2\], got \[\]"):
        layout.flatten({"weight": torch.ones(2, 3), "bias": torch.tensor(1.0)})


def test_nothing_is_written_into_a_module_that_does_not_fit():
    layout = Layout.of(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)))
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3))
    before = deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=r"parameter 1\.weight must have shape"):
        layout.write(torch.zeros(layout.d), module)
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("shape", [(7,), (9,), (8, 1), (1, 8), ()])
def test_theta_of_another_shape_is_refused(shape):
    layout = Layout.of(nn.Linear(3, 2))
    theta = torch.zeros(shape)
    for use in (layout.views, layout.check, lambda theta: layout.write(theta, nn.Linear(3, 2))):
        with pytest.raises(ValueError, match=r"θ must have shape \[8\] for these parameters, got \["):
            use(theta)


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ((torch.bfloat16, torch.float32), torch.float32),
        ((torch.float16, torch.bfloat16), torch.float32),
        ((torch.float16, torch.float16), torch.float32),
        ((torch.float32, torch.float64), torch.float64),
        ((torch.float64, torch.bfloat16), torch.float64),
    ],
)
def test_theta_has_at_least_the_digits_of_single_precision(dtypes, expected):
    module = nn.Sequential(*(nn.Linear(2, 2).to(dtype) for dtype in dtypes))
    layout = Layout.of(module)
    theta = layout.flatten(module)
    assert theta.dtype == expected
    assert torch.equal(theta, torch.cat([p.detach().flatten().to(expected) for p in module.parameters()]))
    layout.write(2 * theta, module)
    assert torch.equal(layout.flatten(module), 2 * theta)  # a factor of two is exact in each
    assert [layer.weight.dtype for layer in module] == list(dtypes)


def test_a_frozen_parameter_may_have_another_dtype():
    module = nn.Sequential(nn.Linear(3, 2).half().requires_grad_(False), nn.Linear(2, 2))
    assert Layout.of(module).names == ("1.weight", "1.bias")


@pytest.mark.parametrize("make", [nn.ReLU, lambda: nn.Linear(3, 2).requires_grad_(False)], ids=["none", "all frozen"])
def test_a_model_without_trainable_parameters_is_refused(make):
    module = make()
    with pytest.raises(ValueError, match=f"{type(module).__name__} has no trainable parameters: there is no θ"):
        Layout.of(module)


def test_a_double_model_has_a_double_theta():
    module = nn.Linear(3, 2).double()
    theta, gradient = bound(Layout.of(module), module)
    assert theta.dtype == gradient.dtype == torch.float64
