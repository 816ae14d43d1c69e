"""Fits as ArviZ data: shapes, names, agreement between inferences, what az functions accept."""

import warnings

import numpy as np
import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm.diagnostics.arviz import groups_of
from pyro_lvm.diagnostics.labels import align, component_axes, permutations

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import arviz as az


@pytest.fixture(scope="module")
def fits():
    x = lvm.datasets.load("faithful").x
    bayesian = lvm.models.GaussianMixture(2, priors=True)
    sampler = lvm.infer.MCMC(num_samples=40, warmup_steps=40, num_chains=2, max_tree_depth=4)
    return {
        "em": lvm.fit(lvm.models.GaussianMixture(2), x, seed=0, progress=False),
        "svi": lvm.fit(bayesian, x, guide="normal", max_epochs=800, seed=0, progress=False),
        "nuts": lvm.fit(bayesian, x, inference=sampler, seed=0, progress=False),
    }


@pytest.fixture(scope="module")
def data(fits):
    x = lvm.datasets.load("faithful").x
    return {name: fit.to_arviz(x) for name, fit in fits.items()}


def test_groups_and_shapes(data):
    assert data["em"]["sample_stats"]["row_log_likelihood"].shape == (1, 1, 272)
    assert data["em"]["sample_stats"]["row_log_likelihood"].dims == ("chain", "draw", "x_row")
    assert data["svi"]["log_likelihood"]["x"].shape == (1, 500, 272)
    assert data["nuts"]["log_likelihood"]["x"].shape == (2, 40, 272)
    for one in data.values():
        assert one["posterior"]["loc"].dims == ("chain", "draw", "component", "dimension")
        assert one["posterior"]["covariance"].dims[2:] == ("component", "dimension", "dimension_2")
        assert one["observed_data"]["x"].shape == (272, 2)
    assert data["svi"]["sample_stats"]["log_importance_ratio"].shape == (1, 500)
    assert data["svi"]["posterior"].attrs["pareto_k"] < 1.0


@pytest.mark.filterwarnings("ignore")
def test_arviz_accepts_them(data):
    for name, one in data.items():
        table = az.summary(one, var_names=["loc", "weights"], kind="stats")
        assert len(table) == 6
        if name == "em":
            with pytest.raises(TypeError, match="log likelihood not found"):
                az.loo(one)
        else:
            loo = az.loo(one)
            assert np.isfinite(float(getattr(loo, "elpd_loo", None) or loo.elpd))
    ranked = az.compare({name: data[name] for name in ("svi", "nuts")})
    assert set(ranked.index) == {"svi", "nuts"}


def test_inferences_agree_within_two_posterior_standard_deviations(data):
    svi, nuts = (data[name]["posterior"]["loc"] for name in ("svi", "nuts"))
    spread = nuts.std(("chain", "draw")).values
    means = [v.mean(("chain", "draw")).values for v in (svi, nuts)]
    assert (abs(means[0] - means[1]) < 2 * spread).all()
    point = data["em"]["posterior"]["loc"].values[0, 0]
    assert (abs(point - means[1]) < 2 * spread).all()


def test_pointwise_log_likelihood_is_that_of_the_scorer(fits, data, faithful):
    for name, fit in fits.items():
        values = data[name]["sample_stats"]["row_log_likelihood"] if name == "em" else data[name]["log_likelihood"]["x"]
        table = torch.from_numpy(values.values.reshape(-1, 272))
        mean = table.logsumexp(0) - np.log(len(table))
        torch.testing.assert_close(mean, fit.log_likelihood(faithful))


def test_labels_are_aligned_across_draws_and_fits(fits, faithful):
    fit = fits["nuts"]
    switched = {n: v.clone() for n, v in fit.draws.items()}
    for values in switched.values():
        values[1, ::2] = values[1, ::2].flip(1)
    fit.draws, kept = switched, fit.draws
    try:
        groups = groups_of(fit, fit.arguments(faithful))
    finally:
        fit.draws = kept
    honest = groups_of(fit, fit.arguments(faithful))
    for name in ("loc", "weights", "covariance"):
        np.testing.assert_array_equal(groups.posterior[name], honest.posterior[name])
    assert (groups.posterior["loc"][..., 0, 0] < groups.posterior["loc"][..., 1, 0]).all()
    flipped = lvm.fit(lvm.models.GaussianMixture(2), -faithful, seed=0, progress=False)
    common = align(flipped, flipped.arguments(-faithful), flipped.draws, across_fits=True)
    assert (common["loc"][..., 0, 0] < common["loc"][..., 1, 0]).all()


