"""Tables of parameters, and how tables print."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm.diagnostics import Table


@pytest.fixture
def table(faithful):
    return pd.DataFrame(faithful.numpy(), columns=["eruptions", "waiting"])


def fit(model, x, **options):
    return lvm.fit(model, x, seed=0, progress=False, **options)


def test_a_point_has_estimates_by_name(table):
    found = fit(lvm.models.GaussianMixture(2), table)
    summary = found.summary()
    assert list(summary.columns) == ["estimate"]
    assert len(summary) == 2 + 4 + 8
    assert summary.loc["loc[1, waiting]", "estimate"] == found.params["loc"][1, 1].item()
    assert summary.loc["covariance[0, eruptions, waiting]", "estimate"] == found.params["covariance"][0, 0, 1].item()
    assert summary.loc["weights[0]", "estimate"] == found.params["weights"][0].item()


def test_map_is_a_point(table):
    found = fit(lvm.models.GaussianMixture(2, priors=True), table, guide="map", inference="em")
    assert list(found.summary().columns) == ["estimate"]


@pytest.mark.parametrize(("guide", "inference"), [("conjugate", "coordinate-ascent"), ("normal", "svi")])
def test_a_posterior_has_a_spread(table, guide, inference):
    found = fit(lvm.models.GaussianMixture(2, priors=True), table, guide=guide, inference=inference, max_epochs=200)
    summary = found.summary(probability=0.9)
    assert list(summary.columns) == ["mean", "sd", "5%", "95%"]
    draws = found.draws["loc"][0, :, 1, 0].numpy()
    line = summary.loc["loc[1, eruptions]"]
    assert line["mean"] == pytest.approx(found.params["loc"][1, 0].item(), rel=1e-12)
    assert line["sd"] == pytest.approx(draws.std(ddof=1), rel=1e-6)
    assert line["5%"] == pytest.approx(np.quantile(draws, 0.05), rel=1e-6)
    assert ((summary["5%"] < summary["mean"]) & (summary["mean"] < summary["95%"])).all()


def test_chains_that_number_components_differently_are_aligned():
    x = torch.poisson(torch.tensor([[2.0], [9.0]]).repeat(30, 1))
    sampler = lvm.infer.MCMC(num_samples=20, warmup_steps=20, num_chains=2, max_tree_depth=4)
    found = fit(lvm.models.PoissonMixture(2, priors=True), x, inference=sampler)
    straight = found.summary(x)
    found.draws = {name: torch.stack([value[0], value[1].flip(1)]) for name, value in found.draws.items()}
    pd.testing.assert_frame_equal(found.summary(x), straight)
    assert found.summary().loc["rate[0, 0]", "sd"] > 3 * straight.loc["rate[0, 0]", "sd"]


def test_programs_without_names_for_their_axes(table):
    import pyro
    import pyro.distributions as dist

    def program(x):
        loc = pyro.param("loc", torch.zeros(2).double())
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    assert list(fit(program, table, inference="em").summary().index) == ["loc[0]", "loc[1]"]


def test_an_impossible_probability(table):
    found = fit(lvm.models.GaussianMixture(1), table, max_epochs=1)
    with pytest.raises(ValueError, match=r"summary: expected a probability between 0 and 1; got 94"):
        found.summary(probability=94)


def test_comparisons_print_whole(table):
    half = table.iloc[::2]
    fits = {f"a mixture of {k} normal distributions": fit(lvm.models.GaussianMixture(k), half) for k in (1, 2)}
    ranking = lvm.compare(fits, table.iloc[1::2])
    with pd.option_context("display.width", 40, "display.max_columns", 3):
        text = str(ranking)
    assert isinstance(ranking.round(1), Table)
    assert "..." not in text
    assert "exact log-likelihood at a point, held-out rows" in text
    assert all(name in line for name, line in zip(ranking.index, text.splitlines()[-2:], strict=True))


def test_a_network_is_one_line(table):
    network = torch.nn.Linear(1, 2)

    def program(x):
        pyro.module("net", network)
        shift = pyro.param("shift", torch.zeros(()))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(network(z.float()) + shift, 1.0).to_event(1), obs=x)

    vae = lvm.models.VAE(1, likelihood="gaussian", hidden=[3])
    for model, line, others in (
        (program, "net (network of 4 numbers)", ["shift"]),
        (vae, "decoder (network of 22 numbers)", []),
    ):
        fitted = fit(model, torch.tensor(table.to_numpy()).float(), max_epochs=2)
        assert list(fitted.summary().index) == [*others, line]
        assert np.isnan(fitted.summary().loc[line, "estimate"])
        listed = fitted.summary(networks=True)
        assert len(listed) == sum(value.numel() for value in fitted.params.values())
        assert listed["estimate"].notna().all()
