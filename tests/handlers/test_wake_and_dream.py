"""Wake and dream on a program as users write them."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_lvm as lvm


def model(x):
    scale = pyro.param("scale", torch.tensor(2.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(3.0, scale))
        return pyro.sample("x", dist.Normal(2 * z, 0.5), obs=x)


def guide(x):
    slope = pyro.param("slope", torch.tensor(0.4))
    with pyro.plate("data", len(x)):
        return pyro.sample("z", dist.Normal(slope * x, 0.3))


@pytest.fixture(autouse=True)
def scope():
    pyro.set_rng_seed(0)
    with pyro.get_param_store().scope():
        yield


def test_dreams_follow_the_joint_law_and_carry_no_gradient():
    x = torch.zeros(20_000)
    trace = poutine.trace(lvm.handlers.dream(model)).get_trace(x)
    z, seen = trace.nodes["z"]["value"], trace.nodes["x"]["value"]
    assert not z.requires_grad
    assert not seen.requires_grad
    assert not trace.nodes["x"]["is_observed"]
    assert trace.nodes["x"]["infer"]["obs"] is x
    assert abs(float(z.mean()) - 3) < 4 * 2 / 20_000**0.5
    assert abs(float((seen - 2 * z).mean())) < 4 * 0.5 / 20_000**0.5
    assert float((seen - 2 * z).std()) == pytest.approx(0.5, abs=4 * 0.5 / 40_000**0.5)


def test_gradients_are_back_on_after_a_dream_even_if_it_fails():
    with pytest.raises(RuntimeError, match="on purpose"), lvm.handlers.dream():
        raise RuntimeError("on purpose")
    assert torch.is_grad_enabled()


def test_a_factor_cannot_be_dreamed():
    with pytest.raises(ValueError, match=r"site 'tilt' is a pyro\.factor, which cannot be drawn"):
        lvm.handlers.dream(lambda: pyro.factor("tilt", torch.tensor(1.0)))()


def test_awake_the_model_learns_and_the_guide_does_not():
    x = torch.tensor([1.0, 5.0, 7.0])
    with lvm.handlers.wake():
        drawn = poutine.trace(guide).get_trace(x)
    poutine.trace(poutine.replay(model, trace=drawn)).get_trace(x).log_prob_sum().backward()
    z = drawn.nodes["z"]["value"]
    scale, slope = (pyro.get_param_store()._params[name] for name in ("scale", "slope"))
    assert slope.grad is None
    assert float(scale.grad) == pytest.approx(float(((z - 3) ** 2 / 8 - 0.5).sum()), rel=1e-5)


def test_weighted_draws_of_a_continuous_guide_carry_no_gradient():
    x = torch.tensor([1.0, 5.0, 7.0])
    torch.manual_seed(0)
    lvm.infer.WakeSleep(num_samples=2, num_dreams=0, wake_guide=1.0).loss_and_grads(model, guide, x)
    torch.manual_seed(0)
    with torch.no_grad():
        draws = torch.stack([guide(x) for _ in range(2)])
    joint = dist.Normal(3.0, 2.0).log_prob(draws) + dist.Normal(2 * draws, 0.5).log_prob(x)
    weights = (joint - dist.Normal(0.4 * x, 0.3).log_prob(draws)).softmax(0)
    slope = pyro.get_param_store()._params["slope"]
    expected = -(weights * (draws - 0.4 * x) * x / 0.3**2).sum()
    assert float(slope.grad) == pytest.approx(float(expected), rel=1e-4)
