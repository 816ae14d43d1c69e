"""Continuous values behind draws: their laws, how they move, the zero mean of what a control variate adds."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from pyro_lvm.ops import relaxation
from pyro_lvm.ops.relaxation import Bits, Classes

LOGITS = torch.tensor([1.3, -2.0, 0.2, 0.0]).double()
DRAWS = 40_000


def behind(kind, draws=DRAWS):
    torch.manual_seed(0)
    logits = LOGITS.expand(draws, 4)
    if kind is Bits:
        return kind.behind(logits, torch.bernoulli(logits.sigmoid()))
    chosen = torch.multinomial(LOGITS.softmax(-1), draws, replacement=True)
    return kind.behind(logits, torch.nn.functional.one_hot(chosen, 4).double())


@pytest.mark.parametrize("kind", [Bits, Classes])
def test_values_have_the_law_from_which_draws_are_made(kind):
    """Each of eight Kolmogorov-Smirnov tests fails by chance once in 10,000 seeds."""
    made = behind(kind)
    law, shift = (stats.logistic, LOGITS) if kind is Bits else (stats.gumbel_r, LOGITS.log_softmax(-1))
    for k in range(4):
        assert stats.kstest((made.values[:, k] - shift[k]).numpy(), law.cdf).pvalue > 1e-4
    largest = (made.values > 0) if kind is Bits else (made.values == made.values.max(-1, keepdim=True).values)
    assert torch.equal(largest.double(), made.hard)


@pytest.mark.parametrize("kind", [Bits, Classes])
def test_a_control_variate_adds_nothing_on_average(kind):
    made = behind(kind, 200_000)
    at = made.values.clone().requires_grad_()
    level = (at.tanh() * torch.tensor([1.0, 2, -1, 0.5]).double()).sum(-1).square() + at[:, 0].sin()
    (slope,) = torch.autograd.grad(level.sum(), at)
    terms = made.moved(slope) - level.detach().unsqueeze(-1) * made.score
    error = terms.std(0) / len(terms) ** 0.5
    assert bool((terms.mean(0).abs() < 4 * error).all())


def conditional_bits(logits, hard, v):
    """As printed in the literature: a uniform number on the side of the draw, through the logistic quantile."""
    theta = logits.sigmoid()
    u = torch.where(hard > 0, v * theta + 1 - theta, (1 - v) * (1 - theta))
    return logits + u.logit()


def conditional_classes(logits, hard, v):
    p = logits.softmax(-1)
    top = -(-(v * hard).sum(-1, keepdim=True).log()).log()
    return torch.where(hard > 0, top, -(-v.log() / p + (-top).exp()).log())


@pytest.mark.parametrize(
    ("kind", "formula"), [(Bits, conditional_bits), (Classes, conditional_classes)], ids=["bits", "classes"]
)
def test_values_and_their_motion_equal_the_printed_formulas(kind, formula, monkeypatch):
    monkeypatch.setattr(relaxation, "_uniform", lambda like: v)
    v = torch.rand(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    made = behind(kind, 50)
    logits = LOGITS.expand(50, 4).clone().requires_grad_()
    free = logits if kind is Bits else logits.log_softmax(-1)
    values = formula(logits, made.hard, v)
    torch.testing.assert_close(made.values, values.detach())
    slope = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    (held_noise,) = torch.autograd.grad((free * slope).sum(), logits, retain_graph=True)
    (held_draw,) = torch.autograd.grad((values * slope).sum(), logits)
    torch.testing.assert_close(made.moved(slope), held_noise - held_draw)


@pytest.mark.parametrize("size", [50.0, 1e4, torch.inf])
def test_extreme_log_odds_stay_finite(size):
    for dtype in (torch.float32, torch.float64):
        logits = torch.tensor([size, -size]).to(dtype)
        bits = Bits.behind(logits, torch.tensor([1.0, 0.0]).to(dtype))
        logits = torch.tensor([[0.0, -size], [0.5, -size]]).to(dtype)
        classes = Classes.behind(logits, torch.tensor([[1.0, 0], [1.0, 0]]).to(dtype))
        for made in (bits, classes):
            assert bool(made.values.isfinite().all())
            assert float(made.score.abs().max()) < 1e-6
            assert float(made.moved(torch.ones_like(made.values)).abs().max()) < 1e-6
