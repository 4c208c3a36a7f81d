"""Results that are made up, in the form in which `dswag reproduce` writes them."""


def run(clients, seed=0, model="mlp", partition=("iid", None), epochs=20, **measured):
    """A result; a partition is a kind and its concentration, or its number of shards."""
    kind, amount = partition
    setting = {"dirichlet": "concentration", "shards": "shards_per_client"}.get(kind)
    config = {"clients": clients, "seed": seed, "model": model, "partition": kind, "explore_epochs": epochs}
    return {
        "config": {**config, **({setting: amount} if setting else {})},
        "case": {},
        "measured": measured,
        "seconds": 1800.0,
    }


def course(clients, accuracies, seed=0, model="mlp"):
    """Of phase 1."""
    rounds = [{"test_accuracy": accuracy, "bytes": 1000} for accuracy in accuracies]
    return run(clients, seed, model, rounds=rounds, steps_per_round=3)


def scores(nll, ece=0.01, **more):
    """Of a method."""
    return {"nll": nll, "ece_equal_mass": ece, "accuracy": 0.9, **more}
