"""The folder of a run, with a file each for settings, partition, history, checkpoint, posterior and outcome."""

from dswag.runs.files import CHECKPOINT as CHECKPOINT
from dswag.runs.files import CONFIG as CONFIG
from dswag.runs.files import FILES as FILES
from dswag.runs.files import PARTITION as PARTITION
from dswag.runs.files import POSTERIOR as POSTERIOR
from dswag.runs.files import REPORT as REPORT
from dswag.runs.files import RunFolderError as RunFolderError
from dswag.runs.run_folder import RunFolder as RunFolder
from dswag.runs.run_folder import Unwritten as Unwritten
