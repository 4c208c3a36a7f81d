"""Moments of client weights that a minority of malicious clients cannot lead astray (phase 3, lines 25-32)."""

from collections.abc import Mapping
from functools import cache
from typing import Literal, Self, get_args

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dswag.core.choices import check_choice
from dswag.core.chunked import over_parts, sorted_columns
from dswag.core.parameters import Layout
from dswag.core.randomness import derive_seed
from dswag.federation.client_results import Answers, TrainResult
from dswag.federation.client_sampling import malicious_number
from dswag.federation.coordinates import AllCoordinates, Coordinates
from dswag.posterior.deviations import LastColumns
from dswag.posterior.gaussian import GaussianPosterior

Estimator = Literal["trimmed", "median"]

SPARE = 2
"""There must be 2 f + 2 clients: of 2 f + 1, f that agree with one of the others would leave no spread."""

PIECES, PIECE = 64, 1 << 16
"""Random numbers of which the consistency factors are made: they are within about 0.2 % of what they stand for."""


class RobustMoments:
    """Location, scale and deviation columns of the explorers' weights, of whom f may be malicious.

    A client counts once for each coordinate of θ, with the mean of its snapshots x_1 ... x_n:

    - "trimmed": the mean without the f lowest and the f highest, and the winsorized variance, in which these are put to
      the nearest value that is kept (Tukey & McLaughlin 1963; Wilcox 2012, Section 2.2);
    - "median": the median, and the squared median absolute deviation from it (Hampel 1974; 1.4826² for large n).

    Both variances are multiplied by the factor that makes them, for n Gaussian values, the plain variance on average.
    Where clients give several snapshots, the scatter within each is averaged by the same rule, and added.

    Columns are those of the last K snapshots of the clients that are left when the f with the largest squared
    distance from the location have been dropped whole, so that each is a real deviation.

    Nothing of this can be summed up as clients come in: all snapshots are kept, s x d numbers for each client.

    Args:
        anchor: θ [d] from which all snapshots start.
        estimator: "trimmed" or "median".
        byzantine: how many clients may be malicious (f), a number or a percentage of those that answered.
        rank: K, the most deviation columns kept; 0 for none.
        layout: the parameters behind θ, kept in the posterior.

    Raises:
        ValueError: an unknown estimator.
    """

    def __init__(
        self,
        anchor: Float[Tensor, "d"],
        estimator: Estimator,
        *,
        byzantine: int | str,
        rank: int = 20,
        layout: Layout | None = None,
    ) -> None:
        check_choice("estimator", estimator, get_args(Estimator))
        self.anchor = anchor
        self.estimator: Estimator = estimator
        self.byzantine = byzantine
        self.rank = rank
        self.layout = layout
        self._answers = Answers(anchor)
        self._coordinates: Coordinates = AllCoordinates()

    def add(self, result: TrainResult) -> None:
        """Keeps a copy of one client's snapshots."""
        self._answers.add(result)

    def merge(self, other: Self) -> None:
        """Keeps another's snapshots too."""
        self._answers.merge(other._answers)

    def posterior(self) -> GaussianPosterior:
        """The Gaussian over weights (line 32).

        Raises:
            ValueError: fewer than 2 f + 2 clients, or clients with different numbers of snapshots.
        """
        answers = self._answers.ordered()
        byzantine = malicious_number(self.byzantine, len(answers), spare=SPARE, rule=self.estimator)
        counts = {len(answer.thetas) for answer in answers}
        if len(counts) > 1:
            raise ValueError(
                f"{self.estimator} moments need the same number of snapshots of every client, got {sorted(counts)}"
            )
        cut = byzantine if self.estimator == "trimmed" else (len(answers) - 1) // 2
        location, between, within = self._estimates(answers, cut)
        anchor, dtype = self._coordinates.part(self.anchor), self.anchor.dtype
        columns = self._columns(answers, anchor, location, byzantine)
        inner = columns.within()
        return GaussianPosterior(
            mean=self._coordinates.whole(location.to(dtype)),
            variance=self._coordinates.whole((between + within).to(dtype)),
            deviations=self._whole_rows(columns.centered(location - anchor.double())),
            count=sum(len(answer.thetas) for answer in answers),
            layout=self.layout,
            variance_within=None if counts == {1} else self._coordinates.whole(within.to(dtype)),
            deviations_within=None if inner is None else self._whole_rows(inner),
        )

    def finish(self) -> GaussianPosterior:
        """The posterior, after which no snapshots are left here."""
        outcome = self.posterior()
        self._answers = Answers(self.anchor)
        return outcome

    def spread(self, coordinates: Coordinates) -> None:
        """From now on the snapshots kept are a range of the coordinates, the rest of which other processes hold."""
        self._coordinates = coordinates

    def result(self) -> GaussianPosterior:
        """The posterior, under the name that folds give to their outcome."""
        return self.posterior()

    def empty(self) -> Self:
        """A fold of the same kind and settings that has taken in nothing."""
        return type(self)(self.anchor, self.estimator, byzantine=self.byzantine, rank=self.rank, layout=self.layout)

    def state(self) -> dict[str, Tensor]:
        """All that was taken in."""
        return self._answers.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Becomes, in place, the fold whose `state` this is."""
        self._answers.load(state)

    def _estimates(self, answers: list[TrainResult], cut: int) -> Float64[Tensor, "3 p"]:
        """Location, and variance between and within clients."""
        clients, snapshots = len(answers), len(answers[0].thetas)
        first = answers[0].thetas
        found = torch.zeros(3, first.shape[1], dtype=torch.float64, device=first.device)
        between_factor = consistency(self.estimator, clients, cut)
        within_factor = scatter_consistency(clients, snapshots, cut) if snapshots > 1 else 0.0

        def fill(part: Tensor, place: slice) -> None:
            values = part.double().reshape(clients, snapshots, -1)
            means = values.mean(1)
            location, between = location_and_scatter(self.estimator, means, cut)
            found[0, place] = location
            found[1, place] = between_factor * between
            if within_factor:
                scatter = (values - means[:, None]).square_().mean(1)
                found[2, place] = within_factor * sorted_columns(scatter)[:, cut : clients - cut].mean(1)

        for _ in over_parts(fill, [theta for answer in answers for theta in answer.thetas]):
            pass
        return found

    def _columns(
        self, answers: list[TrainResult], anchor: Float[Tensor, "p"], location: Float64[Tensor, "p"], byzantine: int
    ) -> LastColumns:
        """Those of the clients that are left without the f furthest, of equally far ones without the last."""
        parts = [(answer.thetas.double() - location).square_().sum() for answer in answers]
        distances = self._coordinates.total(torch.stack(parts).cpu()).tolist()
        nearest = sorted(range(len(answers)), key=distances.__getitem__)[: len(answers) - byzantine]
        columns = LastColumns(anchor, self.rank)
        for number in sorted(nearest):
            index, thetas = answers[number].index, answers[number].thetas
            mean = thetas.double().mean(0)
            rows = columns.reserve([(index, snapshot) for snapshot in range(len(thetas))])
            for theta, (difference, own_difference) in zip(thetas, rows, strict=True):
                if difference is not None:
                    torch.sub(theta, anchor, out=difference)
                if own_difference is not None:
                    own_difference.copy_(theta - mean)
        return columns

    def _whole_rows(self, rows: Float[Tensor, "k p"]) -> Float[Tensor, "k d"]:
        whole = [self._coordinates.whole(row) for row in rows]
        return torch.stack(whole) if whole else rows.new_empty(0, len(self.anchor))


def location_and_scatter(
    estimator: Estimator, values: Float64[Tensor, "n p"], cut: int
) -> tuple[Float64[Tensor, "p"], Float64[Tensor, "p"]]:
    """The robust location of each column, and the square of its robust scale, as it is: without a consistency factor.

    `cut` values are dropped at either end: f for "trimmed", all but the middle for "median".
    """
    ordered = sorted_columns(values)
    middle = ordered[:, cut : len(values) - cut]
    location = middle.mean(1)
    if estimator == "trimmed":
        winsorized = ordered.clamp(middle[:, :1], middle[:, -1:])
        winsorized -= winsorized.mean(1, keepdim=True)
        return location, winsorized.square_().mean(1)  # an order of magnitude faster than `var`
    deviations = sorted_columns((values - location).abs_())
    return location, deviations[:, cut : len(values) - cut].mean(1).square_()


@cache
def consistency(estimator: Estimator, clients: int, cut: int) -> float:
    """What makes the squared scale of so many Gaussian values their plain variance, divided by n, on average.

    For large n it goes to 1.4826² for the median, and for the winsorized variance with a share α = cut / n at either
    end to 1 / (1 - 2α - 2 q φ(q) + 2α q²), φ being the normal density and q its quantile of 1 - α. For few clients
    these limits times (n - 1) / n are too small, for ten by 5 % and, with two cut at either end, by 16 %: so the factor
    is measured on seeded Gaussian samples of the same size.
    """
    generator, size = np.random.default_rng(derive_seed(clients, cut)), (clients, max(1, PIECE // clients))
    samples = (torch.from_numpy(generator.standard_normal(size)) for _ in range(PIECES))
    scatters = [location_and_scatter(estimator, values, cut)[1].mean() for values in samples]
    return (clients - 1) / clients / float(torch.stack(scatters).mean())


@cache
def scatter_consistency(clients: int, snapshots: int, cut: int) -> float:
    """What makes the middle of so many clients' scatters within, each χ² over s - 1 degrees, their mean on average."""
    generator, size = np.random.default_rng(derive_seed(clients, cut, snapshots)), (clients, max(1, PIECE // clients))
    samples = (torch.from_numpy(generator.chisquare(snapshots - 1, size)) for _ in range(PIECES))
    middles = [sorted_columns(values)[:, cut : clients - cut].mean() for values in samples]
    return (snapshots - 1) / float(torch.stack(middles).mean())
