"""Gaussians over weights, and what they are made from.

`moments.Moments` takes snapshots from any training loop and gives a `gaussian.GaussianPosterior`, which draws, has
densities and is a file (`sampling`, `density`, `file`). `robust_moments` withstand malicious clients, `collectors`
work inside other trainers, and `combining` makes one posterior of several.

>>> import torch
>>> from dswag import Moments
>>> moments = Moments(rank=2)
>>> for theta in torch.tensor([[1.0, 2.0], [3.0, 2.0]]):
...     moments.add(theta)
>>> moments.posterior().mean
tensor([2., 2.])
"""
