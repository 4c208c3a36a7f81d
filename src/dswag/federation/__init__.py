"""What crosses between server and clients, whatever carries it.

`contract` says what tasks, results, folds and engines are; `folds` has the accumulators and `round_trip` the one way to
and back, in which `result_validation` refuses what does not fit its task. `client_sampling` chooses who takes part, and
`aggregation` makes one θ of many.

>>> from dswag.federation.client_sampling import sample_clients
>>> len(sample_clients(3, 10, seed=0, phase=1, round=0))
3
"""
