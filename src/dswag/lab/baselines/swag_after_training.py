"""SWAG after distributed training, in both readings of what the paper compares with."""

from dswag.algorithms.server_update import Server
from dswag.algorithms.training import collect, explore, synchronize
from dswag.federation.client_sampling import cohort_size
from dswag.lab.baselines.method import Method, Predictor, Trial
from dswag.lab.baselines.phases import further, one_client, phase_1
from dswag.posterior.gaussian import GaussianPosterior
from dswag.posterior.moments import Moments


def global_posterior(trial: Trial) -> GaussianPosterior:
    """Moments of the sequence of averaged models, one after each further round.

    As in the paper at the constant rate α₁; at rates that fall where Distributed SWAG's explorers are averaged.
    """
    theta = trial.shared(phase_1)
    config = further(trial.config, constant=trial.config.explore_exchanges == 1)
    moments = Moments(theta, rank=config.posterior.rank, columns=config.posterior.columns, layout=trial.layout)
    for done in synchronize(trial.engine(), Server(theta, trial.config.train.rounds), config):
        moments.add(done.theta, index=done.number)
    return moments.finish()


def local_posterior(trial: Trial) -> GaussianPosterior:
    """Moments of the weights of the first client, which goes on alone from θ_T at the constant rate α₁.

    It trains for as many epochs on its own examples as all explorers together do on theirs.
    """
    theta, config = trial.shared(phase_1), trial.config
    one = one_client(config, config.explore.epochs * cohort_size(config.explore.explorers, config.clients))
    engine = trial.engine(clients=trial.problem.clients[:1])
    return explore(engine, theta, one, collect(theta, one, trial.layout)).fold.finish()


def swag_global(trial: Trial) -> Predictor:
    """Draws from the Gaussian over the server's weights."""
    return trial.from_posterior(global_posterior(trial), scale=trial.config.predict.scale)


def swag_local(trial: Trial) -> Predictor:
    """Draws from the Gaussian over one client's weights."""
    return trial.from_posterior(local_posterior(trial), scale=trial.config.predict.scale)


SWAG_GLOBAL = Method("swag-global", "Gaussian over the averaged models of further rounds", swag_global)
SWAG_LOCAL = Method("swag-local", "Gaussian over the weights of one client that goes on alone", swag_local)
