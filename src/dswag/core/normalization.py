"""Which layers' running statistics follow θ, and which are frozen.

A layer that is frozen keeps its state, as users of pretrained models expect: one in evaluation mode within a model in
training mode, or one that is no part of θ.
"""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from dswag.core.parameters import Layout, unwrapped


def training_modes(model: nn.Module, layout: Layout | None = None) -> dict[str, bool]:
    """For each module by name, whether it is in training mode while the model is trained.

    A part that is in evaluation mode while the model around it is in training mode stays so; a model in evaluation
    mode as a whole is trained. Normalization layers outside of θ are in evaluation mode always: those whose own
    parameters are not in it, or those without any within a part that has parameters, but none in θ.
    """
    model = unwrapped(model)
    modes = {name: module.training for name, module in model.named_modules()}
    if not model.training:
        model.train()  # a model may say for itself what stays in evaluation mode
        after = {name: module.training for name, module in model.named_modules()}
        for name, module in model.named_modules():
            module.training = modes[name]
        modes = after
    if layout is None:
        inside = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    else:
        inside = set(map(id, layout.select(model)))
    return {
        name: modes[name] and not (inside and isinstance(module, _NormBase) and _is_outside(model, name, inside))
        for name, module in model.named_modules()
    }


def _is_outside(model: nn.Module, name: str, theta: set[int]) -> bool:
    """Whether a normalization layer, or the smallest part around it that has parameters, has none in θ."""
    while not (own := list(model.get_submodule(name).parameters())) and name:
        name = name.rpartition(".")[0]
    return bool(own) and not any(id(parameter) in theta for parameter in own)


def normalizing(model: nn.Module, layout: Layout | None = None) -> dict[str, _BatchNorm | _InstanceNorm]:
    """The layers by name whose running statistics follow θ: of BatchNorm and tracked InstanceNorm, if not frozen."""
    found = {
        name: module
        for name, module in unwrapped(model).named_modules()
        if isinstance(module, _BatchNorm | _InstanceNorm) and module.running_mean is not None
    }
    if not found:
        return {}
    modes = training_modes(model, layout)
    return {name: layer for name, layer in found.items() if modes[name]}
