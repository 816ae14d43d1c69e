"""Mixture of factor analysers against dense normal laws, hand-written steps, and factor analysis."""

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

import pyro_lvm as lvm
from pyro_lvm.distributions import LinearGaussianRows
from pyro_lvm.models import FactorAnalysis, GaussianMixture, MixtureOfFactorAnalyzers

NOISES = ["diag", "tied", "spherical"]


@pytest.fixture(scope="module")
def wine():
    x = lvm.datasets.load("wine").x.double()
    return (x - x.mean(0)) / x.std(0)


@pytest.fixture(scope="module", params=NOISES)
def fit(request, wine):
    return fitted(wine, 2, 2, noise=request.param, max_epochs=5)


def fitted(x, components, factors, noise="diag", inference="em", **options):
    model = MixtureOfFactorAnalyzers(components, factors, noise=noise)
    return lvm.fit(model, x, inference=inference, seed=0, progress=False, **options)


def gaps(x, share=0.2):
    holes = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < share
    return torch.where(holes, torch.nan, x)


def dense(params):
    """Weights, means and covariances of the components."""
    loading, noise = params["loading"], params["noise_scale"].square()
    k, d, _ = loading.shape
    noise = noise.unsqueeze(-1) if noise.shape == (k,) and k != d else noise
    return params["weights"], params["loc"], loading @ loading.mT + noise.expand(k, d).diag_embed()


