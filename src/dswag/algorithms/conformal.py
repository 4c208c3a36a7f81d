"""Conformal prediction over clients: sets and intervals that hold the target with a stated probability.

The clients score examples that they held out, and send back how many scores lie in each bin; no score itself leaves a
client. Counts of all clients together give the threshold for an example of any client, counts of one its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from dswag.algorithms.calibration import refreshed_buffers
from dswag.client import batch_norm
from dswag.client.conformal import ConformalTask, CountedScores, summed
from dswag.config import Config
from dswag.core.arrays import as_tensor
from dswag.core.conformal_scores import ConformalScore, Scoring, threshold
from dswag.core.randomness import derive_seed
from dswag.federation.contract import Engine, Part
from dswag.federation.layouts import with_layout
from dswag.federation.round_trip import round_trip
from dswag.posterior.gaussian import GaussianPosterior

ROUNDING = 2.0**-20
"""By how much the score of a probability in float32 may exceed the one that was counted."""


def conformal(
    engine: Engine,
    posterior: GaussianPosterior,
    config: Config,
    *,
    score: ConformalScore = "thr",
    resolution: float = 2.0**-12,
    penalty: float = 0.1,
    free_ranks: int = 2,
    noise: float | None = None,
) -> "Conformal":
    """Split conformal prediction from the examples that the clients held out (`config.calibration.holdout`).

    Args:
        engine: where the clients are; each scores its held-out examples with `config.predict.samples` averaged draws.
        posterior: what predictions are made with.
        config: of the run; it says which examples no client trained on.
        score: "thr", "aps" or "raps" for classes, "absolute" or "normalized" for a regression (`Scoring`).
        resolution: width of a bin. Thresholds are rounded up to the end of a bin, so that coverage never suffers.
        penalty: of "raps", for every rank of the target beyond `free_ranks`.
        free_ranks: of "raps".
        noise: variance of the targets, for a regression model that does not return it.

    Raises:
        ValueError: no examples were held out, or settings that `Scoring` refuses.
        ClientError, TooFewClientsError: from `round_trip`; such as for outputs that are no classes.
    """
    if not config.calibration.holdout:
        raise ValueError("conformal prediction needs examples that no client trained on: train with holdout, as 0.1")
    scoring = Scoring(score=score, resolution=resolution, penalty=penalty, free_ranks=free_ranks)
    draws = posterior.draws(derive_seed(config.seed, 5), config.predict.samples, scale=config.predict.scale)
    buffers = refreshed_buffers(engine, posterior, (draws,), config)
    tasks = [
        ConformalTask(
            index=client,
            client=client,
            occasion="the conformal scoring",
            part=Part(fraction=config.calibration.holdout, seed=config.seed, held_out=True),
            batch_size=batch_norm.BATCH_SIZE,
            draws=draws,
            temperature=posterior.temperature,
            scoring=scoring,
            noise=noise,
        )
        for client in range(engine.num_clients)
    ]
    enough = config.enough_of(engine.num_clients)
    payload = {**with_layout(posterior.tensors(), posterior.layout), **buffers}
    counts = round_trip(engine, payload, tasks, CountedScores(), minimum=enough).fold
    return Conformal(scoring, counts.result())


@dataclass(frozen=True, eq=False)
class Conformal:
    """Held-out scores in bins, and the sets or intervals that follow from them.

    A set holds the target with probability at least 1 - alpha, on average over held-out examples and new ones, if the
    new example and the held-out ones are exchangeable: one more from the same mixture of the clients. With clients that
    differ, that says nothing of a single client; its own counts do (`client=...`), if it held out at least 1/alpha - 1
    examples. Otherwise sets hold every class, and intervals are infinite.
    """

    scoring: Scoring
    counts: Mapping[int, Int64[Tensor, "b"]]
    """Of each client, how many scores lie in each bin."""

    def num_examples(self, client: int | None = None) -> int:
        """Held-out examples, of all clients or of one."""
        return int(self._counts(client).sum())

    def threshold(self, alpha: float = 0.1, *, client: int | None = None) -> float:
        """The score up to which a class or a target belongs to the set, at most one bin above the exact quantile.

        Raises:
            ValueError: an alpha outside (0, 1), or a client that gave no counts.
        """
        return threshold(self.scoring, self._counts(client), alpha)

    def sets(
        self, probabilities: Float[Tensor, "n c"], alpha: float = 0.1, *, client: int | None = None
    ) -> Bool[Tensor, "n c"]:
        """Which classes belong to the set of each example: those whose score is within the threshold.

        The probabilities are what `predict` gives, rows of two for yes-or-no labels. A set may be empty with "thr":
        then nothing fits the example well.

        Raises:
            ValueError: scores that are those of a regression, probabilities of another shape, or as `threshold`.
        """
        values = as_tensor(probabilities)
        if not self.scoring.of_classes or values.dim() != 2:
            raise ValueError(
                f"sets are of classes, by probabilities [n, c]: got the score {self.scoring.score!r} and shape "
                f"{list(values.shape)}; use intervals for a regression, and flatten tokens or pixels"
            )
        return self.scoring.classes(values) <= self.threshold(alpha, client=client) + ROUNDING

    def intervals(
        self,
        mean: Float[Tensor, "n ..."],
        variance: Float[Tensor, "n ..."] | None = None,
        alpha: float = 0.1,
        *,
        client: int | None = None,
    ) -> tuple[Float64[Tensor, "n ..."], Float64[Tensor, "n ..."]]:
        """The lower and the upper end of each interval; the variance is needed where residuals are normalized.

        Raises:
            ValueError: scores that are those of classes, no variance where it is needed, or as `threshold`.
        """
        center = as_tensor(mean).double()
        if self.scoring.of_classes or (self.scoring.score == "normalized" and variance is None):
            raise ValueError(
                f"intervals are of regressions, and need the variance with normalized residuals: got the score "
                f"{self.scoring.score!r} and {'no variance' if variance is None else 'a variance'}"
            )
        half = torch.full_like(center, self.threshold(alpha, client=client))
        if self.scoring.score == "normalized":
            half = half * as_tensor(variance).double().sqrt()
        return center - half, center + half

    def total(self) -> Int64[Tensor, "b"]:
        """How many scores of all clients together lie in each bin."""
        return summed(list(self.counts.values()))

    def _counts(self, client: int | None) -> Int64[Tensor, "b"]:
        if client is None:
            return self.total()
        if client not in self.counts:
            raise ValueError(f"there are counts of the clients {sorted(self.counts)}, got client {client}")
        return self.counts[client]
