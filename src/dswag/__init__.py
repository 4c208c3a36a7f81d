"""Distributed SWAG: Bayesian deep learning where the data is spread over workers or devices."""
