"""The same node with local differential privacy: updates are clipped, and noise is added, before they leave it."""

from flwr.clientapp.mod import LocalDpMod

from digits.client_app import node
from dswag.engines.flower import client_app

CLIPPING_NORM = 1.0
"""Longest an update may be; of several snapshots, all of them together."""

app = client_app(
    node,
    mods=[
        LocalDpMod(
            clipping_norm=CLIPPING_NORM,
            sensitivity=2 * CLIPPING_NORM,  # between two updates, whatever the data
            epsilon=1.0,  # of each message: rounds and phase 2 add up
            delta=1e-5,
        )
    ],
)
