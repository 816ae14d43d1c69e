"""ArviZ data of fits whose guide draws latent sites of rows."""

from __future__ import annotations

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch

import pyro_lvm as lvm

# guides after two epochs; the values are compared with each other only
pytestmark = pytest.mark.filterwarnings("ignore:evidence.*Pareto")

ROWS = torch.bernoulli(torch.full((12, 5), 0.4), generator=torch.Generator().manual_seed(0))
OPTIONS = {"max_epochs": 2, "seed": 0, "progress": False}


@pytest.mark.parametrize("guide", ["amortized", "inverse-autoregressive"])
def test_draws_given_rows_with_their_ratios(guide):
    fit = lvm.fit(lvm.models.VAE(2, hidden=[8]), ROWS, guide=guide, **OPTIONS)
    data = fit.to_arviz(ROWS)
    assert dict(data.posterior.sizes) == {"chain": 1, "draw": 100, "x_row": 12, "z_dim_1": 2}
    np.testing.assert_allclose(data.sample_stats["row_log_likelihood"][0, 0], fit.log_likelihood(ROWS))
    np.testing.assert_allclose(data.observed_data["x"], ROWS)
    z = torch.from_numpy(data.posterior["z"].to_numpy()[0])
    ratio = torch.from_numpy(data.sample_stats["log_importance_ratio"].to_numpy()[0])
    with torch.no_grad():
        joint = fit.model.decode(z).log_prob(ROWS) + dist.Normal(0.0, 1.0).expand([2]).to_event(1).log_prob(z)
    # log q by what is left; that of the diagonal guide is known
    if guide == "amortized":
        with torch.no_grad():
            loc, scale, _ = fit.guide.encode(ROWS)
        expected = dist.Normal(loc, scale).to_event(1).log_prob(z)
        torch.testing.assert_close((joint - ratio).float(), expected, atol=1e-4, rtol=1e-4)
    bound = ratio.mean(0)
    assert bool((bound < torch.from_numpy(data.sample_stats["row_log_likelihood"].to_numpy()[0, 0]) + 1e-6).all())
    assert "importance weighting with 1000" in data.posterior.attrs["log_likelihood"]


def test_guides_are_ranked_by_compare_and_fits_survive_a_file(tmp_path):
    guides = ("amortized", "inverse-autoregressive")
    fits = {guide: lvm.fit(lvm.models.VAE(2, hidden=[8]), ROWS, guide=guide, **OPTIONS) for guide in guides}
    with pytest.warns(UserWarning, match="in-sample"):
        table = lvm.compare(fits, ROWS)
    assert set(table.index) == set(guides)
    assert table["elpd"].is_monotonic_decreasing
    for guide, fit in fits.items():
        assert table.loc[guide, "elpd"] == pytest.approx(fit.evidence(ROWS).total)
        fit.save(tmp_path / guide)
        again = lvm.load(tmp_path / guide)
        assert torch.equal(again.transform(ROWS), fit.transform(ROWS))
        assert torch.equal(again.log_likelihood(ROWS), fit.log_likelihood(ROWS))
        assert torch.equal(again.reconstruct(ROWS), fit.reconstruct(ROWS))


def test_layers_of_units_and_a_machine(tmp_path):
    net = lvm.fit(lvm.models.SigmoidBeliefNet((3, 2)), ROWS, **OPTIONS)
    data = net.to_arviz(ROWS)
    assert data.posterior["h2"].shape == (1, 100, 12, 2)
    exact = data.sample_stats["log_importance_ratio"].to_numpy()[0]
    value = np.logaddexp.reduce(exact, axis=0) - math.log(100)
    np.testing.assert_allclose(value, net.log_likelihood(ROWS), atol=0.5)
    machine = lvm.fit(lvm.models.RBM(3), ROWS, **OPTIONS)
    found = machine.to_arviz(ROWS)
    assert found.posterior["weight"].shape == (1, 1, 5, 3)
    np.testing.assert_allclose(found.sample_stats["row_log_likelihood"][0, 0], machine.log_likelihood(ROWS), rtol=1e-5)
    machine.save(tmp_path / "machine")
    assert torch.equal(lvm.load(tmp_path / "machine").transform(ROWS), machine.transform(ROWS))
