"""Nothing is reported to Flower's makers, whichever library was imported first."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("flwr", reason="needs flwr: pip install 'dswag[flower]'")

REPORTING = """
import urllib.request

def refuse(*args, **kwargs):
    raise SystemExit("something was sent")

urllib.request.urlopen = refuse
from flwr.supercore import telemetry
print(telemetry.create_event(telemetry.EventType.PING, None))
"""


def outcome(home, first, **environment):
    """What a process says that imports these and then reports an event."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    environment |= {"FLWR_HOME": str(home)}
    command = [sys.executable, "-c", f"{first}\n{REPORTING}"]
    return subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True)


@pytest.mark.parametrize("first", ["import dswag.engines.flower", "import flwr.app, dswag.engines.flower"])
def test_no_event_is_sent(tmp_path, first):
    done = outcome(tmp_path, first)
    assert done.stdout.strip() == "disabled", done.stderr


def test_an_event_would_be_sent_without_the_engine_or_where_the_user_wants_it(tmp_path):
    assert outcome(tmp_path, "import flwr.app").stderr.strip() == "something was sent"
    wanted = outcome(tmp_path, "import flwr.app, dswag.engines.flower", FLWR_TELEMETRY_ENABLED="1")
    assert wanted.stderr.strip() == "something was sent"
