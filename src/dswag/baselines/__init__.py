"""The other methods of the paper and its related work, each with the same clients, model and budget."""

from collections.abc import Mapping
from types import MappingProxyType

from dswag.baselines.distributed_swag import DSWAG, DSWAG_CALIBRATED, DSWAG_MEAN
from dswag.baselines.ensembles import ENSEMBLE, FEDBE_DIRICHLET, FEDBE_GAUSSIAN
from dswag.baselines.federated_averaging import FEDAVG
from dswag.baselines.isotropic_noise import NOISE
from dswag.baselines.langevin import SGLD
from dswag.baselines.laplace import LAPLACE
from dswag.baselines.mc_dropout import MC_DROPOUT
from dswag.baselines.mean_field import VI
from dswag.baselines.median import MEDIAN
from dswag.baselines.method import Method
from dswag.baselines.one_worker_swag import SWA, SWAG
from dswag.baselines.posterior_server import SNEP
from dswag.baselines.swag_after_training import SWAG_GLOBAL, SWAG_LOCAL
from dswag.baselines.swap import SWAP

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            DSWAG,
            DSWAG_MEAN,
            DSWAG_CALIBRATED,
            FEDAVG,
            SWAG_GLOBAL,
            SWAG_LOCAL,
            SWA,
            SWAG,
            SWAP,
            ENSEMBLE,
            FEDBE_GAUSSIAN,
            FEDBE_DIRICHLET,
            NOISE,
            SGLD,
            VI,
            LAPLACE,
            MC_DROPOUT,
            MEDIAN,
            SNEP,
        )
    }
)
"""Every method by its name on the command line."""

__all__ = ["METHODS", "Method"]