def test_component_axes_are_found_where_sizes_alone_would_not_tell(fits, faithful):
    fit = fits["em"]
    axes, states = component_axes(fit, fit.arguments(faithful), fit.params)
    assert states == 2
    assert axes == {"weights": (0,), "loc": (0,), "covariance": (0,)}
    tied = lvm.fit(lvm.models.GaussianMixture(2, covariance="tied"), faithful, seed=0, progress=False)
    axes, _ = component_axes(tied, tied.arguments(faithful), tied.params)
    assert axes == {"weights": (0,), "loc": (0,)}


def test_permutations_undo_random_ones():
    table = torch.rand(40, 5).pow(4).softmax(-1).expand(30, 40, 5)
    shuffles = torch.stack([torch.randperm(5) for _ in range(30)])
    order = permutations(table.gather(-1, shuffles.unsqueeze(1).expand_as(table)))
    aligned = shuffles.gather(1, order)
    assert (aligned == aligned[0]).all()


def test_names_of_columns_reach_the_coordinates(faithful):
    import pandas as pd

    frame = pd.DataFrame(faithful.numpy(), columns=["duration", "waiting"])
    fit = lvm.fit(lvm.models.GaussianMixture(2), frame, seed=0, progress=False)
    posterior = fit.to_arviz(frame)["posterior"]
    assert list(posterior["dimension"].values) == ["duration", "waiting"]
    assert fit.to_arviz()["posterior"]["loc"].shape == (1, 1, 2, 2)


def test_comparison_tells_held_out_from_in_sample(fits, faithful):
    train, test = faithful[:200], faithful[200:]
    small = {
        "one": lvm.fit(lvm.models.GaussianMixture(1), train, seed=0, progress=False),
        "two": lvm.fit(lvm.models.GaussianMixture(2), train, seed=0, progress=False),
    }
    table = lvm.compare(small, test)
    assert list(table.index) == ["two", "one"]
    assert table["elpd_diff"].iloc[0] == 0
    assert table["estimator"].str.contains("held-out").all()
    values = [fit.log_likelihood(test).numpy() for fit in small.values()]
    assert table.loc["one", "dse"] == pytest.approx(np.sqrt(72 * (values[0] - values[1]).var()))
    with pytest.warns(UserWarning, match="all scores are in-sample"):
        table = lvm.compare({**small, "em": fits["em"]}, train)
    assert table["estimator"].str.contains("in-sample").all()
    counts = torch.poisson(torch.full((300,), 3.0)).unsqueeze(-1)
    mixture = lvm.fit(lvm.models.GaussianMixture(1), counts[:200], seed=0, progress=False)
    assert lvm.compare({"m": mixture}, counts[200:])["estimator"].str.contains("recur in the training data").all()
    with pytest.warns(UserWarning, match="in-sample"):
        lvm.compare({"m": mixture}, counts[:200])
    with pytest.raises(ValueError, match="at least one fit"):
        lvm.compare({}, test)


@pytest.mark.parametrize("covariance", ["full", "diag", "tied", "spherical"])
@pytest.mark.parametrize("num_components", [2, 3, 13])
def test_axes_are_named_without_column_names(num_components, covariance):
    x = lvm.datasets.load("wine").x
    model = lvm.models.GaussianMixture(num_components, covariance=covariance)
    groups = groups_of(lvm.fit(model, x, max_epochs=1, seed=0, progress=False), None)
    expected = {
        "full": ["component", "dimension", "dimension_2"],
        "diag": ["component", "dimension"],
        "tied": ["dimension", "dimension_2"],
        "spherical": ["component"],
    }
    assert groups.dims["covariance"] == expected[covariance]
    assert len(groups.coords["dimension"]) == 13
    assert len(groups.coords["component"]) == num_components
