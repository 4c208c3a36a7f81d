"""All settings of a run, from keywords or a TOML file, checked together."""

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import model_validator

from dswag.config.parts import (
    CalibrationSettings,
    Count,
    ExploreSettings,
    FaultSettings,
    LocalSettings,
    PosteriorSettings,
    PredictSettings,
    Seed,
    ServerSettings,
    TrainSettings,
)
from dswag.core.atomic_files import write_text
from dswag.core.extras import required
from dswag.core.validation import ConfigError, flat, nested, paths, validated
from dswag.federation.aggregation import ROBUST
from dswag.federation.client_sampling import cohort_size, fewest_withstanding, malicious_number
from dswag.federation.contract import Part
from dswag.federation.local_update import ClientUpdate
from dswag.posterior.robust_moments import SPARE

SHARES = ("clients_per_round", "explorers", "min_clients", "byzantine")
"""Settings that say how many of the clients are meant."""

PAPER: Mapping[str, Any] = MappingProxyType(
    {"explore_rounds": 1, "explore_learning_rate": 0.01, "explore_final_learning_rate": 0.001}
)
"""What `Config.paper` sets."""


@validated
class Config:
    """General: the settings of Algorithms 1 and 2, in parts.

    A setting is given by its own name or inside its part: `Config(clients=5, explore_epochs=10)` is
    `Config(clients=5, explore=ExploreSettings(epochs=10))`; the first wins where both are given. It is read in the same
    two ways: `config.explore.epochs`, `config.explore_epochs`. The flags of the command line are the first names; a
    TOML file has a table for each part, and takes the first names as well.

    Raises:
        ConfigError: unknown settings, or values that cannot be used, with a line for each fault.
    """

    clients: Count = 10
    """Number of clients, the paper's workers (W)."""
    seed: Seed = 0
    """Every random choice of the run is a function of it."""
    train: TrainSettings = TrainSettings()
    local: LocalSettings = LocalSettings()
    server: ServerSettings = ServerSettings()
    explore: ExploreSettings = ExploreSettings()
    posterior: PosteriorSettings = PosteriorSettings()
    predict: PredictSettings = PredictSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    faults: FaultSettings = FaultSettings()

    if TYPE_CHECKING:

        def __init__(self, **settings: Any) -> None:
            """Parts, and settings by their own names."""
    else:  # type checkers ask for the part

        def __getattr__(self, name: str) -> Any:
            """A setting of a part, by its own name."""
            path = paths(type(self)).get(name, ())
            if len(path) != 2:
                raise AttributeError(f"{type(self).__name__} has no setting {name!r}")
            return getattr(getattr(self, path[0]), path[1])

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        explore, rank = self.explore, self.posterior.rank
        faults = []
        for name in SHARES:
            try:
                cohort_size(self.flat()[name], self.clients)
            except ValueError as error:
                faults.append(f"{name}: {error}")
        exchanges = explore.rounds or 1
        period = explore.epochs // exchanges // explore.cycles
        if explore.epochs % exchanges:
            faults.append(
                f"explore_rounds must divide explore_epochs, got {exchanges} for {explore.epochs} epochs: "
                "all exchanges have the same number of epochs"
            )
        elif exchanges > 1 and explore.cycles > 1:
            faults.append(
                f"cycles are those of explorers that train alone, got {explore.cycles} in {exchanges} exchanges: "
                "set explore_rounds or cycles to 1"
            )
        elif explore.epochs % explore.cycles:
            faults.append(
                f"cycles must divide explore_epochs, got {explore.cycles} cycles in {explore.epochs} epochs: "
                "the last cycle would end early"
            )
        elif explore.snapshots_per_cycle > period:
            faults.append(
                f"snapshots_per_cycle must be at most {period}, the epochs of a cycle, "
                f"got {explore.snapshots_per_cycle}" + (": lower explore_rounds" if exchanges > 1 else "")
            )
        factors = self.local.rate_factors
        if factors and len(factors) != self.clients:
            faults.append(
                f"rate_factors must be one factor for each of the {self.clients} clients, or none at all, "
                f"got {len(factors)}"
            )
        if self.local.nesterov and (self.local.optimizer != "sgd" or not self.local.momentum):
            faults.append("nesterov is a form of SGD's momentum: use optimizer sgd and a momentum above 0")
        if self.calibration.calibrate and not self.calibration.holdout:
            faults.append("calibrate needs examples that training does not see: set holdout, such as 0.1")
        if rank == 1:
            faults.append(
                "rank must be 0 or at least 2, got 1: the covariance divides by the number of columns minus one"
            )
        if self.posterior.columns == "svd" and self.posterior.moments != "mean":
            faults.append("principal directions do not withstand malicious clients: use columns last, or moments mean")
        if not faults and cohort_size(explore.explorers, self.clients) * self.snapshots_per_explorer < 2:
            faults.append(
                "one snapshot in all gives a posterior without spread: raise explorers, cycles or snapshots_per_cycle"
            )
        faults = faults or self._faults_of_robust_rules()
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def _faults_of_robust_rules(self) -> list[str]:
        aggregation, byzantine, moments = self.server.aggregation, self.server.byzantine, self.posterior.moments
        faults = []
        try:
            if aggregation in ROBUST:
                ROBUST[aggregation].malicious(byzantine, cohort_size(self.train.clients_per_round, self.clients))
        except ValueError as error:
            faults.append(f"aggregation: {error}")
        try:
            if moments != "mean":
                malicious_number(
                    byzantine, cohort_size(self.explore.explorers, self.clients), spare=SPARE, rule=moments
                )
        except ValueError as error:
            faults.append(f"moments: {error}")
        return faults

    def flat(self) -> dict[str, Any]:
        """Every setting by its own name, as keywords and flags have it."""
        return flat(self)

    def replaced(self, **settings: Any) -> Self:
        """The config with other values for these parts or settings. Raises ConfigError as it does when made."""
        return type(self)(**{**{field.name: getattr(self, field.name) for field in fields(self)}, **settings})

    def decisive(self) -> dict[str, object]:
        """The settings on which the outcome of a run depends; a resumed run keeps them."""
        return self.flat()

    @classmethod
    def paper(cls, **settings: Any) -> Self:
        """These settings, and where they leave a choice that of the paper: explorers that train alone, no calibration.

        So are all figures of the paper reproduced. Where the paper gives no number, such as a learning rate, it is one
        that suits this form.
        """
        return cls(**{**PAPER, **settings})

    @property
    def explore_exchanges(self) -> int:
        """Exchanges of phase 2, the last of which gives the snapshots."""
        explore = self.explore
        if explore.rounds is not None:
            return explore.rounds
        if explore.cycles > 1 or cohort_size(explore.explorers, self.clients) == 1:
            return 1
        most = explore.epochs // explore.snapshots_per_cycle
        return next(number for number in range(most, 0, -1) if explore.epochs % number == 0)

    @property
    def explore_learning_rates(self) -> tuple[float, float]:
        """α₁ and α₂ of phase 2."""
        last = self.train.final_learning_rate or self.train.learning_rate
        first = self.explore.learning_rate or (last if self.explore_exchanges > 1 else last / 5)
        return first, self.explore.final_learning_rate or first / 10

    @property
    def snapshots_per_explorer(self) -> int:
        """How many snapshots each explorer gives in phase 2."""
        return self.explore.cycles * self.explore.snapshots_per_cycle

    @property
    def training_part(self) -> Part | None:
        """Which of a client's examples training sees; all where none are held out."""
        holdout = self.calibration.holdout
        return Part(fraction=holdout, seed=self.seed, held_out=False) if holdout else None

    @property
    def client_update(self) -> ClientUpdate:
        """How clients train."""
        return ClientUpdate(**{field.name: getattr(self.local, field.name) for field in fields(ClientUpdate)})

    def rate_factor(self, client: int) -> float:
        """What the learning rates of a client are multiplied by."""
        return self.local.rate_factors[client] if self.local.rate_factors else 1.0

    def enough_of(self, clients: int, *, phase: Literal[1, 2] | None = None) -> int | None:
        """How many of so many clients must answer; None if all must.

        At least as many as phase 1 needs for an aggregate, and phase 2 for a posterior, with these settings.
        """
        if self.faults.on_failure == "fail":
            return None
        share, byzantine, needed = self.faults.min_clients, self.server.byzantine, 1
        if phase == 1 and self.server.aggregation in ROBUST:
            needed = fewest_withstanding(byzantine, clients, spare=ROBUST[self.server.aggregation].spare)
        elif phase == 2 and self.posterior.moments != "mean":
            needed = fewest_withstanding(byzantine, clients, spare=SPARE)
        elif phase == 2 and self.snapshots_per_explorer == 1:
            needed = 2  # of one snapshot there is no spread
        return max(needed, min(share, clients) if isinstance(share, int) else cohort_size(share, clients))

    @classmethod
    def from_toml(cls, path: str | Path, defaults: Mapping[str, Any] = MappingProxyType({}), **overrides: Any) -> Self:
        """The settings in a TOML file, replaced by `overrides` where given, with defaults for all others.

        The `defaults` given, such as `PAPER`, come before those of the class.

        Raises:
            ConfigError: a file that is not TOML, unknown keys, or impossible values, with a line for each fault.
            FileNotFoundError: no such file.
        """
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"{path} is no TOML file: {error}") from None
        twice = []
        for name, (part, *inside) in paths(cls).items():
            if inside and isinstance(values.get(part), dict) and inside[0] in values[part]:
                if name in values:
                    twice.append(f"{path}: {name} stands there twice, also as {inside[0]} in [{part}]: leave one out")
                values[name] = values[part].pop(inside[0])
        if twice:
            raise ConfigError("\n".join(twice))
        source = f"{path} and overrides" if overrides else str(path)
        return cls.checked({**defaults, **values, **overrides}, source=source)

    @classmethod
    def checked(cls, values: Mapping[str, Any], *, source: str) -> Self:
        """The settings with these values, defaults elsewhere. Raises ConfigError, with a line for each fault."""
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError("\n".join(f"{source}: {fault}" for fault in str(error).splitlines())) from None

    def to_toml(self, path: str | Path) -> None:
        """Writes every setting that has a value to a TOML file, with a table for each part."""
        write_text(Path(path), required("tomli_w", "Config.to_toml").dumps(nested(self)))
