"""Wake-sleep against hand-written gradients, on our Helmholtz machine and on plain programs."""

import math
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

import pyro_lvm as lvm
from pyro_lvm.handlers.minibatch import minibatch


def rows(n=7, d=5):
    return torch.bernoulli(torch.full((n, d), 0.4).double())


def machine(hidden=(4, 3), d=5):
    torch.manual_seed(0)
    model = lvm.models.SigmoidBeliefNet(hidden, d)
    guide = lvm.guides.RecognitionNet(model)
    return model.double(), guide.double()


def gradients(program):
    return {name: p.grad for name, p in program.named_parameters()}


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-6)


def draws(guide, x):
    """Layers that the guide draws, by hand."""
    layers = [x]
    for layer in guide.recognition:
        layers.append(torch.bernoulli(torch.sigmoid(layer(layers[-1]).detach())))
    return layers


def test_wake_gradient_equals_the_delta_rule(local):
    model, guide = machine()
    x = rows()
    objective = lvm.infer.WakeSleep(sleep_every=2)
    objective.steps = 1
    torch.manual_seed(3)
    resting = torch.get_rng_state()
    objective.loss_and_grads(model, guide, x)
    torch.set_rng_state(resting)
    layers = draws(guide, x)
    expected = {}
    for level, layer in enumerate(model.decoder):
        error = torch.sigmoid(layer(layers[level + 1])) - layers[level]
        expected[f"decoder.{level}.weight"] = error.T @ layers[level + 1]
        expected[f"decoder.{level}.bias"] = error.sum(0)
    expected["top_bias_unconstrained"] = (torch.sigmoid(model.top_bias) - layers[-1]).sum(0)
    found = gradients(model)
    same([found[name] for name in expected], expected.values())
    assert found.keys() == expected.keys()
    assert all(g is None for g in gradients(guide).values())


def test_sleep_gradient_equals_the_delta_rule(local):
    model, guide = machine()
    x = rows()
    objective = lvm.infer.WakeSleep(wake_every=2)
    objective.steps = 1
    torch.manual_seed(4)
    state = torch.get_rng_state()
    loss = objective.loss_and_grads(model, guide, x)
    torch.set_rng_state(state)
    draws(guide, x)  # the loss draws from the guide first
    h = torch.bernoulli(torch.sigmoid(model.top_bias.detach()).expand(len(x), -1))
    layers = [h]
    for layer in reversed(model.decoder):
        layers.insert(0, torch.bernoulli(torch.sigmoid(layer(layers[0]).detach())))
    expected = []
    for level, layer in enumerate(guide.recognition):
        error = torch.sigmoid(layer(layers[level])) - layers[level + 1]
        expected += [error.T @ layers[level], error.sum(0)]
    same(gradients(guide).values(), expected)
    assert all(g is None for g in gradients(model).values())
    assert math.isfinite(loss)


def test_reweighted_gradient_equals_a_plain_loop(local):
    """Rows on a plate that picks some of them under a mask and a scale, two draws."""
    model, guide = machine((3,))
    x, keep = rows(), torch.tensor([True, False, True, True, True, True, False])

    def masked(program):
        def run(x):
            with poutine.mask(mask=keep), poutine.scale(scale=2.5):
                return program(x)

        return run

    objective = lvm.infer.WakeSleep(num_samples=2, num_dreams=0, wake_guide=0.7)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    objective.loss_and_grads(masked(model), masked(guide), x)
    torch.set_rng_state(state)
    hs = [draws(guide, x)[1] for _ in range(2)]

    def total(logits, value):
        return -cross_entropy(logits.expand_as(value), value, reduction="none").sum(-1)

    p = torch.stack([total(model.top_bias, h) + total(model.decoder[0](h), x) for h in hs])
    q = torch.stack([total(guide.recognition[0](x), h) for h in hs])
    weights = (p - q).detach().softmax(0) * keep * 2.5
    loss = -(weights * (p + 0.7 * q)).sum()
    for program in (model, guide):
        expected = torch.autograd.grad(loss, list(program.parameters()), retain_graph=True)
        same(gradients(program).values(), expected)


def test_a_batch_makes_every_phase_count_for_all_rows(local):
    """Wake and sleep gradients of both networks alike, or the guide would learn from dreams at another rate."""
    x, found = rows(), []
    for context in (nullcontext(), minibatch(total=10 * len(x))):
        model, guide = machine()
        torch.manual_seed(6)
        with context:
            lvm.infer.WakeSleep(num_samples=3, wake_guide=0.5).loss_and_grads(model, guide, x)
        found.append([p.grad for p in (*model.parameters(), *guide.parameters())])
    same(found[1], [10 * gradient for gradient in found[0]])


def test_dreams_reach_picked_rows_of_an_argument():
    x, seen = rows(6, 1)[:, 0], []

    def model(x, context):
        with pyro.plate("data", 6, subsample_size=2) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + 50.0, 1.0), obs=x[index])

    def guide(x, context):
        seen.append((x.clone(), context))
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", 6, subsample_size=2) as index:
            pyro.sample("z", dist.Normal(loc + x[index], 1.0))

    context = torch.tensor(3.0)
    lvm.infer.WakeSleep().loss_and_grads(model, guide, x, context)
    (wake_x, _), (sleep_x, sleep_context) = seen
    assert torch.equal(wake_x, x)
    assert int((sleep_x > 10).sum()) == 2
    assert sleep_context is context


def test_stock_svi_rests_the_model_at_every_other_step():
    with pyro.get_param_store().scope():
        model, guide = machine()
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=lvm.infer.WakeSleep(wake_every=2))
        moved = []
        for _ in range(3):
            before = [p.detach().clone() for p in model.parameters()]
            svi.step(rows())
            moved.append(any(bool((a != b).any()) for a, b in zip(before, model.parameters(), strict=True)))
    assert moved == [True, False, True]


def test_a_guide_must_draw_the_sites_of_the_model(local):
    model, guide = machine()
    with pytest.raises(ValueError, match="it lacks 'h2'"):
        lvm.infer.WakeSleep().loss_and_grads(model, poutine.block(guide, hide=["h2"]), rows())


def test_the_observation_must_be_an_argument(local):
    model, guide = machine()
    with pytest.raises(ValueError, match="site 'x' to be one of its arguments"):
        lvm.infer.WakeSleep().loss_and_grads(lambda x: model(1 - x), guide, rows())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples"),
        ({"num_dreams": -1}, "num_dreams"),
        ({"num_dreams": 0}, "num_dreams >= 1 or wake_guide"),
        ({"wake_guide": 1.0}, "num_samples >= 2"),
        ({"wake_guide": math.nan}, "wake_guide >= 0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        lvm.infer.WakeSleep(**options)
