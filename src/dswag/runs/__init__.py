"""A run on disk: a folder with a file each for settings, partition, history, checkpoint, posterior and outcome.

`RunFolder` makes, finds and holds it, in parts: `progress` while it trains and `outcome` afterwards. `checkpoint` is
what the next round depends on, and `schema` what the JSON files say. Every file is the old one or the new one, never
half of it.

>>> from dswag.runs import RunFolder, RunFolderError
>>> try:
...     RunFolder.open("nowhere")
... except RunFolderError as error:
...     print(error)
nowhere is no folder: name the folder that dswag train wrote
"""

from dswag.runs.files import CHECKPOINT as CHECKPOINT
from dswag.runs.files import CONFIG as CONFIG
from dswag.runs.files import FILES as FILES
from dswag.runs.files import MANIFEST as MANIFEST
from dswag.runs.files import PARTITION as PARTITION
from dswag.runs.files import POSTERIOR as POSTERIOR
from dswag.runs.files import REPORT as REPORT
from dswag.runs.files import RunFolderError as RunFolderError
from dswag.runs.run_folder import RunFolder as RunFolder
from dswag.runs.run_folder import Unwritten as Unwritten
