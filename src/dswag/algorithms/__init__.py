"""Algorithms 1 and 2 of the paper, line for line, and what is fitted or asked afterwards.

`training` is Algorithm 1 as an open loop (`synchronize`, `explore`, `collect`), and `prediction` Algorithm 2; their
parts are in `server_update`, `schedules` and `predictive`. `calibration` and `conformal` fit to held-out examples on
the clients, `regression` predicts numbers, and `export` writes one program for other places. What users need of it is
in `dswag` itself. Nothing in here knows which engine the clients run on.

>>> from dswag.algorithms import schedules
>>> schedules.linear(0.1, 0.05, 2)
(0.1, 0.05)
"""
