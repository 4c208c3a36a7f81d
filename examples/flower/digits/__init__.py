"""Distributed SWAG in a Flower federation: copy this folder, and replace data and model by yours."""
