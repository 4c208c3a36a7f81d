"""What came of a run: partition, posterior, landscape, metrics, report."""

from pathlib import Path

from dswag.data.class_counts import ClassCounts
from dswag.posterior.gaussian import GaussianPosterior
from dswag.runs.files import LANDSCAPE, METRICS, PARTITION, POSTERIOR, REPORT, Files
from dswag.runs.schema import Landscape, Metrics


class Outcome(Files):
    """The files that tell of a run.

    What reads them raises RunFolderError for a file that is damaged or foreign.
    """

    def save_partition(self, counts: ClassCounts) -> None:
        """Writes how many examples of each class each client has."""
        self._write_record(PARTITION, counts)

    def partition(self) -> ClassCounts | None:
        """How many examples of each class each client has; None for a run that has not started."""
        return self._read_record(PARTITION, ClassCounts)

    def save_posterior(self, posterior: GaussianPosterior) -> None:
        """Writes the posterior, and removes the landscape, which belongs to the previous one."""
        self._write(POSTERIOR, posterior.save)
        self._remove(LANDSCAPE)

    def has_posterior(self) -> bool:
        """Whether there is a posterior."""
        return (self.path / POSTERIOR).exists()

    def posterior(self) -> GaussianPosterior:
        """The posterior.

        Raises:
            RunFolderError: there is none yet.
            PosteriorFileError: a file that is damaged, foreign or of a newer format.
        """
        path = self._existing(POSTERIOR, "the run was stopped too early for one: train again")
        posterior = GaussianPosterior.load(path)
        self._check_unchanged(POSTERIOR)
        return posterior

    def save_landscape(self, landscape: Landscape) -> None:
        """Writes the loss around the posterior's mean."""
        self._write_record(LANDSCAPE, landscape)

    def landscape(self) -> Landscape | None:
        """The loss around the posterior's mean; None if it was not measured."""
        return self._read_record(LANDSCAPE, Landscape)

    def save_metrics(self, metrics: Metrics) -> None:
        """Writes the scores of all methods."""
        self._write_record(METRICS, metrics, indent=2)

    def metrics(self) -> Metrics | None:
        """The scores of all methods; None if the run has not been evaluated."""
        return self._read_record(METRICS, Metrics)

    def save_report(self, html: str) -> Path:
        """Writes the HTML page and, for a run that has its scores, the manifest; returns the page's path."""
        self._write_text(REPORT, html)
        if (self.path / METRICS).exists():
            self.seal()
        return self.path / REPORT
