"""The parts of a config: the settings of each phase, with the paper's symbols."""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from dswag.core.validation import validated
from dswag.federation.client_sampling import checked_share
from dswag.federation.local_update import Precision
from dswag.posterior.deviations import MOST as MOST_COLUMNS
from dswag.posterior.draws import Kind

Count = Annotated[int, Field(ge=1, strict=True)]
Seed = Annotated[int, Field(ge=0, strict=True)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Fraction = Annotated[float, Field(ge=0, lt=1, strict=True)]
Switch = Annotated[bool, Field(strict=True)]
Share = Annotated[int | str, BeforeValidator(checked_share)]
"""Some of the clients: 3, "30%" or "all"."""


@validated
class TrainSettings:
    """Phase 1: rounds of training on the clients."""

    rounds: Count = 20
    """Global rounds (T)."""
    clients_per_round: Share = "all"
    """Clients sampled in each round (S in line 4): 3, 30% or all."""
    local_epochs: Count = 1
    """Epochs on each client in each round (L)."""
    learning_rate: Rate = 0.05
    """Learning rate (η_l1)."""
    final_learning_rate: Rate | None = None
    """Learning rate of the last round, to which it falls linearly; constant if not given."""
    stop_accuracy: Annotated[float, Field(gt=0, le=1, strict=True)] | None = None
    """Accuracy on the clients' own training data at which it ends early (Section 6.1); never if not given."""


@validated
class LocalSettings:
    """Client update: how a client turns minibatches into steps, in both phases."""

    batch_size: Count = 50
    """Largest size of a minibatch; the batches of an epoch differ in size by at most one."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The optimizer; its state is empty at the start of every round and of phase 2."""
    momentum: Fraction = 0.9
    """Momentum of SGD, β₁ of AdamW."""
    nesterov: Switch = False
    """Nesterov's momentum in SGD."""
    weight_decay: NotNegative = 1e-4
    """Weight decay, decoupled in AdamW."""
    proximal: NotNegative = 0.0
    """Weight of FedProx's proximal term (μ), which holds clients near the θ they start from."""
    rate_factors: tuple[Rate, ...] = ()
    """A number for each client, in their order, that multiplies its learning rates; all 1 if empty."""
    clip_gradient: Rate | None = None
    """Norm to which a minibatch's gradient is shortened; no limit if not given."""
    precision: Precision = "float32"
    """Number format of forward and backward passes: bfloat16 runs them under autocast; weights stay float32."""
    upload: Literal["float32", "bfloat16"] = "float32"
    """How weights are sent back: bfloat16 sends differences from θ, in half the bytes."""


@validated
class ServerSettings:
    """Server update: how the clients' weights become the next θ (Update in line 12)."""

    FLAT: ClassVar = {
        name: f"server_{name}" for name in ("optimizer", "learning_rate", "momentum", "second_momentum", "epsilon")
    }

    aggregation: Literal[
        "mean",
        "weighted-mean",
        "median",
        "trimmed-mean",
        "geometric-median",
        "krum",
        "multi-krum",
        "nnm-median",
        "nnm-trimmed-mean",
        "nnm-geometric-median",
        "nnm-krum",
    ] = "mean"
    """How the clients' weights are combined; all but the means are robust."""
    byzantine: Share = "20%"
    """Clients of a round trip that may be malicious (f): 2 or 20%; for robust aggregation and moments."""
    clip_update: Rate | None = None
    """Norm to which a client's step from θ is shortened in phase 1; no limit if not given."""
    optimizer: Literal["plain", "momentum", "nesterov", "adagrad", "yogi", "adam"] = "plain"
    """Optimizer that takes the step from θ to the clients' aggregate; plain goes there directly."""
    learning_rate: Rate = 1.0
    """Learning rate of the server (η); small, such as 0.01, for the adaptive optimizers."""
    momentum: Fraction = 0.9
    """Momentum of the server (β₁)."""
    second_momentum: Fraction = 0.99
    """Decay rate of the second moment in "yogi" and "adam" (β₂)."""
    epsilon: Rate = 1e-3
    """Constant in the denominator of the adaptive optimizers (τ)."""


@validated
class ExploreSettings:
    """Phase 2: clients that explore from θ_T."""

    FLAT: ClassVar = {name: f"explore_{name}" for name in ("epochs", "rounds", "learning_rate", "final_learning_rate")}

    explorers: Share = "all"
    """Clients that explore (P in line 16): 3, 30% or all."""
    epochs: Count = 5
    """Epochs on each explorer (M)."""
    rounds: Count | None = None
    """Exchanges over which its epochs are spread, the explorers averaged after each but the last; 1 in the paper. If
    not given, as many as leave an explorer an epoch for each of its snapshots: M for a single one."""
    learning_rate: Rate | None = None
    """Learning rate at the start of each cycle (α₁ of η_l2); if not given, that at the end of phase 1, or a fifth of it
    where explorers train alone all the time."""
    final_learning_rate: Rate | None = None
    """Learning rate towards which it falls in each cycle (α₂ of η_l2); if not given, a tenth of that one."""
    cycles: Count = 1
    """Learning rate cycles on each explorer, of M / cycles epochs each; a divisor of M. Several need a single
    exchange."""
    snapshots_per_cycle: Count = 1
    """Snapshots of θ that each explorer gives in a cycle of the last exchange, evenly spaced, the last at its end."""


@validated
class PosteriorSettings:
    """Phase 3: the Gaussian made from the snapshots."""

    rank: Annotated[int, Field(ge=0, le=MOST_COLUMNS, strict=True)] = 20
    """Deviation columns that are kept, at most (K); 0 gives a diagonal posterior."""
    columns: Literal["last", "svd"] = "last"
    """Which columns: those of the last K snapshots, or the K principal directions of all."""
    moments: Literal["mean", "trimmed", "median"] = "mean"
    """How snapshots are combined: "trimmed" and "median" withstand malicious explorers, but keep all of them."""


@validated
class PredictSettings:
    """Algorithm 2: predictions averaged over draws."""

    samples: Count = 30
    """Draws from the posterior (S)."""
    kind: Kind = "swag"
    """Covariance of the draws: both halves, or one alone."""
    scale: NotNegative = 1.0
    """Factor on the covariance; 1 in the paper."""
    batch_norm_examples: Annotated[int, Field(ge=2, strict=True)] | None = None
    """Examples of each client for BatchNorm statistics, rounded up to whole batches; all if not given."""


@validated
class CalibrationSettings:
    """Calibration: scales and temperature fitted to examples that training does not see."""

    holdout: Fraction = 0.0
    """Fraction of each client's examples that is held out of training."""
    calibrate: Switch = False
    """Fit the posterior's scales and temperature to the held-out examples, on the clients."""


@validated
class FaultSettings:
    """Faults: what happens when clients fail, or training diverges."""

    on_failure: Literal["fail", "skip"] = "fail"
    """When a client fails, the run stops ("fail") or goes on with those that answered ("skip")."""
    min_clients: Share = "50%"
    """Clients that must answer each time where failing ones are skipped: 3, 50% or all."""
    client_time_limit: Rate | None = None
    """Seconds of training after which a client counts as failed; no limit if not given."""
    max_loss_growth: Rate = 10.0
    """Training has diverged once its loss exceeds this many times the first loss, taken as at least 1."""
