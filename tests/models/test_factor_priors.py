"""Factor models with priors: factors summed out, and those that the rows do not ask for switched off."""

import math

import pyro
import pytest
import torch
from pyro.distributions import Dirichlet, LogNormal, MultivariateNormal, Normal

import pyro_lvm as lvm

EACH = [lvm.models.FactorAnalysis, lvm.models.ProbabilisticPCA]


def rows(n=200, d=6, factors=1, seed=0):
    torch.manual_seed(seed)
    return (torch.randn(n, factors) @ torch.randn(factors, d) + 0.7 * torch.randn(n, d)).double()


@pytest.mark.parametrize("kind", EACH)
def test_density_of_the_program_is_that_of_priors_and_of_the_dense_law(kind):
    x = rows()
    model = kind(2, priors=True)
    model.initialize(x)
    torch.manual_seed(1)
    trace = pyro.poutine.trace(model).get_trace(x)
    value = {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes if name != "data"}
    assert set(value) == {"relevance", "weight", "loc", "noise_scale"}
    spread = model.prior_spread
    noise = value["noise_scale"]
    unit = spread if noise.dim() else spread.square().mean().sqrt()
    expected = (
        LogNormal(3.0, 2.0).log_prob(value["relevance"]).sum()
        + Normal(0.0, spread.unsqueeze(-1) / value["relevance"].sqrt()).log_prob(value["weight"]).sum()
        + Normal(x.mean(0), spread).log_prob(value["loc"]).sum()
        + LogNormal((unit / 2).log(), 1.0).log_prob(noise).sum()
        + MultivariateNormal(value["loc"], value["weight"] @ value["weight"].mT + noise.square().expand(6).diag())
        .log_prob(x)
        .sum()
    )
    torch.testing.assert_close(trace.log_prob_sum(), expected, rtol=1e-6, atol=1e-6)


def test_what_rows_do_not_ask_for_is_switched_off():
    x = rows()
    fit = lvm.fit(lvm.models.FactorAnalysis(3, priors=True), x, seed=0, progress=False)
    shares = lvm.diagnostics.explained_variance(fit).share
    assert shares.iloc[0] > 0.2
    assert shares.iloc[1] < 0.02
    assert shares.iloc[2] < 0.02
    point = lvm.fit(lvm.models.FactorAnalysis(1), x, seed=0, progress=False)
    assert fit.score(x) == pytest.approx(point.score(x), abs=0.05)


def test_gaps_and_factors_of_a_posterior():
    x = rows()
    gaps = torch.where(torch.rand_like(x) < 0.1, torch.nan, x)
    fit = lvm.fit(lvm.models.FactorAnalysis(1, priors=True), gaps, max_epochs=400, seed=0, progress=False)
    assert math.isfinite(fit.score(gaps))
    point = lvm.fit(lvm.models.FactorAnalysis(1), x, seed=0, progress=False)
    ours, theirs = fit.transform(gaps)[:, 0], point.transform(x)[:, 0]
    assert float(torch.corrcoef(torch.stack([ours, theirs]))[0, 1].abs()) > 0.95
    filled, missing = fit.impute(gaps), gaps.isnan()
    assert (filled - x)[missing].square().mean() < (x - x.mean(0))[missing].square().mean()
    assert fit.posterior(gaps, 7)["h"].shape == (7, 200, 1)


def test_a_prior_of_ones_own_and_one_that_there_is_none_of():
    own = {"loc": lambda model: Normal(model.prior_centre + 2, 1e-2).to_event(1)}
    fit = lvm.fit(lvm.models.ProbabilisticPCA(1, priors=own), rows(), max_epochs=300, seed=0, progress=False)
    assert set(fit.draws) == {"loc", "weight", "noise_scale", "relevance"}
    assert float(fit.draws["loc"].mean()) == pytest.approx(2, abs=0.3)
    with pytest.raises(ValueError, match="expected priors for weight, loc, noise_scale, relevance; got scale"):
        lvm.models.FactorAnalysis(1, priors={"scale": Normal(0.0, 1.0)})


