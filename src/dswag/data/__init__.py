"""What clients train on: examples in memory or in a stream, and how a data set is cut into clients.

`examples.Examples` holds a client's tensors, and `batches` and `streams` take what else people have: a Dataset, a
DataLoader, any iterable of batches. `partition.partition` cuts targets into clients. `datasets.load` reads the known
data sets, of which mnist5k is inside the package; downloads need `dswag[cli]`.

>>> import torch
>>> from dswag.data.partition import partition
>>> [len(part) for part in partition("iid", torch.arange(10) % 2, 2, seed=0)]
[5, 5]
"""
