"""Measures DSWAG on MNIST with label skew, plain and calibrated: the table in docs/heterogeneous.md.

Every class's examples are spread over ten clients by shares drawn from a Dirichlet distribution.

    python tools/measure_label_skew.py --data-dir DIR [--alphas 100 0.3 0.1] [--seeds 0 1 2]
"""

import argparse

import torch

import dswag
from dswag.data import datasets
from dswag.data.partition import dirichlet
from dswag.evaluation.metrics import score
from dswag.lab.models import build

CLIENTS, CLASSES = 10, 10


def main() -> None:
    """Prints a line for each skew: the mean over seeds of accuracy, NLL and ECE of each method, and what was fitted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--alphas", nargs="+", type=float, default=[100, 0.3, 0.1])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    data = datasets.load("mnist", arguments.data_dir)
    inputs, targets = data.test.inputs, data.test.targets
    for alpha in arguments.alphas:
        found, fits = [], []
        for seed in arguments.seeds:
            config = dswag.Config.paper(
                clients=CLIENTS, seed=seed, holdout=0.1, explore_epochs=3, snapshots_per_cycle=3
            )
            model = build("mlp", (1, 28, 28), CLASSES, mean=data.mean, std=data.std, seed=seed)
            rows = dirichlet(data.train.targets, CLIENTS, seed, concentration=alpha, min_examples=2)
            run = dswag.train(model, [data.train[part] for part in rows], config)
            fitted = dswag.calibrate(run.engine, run.posterior, config)
            fits.append((fitted.within_scale, fitted.between_scale, round(fitted.temperature, 2)))
            predictions = [
                dswag.ensemble(model, run.theta[None], inputs).probabilities,
                *(dswag.predict(model, posterior, inputs) for posterior in (run.posterior, fitted)),
            ]
            scores = [score(probabilities, targets) for probabilities in predictions]
            found.append([[s.accuracy, s.nll, s.ece_equal_mass] for s in scores])
        means = torch.tensor(found).mean(0)
        for method, (accuracy, nll, ece) in zip(("phase-1 model", "DSWAG", "calibrated"), means.tolist(), strict=True):
            print(f"alpha {alpha:g}: {method:13} accuracy {accuracy:.4f}, NLL {nll:.4f}, ECE {ece:.4f}")
        print(f"alpha {alpha:g}: within scale, between scale, temperature of each seed: {fits}", flush=True)


if __name__ == "__main__":
    main()
