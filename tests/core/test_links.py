"""What a loss says about the outputs that it takes, and which axis the classes are on."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dswag.core.links import class_axis, default_axis, learned, link_of, rows


class Focal(nn.Module):
    """A loss of one's own, of classes."""

    def forward(self, outputs, targets):
        log_p = F.log_softmax(outputs, 1).gather(1, targets[:, None])
        return -((1 - log_p.exp()) ** 2 * log_p).mean()


@pytest.mark.parametrize(
    ("loss", "link"),
    [
        (F.cross_entropy, "softmax"),
        (nn.CrossEntropyLoss(weight=torch.ones(7)), "softmax"),
        (partial(F.cross_entropy, label_smoothing=0.1), "softmax"),
        (lambda outputs, targets: F.cross_entropy(outputs, targets), "softmax"),
        (lambda outputs, targets: F.cross_entropy(outputs, targets.long(), label_smoothing=0.1), "softmax"),
        (Focal(), "softmax"),
        (lambda outputs, targets: F.cross_entropy(outputs.flatten(0, 1), targets.flatten()), "softmax"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(5)), "sigmoid"),
        (partial(F.binary_cross_entropy_with_logits), "sigmoid"),
        (lambda outputs, targets: F.binary_cross_entropy_with_logits(outputs, targets.float()), "sigmoid"),
        (nn.MSELoss(), "identity"),
        (F.huber_loss, "identity"),
        (nn.BCELoss(), "identity"),
        (F.multi_margin_loss, None),  # does not change with a constant either, but its scores are no logits
        (lambda outputs, targets: ((outputs - targets) ** 2).mean(), None),
        (lambda outputs, targets: outputs["a"].sum(), None),
    ],
)
def test_the_link_is_that_of_the_loss(loss, link):
    assert link_of(loss) == link


def test_what_a_loss_of_ones_own_says_is_kept_as_far_as_it_goes():
    assert learned(nn.CrossEntropyLoss()) == "softmax"
    assert learned(lambda outputs, targets: F.cross_entropy(outputs.flatten(0, 1), targets.flatten())) is None  # last
    assert learned(lambda outputs, targets: F.cross_entropy(outputs, targets)) == "softmax"
    assert learned(Focal()) == "softmax"
    assert learned(lambda outputs, targets: ((outputs - targets) ** 2).mean()) == "unknown"


def test_trying_a_loss_uses_up_no_random_numbers():
    before = torch.get_rng_state()
    link_of(Focal())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("outputs", "targets", "given", "axis"),
    [
        ((8, 3), (8,), None, 1),
        ((8, 5, 3), (8, 5), None, 2),
        ((8, 3, 5), (8, 5), None, 1),
        ((8, 5, 5), (8, 5), None, 2),
        ((8, 5, 5), (8, 5), 1, 1),
        ((8, 3, 4, 6), (8, 4, 6), None, 1),
        ((8, 4, 6, 3), (8, 4, 6), None, 3),
        ((8, 3), (8, 3), None, None),
        ((8, 3), (7,), None, None),
        ((8, 5, 3), (8, 5), 1, None),
    ],
)
def test_the_axis_of_the_classes_is_the_one_that_the_labels_lack(outputs, targets, given, axis):
    assert class_axis(outputs, targets, given) == axis


def test_classes_are_last_in_tokens_and_second_in_images():
    assert [default_axis(dim) for dim in (2, 3, 4, 5)] == [1, 2, 1, 1]


def test_rows_are_those_of_the_labels_and_hold_a_sigmoid_as_two_logits():
    outputs, targets = torch.arange(24.0).reshape(2, 3, 4), torch.tensor([[0, -100, 2], [3, 1, -100]])
    for scores, labels in (rows(outputs, targets, 2), rows(outputs.movedim(2, 1), targets, 1)):
        assert torch.equal(labels, targets.flatten())
        assert torch.equal(scores, outputs.reshape(6, 4))
    z = torch.tensor([[0.3], [-2.0]])
    scores, labels = rows(z, torch.tensor([[1.0], [0.0]]), None)
    torch.testing.assert_close(scores.softmax(1)[:, 1], z[:, 0].sigmoid())
    assert labels.tolist() == [1, 0]
