"""How good probabilities are; a file for each kind of question.

`metrics.score` gives accuracy, NLL, ECE and Brier score, `reliability` and `calibration_errors` look at confidence,
`selective` at what is gained by abstaining, `out_of_distribution` at foreign inputs and `bootstrap` at chance.
`uncertainty` and `inspection` find the examples to look at, and `loss_landscape` the loss around a posterior.

>>> import torch
>>> from dswag.evaluation import metrics
>>> metrics.score(torch.tensor([[0.9, 0.1], [0.4, 0.6]]), torch.tensor([0, 1])).accuracy
1.0
"""
