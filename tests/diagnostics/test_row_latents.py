"""Sites that a guide draws for every row: means, draws, and a fit that is a point for all else."""

from __future__ import annotations

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_lvm as lvm

ROWS = torch.bernoulli(torch.full((30, 5), 0.4), generator=torch.Generator().manual_seed(0))


def fitted(**options):
    model = lvm.models.VAE(2, hidden=[8])
    return lvm.fit(model, ROWS, max_epochs=2, seed=0, progress=False, **options)


def test_transform_is_the_encoders_mean():
    fit = fitted()
    with torch.no_grad():
        expected = fit.guide.encode(ROWS[:7])[0]
    assert torch.equal(fit.transform(ROWS[:7]), expected)


def test_transform_averages_draws_of_a_flow():
    fit = fitted(guide="inverse-autoregressive")
    means, draws = fit.transform(ROWS), fit.posterior(ROWS, 400)["z"]
    error = draws.std(0) * (1 / 200 + 1 / 400) ** 0.5
    assert float(((means - draws.mean(0)).abs() / error).max()) < 4.5  # of 60
    assert float(error.min()) > 0


def test_posterior_draws_from_the_guide_and_repeats():
    fit, state = fitted(), torch.get_rng_state()
    draws = fit.posterior(ROWS, 500)["z"]
    assert draws.shape == (500, 30, 2)
    assert torch.equal(draws, fit.posterior(ROWS, 500)["z"])
    assert torch.equal(state, torch.get_rng_state())
    with torch.no_grad():
        loc, scale, _ = fit.guide.encode(ROWS)
    assert float(((draws.mean(0) - loc) / scale * 500**0.5).abs().max()) < 4.5
    assert float(((draws.std(0) / scale - 1) * 1000**0.5).abs().max()) < 4.5


def test_transform_gives_probabilities_of_units():
    fit = lvm.fit(lvm.models.SigmoidBeliefNet(hidden=(3, 2)), ROWS, max_epochs=2, seed=0, progress=False)
    found = fit.transform(ROWS)
    first, second = fit.guide.recognition
    with torch.no_grad():
        probs = first(ROWS).sigmoid()
        states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))
        weights = dist.Bernoulli(probs.unsqueeze(1)).to_event(1).log_prob(states).exp()
        average = (weights.unsqueeze(-1) * second(states).sigmoid()).sum(1)
        spread = (weights.unsqueeze(-1) * second(states).sigmoid() ** 2).sum(1) - average**2
    torch.testing.assert_close(found["h1"], probs)
    assert float(((found["h2"] - average) / (spread / 200).sqrt().clamp_min(1e-6)).abs().max()) < 4.5
    assert set(fit.posterior(ROWS, 3)["h2"].unique().tolist()) <= {0.0, 1.0}


def test_discrete_sites_that_the_guide_leaves_are_drawn_given_its_draws():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(100 * k, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x + pyro.param("shift", torch.tensor(0.0)), 0.5))

    x = torch.tensor([0.0, 100.0, 99.0])
    svi = lvm.infer.SVI(learning_rate=1e-4)
    draws = lvm.fit(model, x, guide, svi, max_epochs=1, seed=0, progress=False).posterior(x, 4)
    assert draws["k"].tolist() == [[0.0, 1.0, 1.0]] * 4
    assert draws["z"].shape == (4, 3)


def test_for_all_else_the_fit_is_a_point(tmp_path):
    fit = fitted()
    assert not fit.latent
    assert fit.draws.keys() == fit.params.keys()
    assert fit.sample(4).shape == (4, 5)
    assert "estimate" in fit.summary()
    fit.save(tmp_path / "fit")
    loaded = lvm.load(tmp_path / "fit")
    assert torch.equal(loaded.transform(ROWS), fit.transform(ROWS))


def test_a_fit_without_such_sites_says_so():
    fit = lvm.fit(lvm.models.BernoulliMixture(2), ROWS, max_epochs=1, seed=0, progress=False)
    with pytest.raises(ValueError, match="no continuous latent site of each row"):
        fit.transform(ROWS)
