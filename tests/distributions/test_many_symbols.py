"""Starts of categorical columns: estimates by counting, and codes that stay short."""

import torch

import pyro_lvm as lvm
from pyro_lvm.distributions.columns import LONGEST_CODE, Categorical


def test_starts_are_shrunken_frequencies():
    x = torch.tensor([[0.0, 2.0], [1.0, torch.nan], [1.0, 1.0], [torch.nan, 2.0]]).double()
    members = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [1.0, 0.0]]).double()
    probs = Categorical(3).start(x, members)["probs"]
    for j in range(2):
        known = ~x[:, j].isnan()
        codes = torch.nn.functional.one_hot(x[known, j].long(), 3).double()
        for k in range(2):
            weight = members[known, k]
            expected = (weight @ codes + codes.mean(0)) / (weight.sum() + 1)
            expected = expected.clamp_min(0.5 / 5)
            torch.testing.assert_close(probs[k, j], expected / expected.sum())


def test_few_symbols_are_one_hot_and_many_have_short_codes():
    x = torch.tensor([[2.0], [0.0], [torch.nan]])
    assert Categorical(3).features(x)[:2].tolist() == [[0, 0, 1], [1, 0, 0]]
    assert Categorical(3).features(x)[2].isnan().all()
    many = torch.arange(5000.0).unsqueeze(-1)
    codes = Categorical(5000).features(many)
    assert codes.shape == (5000, LONGEST_CODE)
    length = codes.square().sum(-1)
    assert torch.allclose(length.mean(), torch.tensor(1.0), atol=0.02)
    products = codes[:2500] @ codes[2500:].T
    assert products.abs().max() < 0.8  # no two symbols share a code


def test_a_start_with_fewer_symbols_than_states_gives_no_warning():
    x = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0]).reshape(2, 3, 1)
    model = lvm.models.CategoricalHMM(4)
    model.initialize(x)
    assert bool(model.probs.isfinite().all())
