"""The folder of a run, with a file each for settings, partition, history, checkpoint, posterior and outcome."""

from dswag.run_folder.files import CHECKPOINT as CHECKPOINT
from dswag.run_folder.files import CONFIG as CONFIG
from dswag.run_folder.files import FILES as FILES
from dswag.run_folder.files import PARTITION as PARTITION
from dswag.run_folder.files import POSTERIOR as POSTERIOR
from dswag.run_folder.files import REPORT as REPORT
from dswag.run_folder.files import RunFolderError as RunFolderError
from dswag.run_folder.folder import RunFolder as RunFolder
from dswag.run_folder.folder import Unwritten as Unwritten
