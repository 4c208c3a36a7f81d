"""The ground that every room stands on; it knows nothing of clients, posteriors or runs.

`parameters.Layout` is the map between a module and θ, `randomness.derive_seed` makes a seed for every occasion, and
`chunked` and `threads` do long passes over θ. Files are written whole by `atomic_files`; `validation` makes classes of
settings that say in our words what is wrong with them.

>>> from torch import nn
>>> from dswag.core.parameters import Layout
>>> Layout.of(nn.Linear(2, 1)).names
('weight', 'bias')
"""
