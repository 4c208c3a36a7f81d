"""How long tests wait for what would hang: nothing that works is ever stopped by it, however busy the machine is."""

PATIENCE = 3000
"""Seconds."""
