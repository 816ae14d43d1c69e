"""Many-to-one accuracy on worked examples."""

import pytest
import torch

from pyro_lvm.diagnostics import many_to_one


def test_every_state_stands_for_its_commonest_class():
    states = torch.tensor([[0, 0, 0, 1], [1, 2, -1, 2]])
    classes = torch.tensor([[4, 4, 1, 1], [1, 4, 4, -1]])
    share, meaning = many_to_one(states, classes)
    assert share == pytest.approx(5 / 6)
    assert meaning.tolist() == [4, 1, 4]


def test_shapes_and_emptiness():
    with pytest.raises(ValueError, match=r"of one shape; got \(2,\) and \(3,\)"):
        many_to_one(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="got none"):
        many_to_one(torch.tensor([-1]), torch.tensor([0]))
