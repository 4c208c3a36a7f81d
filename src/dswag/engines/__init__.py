"""Where clients run: one engine a file, and none knows an algorithm.

`in_process.InProcess` trains them in threads of this process and is the reference, `distributed.Distributed` in the
processes of `torchrun`, and `flower` on the nodes of a federation (it needs `dswag[flower]`). `recorded.Recorded` keeps
answers in files, so that clients that have answered are not asked again.

>>> import torch
>>> from torch import nn
>>> from dswag import InProcess
>>> InProcess(nn.Linear(2, 2), [(torch.ones(4, 2), torch.tensor([0, 1, 0, 1]))]).num_clients
1
"""
