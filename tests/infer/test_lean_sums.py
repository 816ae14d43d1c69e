"""Sums with gradients of their own against the same by parts."""

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits

from pyro_lvm.distributions.standard_normal import standard_normal
from pyro_lvm.infer.lean_sums import bernoulli_cost, normal_divergence, standard_divergence


def draws(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("shapes", [[(3, 4)] * 4, [(3, 4), (4,), (3, 1), ()], [(0, 2)] * 4])
def test_divergence_and_gradients_of_normal_laws(shapes):
    parameters = draws(0, *shapes)
    m, raw, a, other = parameters
    q, p = dist.Normal(m, raw.exp()).expand(shapes[0]), dist.Normal(a, other.exp()).expand(shapes[0])
    ours, plain = normal_divergence(q, p), kl_divergence(q, p).sum()
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(
        *(torch.autograd.grad(3 * value, parameters, retain_graph=True) for value in (ours, plain)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_divergence_from_the_standard_normal_law():
    m, raw = draws(3, (5, 2), (5, 2))
    q, p = dist.Normal(m, raw.exp()), standard_normal(5, 2, m)
    torch.testing.assert_close(standard_divergence(q), kl_divergence(q, p.base_dist).sum(), rtol=1e-12, atol=1e-12)
    assert standard_normal(5, 2, m) is p
    assert standard_normal(5, 2, m.float()) is not p
    with torch.inference_mode():
        assert standard_normal(5, 2, m).base_dist.loc.is_inference()
    assert not standard_normal(5, 2, m).base_dist.loc.is_inference()


@pytest.mark.parametrize("shape", [(5, 7), (32, 16), (1,), (0, 3)])
def test_cost_and_gradients_of_zeros_and_ones(shape):
    (logits,) = draws(1, shape)
    values = (logits.detach() * 7).frac().abs().round()
    scaled = logits * 20
    ours = bernoulli_cost(scaled, values)
    plain = binary_cross_entropy_with_logits(scaled, values, reduction="sum")
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        *(torch.autograd.grad(-2 * value, logits, retain_graph=True)[0] for value in (ours, plain)),
        rtol=1e-10,
        atol=1e-12,
    )


def test_logits_out_of_reach_of_the_exponential():
    logits = torch.tensor([1e4, -1e4, 0.0]).requires_grad_()
    cost = bernoulli_cost(logits, torch.tensor([1.0, 1.0, 0.0]))
    assert cost.item() == pytest.approx(1e4 + torch.tensor(2.0).log().item())
    cost.backward()
    torch.testing.assert_close(logits.grad, torch.tensor([0.0, -1.0, 0.5]))


def test_costs_of_sure_and_right_logits_are_small_and_exact():
    """Two large sums that nearly cancel would lose them in single precision."""
    generator = torch.Generator().manual_seed(2)
    values = (torch.rand(1000, 1000, generator=generator) < 0.5).float()
    logits = (2 * values - 1) * (8 + torch.rand(1000, 1000, generator=generator))
    exact = binary_cross_entropy_with_logits(logits.double(), values.double(), reduction="sum")
    assert bernoulli_cost(logits, values).item() == pytest.approx(exact.item(), rel=1e-4)
