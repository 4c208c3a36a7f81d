"""The settings of a run, checked when made; the paper's symbols stand in the descriptions."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import Field, model_validator

from dswag.aggregation import ROBUST
from dswag.cohorts import cohort_size, fewest_withstanding, malicious_number
from dswag.files import write_text
from dswag.robust_moments import SPARE
from dswag.tasks import ClientUpdate, Part
from dswag.validation import ConfigError as ConfigError
from dswag.validation import validated

Count = Annotated[int, Field(ge=1, strict=True)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Share = Annotated[int, Field(strict=True)] | Annotated[float, Field(strict=True)]


@validated
class Config:
    """What Algorithms 1 and 2 run with. A share of clients is a number (int) or a fraction (float in (0, 1]).

    Raises:
        ConfigError: unknown settings, or values that cannot be, with a line for each fault.
    """

    clients: Count = 10
    """Number of clients, the paper's workers (W)."""
    seed: Annotated[int, Field(ge=0, strict=True)] = 0
    """Every random choice of the run is a function of it."""

    rounds: Count = 20
    """Phase 1: global rounds (T)."""
    clients_per_round: Share = 1.0
    """Phase 1: share of the clients sampled in each round (S in line 4): 3 are three clients, 0.3 is three in ten."""
    local_epochs: Count = 1
    """Phase 1: epochs on each client in each round (L)."""
    learning_rate: Rate = 0.05
    """Phase 1: learning rate (η_l1)."""
    final_learning_rate: Rate | None = None
    """Phase 1: the learning rate falls linearly to this one in the last round; it is constant if not given."""
    aggregation: Literal[
        "mean", "weighted-mean", "median", "trimmed-mean", "geometric-median", "krum", "multi-krum"
    ] = "mean"
    """Phase 1: the server's Update (line 12); all but the means withstand malicious clients."""
    byzantine: Share = 0.2
    """Robust rules: share of the clients of an exchange that may be malicious (f); "trimmed-mean" cuts so many."""
    clip_update: Rate | None = None
    """Robust rules: largest norm of a client's step from θ in phase 1, before any rule; no limit if not given."""
    server_optimizer: Literal["plain", "momentum", "adagrad", "yogi", "adam"] = "plain"
    """Server update: what the server does with the step from θ to the clients' aggregate."""
    server_learning_rate: Rate = 1.0
    """Server update: learning rate (η); the adaptive optimizers want a small one, such as 0.01."""
    server_momentum: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.9
    """Server update: momentum (β₁)."""
    server_second_momentum: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.99
    """Server update: momentum of the second moment of "yogi" and "adam" (β₂)."""
    server_epsilon: Rate = 1e-3
    """Server update: adaptivity of the adaptive optimizers (τ)."""

    stop_accuracy: Annotated[float, Field(gt=0, le=1, strict=True)] | None = None
    """Phase 1: ends early once the accuracy on the clients' own data reaches this (Section 6.1)."""

    explorers: Share = 1.0
    """Phase 2: share of the clients that explore (P in line 16): 1 is one client, 1.0 all of them."""
    explore_epochs: Count = 5
    """Phase 2: epochs on each explorer (M)."""
    explore_learning_rate: Rate = 0.01
    """Phase 2: learning rate at the start of each cycle (α₁ of η_l2)."""
    explore_final_learning_rate: Rate = 0.001
    """Phase 2: learning rate towards which each cycle falls (α₂ of η_l2)."""
    cycles: Count = 1
    """Phase 2: learning rate cycles on each explorer, of M / cycles epochs each (c)."""
    snapshots_per_cycle: Count = 1
    """Phase 2: how many times θ is taken in each cycle, evenly spaced, the last at its end."""

    batch_size: Count = 50
    """Client update: most examples in a minibatch; the batches of an epoch differ in size by at most one."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Client update: the optimizer, its state empty at the start of every task."""
    momentum: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.9
    """Client update: momentum of SGD, β₁ of AdamW."""
    nesterov: Annotated[bool, Field(strict=True)] = False
    """Client update: Nesterov's momentum in SGD."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)] = 1e-4
    """Client update: weight decay, decoupled in AdamW."""
    proximal: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)] = 0.0
    """Client update: weight of FedProx's proximal term (μ), which holds clients near the θ they start from."""
    rate_factors: tuple[Rate, ...] = ()
    """Client update: a factor on every learning rate of each client, in the order of the clients; all 1 if empty."""
    clip_gradient: Rate | None = None
    """Client update: largest norm of a minibatch's gradient; no limit if not given."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Client update: "bfloat16" runs forward and backward under autocast; weights stay float32."""

    rank: Annotated[int, Field(ge=0, strict=True)] = 20
    """Phase 3: most deviation columns kept (K); 0 gives a diagonal posterior."""
    centering: Literal["final", "running"] = "final"
    """Phase 3: center columns on the final mean, or on the running mean as line 29 prints."""

    moments: Literal["mean", "trimmed", "median"] = "mean"
    """Phase 3: "trimmed" and "median" withstand malicious explorers, in memory for all snapshots."""

    samples: Count = 30
    """Algorithm 2: draws from the posterior (S)."""
    scale: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)] = 1.0
    """Algorithm 2: factor on the covariance; the paper's is 1."""
    batch_norm_examples: Annotated[int, Field(ge=2, strict=True)] | None = None
    """Algorithm 2: examples of each client in each BatchNorm refresh, rounded up to batches; all if not given."""

    on_failure: Literal["fail", "skip"] = "fail"
    """Faults: what happens when a client fails: the run stops, or goes on with those that answered."""
    min_clients: Share = 0.5
    """Faults: least share of the clients of each exchange that must answer, where failing ones are skipped."""
    client_time_limit: Rate | None = None
    """Faults: seconds of training after which a client has failed; no limit if not given."""
    max_loss_growth: Rate = 10.0
    """Faults: times the first loss, taken as at least 1, above which training has diverged."""
    upload: Literal["float32", "bfloat16"] = "float32"
    """Communication: "bfloat16" sends weights back as differences to θ, in half the bytes."""

    holdout: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.0
    """Calibration: fraction of each client's examples that training does not see."""
    calibrate: Annotated[bool, Field(strict=True)] = False
    """Calibration: fit scales and temperature of the posterior to the held-out examples, on the clients."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        faults = []
        for name in ("clients_per_round", "explorers", "min_clients", "byzantine"):
            try:
                cohort_size(getattr(self, name), self.clients)
            except ValueError as error:
                faults.append(f"{name}: {error}")
        period = self.explore_epochs // self.cycles
        if self.explore_epochs % self.cycles:
            faults.append(
                f"cycles must divide explore_epochs, got {self.cycles} cycles in {self.explore_epochs} epochs: "
                "the last cycle would end early"
            )
        elif self.snapshots_per_cycle > period:
            faults.append(
                f"snapshots_per_cycle must be at most {period}, the epochs of a cycle, got {self.snapshots_per_cycle}"
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
        """The settings that a run's outcome depends on, which one that is resumed keeps."""
        return asdict(self)

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
        """How many of so many clients must answer; None where all must.

        In phases 1 and 2 as many as make an aggregate and a posterior with these settings, if those are more.
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
    def from_toml(cls, path: str | Path, **overrides: Any) -> Self:
        """The settings in a TOML file, those given beside it instead of the file's, defaults where both are silent.

        Raises:
            ConfigError: a file that is no TOML, unknown keys, or values that cannot be, with a line for each fault.
            FileNotFoundError: no such file.
        """
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is no TOML file: {error}") from None
        return cls.checked({**values, **overrides}, source=f"{path} and overrides" if overrides else str(path))

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
        write_text(Path(path), tomli_w.dumps(values))


def differences(settings: Mapping[str, object], others: Mapping[str, object]) -> tuple[str, ...]:
    """The settings in which the two differ, such as "rounds (20, not 30)"; a number and a fraction of clients do."""
    names = [*settings, *(name for name in others if name not in settings)]
    pairs = [(name, json.dumps(settings.get(name)), json.dumps(others.get(name))) for name in names]
    return tuple(f"{name} ({one}, not {other})" for name, one, other in pairs if one != other)
