"""SWA and SWAG on one worker that has all examples (Izmailov et al. 2018; Maddox et al. 2019)."""

from dswag.algorithms.training import collect, explore
from dswag.lab.baselines.method import Method, Predictor, Trial
from dswag.lab.baselines.phases import alone, one_worker, pooled_engine
from dswag.posterior.gaussian import GaussianPosterior


def posterior(trial: Trial) -> GaussianPosterior:
    """Moments of the weights after each epoch of a second phase at a constant rate; their mean is SWA's average."""
    theta, config = trial.shared(alone), one_worker(trial.config)
    collector = collect(theta, config, trial.layout)
    return explore(pooled_engine(trial), theta, config, collector).fold.finish()


def swa(trial: Trial) -> Predictor:
    """The average weights."""
    return trial.from_posterior(trial.shared(posterior), "mean")


def swag(trial: Trial) -> Predictor:
    """Draws from the Gaussian around them."""
    return trial.from_posterior(trial.shared(posterior), scale=trial.config.predict.scale)


SWA = Method("swa", "average of one worker's weights (Izmailov et al. 2018)", swa, pools_data=True)
SWAG = Method("swag", "Gaussian over one worker's weights (Maddox et al. 2019)", swag, pools_data=True)
