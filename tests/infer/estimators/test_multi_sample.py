"""Bounds of several draws: rows, scales, masks and subsamples keep their meaning; both SVIs; what is turned away."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_lvm as lvm
from pyro_lvm.infer import VIMCO, LeaveOneOut
from pyro_lvm.infer.estimators import Draws
from pyro_lvm.infer.estimators.rows import Rows

BOTH = [LeaveOneOut, VIMCO]
X = torch.tensor([0.0, 3.0, 1.0, -2.0, 0.5]).double()


def program(**around):
    """A model and a guide of a Bernoulli in every row, under handlers by name."""

    def wrapped(row):
        scale, mask = around.get("scale", 1.0), around.get("mask", torch.tensor(True))
        with pyro.plate("data", len(row)), poutine.scale(scale=scale), poutine.mask(mask=mask):
            yield

    def model(x):
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]).double())
        for _ in wrapped(x):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4).double()))
            pyro.sample("x", dist.Normal(loc[z.long()], 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.3).double())
        for _ in wrapped(x):
            pyro.sample("z", dist.Bernoulli(logits=slope * x))

    return model, guide


def terms(x):
    """Log p(x, z) - log q(z) of z = 0 and z = 1, and q, by plain formulas."""
    q = torch.stack([1 / (1 + (0.3 * x).exp()), 1 / (1 + (-0.3 * x).exp())])
    prior = torch.tensor([[0.6], [0.4]]).double()
    loc = torch.tensor([[-1.0], [1.0]]).double()
    normal = -0.5 * (x - loc) ** 2 - 0.5 * torch.tensor(2 * torch.pi).double().log()
    return prior.log() + normal - q.log(), q


def expected(objective, x):
    """The bound of two draws of every row."""
    log_w, q = terms(x)
    if objective is LeaveOneOut:
        return (q * log_w).sum(0)
    pairs = torch.logaddexp(log_w.unsqueeze(0), log_w.unsqueeze(1)) - torch.tensor(2.0).double().log()
    return (q.unsqueeze(0) * q.unsqueeze(1) * pairs).sum((0, 1))


def average(objective, model, guide, x, runs=400):
    torch.manual_seed(0)
    return torch.tensor([-objective.loss(model, guide, x) for _ in range(runs)])


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("around", ["plain", "scale", "row-scale", "mask"])
def test_the_bound_of_every_row(kind, around):
    scale = {"scale": torch.tensor(20.0).double(), "row-scale": torch.tensor([1.0, 2, 0.5, 3, 1]).double()}
    scale = scale.get(around, torch.tensor(1.0).double())
    mask = torch.tensor([True, True, False, True, False]) if around == "mask" else torch.tensor(True)
    values = average(kind(2), *program(scale=scale, mask=mask), X)
    exact = float((mask * scale * expected(kind, X)).sum())
    assert abs(float(values.mean()) - exact) < 4 * float(values.std()) / len(values) ** 0.5


@pytest.mark.parametrize("kind", BOTH)
def test_a_subsampled_plate_estimates_the_whole(kind):
    def model(x):
        with pyro.plate("data", len(x), subsample_size=2) as index:
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4).double()))
            loc = torch.where(z > 0, 1.0, -1.0).double()
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=2) as index:
            pyro.sample("z", dist.Bernoulli(logits=0.3 * x[index]))

    values = average(kind(2, max_plate_nesting=1), model, guide, X, runs=600)
    exact = float(expected(kind, X).sum())
    assert abs(float(values.mean()) - exact) < 4 * float(values.std()) / len(values) ** 0.5


@pytest.mark.parametrize("kind", BOTH)
def test_minibatch_scales_the_bound_not_the_weights(kind):
    model, guide = program()
    scaled = [lvm.handlers.minibatch(part, total=50) for part in (model, guide)]
    torch.manual_seed(0)
    once = kind(3).loss(model, guide, X)
    torch.manual_seed(0)
    assert kind(3).loss(*scaled, X) == pytest.approx(10 * once, rel=1e-9)


def test_rows_do_not_weigh_each_other():
    model, guide = program()
    pyro.clear_param_store()
    objective = VIMCO(4)
    torch.manual_seed(0)
    draws = objective.draw(model, guide, (X,), {})
    assert draws.log_weight.shape == (4, 5)
    bound = objective.bound(draws)
    by_hand = torch.stack([(draws.log_weight[:, n].exp().mean()).log() for n in range(5)])
    assert torch.allclose(bound, by_hand)


def test_a_latent_of_all_rows_makes_one_row_of_the_data():
    def model(x):
        p = pyro.sample("p", dist.Bernoulli(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(p, 1.0), obs=x)

    def guide(x):
        pyro.sample("p", dist.Bernoulli(0.3))

    assert VIMCO(3).draw(model, guide, (X,), {}).log_weight.shape[0] == 3
    assert VIMCO(3).draw(model, guide, (X,), {}).log_weight.numel() == 3


@pytest.mark.parametrize("kind", BOTH)
def test_reparameterised_sites_are_differentiated_through_their_draws(kind):
    """Of one row and one normal site, the gradient of a bound is that of the same bound with fixed noise."""
    x = torch.tensor([0.7]).double()

    def model(x):
        with pyro.plate("data", 1):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0).double(), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        loc = pyro.param("q", torch.tensor(0.2).double())
        with pyro.plate("data", 1):
            pyro.sample("z", dist.Normal(loc, 0.7))

    torch.manual_seed(3)
    kind(6).loss_and_grads(model, guide, x)
    torch.manual_seed(3)
    found = pyro.get_param_store()["q"].unconstrained().grad
    torch.manual_seed(3)
    noise = dist.Normal(torch.zeros(()).double(), 1.0).expand([6, 1]).sample()
    loc = torch.tensor(0.2).double().requires_grad_()
    z = loc + 0.7 * noise
    log_w = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 0.5).log_prob(x) - dist.Normal(loc, 0.7).log_prob(z)
    bound = log_w.mean() if kind is LeaveOneOut else log_w.logsumexp(0).sum()
    assert torch.allclose(found, -torch.autograd.grad(bound, loc)[0])


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("engine", ["stock", "ours"])
def test_either_svi_takes_them(kind, engine):
    model, guide = program()
    if engine == "stock":
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), loss=kind(4))
    else:
        svi = lvm.infer.SVI(model, guide, loss=kind(4), learning_rate=0.05)
    losses = [svi.step(X) for _ in range(200)]
    assert sum(losses[-50:]) < sum(losses[:50])


@pytest.mark.parametrize("name", ["leave-one-out", "vimco"])
def test_they_have_names_and_live_in_files(name, tmp_path):
    model, guide = program()
    fit = lvm.fit(model, X, guide, name, max_epochs=3, seed=0, progress=False)
    fit.save(tmp_path / "kept")
    again = lvm.load(tmp_path / "kept", model=model, guide=guide)
    assert type(again.inference.objective) is type(fit.inference.objective)
    assert again.inference.objective.num_samples == fit.inference.objective.num_samples


@pytest.mark.parametrize("kind", BOTH)
def test_extreme_weights_and_one_row(kind):
    def guide(x):
        slope = pyro.param("slope", torch.tensor(1e4).double())
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=slope * x))

    for x in (X, X[:1]):
        value = kind(3).loss_and_grads(program()[0], guide, x)
        assert torch.isfinite(torch.tensor(value))
        assert pyro.get_param_store()["slope"].unconstrained().grad.isfinite()


def test_vimco_advantages_are_exact_where_one_weight_dominates():
    log_weight = torch.tensor([[0.0], [-40.0], [-41.0]]).double()
    score = torch.zeros(3, 1).double().requires_grad_()
    rows = Rows(frozenset({-2, -1}), log_weight.shape, torch.ones(1))
    draws = Draws(log_weight, 0 * log_weight, score, 0 * log_weight, torch.ones(1), [], [], rows)
    VIMCO(3).surrogate(draws).sum().backward()
    total = log_weight.logsumexp(0)
    for k in range(3):
        rest = log_weight[[j for j in range(3) if j != k]]
        exact = total - torch.cat([rest, rest.mean(0, keepdim=True)]).logsumexp(0)
        assert torch.allclose(score.grad[k], exact, rtol=1e-9, atol=1e-15)


def test_what_is_turned_away():
    model, _ = program()
    for kind in BOTH:
        with pytest.raises(ValueError, match="expected num_samples >= 2"):
            kind(1)
        with pytest.raises(ValueError, match=r"draws the latent sites of the model \(z\); got none"):
            kind(2).loss(model, lambda x: None, X)