@pytest.mark.parametrize(
    "prior", [Normal(1.0, 2.0), Normal(torch.ones(6), 2.0), lambda model: Normal(torch.tensor(1.0), 2.0)]
)
def test_a_prior_of_one_entry_is_that_of_all(prior):
    x = rows()
    model = lvm.models.ProbabilisticPCA(1, priors={"loc": prior})
    model.initialize(x)
    fn = pyro.poutine.trace(model).get_trace(x).nodes["loc"]["fn"]
    assert (fn.batch_shape, fn.event_shape) == ((), (6,))
    torch.testing.assert_close(fn.log_prob(torch.zeros(6)), Normal(1.0, 2.0).log_prob(torch.zeros(6)).sum())


def test_a_prior_of_one_part_is_that_of_all():
    model = lvm.models.GaussianMixture(3, priors={"loc": Normal(torch.zeros(2), 5.0).to_event(1)})
    model.initialize(lvm.datasets.load("faithful").x.float())
    fn = pyro.poutine.trace(model).get_trace(size=2).nodes["loc"]["fn"]
    assert (fn.batch_shape, fn.event_shape) == ((), (3, 2))


@pytest.mark.parametrize("kind", ["of rows", "mixture"])
@pytest.mark.parametrize("called", [False, True])
def test_priors_of_another_shape_are_refused_in_a_sentence(kind, called):
    prior = Dirichlet(torch.ones(5)) if kind == "mixture" else Normal(torch.zeros(6), 1.0).expand([3, 6]).to_event(1)
    given = (lambda model: prior) if called else prior
    why = r"'loc' of event shape \(6,\); got Independent of event shape \(6,\) and batch shape \(3,\)\. .*\[6\]"
    model = lvm.models.ProbabilisticPCA(1, priors={"loc": given})
    if kind == "mixture":
        why = r"'weights' of event shape \(2,\); got Dirichlet of event shape \(5,\)\. Give it that shape"
        model = lvm.models.GaussianMixture(2, priors={"weights": given})
    with pytest.raises(ValueError, match=why):
        lvm.fit(model, rows(), max_epochs=2, seed=0, progress=False)


@pytest.mark.parametrize("prior", [Normal(0.0, 1.0), lambda model: MultivariateNormal(torch.zeros(6), torch.eye(6))])
def test_priors_over_the_reals_of_what_is_positive_are_refused(prior):
    model = lvm.models.FactorAnalysis(1, priors={"noise_scale": prior})
    with pytest.raises(ValueError, match=r"prior of 'noise_scale' on its support, .*; got .*Normal, which is over all"):
        lvm.fit(model, rows(), max_epochs=2, seed=0, progress=False)


@pytest.mark.parametrize("weighted", [False, True])
def test_samplers_see_as_many_rows_as_tell_of_mean_and_covariance(weighted):
    x = rows(300)
    given = {"sample_weights": torch.arange(300) % 3} if weighted else {}
    model = lvm.models.FactorAnalysis(2, priors=True)
    model.initialize(x)
    args, kwargs = model.condensed((x,), given)
    assert len(args[0]) == 12
    torch.manual_seed(1)
    trace = pyro.poutine.trace(model).get_trace(x, **given)
    values = {name: trace.nodes[name]["value"] for name in model.initial_values}
    again = pyro.poutine.trace(pyro.condition(model, values)).get_trace(*args, **kwargs)
    torch.testing.assert_close(again.log_prob_sum(), trace.log_prob_sum(), rtol=1e-10, atol=0)
    x[3, 2] = torch.nan
    assert model.condensed((x,), given) == ((x,), given)


def test_draws_by_few_rows_are_those_by_all(monkeypatch):
    sampler = lvm.infer.MCMC(num_samples=4, warmup_steps=10, num_chains=1, max_tree_depth=3)
    fit = lambda: lvm.fit(  # noqa: E731
        lvm.models.ProbabilisticPCA(1, priors=True), rows(40), inference=sampler, seed=0, progress=False
    )
    few = fit().draws
    monkeypatch.setattr(lvm.models.ProbabilisticPCA, "condensed", lambda model, args, kwargs: (args, kwargs))
    for name, draws in fit().draws.items():
        torch.testing.assert_close(few[name], draws, rtol=1e-6, atol=1e-8)


def test_samplers_are_told_of_points():
    with pytest.raises(ValueError, match="Give them priors"):
        lvm.fit(lvm.models.FactorAnalysis(1), rows(), inference="mcmc", seed=0, progress=False)
