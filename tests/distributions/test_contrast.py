"""Gradients of contrastive divergence in closed form, against those that autograd takes of free energies."""

from contextlib import nullcontext

import pyro
import pytest
import torch
from pyro import poutine

import pyro_lvm as lvm
from pyro_lvm.distributions import RBM, EnergyDistribution
from pyro_lvm.infer import ContrastiveDivergence

OFFSETS = {
    "none": lambda leaves: 0.0,
    "number": lambda leaves: 0.3,
    "vector": lambda leaves: leaves["offset"],
    "follows": lambda leaves: None,
}


def leaves():
    torch.manual_seed(0)
    shapes = {"weight": (5, 4), "visible_bias": (5,), "hidden_bias": (4,), "offset": (4,)}
    return {name: torch.randn(shape, dtype=torch.float64).requires_grad_() for name, shape in shapes.items()}


def gradients(contrast, offset, num_steps, chains):
    given = leaves()
    mean = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    weight = 0.5 * given["weight"]  # not a leaf
    law = RBM(weight, given["visible_bias"], given["hidden_bias"], visible_offset=mean, hidden_offset=offset(given))
    rows = torch.bernoulli(mean.expand(7, 5))
    state = law.chain_start(rows[:chains]) if chains else None
    loss, state = contrast(law, rows, state, num_steps, 2.5)
    found = [t.grad if t.grad is not None else torch.zeros_like(t) for t in given.values()]
    return [loss, state, *found]


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize(("num_steps", "chains"), [(1, 3), (3, 7), (1, 0), (2, 0)])
def test_closed_form(offset, num_steps, chains):
    ours = gradients(RBM.contrast, OFFSETS[offset], num_steps, chains)
    theirs = gradients(EnergyDistribution.contrast, OFFSETS[offset], num_steps, chains)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_add_up():
    given = leaves()
    law = RBM(given["weight"], given["visible_bias"], given["hidden_bias"])
    rows = torch.ones(2, 5, dtype=torch.float64)
    given["weight"].grad = torch.full((5, 4), 100.0, dtype=torch.float64)
    torch.manual_seed(1)
    law.contrast(rows, None, 1, 1.0)
    total, given["weight"].grad = given["weight"].grad, None
    torch.manual_seed(1)
    law.contrast(rows, None, 1, 1.0)
    torch.testing.assert_close(total, given["weight"].grad + 100)


def rows():
    torch.manual_seed(2)
    return torch.bernoulli(torch.full((60, 6), 0.4, dtype=torch.float64))


def steps(around, persistent=True):
    """Losses of three steps, and the sum of their gradients; the second and third inside of a handler."""
    model = lvm.models.RBM(3)
    objective = ContrastiveDivergence(num_steps=2, persistent=persistent)
    x = rows()
    torch.manual_seed(3)
    model.initialize(x)
    with pyro.settings.context(
        validate_infer=False, validate_distributions_pyro=False, validate_distributions_torch=False
    ):
        losses = [objective.loss_and_grads(model, lambda x: None, x)]
        with around:
            losses += [objective.loss_and_grads(model, lambda x: None, x) for _ in range(2)]
    return losses, {name: tensor.grad for name, tensor in model.named_parameters()}


@pytest.mark.parametrize("persistent", [False, True])
def test_a_model_that_is_not_run_learns_the_same(persistent):
    (seen, by_program), (unseen, by_law) = (steps(h, persistent) for h in (poutine.scale(scale=1.0), nullcontext()))
    if persistent:  # else rows are looked at in another order, which takes other draws
        assert seen == pytest.approx(unseen)
        for name, gradient in by_law.items():
            torch.testing.assert_close(gradient, by_program[name])


@pytest.mark.parametrize("around", [poutine.scale(scale=3.0), lvm.handlers.minibatch(total=180)])
def test_handlers_around_keep_their_meaning(around):
    (once, *plain), _ = steps(poutine.scale(scale=1.0))
    (first, *scaled), _ = steps(around)
    assert first == once
    assert scaled == pytest.approx([3 * loss for loss in plain])


def test_a_mask_around_is_seen():
    (_, *masked), _ = steps(poutine.mask(mask=False))
    assert masked == [0.0, 0.0]