def joint(params, row):
    """Log-density of what is known of a row with every component."""
    known = ~row.isnan()
    weights, loc, covariance = dense(params)
    laws = [MultivariateNormal(b[known], s[known][:, known]) for b, s in zip(loc, covariance, strict=True)]
    return torch.stack([w.log() + law.log_prob(row[known]) for w, law in zip(weights, laws, strict=True)])


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_likelihood_and_components_are_those_of_dense_normals(fit, wine, share):
    x = gaps(wine[:25], share)
    table = torch.stack([joint(fit.params, row) for row in x])
    torch.testing.assert_close(fit.log_likelihood(x), table.logsumexp(-1), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(fit.predict_proba(x), table.softmax(-1), rtol=1e-9, atol=1e-11)
    assert torch.equal(fit.predict(x), table.argmax(-1))


def test_factors_and_missing_entries_given_rows(fit, wine):
    x = gaps(wine[:25])
    _, loc, covariance = dense(fit.params)
    filled, factors = [], []
    for row in x:
        known, share = ~row.isnan(), joint(fit.params, row).softmax(-1)
        rest = [torch.linalg.solve(s[known][:, known], (row - b)[known]) for b, s in zip(loc, covariance, strict=True)]
        means = torch.stack([b + s[:, known] @ r for b, s, r in zip(loc, covariance, rest, strict=True)])
        filled.append(torch.where(known, row, share @ means))
        best = int(share.argmax())
        factors.append(fit.params["loading"][best][known].mT @ rest[best])
    torch.testing.assert_close(fit.impute(x), torch.stack(filled))
    torch.testing.assert_close(fit.transform(x), torch.stack(factors))


def hand_step(params, x, noise, sweeps=20):
    """One M-step written with dense matrices, row by row and component by component."""
    table = torch.stack([joint(params, row) for row in x])
    share = table.softmax(-1)
    _, loc, covariance = dense(params)
    floor = 1e-6 * torch.tensor(np.nanvar(x.numpy(), 0))
    new, left = {"weights": share.mean(0), "loc": [], "loading": [], "noise": []}, []
    for c, weight in enumerate(share.T):
        rows, spread = [], torch.zeros_like(covariance[c])
        for row, w in zip(x, weight, strict=True):
            known = ~row.isnan()
            gain = covariance[c][:, known] @ torch.linalg.inv(covariance[c][known][:, known])
            rows.append(loc[c] + gain @ (row - loc[c])[known])
            spread += w * (covariance[c] - gain @ covariance[c][known])
        rows = torch.stack(rows)
        mean = weight @ rows / weight.sum()
        scatter = ((rows - mean).mT * weight @ (rows - mean) + spread) / weight.sum()
        new["loc"].append(mean)
        left.append(scatter)
    present = [s - w @ w.mT for s, w in zip(covariance, params["loading"], strict=True)]
    for c, scatter in enumerate(left):
        w, psi = params["loading"][c], present[c].diagonal()
        for _ in range(sweeps):
            beta = w.mT @ torch.linalg.inv(w @ w.mT + psi.diag())
            second = torch.eye(w.shape[1]) - beta @ w + beta @ scatter @ beta.mT
            best = scatter @ beta.mT @ torch.linalg.inv(second)
            psi = (scatter - best @ beta @ scatter).diagonal()
            psi = psi.mean().maximum(floor.mean()).expand(len(psi)) if noise == "spherical" else psi.maximum(floor)
            w = best @ torch.linalg.cholesky(second)
        new["loading"].append(w)
        new["noise"].append(psi)
    return {name: value if name == "weights" else torch.stack(value) for name, value in new.items()}


@pytest.mark.parametrize("noise", ["diag", "spherical"])
@pytest.mark.parametrize("share", [0.0, 0.2])
def test_one_step_is_the_one_by_hand(wine, noise, share):
    x = gaps(wine[::4, :6], share)
    torch.manual_seed(0)
    model = MixtureOfFactorAnalyzers(2, 2, noise=noise)
    model.initialize(x)
    before = {name: value.detach().clone() for name, value in model.named_pyro_params()}
    lvm.infer.EM(model).step(x)
    expected = hand_step(before, x, noise)
    torch.testing.assert_close(model.weights.detach(), expected["weights"])
    torch.testing.assert_close(model.loc.detach(), expected["loc"])
    torch.testing.assert_close(model.loading.detach(), expected["loading"])
    found = model.noise_scale.detach().square()
    torch.testing.assert_close(found, expected["noise"][:, 0] if noise == "spherical" else expected["noise"])


def test_one_component_is_factor_analysis():
    x = lvm.datasets.load("wine").x.double()
    one = lvm.fit(FactorAnalysis(2), x, seed=0, progress=False)
    ours = fitted(x, 1, 2, inference="squarem")
    assert ours.score(x) == pytest.approx(one.score(x), abs=1e-6)
    assert ours.aic(x) - one.aic(x) == pytest.approx(-2 * len(x) * (ours.score(x) - one.score(x)), abs=1e-6)
    torch.testing.assert_close(ours.params["loading"][0], one.params["weight"], rtol=0.02, atol=0.02)


def test_enough_factors_are_whole_covariances(wine):
    x = wine[:, [0, 6, 9]]
    whole = lvm.fit(GaussianMixture(2), x, seed=0, progress=False, tol=1e-10)
    ours = fitted(x, 2, 2, inference="squarem", tol=1e-10)
    assert ours.score(x) == pytest.approx(whole.score(x), abs=1e-5)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_likelihood_never_falls(wine, noise, share):
    found = fitted(gaps(wine, share), 3, 2, noise=noise, max_epochs=8, tol=0.0)
    losses = np.array(found.history["loss"])
    assert np.all(np.diff(losses) <= 1e-9 * abs(losses[0]))
    assert "gradient" not in str(found.plan(wine))


def test_rows_of_other_components_do_not_count_at_all():
    torch.manual_seed(0)
    x = torch.randn(60, 4).double() + 1e3 * (torch.arange(60) % 2).unsqueeze(-1)
    table = torch.zeros(2, 60).double()
    table[0, ::2], table[1, 1::2], table[0, 1::2] = 1.0, 1.0, 1e-30
    law = LinearGaussianRows(torch.zeros(2, 1, 4).double(), torch.ones(2, 1, 4, 1).double(), torch.ones(4).double())
    form = lvm.infer.m_step.closed_form(law)
    found = form.statistics(law, x, table, 0.0)
    torch.testing.assert_close(found["total"][:, 0], torch.tensor([30.0, 30.0]).double())
    mean = found["sum"][:, 0] / 30
    torch.testing.assert_close(mean, torch.stack([x[::2].mean(0), x[1::2].mean(0)]))


def test_rows_with_laws_of_their_own_add_up_to_those_of_components(wine):
    torch.manual_seed(0)
    x, z = gaps(wine[:, :5]), torch.arange(len(wine)) % 2
    loc, weight = torch.randn(2, 5).double(), torch.randn(2, 5, 2).double()
    noise, share = torch.rand(2, 1).double() + 0.5, torch.rand(len(x)).double()
    law, own = (
        LinearGaussianRows(loc[:, None], weight[:, None], noise[:, None]),
        LinearGaussianRows(loc[z], weight[z], noise[z]),
    )
    form = lvm.infer.m_step.closed_form(law)
    table = torch.stack([share * (z == c) for c in range(2)])
    together, apart = form.statistics(law, x, table, 0.0), form.statistics(own, x, share, 0.0)
    for name in ("total", "sum", "square"):
        added = torch.stack([apart[name][z == c].sum(0) for c in range(2)])
        torch.testing.assert_close(together[name][:, 0], added)


def test_draws_follow_the_posterior(wine):
    found = fitted(wine, 2, 1, max_epochs=3)
    draws = found.posterior(wine[:4], num_samples=100)
    assert draws["z"].shape == (100, 4)
    assert draws["h"].shape == (100, 4, 1)
    certain = found.predict_proba(wine[:4]).max(-1).values > 0.999
    assert bool(certain.any())
    close = (draws["h"].mean(0) - found.transform(wine[:4]))[certain].abs()
    assert bool((close < 5 * draws["h"].std(0)[certain] / 10).all())


def test_batches_weights_and_labels(wine):
    stepwise = fitted(wine, 2, 1, inference=lvm.infer.EM(decay=0.7), batch_size=60, max_epochs=15)
    assert stepwise.score(wine) > fitted(wine, 2, 1, max_epochs=1).score(wine)
    count = torch.arange(len(wine)) % 3
    weighted = fitted({"x": wine, "sample_weights": count}, 2, 1, max_epochs=3)
    assert weighted.score(wine) == pytest.approx(
        float(torch.stack([joint(weighted.params, row).logsumexp(0) for row in wine]).mean())
    )
    labels = (torch.arange(len(wine)) > 90).long()
    known = lvm.handlers.clamp(MixtureOfFactorAnalyzers(2, 1), {"z": labels})
    for x in (wine, gaps(wine)):
        learned = lvm.fit(known, x, seed=0, progress=False, max_epochs=3)
        torch.testing.assert_close(learned.params["weights"][1], labels.double().mean())
        assert learned.history["loss"][-1] < learned.history["loss"][0]


def test_heywood_cases_are_told():
    torch.manual_seed(0)
    x = torch.randn(30, 4).double()
    x[:, 1] = 2 * x[:, 0]
    with pytest.warns(RuntimeWarning, match=r"column . of component . the first, factors explain a column wholly"):
        found = fitted(x, 1, 1, max_epochs=20)
    assert found.params["noise_scale"].square().min() / x.var(0).min() < 1e-4


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"at most as many factors as columns \(3\); got 4"):
        MixtureOfFactorAnalyzers(2, 4, data_dim=3)
    with pytest.raises(ValueError, match=r"at most as many factors as columns \(3\); got 4"):
        fitted(torch.randn(20, 3), 2, 4)
    with pytest.raises(ValueError, match="noise to be one of diag, tied, spherical; got 'full'"):
        MixtureOfFactorAnalyzers(2, 1, noise="full")
