"""What happens where the data are: a copy of the model, local optimizers, and every kind of work in a file of its own.

A kind of work is a class of tasks (`dswag.federation.contract.Task`) with its results, what makes one valid, and its
fold. These are known to every process that has this package; others once their modules are imported.

`replica.Workspace` is a client's copy of the model, whose parameters are views of θ; `weights`, `running_state`,
`calling` and `labels` say how it takes in and gives out what a model may have. `batch_norm` pools the statistics of
layers over clients, and `stability` says when training has diverged.

>>> from dswag.client.stability import has_diverged
>>> has_diverged(50.0, 2.0, 10.0)
True
"""

from dswag.client.calibration import CalibrateTask as CalibrateTask
from dswag.client.conformal import ConformalTask as ConformalTask
from dswag.client.evaluation import EvaluateTask as EvaluateTask
from dswag.client.statistics import StatisticsTask as StatisticsTask
from dswag.client.training import TrainTask as TrainTask
