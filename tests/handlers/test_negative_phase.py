"""Gradients of the surrogate normalizer against exact ones."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_lvm.distributions import RBM, GaussianRBM
from pyro_lvm.handlers import negative_phase
from pyro_lvm.infer import ContrastiveDivergence

ERRORS = 4
LONG = 40  # steps after which chains of so small machines have forgotten their start


def states(count):
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=count)), dtype=torch.float64)


def leaves(d=5, m=4):
    torch.manual_seed(0)
    shapes = {"weight": (d, m), "visible_bias": (d,), "hidden_bias": (m,)}
    return {name: (0.7 * torch.randn(s, dtype=torch.float64)).requires_grad_() for name, s in shapes.items()}


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


def agrees(draws, exact):
    """Whether the mean of draws (r, p) is within so many standard errors of the exact vector, in each entry."""
    draws = torch.stack(draws)
    error = draws.std(0) / len(draws) ** 0.5
    return bool(((draws.mean(0) - exact).abs() <= ERRORS * error + 1e-9).all())


def bernoulli(given, **options):
    return RBM(given["weight"], given["visible_bias"], given["hidden_bias"], hidden_offset=0.5, **options)


def gaussian(given, **options):
    scale = torch.full((5,), 0.8, dtype=torch.float64)
    return GaussianRBM(given["weight"], given["visible_bias"], given["hidden_bias"], scale, **options)


@pytest.mark.parametrize("make", [bernoulli, gaussian])
@pytest.mark.parametrize("persistent", [False, True])
def test_gradient_is_exact_with_long_chains(make, persistent):
    given = leaves()
    rows = make(given).sample((30,)) if make is gaussian else states(5)[:7]
    scale = torch.linspace(0.5, 2.0, len(rows), dtype=torch.float64)

    def model():
        with pyro.plate("data", len(rows)), poutine.scale(scale=scale):
            pyro.sample("v", make(given), obs=rows)

    def gradient():
        density = poutine.trace(model).get_trace().log_prob_sum()
        return flat(torch.autograd.grad(density, list(given.values())))

    exact = gradient()
    phase = negative_phase(num_steps=LONG, persistent=persistent)
    draws = []
    for _ in range(150):
        with phase:
            draws.append(gradient())
    assert agrees(draws, exact)


def test_one_step_from_rows_is_biased():
    """The oracle can tell: chains of one step do not reach the law."""
    given = leaves()
    rows = states(5)[:2]
    exact = flat(torch.autograd.grad(bernoulli(given).log_prob(rows).sum(), list(given.values())))
    draws = []
    for _ in range(1000):
        with negative_phase(num_steps=1):
            trace = poutine.trace(lambda: pyro.sample("v", bernoulli(given).expand((2,)), obs=rows)).get_trace()
        draws.append(flat(torch.autograd.grad(trace.log_prob_sum(), list(given.values()))))
    assert not agrees(draws, exact)


@pytest.mark.parametrize("persistent", [False, True])
def test_prior_of_a_users_program_under_a_subsampled_plate_and_a_mask(persistent):
    """The exact gradient of the bound is a sum over all latent states, with all rows that the mask keeps."""
    given = {name: tensor.detach() for name, tensor in leaves(4, 3).items()}
    x = torch.tensor([0.5, -1.0, 2.0, 0.1, 1.0, -0.4], dtype=torch.float64)
    keep = torch.tensor([True, True, False, True, False, True])

    def model():
        law = RBM(*(pyro.param(name, given[name]) for name in given))
        with pyro.plate("rows", len(x), subsample_size=2) as index, poutine.mask(mask=keep[index]):
            h = pyro.sample("h", law)
            pyro.sample("x", dist.Normal(h.sum(-1), 1.0), obs=x[index])

    def guide():
        with pyro.plate("rows", len(x), subsample_size=2) as index, poutine.mask(mask=keep[index]):
            logits = x[index].unsqueeze(-1) * torch.ones(4, dtype=torch.float64)
            pyro.sample("h", dist.Bernoulli(logits=logits).to_event(1))

    inner = {name: tensor.clone().requires_grad_() for name, tensor in given.items()}
    posterior = dist.Bernoulli(logits=x[keep].reshape(-1, 1, 1)).expand((int(keep.sum()), 1, 4)).to_event(1)
    weights = posterior.log_prob(states(4)).exp()
    bound = (weights * RBM(*inner.values()).log_prob(states(4))).sum()
    exact = -flat(torch.autograd.grad(bound, list(inner.values())))

    objective = ContrastiveDivergence(num_steps=LONG, persistent=persistent, num_chains=8 if persistent else None)
    draws = []
    for _ in range(600):
        objective.loss_and_grads(model, guide)
        found = [pyro.param(name).unconstrained() for name in given]
        draws.append(flat([p.grad for p in found]))
        for p in found:
            p.grad = None
    assert agrees(draws, exact)


def test_known_normalizer_keeps_its_value():
    given = leaves()
    law = bernoulli(given, log_normalizer=bernoulli(given).exact_log_normalizer().detach())
    rows = states(5)[:3]
    with negative_phase():
        trace = poutine.trace(lambda: pyro.sample("v", law.expand((3,)), obs=rows)).get_trace()
    torch.testing.assert_close(trace.log_prob_sum(), law.log_prob(rows).sum())
    assert law.given_log_normalizer.grad_fn is None  # the law itself is as it was


def test_wrapped_distributions_are_found():
    mask = torch.tensor([True, False])
    law = bernoulli(leaves()).expand((2,)).mask(mask)
    with negative_phase():
        trace = poutine.trace(lambda: pyro.sample("v", law, obs=states(5)[:2])).get_trace()
    density = trace.nodes["v"]["fn"].log_prob(states(5)[:2])
    assert density[1] == 0
    assert density[0].requires_grad


def test_chains_start_from_rows_that_count():
    rows = torch.stack([torch.zeros(5), torch.ones(5)]).double()
    seen = []

    class Watched(RBM):
        def chain_start(self, value):
            seen.append(value)
            return super().chain_start(value)

    law = Watched(*leaves().values())
    with negative_phase(persistent=True, num_chains=3), pyro.plate("data", 2), poutine.mask(mask=rows[:, 0] == 1):
        pyro.sample("v", law, obs=rows)
    assert seen[0].tolist() == [[1.0] * 5] * 3


def test_chains_are_kept_by_name():
    chains = {}
    with negative_phase(persistent=True, chains=chains):
        pyro.sample("a", bernoulli(leaves()), obs=states(5)[0])
        pyro.sample("b", bernoulli(leaves()), obs=states(5)[0])
    assert chains.keys() == {"a", "b"}


@pytest.mark.parametrize("options", [{"num_steps": 0}, {"num_chains": 5}, {"num_chains": 0, "persistent": True}])
def test_bad_options(options):
    with pytest.raises(ValueError, match="negative_phase: expected num_"):
        negative_phase(**options)
    with pytest.raises(ValueError, match="expected num_"):
        ContrastiveDivergence(**options)
