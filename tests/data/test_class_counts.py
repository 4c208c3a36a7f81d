"""A table of clients and classes is that of the partition, and whole."""

import pytest
import torch

from dswag.data.class_counts import ClassCounts


def test_counts_are_those_of_each_client_s_targets():
    targets = torch.tensor([0, 2, 2, 0, 1], dtype=torch.uint8)
    parts = [torch.tensor([1, 2, 3]), torch.tensor([4])]
    assert ClassCounts.of(parts, targets, ["a", "b", "c", "d"]) == ClassCounts(
        ("a", "b", "c", "d"), ((1, 0, 2, 0), (0, 1, 0, 0))
    )


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((), "counts must be of at least one client, got none"),
        (((1, 2), (1,)), r"client 1 must have a count for each of 2 classes, 0 or more and not all 0, got \[1\]"),
        (((1, -1),), r"client 0 .* got \[1, -1\]"),
        (((1, 2), (3, 4), (0, 0)), r"client 2 .* not all 0, got \[0, 0\]"),
    ],
)
def test_a_table_that_cannot_be_is_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        ClassCounts(("cat", "dog"), counts)
