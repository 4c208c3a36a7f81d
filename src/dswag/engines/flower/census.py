"""Which clients live on which node, and whether it draws as the server does.

A node is asked when it appears. For the BatchNorm refresh it will make draws from a posterior itself, which is right
only if they are the server's draws. They are the same bits on every processor, but another release may draw otherwise.
So each node shows some values of draws from a posterior that all know.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version

import torch
from flwr.app import ConfigRecord, RecordDict
from jaxtyping import Float
from torch import Tensor

from dswag.client.draws import thetas
from dswag.engines.flower import records
from dswag.engines.flower.records import RecordError
from dswag.posterior.draws import Draws
from dswag.posterior.sampling import CHUNK

ACTION = "clients"
MESSAGE_TYPE = f"query.{ACTION}"

_D = CHUNK + 1000
"""More than one chunk, so that how they are joined is seen as well."""
_PROBES = slice(5, None, 997)


@dataclass(frozen=True)
class Resident:
    """A node, as it presented itself."""

    node: int
    clients: tuple[int, ...]
    stranger: str | None
    """How its draws differ from the server's; None where they are the same."""


def question() -> RecordDict:
    """What a node is asked when it appears."""
    return RecordDict({"question": ConfigRecord({})})


def answer(clients: Iterable[int]) -> RecordDict:
    """How a node with these clients presents itself."""
    said = ConfigRecord({"clients": sorted(clients), "torch": torch.__version__, "dswag": version("dswag")})
    return RecordDict({"node": said, "draws": records.to_arrays({"draws": _draws()})})


def read_answer(node: int, content: RecordDict) -> Resident:
    """What a node answered. Raises RecordError where it cannot be read."""
    try:
        said = content.config_records["node"]
        clients = tuple(int(client) for client in said["clients"])
        theirs = records.to_tensors(content.array_records["draws"])["draws"]
        mine = _draws()
        same = torch.equal(theirs, mine)
        stranger = None if same else records.words(f"torch {said['torch']} and dswag {said['dswag']}")
    except RecordError:
        raise
    except Exception as error:
        raise RecordError(f"node {node} presents itself in another way: {type(error).__name__}: {error}") from error
    return Resident(node, clients, stranger)


@cache
def _draws() -> Float[Tensor, "2 p"]:
    """Some values of two draws from a posterior that every node can make."""
    ramp = torch.arange(_D) / _D  # rounded once, as is all that follows
    posterior = {"mean": ramp, "variance": 1 + ramp.square(), "deviations": torch.stack([ramp, 1 - ramp])}
    draws = Draws(seed=0, first=0, count=2, kind="swag", scale=1.0)
    return torch.stack(list(thetas((draws,), posterior)))[:, _PROBES]
