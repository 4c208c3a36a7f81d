"""What a node does: it holds the data of one client, and answers what `dswag` asks of them."""

from dataclasses import replace

from flwr.app import Context
from safetensors.torch import load_file

from digits.settings import recipe_of
from dswag.engines.flower import Node, client_app
from dswag.lab.experiments import federation


def node(context: Context) -> Node:
    """This node's client: examples in a file of its own, or its part of a data set that everybody has."""
    here = federation.node(recipe_of(context), context)
    if "data" not in context.node_config:
        return here
    own = load_file(str(context.node_config["data"]))
    return replace(here, clients={int(context.node_config["partition-id"]): (own["inputs"], own["targets"])})


app = client_app(node)
