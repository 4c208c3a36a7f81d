"""Names of the weights of adapters (PEFT): in the model with the adapter's own name in them, in its files without."""

from collections.abc import Iterable, Iterator
from itertools import pairwise

from torch import nn

_BARE = ("lora_magnitude_vector",)
"""What PEFT saves as a tensor of its own, though it is a module with a weight."""


def adapters(module: nn.Module) -> list[str]:
    """The names of all adapters in a module, those in use first."""
    used: dict[str, None] = {}
    known: dict[str, None] = {}
    for part in module.modules():
        configs = getattr(part, "peft_config", None)
        if isinstance(configs, dict):
            active = getattr(part, "active_adapter", None)
            used |= dict.fromkeys([active] if isinstance(active, str) else _listed(active))
            known |= dict.fromkeys(name for name in configs if isinstance(name, str))
    return list(used | known)


def without_adapter(name: str, adapter: str) -> str:
    """The name that a weight has in an adapter's file, given its name in the model."""
    words = name.split(".")
    for place, word in enumerate(words):
        if word == adapter and place:
            if words[place - 1] == "modules_to_save":
                return ".".join([*words[: place - 1], *words[place + 1 :]])
            if words[place - 1] in _BARE:
                return ".".join(words[:place])
            if place >= len(words) - 2:
                return ".".join([*words[:place], *words[place + 1 :]])
    return name


def names_in_files(name: str) -> Iterator[str]:
    """The names under which an adapter's file may have what a model calls so, whatever the adapter's name."""
    words = name.split(".")
    saved = [word for before, word in pairwise(words) if before == "modules_to_save"]
    for word in dict.fromkeys([*saved, *words[-2:]]):
        yield without_adapter(name, word)


def check_unmerged(module: nn.Module) -> None:
    """Raises ValueError where adapters are merged into the weights beneath: what is written to them has no effect."""
    for name, part in module.named_modules():
        if getattr(part, "merged_adapters", None):
            raise ValueError(
                f"the adapters of {name} are merged into the weights beneath, so that other values of theirs would "
                "have no effect: call unmerge_adapter() first"
            )


def _listed(value: object) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, Iterable) else []
