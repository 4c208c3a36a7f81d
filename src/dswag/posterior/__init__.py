"""Gaussians over weights: moments of snapshots, the posterior they give, its draws, density, files, combinations."""
