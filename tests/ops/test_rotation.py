"""Rotations reach the best of their criterion, and turn simple structure up again."""

import math

import pytest
import torch

from pyro_lvm.ops.rotation import promax, varimax


def criterion(weight):
    rows = weight / weight.norm(dim=-1, keepdim=True)
    return float(rows.square().var(0, correction=0).sum())


def simple(columns=12, factors=3):
    """Loadings of which every line has one."""
    torch.manual_seed(0)
    weight = torch.zeros(columns, factors).double()
    weight[torch.arange(columns), torch.arange(columns) % factors] = 0.5 + torch.rand(columns).double()
    return weight


def test_of_two_factors_no_angle_is_better():
    torch.manual_seed(1)
    weight = torch.randn(9, 2).double()
    angles = torch.linspace(0, math.pi, 2001).tolist()
    turns = [torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]).double() for a in angles]
    best = max(criterion(weight @ turn) for turn in turns)
    assert criterion(weight @ varimax(weight)) >= best - 1e-9


@pytest.mark.parametrize("rotate", [varimax, promax])
def test_simple_structure_is_found(rotate):
    weight = simple()
    mixing = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)).double())[0]
    turn = rotate(weight @ mixing)
    found = (weight @ mixing @ turn).abs()
    assert bool(((found > 1e-6).sum(-1) == 1).all())
    torch.testing.assert_close(found.max(-1).values, weight.max(-1).values, rtol=1e-6, atol=1e-6)


def test_varimax_is_orthogonal_and_lines_of_zeros_do_no_harm():
    weight = torch.cat([simple(), torch.zeros(1, 3).double()])
    turn = varimax(weight)
    torch.testing.assert_close(turn.mT @ turn, torch.eye(3).double())
    assert varimax(weight[:, :1]).abs().item() == pytest.approx(1)


def test_oblique_factors_have_variance_one_and_the_correlation_that_made_them():
    weight, angle = simple(), 0.5
    oblique = torch.linalg.cholesky(torch.tensor([[1, angle, 0], [angle, 1, 0], [0, 0, 1]]).double())
    inverse = torch.linalg.inv(promax(weight @ oblique))
    correlation = inverse @ inverse.mT
    torch.testing.assert_close(correlation.diagonal(), torch.ones(3).double())
    off = correlation.abs().triu(1).flatten().sort().values
    assert float(off[-1]) == pytest.approx(angle, abs=0.1)
    assert float(off[-2]) < 0.1
