"""The Flower engine: clients on the nodes of a federation, or simulated on one machine."""

from importlib.util import find_spec

if find_spec("flwr") is None:
    raise ImportError("the Flower engine needs flwr: pip install 'dswag[flower]'")

from flwr.app import Context as Context
from flwr.serverapp import Grid as Grid

from dswag.engines.flower.client import Node as Node
from dswag.engines.flower.client import client_app as client_app
from dswag.engines.flower.server import Flower as Flower
from dswag.engines.flower.simulation import simulate as simulate
from dswag.engines.flower.telemetry import switch_off

switch_off()
