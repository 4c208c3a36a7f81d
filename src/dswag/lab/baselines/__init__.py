"""The other methods of the paper and its related work, each with the same clients, model and budget."""

from collections.abc import Mapping
from types import MappingProxyType

from dswag.lab.baselines.distributed_swag import DSWAG, DSWAG_CALIBRATED, DSWAG_MEAN
from dswag.lab.baselines.ensembles import ENSEMBLE, FEDBE_DIRICHLET, FEDBE_GAUSSIAN
from dswag.lab.baselines.federated_averaging import FEDAVG
from dswag.lab.baselines.isotropic_noise import NOISE
from dswag.lab.baselines.langevin import SGLD
from dswag.lab.baselines.laplace import LAPLACE
from dswag.lab.baselines.mc_dropout import MC_DROPOUT
from dswag.lab.baselines.mean_field import VI
from dswag.lab.baselines.median import MEDIAN
from dswag.lab.baselines.method import Method
from dswag.lab.baselines.one_worker_swag import SWA, SWAG
from dswag.lab.baselines.posterior_server import SNEP
from dswag.lab.baselines.swag_after_training import SWAG_GLOBAL, SWAG_LOCAL
from dswag.lab.baselines.swap import SWAP

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
