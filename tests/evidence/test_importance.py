"""Importance-weighted log-likelihood against closed forms: probabilistic PCA, and a mixture of it."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader

import pyro_lvm as lvm
from pyro_lvm.evidence import importance

LOADING = torch.tensor([[1.0, 0.5, -0.3], [0.2, -1.0, 0.7]]).double()
NOISE, SHIFT = 0.8, torch.tensor([0.0, 2.0]).double()
ROWS = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).double() * 1.3


def linear(x):
    pyro.param("unused", lambda: x.new_zeros(()))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1).to_event(1))
        pyro.sample("x", dist.Normal(z @ LOADING.to(x), NOISE).to_event(1), obs=x)


def shifted(x):
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(x.new_tensor([0.3, 0.7])))
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1).to_event(1))
        pyro.sample("x", dist.Normal(z @ LOADING.to(x) + SHIFT.to(x)[k].unsqueeze(-1), NOISE).to_event(1), obs=x)


def guide(x):
    loc = pyro.param("matrix", lambda: 0.3 * LOADING.T.to(x))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x @ loc, 0.9).to_event(1))


def exact(x, shift=0.0):
    covariance = LOADING.T @ LOADING + NOISE**2 * torch.eye(3).double()
    return dist.MultivariateNormal(torch.full((3,), float(shift)).double(), covariance).log_prob(x)


def fitted(model):
    svi = lvm.infer.SVI(learning_rate=1e-4)
    return lvm.fit(model, ROWS, guide, svi, max_epochs=1, seed=0, progress=False)


def test_agrees_with_probabilistic_pca_and_errors_cover():
    found = fitted(linear).evidence(ROWS, num_samples=4000)
    gap = (found.values - exact(ROWS)).abs() / found.standard_error
    assert "importance weighting with 4000" in found.estimator
    assert float(gap.max()) < 4.5
    assert int((gap < 2).sum()) >= 33  # of 40 at .95: fewer about once in a thousand runs
    assert float(found.standard_error.max()) < 0.2


def test_discrete_sites_that_the_guide_leaves_are_summed_out():
    found = importance.importance_weighted(fitted(linear), fitted(linear).arguments(ROWS), 10)
    assert found.values.shape == (40,)
    fit = fitted(linear)
    fit.model = shifted
    found = fit.evidence(ROWS, num_samples=4000)
    mixed = torch.stack([exact(ROWS, 0.0) + math.log(0.3), exact(ROWS, 2.0) + math.log(0.7)]).logsumexp(0)
    assert float(((found.values - mixed).abs() / found.standard_error).max()) < 4.5


def test_blocks_do_not_change_what_is_estimated(monkeypatch):
    fit = fitted(linear)
    monkeypatch.setattr(importance, "ENTRIES", 600)  # 200 rows in a pass
    found = fit.evidence(ROWS, num_samples=1000)
    assert float(((found.values - exact(ROWS)).abs() / found.standard_error).max()) < 4.5


def test_repeats_and_leaves_the_random_state_alone():
    fit, state = fitted(linear), torch.get_rng_state()
    assert torch.equal(fit.log_likelihood(ROWS), fit.log_likelihood(ROWS))
    assert torch.equal(state, torch.get_rng_state())


def test_one_row_and_no_samples():
    fit = fitted(linear)
    assert fit.evidence(ROWS[:1]).values.shape == (1,)
    with pytest.raises(ValueError, match=r"num_samples to be a whole number >= 1; got 0"):
        fit.evidence(ROWS, num_samples=0)


def test_a_guide_that_lacks_a_site_is_named():
    fit = fitted(linear)

    def two(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1).to_event(1))
            other = pyro.sample("other", dist.Normal(x.new_zeros(()), 1)).unsqueeze(-1)
            pyro.sample("x", dist.Normal(z @ LOADING.to(x) + other, NOISE).to_event(1), obs=x)

    fit.model = two
    with pytest.raises(ValueError, match=r"'other'"):
        fit.evidence(ROWS)


def test_criteria_count_the_parameters_of_the_model_alone():
    fit = fitted(linear)
    total = fit.evidence(ROWS).total
    assert fit.aic(ROWS) == pytest.approx(2 - 2 * total)
    assert fit.bic(ROWS) == pytest.approx(math.log(40) - 2 * total)


def both_kinds():
    """What all rows share, and what each has of its own."""

    def shared(x):
        mean = pyro.sample("mean", dist.Normal(x.new_zeros(()), 1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1).to_event(1))
            pyro.sample("x", dist.Normal(mean + z @ LOADING.to(x), NOISE).to_event(1), obs=x)

    def both(x):
        pyro.sample("mean", dist.Normal(pyro.param("m", lambda: x.new_tensor(0.4)), 0.3))
        guide(x)

    return lvm.fit(shared, ROWS, both, lvm.infer.SVI(learning_rate=1e-9), max_epochs=1, seed=0, progress=False)


def test_what_rows_share_is_averaged_over_its_posterior():
    fit = both_kinds()
    found = fit.evidence(ROWS, num_samples=5000)
    assert found.estimator == (
        "log predictive density over 50 draws, importance weighting with 5000 samples of the guide"
    )
    covariance = LOADING.T @ LOADING + NOISE**2 * torch.eye(3).double() + 0.3**2
    expected = dist.MultivariateNormal(torch.full((3,), 0.4).double(), covariance).log_prob(ROWS)
    gap = (found.values - expected).abs() / found.standard_error
    assert float(gap.max()) < 4.5
    # rows share their 50 draws, so gaps are not independent; were draws taken for samples, some would be far larger
    assert 0.01 < float(found.standard_error.median()) < 0.2
    with pytest.raises(ValueError, match=r"got a posterior"):
        fit.aic(ROWS)


def test_a_guide_with_parameters_for_every_row_is_refused():
    fit = lvm.fit(linear, ROWS, lvm.guides.AutoNormal, lvm.infer.SVI(), max_epochs=1, seed=0, progress=False)
    with pytest.raises(ValueError, match=r"^evidence: the guide's plate 'data' has 40 rows whatever the data"):
        fit.evidence(ROWS)


def test_a_guide_that_draws_sites_of_another_model_has_no_evidence():
    def of_another(x):
        with pyro.plate("data", len(x)):
            pyro.sample("other", dist.Normal(0.0, 1.0))

    def its_own(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def model(x):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0.0, scale), obs=x)

    fit = lvm.fit(model, torch.randn(8), guide=its_own, max_epochs=2, seed=0, progress=False)
    fit.guide = of_another
    with pytest.raises(ValueError, match="the guide draws site 'other', which model does not have"):
        fit.evidence(torch.randn(8))


def test_a_guide_that_misses_the_posterior_is_told_what_to_do():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def narrow(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc.expand(len(x)), 0.1))

    x = torch.linspace(-3, 3, 10)
    fit = lvm.fit(model, x, narrow, lvm.infer.SVI(learning_rate=1e-6), max_epochs=1, seed=0, progress=False)
    said = r"of \d+ of 10 rows, which .* k-hat.*Ask for more samples, .*num_samples=500\); .* guide 'local'\."
    with pytest.warns(UserWarning, match=said):
        found = fit.evidence(x, num_samples=50)
    assert bool((found.pareto_k > 0.7).any())
    assert f"of the guide, largest Pareto k-hat {found.pareto_k.max():.2f})" in repr(found)
    assert f"{found.simulation_error_of_total:.3g} of simulation" in repr(found)

    with pytest.warns(UserWarning, match=r"of \d+ of 10 rows") as caught:
        fit.evidence(DataLoader(x, batch_size=3), num_samples=50)
    assert len(caught) == 1
    few, one = fit.evidence(x, num_samples=24), fit.evidence(x, num_samples=1)
    assert bool(few.pareto_k.isnan().all())
    for found in (few, one):
        assert "too few to tell by a Pareto k-hat whether they can be trusted: 25 are needed)" in repr(found)
        assert "nan" not in repr(found)


@pytest.mark.parametrize(
    ("model", "guide", "remedy"),
    [
        (lvm.models.VAE(1, hidden=[4]), "amortized", "'inverse-autoregressive' or 'semi-amortized' or 'local'"),
        (lvm.models.VAE(1, hidden=[4]), "semi-amortized", "'local'"),
        (lvm.models.VAE(1, hidden=[4]), "local", ""),
        (lvm.models.SigmoidBeliefNet((2,)), None, ""),
        (linear, guide, "'local'"),
    ],
)
def test_only_guides_that_a_model_takes_are_advised(model, guide, remedy):
    data = torch.bernoulli(torch.full((6, 4), 0.5)) if isinstance(model, torch.nn.Module) else ROWS[:6]
    fit = lvm.fit(model, data, guide=guide, max_epochs=1, seed=0, progress=False)
    assert importance._remedy(fit) == "train longer" + (f", or fit with guide {remedy}" if remedy else "")


def test_points_without_a_proposal_have_no_evidence():
    def model(x):
        with pyro.plate("data", len(x)):
            h = pyro.sample("h", dist.Laplace(x.new_zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(h + pyro.param("shift", torch.zeros(())), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("h", dist.Delta(x / 2))

    fit = lvm.fit(model, torch.randn(20), guide=guide, max_epochs=2, seed=0, progress=False)
    with pytest.raises(ValueError, match=r"expected a guide that draws 'h' from a density.*has one point for each row"):
        fit.score(torch.randn(5))
