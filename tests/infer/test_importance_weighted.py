"""The importance-weighted bound by quadrature and in closed form, under scales and masks; one row; what is refused."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from pyro import poutine
from pyro.infer import TraceGraph_ELBO

import pyro_lvm as lvm
from pyro_lvm.infer import ImportanceWeighted

COPIES = 2000
X = torch.tensor([0.7, -1.2, 0.3]).double()
ALL = torch.tensor([True, True, True])
ADAM = pyro.optim.Adam({"lr": 0.1})
SETTINGS = {
    "plain": (torch.ones(3).double(), ALL),
    "scale": (torch.full((3,), 20.0).double(), ALL),
    "row-scale": (torch.tensor([2.0, 0.5, 3.0]).double(), ALL),
    "mask": (torch.ones(3).double(), torch.tensor([True, False, True])),
    "scale-and-mask": (torch.tensor([2.0, 0.5, 3.0]).double(), torch.tensor([True, True, False])),
}


def programs(slope, width, scale, mask):
    """Normal rows of normal latents; the guide's parameters are by draw and row, or one for all."""

    def model(x):
        with pyro.plate("data", x.shape[-1]), poutine.scale(scale=scale), poutine.mask(mask=mask):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0).double(), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[-1]), poutine.scale(scale=scale), poutine.mask(mask=mask):
            pyro.sample("z", dist.Normal(slope * x, width))

    return model, guide


def quadrature(x, slope, width):
    """The bound of two draws of one row, by a Gauss-Hermite rule over both."""
    points, weights = (torch.from_numpy(v) for v in hermegauss(60))
    z = slope * x + width * points
    log_w = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 0.5).log_prob(x)
    log_w = log_w - dist.Normal(slope * x, width).log_prob(z)
    both = torch.logaddexp(log_w.unsqueeze(0), log_w.unsqueeze(1)) - torch.tensor(2.0).double().log()
    return (weights.unsqueeze(0) * weights.unsqueeze(1) * both).sum() / weights.sum() ** 2


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("vectorize", [True, False])
def test_the_bound_and_its_gradient_by_quadrature(setting, vectorize):
    """Every row stands many times, with parameters of its own each: one run gives so many draws of the estimate."""
    scale, mask = (part.repeat(COPIES) for part in SETTINGS[setting])
    start = torch.tensor([0.5, 0.8]).double()
    leaves = start.expand(3 * COPIES, 2).clone().requires_grad_()
    torch.manual_seed(0)
    model, guide = programs(leaves[:, 0], leaves[:, 1], scale, mask)
    loss = ImportanceWeighted(2, vectorize=vectorize).loss_and_grads(model, guide, X.repeat(COPIES))
    total = 0.0
    for row in range(3):
        at = start.clone().requires_grad_()
        bound = SETTINGS[setting][0][row] * SETTINGS[setting][1][row] * quadrature(X[row], at[0], at[1])
        (exact,) = torch.autograd.grad(-bound, at)
        found = leaves.grad[row::3]
        error = (found.std(0) / COPIES**0.5).clamp(min=1e-9)
        assert bool(((found.mean(0) - exact).abs() < 4 * error).all())
        total = total + float(bound.detach())
    # a row's bound deviates by less than 1 nat
    assert abs(-loss / COPIES - total) < 4 * float(scale[:3].square().sum()) ** 0.5 / COPIES**0.5


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("num_samples", [1, 3])
def test_at_the_posterior_every_draw_gives_the_log_evidence(setting, num_samples):
    scale, mask = SETTINGS[setting]
    model, guide = programs(0.8, 0.2**0.5, scale, mask)
    evidence = dist.Normal(0.0, torch.tensor(1.25).double().sqrt()).log_prob(X)
    exact = float((scale * mask * evidence).sum())
    assert -ImportanceWeighted(num_samples).loss(model, guide, X) == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("vectorize", [True, False])
def test_a_batch_of_one(vectorize):
    one = torch.tensor([1.0]).double()
    model, guide = programs(0.8, 0.2**0.5, one, ALL[:1])
    evidence = dist.Normal(0.0, torch.tensor(1.25).double().sqrt()).log_prob(X[0])
    value = -ImportanceWeighted(4, vectorize=vectorize).loss(model, guide, X[:1])
    assert value == pytest.approx(float(evidence), abs=1e-9)
    scaled = [lvm.handlers.minibatch(part, total=50) for part in (model, guide)]
    value = -ImportanceWeighted(4, vectorize=vectorize).loss(*scaled, X[:1])
    assert value == pytest.approx(50 * float(evidence), abs=1e-9)


def test_extreme_log_odds_of_a_decoder_stay_finite():
    def model(x):
        weight = pyro.param("weight", torch.full((2, 4), 1e4))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z @ weight).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor([0.1, -0.3]))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))

    for rows in (1, 5):
        x = (torch.rand(rows, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()
        value = ImportanceWeighted(3).loss_and_grads(model, guide, x)
        assert torch.isfinite(torch.tensor(value))
        for name in ("weight", "loc"):
            assert bool(pyro.get_param_store()[name].unconstrained().grad.isfinite().all())


def discrete_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def discrete_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("slope", torch.tensor(0.1)) * x))


def continuous_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 1.0))


def continuous_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("engine", ["fit", "stock"])
@pytest.mark.parametrize("mistake", ["site without reparameterised draws", "baseline on a continuous site"])
def test_a_site_that_an_objective_cannot_use_gets_one_sentence(engine, mistake):
    x = torch.tensor([0.3, 1.0, -2.0])
    if mistake.startswith("baseline"):
        model, guide, loss = continuous_model, lvm.handlers.baseline(continuous_guide), TraceGraph_ELBO()
        sentence = r"draws a site without reparameterised draws; all of its sites \(z\) have them\. Use the guide"
    else:
        model, guide, loss = discrete_model, discrete_guide, ImportanceWeighted(3)
        sentence = r"ImportanceWeighted: expected reparameterised sites in the guide; site 'z' \(Bernoulli\) is not"
    svi = lvm.infer.SVI(loss=loss) if engine == "fit" else pyro.infer.SVI(model, guide, ADAM, loss=loss)
    with pytest.raises(ValueError, match=sentence):
        svi.step(x) if engine == "stock" else lvm.fit(model, x, guide, svi, max_epochs=1, progress=False)
