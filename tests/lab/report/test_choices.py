"""The table of docs/when.md."""

from lab.report.made_results import run, scores

from dswag.lab.report.choices import choices_table


def measured(nll, **more):
    outside = {"entropy": {"auroc": 0.9, "fpr95": 0.3}}
    return scores(nll, calibrated_nll=nll / 2, cost={"steps": 1000, "bytes": 2e6}, outside=outside, **more)


def test_a_temperature_is_fedavg_s_other_score_and_what_has_not_run_is_left_out():
    table = choices_table([run(10, seed, fedavg=measured(nll)) for seed, nll in ((0, 0.2), (1, 0.4))])
    assert table.splitlines()[2:] == [
        "| FedAvg alone | 1,000 | 2 | 1 | 1 | 0.3000 ± 0.1414 | 0.0100 ± 0.0000 | 0.900 ± 0.000 |",
        "| FedAvg, and a temperature | 1,000 | 2 | 1 | 1 | 0.1500 ± 0.0707 | – | – |",
    ]
