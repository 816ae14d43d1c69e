"""Held-out losses of SVI and coordinate ascent: rows alone, whatever the prior of the parameters says."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO

import pyro_lvm as lvm

X = torch.tensor([0.5, -1.0, 2.0, 3.0], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _own_store():
    with pyro.get_param_store().scope():
        yield


def level(x):
    loc = pyro.sample("loc", dist.Normal(x.new_tensor(5.0), 0.1))
    weights = pyro.sample("weights", dist.Dirichlet(x.new_ones(2)))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        u = pyro.sample("u", dist.Normal(loc, 2.0))
        pyro.sample("x", dist.Normal(u + z, 1.0), obs=x)


def level_guide(x):
    pyro.sample("loc", dist.Normal(x.new_tensor(1.0), 0.3))
    pyro.sample("weights", dist.Dirichlet(x.new_tensor([3.0, 2.0])))
    with pyro.plate("data", len(x)):
        pyro.sample("u", dist.Normal(0.8 * x, 0.5))


def one_draw(x):
    """What one draw of the guide says of the rows."""
    trace = pyro.poutine.trace(level_guide).get_trace(x)
    loc, weights, u = (trace.nodes[name]["value"] for name in ("loc", "weights", "u"))
    joint = weights.log() + dist.Normal(u.unsqueeze(-1) + torch.arange(2), 1.0).log_prob(x.unsqueeze(-1))
    prior, q = dist.Normal(loc, 2.0).log_prob(u), dist.Normal(0.8 * x, 0.5).log_prob(u)
    return -float((joint.logsumexp(-1) + prior - q).sum())


def test_sites_outside_of_the_rows_do_not_count():
    svi = lvm.infer.SVI(level, level_guide)
    svi.loss(X)  # finds out how plates nest, which draws
    torch.manual_seed(0)
    expected = one_draw(X)
    torch.manual_seed(0)
    assert svi.held_out_loss(X) == pytest.approx(expected, rel=1e-10)
    torch.manual_seed(0)
    assert svi.loss(X) > expected + 100


def test_validation_by_svi_is_the_score_at_a_point():
    x = lvm.datasets.load("faithful").x.double()
    model, held_out = lvm.models.GaussianMixture(2, priors=True), x[200:]
    options = {"inference": "svi", "validation": held_out, "max_epochs": 30, "seed": 0, "progress": False}
    fit = lvm.fit(model, x[:200], guide="map", **options)
    best = min(fit.history["validation_loss"])
    assert best == pytest.approx(-fit.score(held_out) * len(held_out), rel=1e-6)


@pytest.mark.parametrize("guide", ["normal", "multivariate-normal"])
def test_held_out_losses_of_autoguides_are_expected_log_likelihoods(guide):
    x = lvm.datasets.load("faithful").x.double()
    model = lvm.models.GaussianMixture(2, priors=True)
    fit = lvm.fit(model, x, inference="svi", guide=guide, max_epochs=400, seed=0, progress=False)
    with fit.scope():
        torch.manual_seed(0)
        drawn = [fit.inference.held_out_loss(x) for _ in range(200)]
    log_likelihoods = []
    for i in range(200):
        values = {name: value[0, i] for name, value in fit.draws.items()}
        normal = dist.MultivariateNormal(values["loc"], values["covariance"])
        joint = values["weights"].log() + normal.log_prob(x.unsqueeze(1))
        log_likelihoods.append(-joint.logsumexp(-1).sum())
    ours, theirs = torch.tensor(drawn), torch.stack(log_likelihoods)
    error = (ours.var() / 200 + theirs.var() / 200).sqrt()
    assert abs(float(ours.mean() - theirs.mean())) < 4 * float(error)


def test_what_cannot_be_told_apart_is_left_as_it_is():
    """One law over parameters and rows; and a program without a plate of rows."""
    guide = pyro.infer.autoguide.AutoMultivariateNormal(pyro.poutine.block(level, hide=["z"]))
    for program, q in (
        (level, guide),
        (lambda x: pyro.sample("x", dist.Normal(x.new_zeros(4), 1).to_event(1), obs=x), None),
    ):
        svi = lvm.infer.SVI(program, q)
        svi.loss(X)
        torch.manual_seed(0)
        whole = svi.loss(X)
        torch.manual_seed(0)
        assert svi.held_out_loss(X) == pytest.approx(whole, rel=1e-12)


def test_the_objective_may_know_divergences():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(x.new_tensor(50.0), 0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x):
        pyro.sample("loc", dist.Normal(x.new_tensor(1.0), 1e-6))

    svi = lvm.infer.SVI(model, guide, loss=TraceMeanField_ELBO())
    assert svi.held_out_loss(X) == pytest.approx(-float(dist.Normal(1.0, 1.0).log_prob(X).sum()), rel=1e-4)


def test_coordinate_ascent_scores_rows_alone():
    """Of rows without a discrete site the bound is the expected log-likelihood, here in closed form."""

    def model(x):
        rate = pyro.sample("rate", dist.Gamma(x.new_tensor(2.0), 0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    x, other = torch.tensor([1.0, 4.0, 2.0]).double(), torch.tensor([3.0, 0.0]).double()
    guide = lvm.guides.Conjugate(model)
    ascent = lvm.infer.CoordinateAscent(model, guide)
    for _ in range(3):
        ascent.step(x)
    a, b = torch.tensor(2.0 + 7).double(), 0.5 + 3
    expected = (other * (torch.digamma(a) - torch.tensor(b).log()) - a / b - torch.lgamma(other + 1)).sum()
    assert ascent.held_out_loss(other) == pytest.approx(-float(expected), rel=1e-6)
