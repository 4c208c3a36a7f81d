"""BatchNorm statistics of a client: those of the payload's θ, or of draws (Algorithm 2, line 3)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from dswag.client import batch_norm
from dswag.client.batch_norm import BATCH_SIZE, LayerStatistics, buffers, merge
from dswag.client.draws import thetas
from dswag.client.replica import Workspace
from dswag.client.work import examples_of
from dswag.core.randomness import derive_seed
from dswag.data.examples import ClientData
from dswag.federation.contract import ClientError, Engine, Part, Payload, Result, Task
from dswag.federation.layouts import in_layout_of
from dswag.federation.local_update import Precision
from dswag.federation.result_validation import check_count, check_tensor
from dswag.federation.round_trip import round_trip
from dswag.posterior.draws import Draws


def refresh(
    engine: Engine,
    payload: Payload,
    *,
    seed: int,
    max_examples: int | None = None,
    draws: tuple[Draws, ...] = (),
    part: Part | None = None,
    minimum: int | None = None,
    precision: Precision = "float32",
) -> tuple[dict[str, Tensor], ...]:
    """For the payload's θ, or each draw from its posterior, the running statistics over all clients by buffer name.

    One round trip, however many draws. Each client passes at most `max_examples`, rounded up to whole batches. All
    clients must answer, or at least `minimum`.
    """
    layers = engine.batch_norm_layers
    if not layers:
        return ({},) * (sum(each.count for each in draws) or 1)
    tasks = [
        StatisticsTask(
            index=client,
            client=client,
            occasion="the BatchNorm refresh",
            part=part,
            batch_size=BATCH_SIZE,
            max_examples=max_examples,
            seed=derive_seed(seed, client),
            draws=draws,
            precision=precision,
            layers=layers,
        )
        for client in range(engine.num_clients)
    ]
    return round_trip(engine, payload, tasks, PooledStatistics(), minimum=minimum).fold.result()


@dataclass(frozen=True, kw_only=True)
class StatisticsResult(Result):
    """What a client answers to a `StatisticsTask`: for each draw, each layer's statistics by the layer's name."""

    statistics: tuple[Mapping[str, LayerStatistics], ...]

    def to_wire(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Few arrays with a row for each draw: each array is a trip of its own."""
        counts, tensors = {}, {}
        for name in self.statistics[0]:
            seen = [draw[name] for draw in self.statistics]
            counts[name] = [layer.count for layer in seen]
            tensors[f"{name}/mean"] = torch.stack([layer.mean for layer in seen])
            tensors[f"{name}/scatter"] = torch.stack([layer.scatter for layer in seen])
        return {"counts": counts}, tensors

    @classmethod
    def from_wire(cls, task: Any, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """What each layer's rows say of each draw."""
        draws: list[dict[str, LayerStatistics]] = [{} for _ in range(task.num_draws)]
        for name, counts in values["counts"].items():
            rows = zip(draws, counts, tensors[f"{name}/mean"], tensors[f"{name}/scatter"], strict=True)
            for draw, count, mean, scatter in rows:
                draw[name] = LayerStatistics(count=count, mean=mean, scatter=scatter)
        return cls(index=task.index, client=task.client, statistics=tuple(draws))


@dataclass(frozen=True, kw_only=True)
class StatisticsTask(Task):
    """Collect the statistics of the inputs of every BatchNorm layer (Algorithm 2, line 3).

    They are for the payload's θ or, with `draws`, for draws that the client makes itself from the payload's posterior.
    """

    batch_size: int
    max_examples: int | None
    seed: int
    draws: tuple[Draws, ...] = ()
    precision: Precision = "float32"
    layers: Mapping[str, int] | None = None
    """The layers that the server's model has, and their widths; whichever the client has if None."""

    result: ClassVar[type[Result]] = StatisticsResult

    @property
    def makes_draws(self) -> bool:
        """Unless they are for θ."""
        return bool(self.draws)

    @property
    def num_draws(self) -> int:
        """For how many θ there are statistics."""
        return sum(draws.count for draws in self.draws) or 1

    def run(self, payload: Payload, data: ClientData, workspace: Workspace) -> StatisticsResult:
        """BatchNorm statistics of the payload's θ, or of each draw from its posterior (Algorithm 2, line 3)."""

        def inputs() -> Iterator[Any]:
            num_seen = 0
            generator = torch.Generator().manual_seed(self.seed)
            for batch, targets in examples_of(self, data, self.batch_size, generator):
                workspace.check_time(self)
                yield workspace.place(batch)
                num_seen += len(targets)
                if self.max_examples is not None and num_seen >= self.max_examples:
                    return

        def collect(theta: Tensor) -> dict[str, LayerStatistics]:
            workspace.load(in_layout_of(payload, theta))
            with workspace.computing_in(self.precision):
                collected = batch_norm.collect(workspace.module, inputs(), workspace.normalizing)
            broken = [name for name, seen in collected.items() if not torch.isfinite(seen.mean + seen.scatter).all()]
            if broken:
                raise ClientError(self, f"inputs of the BatchNorm layers {broken} are not finite")
            return collected

        return StatisticsResult(
            index=self.index,
            client=self.client,
            statistics=tuple(collect(theta) for theta in thetas(self.draws, payload)),
        )

    def validated(self, result: Any, payload: Payload) -> Any:
        """Statistics of every draw, for the same layers."""
        draws: Any = result.statistics
        if not isinstance(draws, tuple) or not all(isinstance(draw, Mapping) for draw in draws):
            raise ValueError("statistics must be a tuple of mappings")
        if len(draws) != self.num_draws:
            raise ValueError(f"statistics must be of {self.num_draws} draws, got {len(draws)}")
        for name, seen in (item for draw in draws for item in draw.items()):
            if not isinstance(name, str) or not isinstance(seen, LayerStatistics):
                raise ValueError("statistics must be LayerStatistics by the layer's name")
            check_count(f"count of layer {name!r}", seen.count)
            check_tensor(f"mean of layer {name!r}", seen.mean, None, torch.float64)
            check_tensor(f"scatter of layer {name!r}", seen.scatter, tuple(seen.mean.shape), torch.float64, least=0)
        widths = [{name: len(seen.mean) for name, seen in draw.items()} for draw in draws]
        expected = widths[0] if self.layers is None else self.layers
        for found in widths:
            if found != expected:
                raise ValueError(f"its BatchNorm layers are {found}, the server's are {dict(expected)}")
        return result


class PooledStatistics:
    """The statistics of every client together, for each draw."""

    def __init__(self) -> None:
        self._statistics: tuple[Mapping[str, LayerStatistics], ...] = ()

    def add(self, result: StatisticsResult) -> None:
        """Takes in one client's statistics."""
        self._take(result.statistics)

    def merge(self, other: Self) -> None:
        """Takes in another fold's statistics."""
        self._take(other._statistics)

    def result(self) -> tuple[dict[str, Tensor], ...]:
        """For each draw, the running statistics by buffer name."""
        if not self._statistics:
            raise ValueError("there are no BatchNorm statistics of no clients: add a result first")
        return tuple(buffers(statistics) for statistics in self._statistics)

    def empty(self) -> Self:
        """The statistics of no clients."""
        return type(self)()

    def state(self) -> dict[str, Tensor]:
        """How many draws there are, and for each layer counts [s], means [s, c] and scatters [s, c]."""
        draws = self._statistics
        state = {"draws": torch.tensor(len(draws))}
        for name in draws[0] if draws else ():
            seen = [statistics[name] for statistics in draws]
            state[f"count {name}"] = torch.tensor([one.count for one in seen])
            state[f"mean {name}"] = torch.stack([one.mean for one in seen])
            state[f"scatter {name}"] = torch.stack([one.scatter for one in seen])
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes on the statistics of another."""
        names = [name.removeprefix("count ") for name in state if name.startswith("count ")]
        values = {name: [state[f"{what} {name}"] for what in ("count", "mean", "scatter")] for name in names}
        self._statistics = tuple(
            {
                name: LayerStatistics(count=int(count[draw]), mean=mean[draw].clone(), scatter=scatter[draw].clone())
                for name, (count, mean, scatter) in values.items()
            }
            for draw in range(int(state["draws"]))
        )

    def _take(self, statistics: tuple[Mapping[str, LayerStatistics], ...]) -> None:
        if not self._statistics:
            self._statistics = statistics
        elif statistics:
            self._statistics = tuple(
                {**mine, **theirs, **{name: merge(mine[name], theirs[name]) for name in mine if name in theirs}}
                for mine, theirs in zip(self._statistics, statistics, strict=True)
            )
