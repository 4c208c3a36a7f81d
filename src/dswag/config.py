"""The settings of a run, checked when made; the paper's symbols stand in the descriptions."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from dswag.core.atomic_files import write_text
from dswag.core.extras import required
from dswag.core.validation import ConfigError as ConfigError
from dswag.core.validation import validated
from dswag.federation.aggregation import ROBUST
from dswag.federation.client_sampling import cohort_size, fewest_withstanding, malicious_number
from dswag.federation.contract import Part
from dswag.federation.local_update import ClientUpdate
from dswag.posterior.deviations import MOST as MOST_COLUMNS
from dswag.posterior.robust_moments import SPARE

Count = Annotated[int, Field(ge=1, strict=True)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Share = Annotated[int, Field(strict=True)] | Annotated[float, Field(strict=True)]


PAPER: Mapping[str, Any] = MappingProxyType(
    {"explore_rounds": 1, "explore_learning_rate": 0.01, "explore_final_learning_rate": 0.001}
)
"""What `Config.paper` sets."""


@validated
class Config:
    """The settings of Algorithms 1 and 2. A share of the clients is a number (int) or a fraction (float in (0, 1]).

    Raises:
        ConfigError: unknown settings, or values that cannot be used, with a line for each fault.
    """

    clients: Count = 10
    """Number of clients, the paper's workers (W)."""
    seed: Annotated[int, Field(ge=0, strict=True)] = 0
    """Every random choice of the run is a function of it."""

    rounds: Count = 20
    """Phase 1: global rounds (T)."""
    clients_per_round: Share = 1.0
    """Phase 1: clients sampled in each round (S in line 4): 3 are three clients, 0.3 is three in ten."""
    local_epochs: Count = 1
    """Phase 1: epochs on each client in each round (L)."""
    learning_rate: Rate = 0.05
    """Phase 1: learning rate (η_l1)."""
    final_learning_rate: Rate | None = None
    """Phase 1: learning rate of the last round, to which it falls linearly; constant if not given."""
    aggregation: Literal[
        "mean", "weighted-mean", "median", "trimmed-mean", "geometric-median", "krum", "multi-krum"
    ] = "mean"
    """Phase 1: how the server combines the clients' weights (Update in line 12); all but the means are robust."""
    byzantine: Share = 0.2
    """Robust rules: clients of a round trip that may be malicious (f), as a number or a fraction."""
    clip_update: Rate | None = None
    """Robust rules: norm to which a client's step from θ is shortened in phase 1; no limit if not given."""
    server_optimizer: Literal["plain", "momentum", "nesterov", "adagrad", "yogi", "adam"] = "plain"
    """Server update: optimizer that takes the step from θ to the clients' aggregate; plain goes there directly."""
    server_learning_rate: Rate = 1.0
    """Server update: learning rate (η); small, such as 0.01, for the adaptive optimizers."""
    server_momentum: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.9
    """Server update: momentum (β₁)."""
    server_second_momentum: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.99
    """Server update: decay rate of the second moment in "yogi" and "adam" (β₂)."""
    server_epsilon: Rate = 1e-3
    """Server update: constant in the denominator of the adaptive optimizers (τ)."""

    stop_accuracy: Annotated[float, Field(gt=0, le=1, strict=True)] | None = None
    """Phase 1: accuracy on the clients' own training data at which it ends early (Section 6.1); never if not given."""

    explorers: Share = 1.0
    """Phase 2: clients that explore (P in line 16): 1 is one client, 1.0 all of them."""
    explore_epochs: Count = 5
    """Phase 2: epochs on each explorer (M)."""
    explore_rounds: Count | None = None
    """Phase 2: exchanges over which its epochs are spread, the explorers averaged after each but the last; 1 in the
    paper. If not given, as many as leave an explorer an epoch for each of its snapshots: M for a single one."""
    explore_learning_rate: Rate | None = None
    """Phase 2: learning rate at the start of each cycle (α₁ of η_l2); if not given, that at the end of phase 1, or a
    fifth of it where explorers train alone all the time."""
    explore_final_learning_rate: Rate | None = None
    """Phase 2: learning rate towards which it falls in each cycle (α₂ of η_l2); if not given, a tenth of that one."""
    cycles: Count = 1
    """Phase 2: learning rate cycles on each explorer, of M / cycles epochs each; a divisor of M. Several need a single
    exchange."""
    snapshots_per_cycle: Count = 1
    """Phase 2: snapshots of θ that each explorer gives in a cycle of the last exchange, evenly spaced, the last at its
    end."""

    batch_size: Count = 50
    """Client update: largest size of a minibatch; the batches of an epoch differ in size by at most one."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Client update: the optimizer; its state is empty at the start of every round and of phase 2."""
    momentum: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.9
    """Client update: momentum of SGD, β₁ of AdamW."""
    nesterov: Annotated[bool, Field(strict=True)] = False
    """Client update: Nesterov's momentum in SGD."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)] = 1e-4
    """Client update: weight decay, decoupled in AdamW."""
    proximal: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)] = 0.0
    """Client update: weight of FedProx's proximal term (μ), which holds clients near the θ they start from."""
    rate_factors: tuple[Rate, ...] = ()
    """Client update: a number for each client, in their order, that multiplies its learning rates; all 1 if empty."""
    clip_gradient: Rate | None = None
    """Client update: norm to which a minibatch's gradient is shortened; no limit if not given."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Client update: "bfloat16" runs forward and backward passes under autocast; weights stay float32."""

    rank: Annotated[int, Field(ge=0, le=MOST_COLUMNS, strict=True)] = 20
    """Phase 3: deviation columns that are kept, at most (K); 0 gives a diagonal posterior."""
    centering: Literal["final", "running"] = "final"
    """Phase 3: center columns on the final mean, or on the running mean as printed in line 29."""

    moments: Literal["mean", "trimmed", "median"] = "mean"
    """Phase 3: "trimmed" and "median" withstand malicious explorers, but keep all snapshots in memory."""

    samples: Count = 30
    """Algorithm 2: draws from the posterior (S)."""
    scale: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)] = 1.0
    """Algorithm 2: factor on the covariance; 1 in the paper."""
    batch_norm_examples: Annotated[int, Field(ge=2, strict=True)] | None = None
    """Algorithm 2: examples of each client for BatchNorm statistics, rounded up to whole batches; all if not given."""

    on_failure: Literal["fail", "skip"] = "fail"
    """Faults: when a client fails, the run stops ("fail") or goes on with those that answered ("skip")."""
    min_clients: Share = 0.5
    """Faults: clients that must answer each time, as a number or a fraction, where failing ones are skipped."""
    client_time_limit: Rate | None = None
    """Faults: seconds of training after which a client counts as failed; no limit if not given."""
    max_loss_growth: Rate = 10.0
    """Faults: training has diverged once its loss exceeds this many times the first loss, taken as at least 1."""
    upload: Literal["float32", "bfloat16"] = "float32"
    """Communication: "bfloat16" sends weights back as differences from θ, in half the bytes."""

    holdout: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.0
    """Calibration: fraction of each client's examples that is held out of training."""
    calibrate: Annotated[bool, Field(strict=True)] = False
    """Calibration: fit the posterior's scales and temperature to the held-out examples, on the clients."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        faults = []
        for name in ("clients_per_round", "explorers", "min_clients", "byzantine"):
            try:
                cohort_size(getattr(self, name), self.clients)
            except ValueError as error:
                faults.append(f"{name}: {error}")
        exchanges = self.explore_rounds or 1
        period = self.explore_epochs // exchanges // self.cycles
        if self.explore_epochs % exchanges:
            faults.append(
                f"explore_rounds must divide explore_epochs, got {exchanges} for {self.explore_epochs} epochs: "
                "all exchanges have the same number of epochs"
            )
        elif exchanges > 1 and self.cycles > 1:
            faults.append(
                f"cycles are those of explorers that train alone, got {self.cycles} in {exchanges} exchanges: "
                "set explore_rounds or cycles to 1"
            )
        elif self.explore_epochs % self.cycles:
            faults.append(
                f"cycles must divide explore_epochs, got {self.cycles} cycles in {self.explore_epochs} epochs: "
                "the last cycle would end early"
            )
        elif self.snapshots_per_cycle > period:
            faults.append(
                f"snapshots_per_cycle must be at most {period}, the epochs of a cycle, got {self.snapshots_per_cycle}"
                + (": lower explore_rounds" if exchanges > 1 else "")
            )
        if self.rate_factors and len(self.rate_factors) != self.clients:
            faults.append(
                f"rate_factors must be one factor for each of the {self.clients} clients, or none at all, "
                f"got {len(self.rate_factors)}"
            )
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            faults.append("nesterov is a form of SGD's momentum: use optimizer sgd and a momentum above 0")
        if self.calibrate and not self.holdout:
            faults.append("calibrate needs examples that training does not see: set holdout, such as 0.1")
        if self.rank == 1:
            faults.append(
                "rank must be 0 or at least 2, got 1: the covariance divides by the number of columns minus one"
            )
        if not faults and cohort_size(self.explorers, self.clients) * self.cycles * self.snapshots_per_cycle < 2:
            faults.append(
                "one snapshot in all gives a posterior without spread: raise explorers, cycles or snapshots_per_cycle"
            )
        if not faults:
            faults = self._faults_of_robust_rules()
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def _faults_of_robust_rules(self) -> list[str]:
        faults = []
        try:
            if self.aggregation in ROBUST:
                ROBUST[self.aggregation].malicious(self.byzantine, cohort_size(self.clients_per_round, self.clients))
        except ValueError as error:
            faults.append(f"aggregation: {error}")
        try:
            if self.moments != "mean":
                explorers = cohort_size(self.explorers, self.clients)
                malicious_number(self.byzantine, explorers, spare=SPARE, rule=self.moments)
        except ValueError as error:
            faults.append(f"moments: {error}")
        if self.moments != "mean" and self.centering == "running":
            faults.append("a running mean does not withstand malicious clients: use centering final, or moments mean")
        return faults

    def decisive(self) -> dict[str, object]:
        """The settings on which the outcome of a run depends; a resumed run keeps them."""
        return asdict(self)

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
        if self.explore_rounds is not None:
            return self.explore_rounds
        if self.cycles > 1 or cohort_size(self.explorers, self.clients) == 1:
            return 1
        most = self.explore_epochs // self.snapshots_per_cycle
        return next(number for number in range(most, 0, -1) if self.explore_epochs % number == 0)

    @property
    def explore_learning_rates(self) -> tuple[float, float]:
        """α₁ and α₂ of phase 2."""
        last = self.final_learning_rate or self.learning_rate  # of phase 1
        first = self.explore_learning_rate or (last if self.explore_exchanges > 1 else last / 5)
        return first, self.explore_final_learning_rate or first / 10

    @property
    def training_part(self) -> Part | None:
        """Which of a client's examples training sees; all where none are held out."""
        return Part(fraction=self.holdout, seed=self.seed, held_out=False) if self.holdout else None

    @property
    def client_update(self) -> ClientUpdate:
        """How clients train."""
        return ClientUpdate(**{field.name: getattr(self, field.name) for field in fields(ClientUpdate)})

    def rate_factor(self, client: int) -> float:
        """What the learning rates of a client are multiplied by."""
        return self.rate_factors[client] if self.rate_factors else 1.0

    def enough_of(self, clients: int, *, phase: Literal[1, 2] | None = None) -> int | None:
        """How many of so many clients must answer; None if all must.

        At least as many as phase 1 needs for an aggregate, and phase 2 for a posterior, with these settings.
        """
        if self.on_failure == "fail":
            return None
        share, needed = self.min_clients, 1
        if phase == 1 and self.aggregation in ROBUST:
            needed = fewest_withstanding(self.byzantine, clients, spare=ROBUST[self.aggregation].spare)
        elif phase == 2 and self.moments != "mean":
            needed = fewest_withstanding(self.byzantine, clients, spare=SPARE)
        elif phase == 2 and self.cycles * self.snapshots_per_cycle == 1:
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
        return cls.checked(
            {**defaults, **values, **overrides}, source=f"{path} and overrides" if overrides else str(path)
        )

    @classmethod
    def checked(cls, values: dict[str, Any], *, source: str) -> Self:
        """The settings with these values, defaults elsewhere. Raises ConfigError, with a line for each fault."""
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError("\n".join(f"{source}: {fault}" for fault in str(error).splitlines())) from None

    def to_toml(self, path: str | Path) -> None:
        """Writes every setting that has a value to a TOML file."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        write_text(Path(path), required("tomli_w", "Config.to_toml").dumps(values))


def differences(settings: Mapping[str, object], others: Mapping[str, object]) -> tuple[str, ...]:
    """The settings in which the two differ, such as "rounds (20, not 30)"; a number and a fraction of clients do."""
    names = [*settings, *(name for name in others if name not in settings)]
    pairs = [(name, json.dumps(settings.get(name)), json.dumps(others.get(name))) for name in names]
    return tuple(f"{name} ({one}, not {other})" for name, one, other in pairs if one != other)
