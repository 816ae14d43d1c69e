"""Forecasts of sequences with normal states: against the dense joint law, under a posterior, on the command line."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal
from typer.testing import CliRunner

import pyro_lvm as lvm
from pyro_lvm.cli import app
from pyro_lvm.diagnostics.latents import thinned
from pyro_lvm.distributions import LinearGaussianChain
from pyro_lvm.ops.kalman_gains import LinearDynamics
from pyro_lvm.ops.kalman_smoother import sample_dynamics

STEPS = 3


def joint_law(law, total):
    """Mean and covariance of all values and states of so many steps, flattened; by maps from what is drawn."""
    k, d = len(law.initial_loc), len(law.loc)
    roots = [torch.linalg.cholesky(law.initial_covariance), torch.linalg.cholesky(law.transition_covariance)]
    loc, maps, means, rows = law.initial_loc, torch.zeros(k, k * total).double(), [], []
    for t in range(total):
        loc = loc if t == 0 else law.transition @ loc
        maps = law.transition @ maps
        maps[:, t * k : (t + 1) * k] += roots[min(t, 1)]
        means.append(loc)
        rows.append(maps.clone())
    states = torch.cat(rows)
    seen = torch.block_diag(*[law.weight] * total) @ states
    mean = torch.cat([law.loc + law.weight @ m for m in means] + means)
    both = torch.cat([seen, states])
    noise = torch.cat([law.noise.repeat(total), torch.zeros(k * total).double()])
    return mean, both @ both.mT + noise.diag(), d * total


def coming_law(law, past):
    """Mean and covariance of the values and the states to come, given what is known of one sequence; dense algebra."""
    total, d = len(past) + STEPS, past.shape[-1]
    mean, joint, size = joint_law(law, total)
    values = torch.cat([past.flatten(), torch.full((STEPS * d,), torch.nan).double()])
    known = torch.cat([~values.isnan(), torch.zeros(len(mean) - size, dtype=torch.bool)])
    gain = torch.linalg.solve(joint[known][:, known], joint[known]).mT
    found = mean + gain @ (values[known[:size]] - mean[known])
    left = joint - gain @ joint[known]
    which = torch.cat([torch.arange(size - STEPS * d, size), torch.arange(len(mean))[-STEPS * len(law.transition) :]])
    return found[which], left[which][:, which]


@pytest.fixture(scope="module")
def fit():
    torch.manual_seed(3)
    turn = torch.tensor([[0.9, 0.3], [-0.3, 0.9]]).double()
    parts = torch.ones(2), torch.eye(2), turn, torch.eye(2), torch.arange(3.0), torch.randn(3, 2), 0.3 + torch.rand(3)
    x = sample_dynamics(LinearDynamics(*(part.double() for part in parts)), 12, 4)[1]
    x = [row[: 12 - 2 * i] for i, row in enumerate(torch.where(torch.rand_like(x) < 0.2, torch.nan, x))]
    fit = lvm.fit(lvm.models.LinearDynamicalSystem(2), x, seed=0, max_epochs=5, progress=False)
    return fit, x


def test_forecasts_are_those_of_the_dense_law(fit) -> None:
    fit, x = fit
    x[1][-2:] = torch.nan
    coming, law = fit.forecast(x, STEPS, num_samples=4_000), fit.model._law().dynamics
    assert coming.samples.shape == (4_000, 4, STEPS, 3)
    for i, past in enumerate(x):
        mean, covariance = coming_law(law, past)
        torch.testing.assert_close(coming.mean[i].flatten(), mean[: 3 * STEPS], rtol=0, atol=1e-10)
        torch.testing.assert_close(coming.states[i].flatten(), mean[3 * STEPS :], rtol=0, atol=1e-10)
        for h in range(STEPS):
            here = slice(3 * h, 3 * h + 3)
            torch.testing.assert_close(coming.covariance[i, h], covariance[here, here], rtol=0, atol=1e-10)
        ours = torch.cat([coming.samples[:, i].flatten(1), coming.paths[:, i].flatten(1)], 1)
        spread = covariance.diagonal().sqrt()
        assert bool(((ours.mean(0) - mean).abs() < 5 * spread / 4_000**0.5).all())
        assert bool(((torch.cov(ours.mT) - covariance).abs() < 5 * spread.outer(spread) * (2 / 4_000) ** 0.5).all())
    low, high = coming.interval(0.8)
    own = torch.distributions.Normal(coming.mean, coming.covariance.diagonal(dim1=-2, dim2=-1).sqrt())
    torch.testing.assert_close(own.cdf(low), torch.full_like(low, 0.1))
    torch.testing.assert_close(own.cdf(high), torch.full_like(low, 0.9))
    with pytest.raises(ValueError, match="expected a probability between 0 and 1; got 5"):
        coming.quantile(5)


def test_forecasts_of_one_series_have_no_axis_of_sequences() -> None:
    x = torch.sin(torch.arange(40.0)).double() + 0.1 * torch.randn(40).double()
    x[7:10] = torch.nan
    for model in (lvm.models.LinearDynamicalSystem(1), lvm.models.SlowFeatureAnalysis(1, noise=True)):
        fit = lvm.fit(model, x, seed=0, max_epochs=5, progress=False)
        alone, listed = fit.forecast(x, 4, num_samples=7), fit.forecast([x, x[:20]], 4)
        shapes = "states=(4, 1), mean=(4, 1), samples=(7, 4, 1), paths=(7, 4, 1), covariance=(4, 1, 1)"
        assert repr(alone) == f"Forecast({shapes})"
        torch.testing.assert_close(alone.mean, listed.mean[0])
        mean, covariance = coming_law(fit.model._law().dynamics, x[:20].unsqueeze(-1))
        torch.testing.assert_close(listed.mean[1, :STEPS].flatten(), mean[:STEPS])
        torch.testing.assert_close(listed.covariance[1, :STEPS].flatten(), covariance.diagonal()[:STEPS])


def test_slow_features_forecast_those_that_they_show() -> None:
    x = torch.randn(60, 3).cumsum(0)
    fit = lvm.fit(lvm.models.SlowFeatureAnalysis(2), x, seed=0, progress=False)
    coming = fit.forecast(x, 2)
    assert coming.states.shape == (2, 2)
    assert coming.paths.shape == (100, 2, 2)
    assert coming.mean.dtype == torch.float32
    rate = fit.params["autocorrelation"][:2]
    torch.testing.assert_close(coming.states[0], rate * fit.transform(x)[-1])
    quadratic = lvm.fit(lvm.models.SlowFeatureAnalysis(1, "quadratic"), x, seed=0, progress=False)
    for verb in (lambda x: quadratic.forecast(x, 2), quadratic.reconstruct, quadratic.impute):
        with pytest.raises(
            ValueError, match=r"observes? .* Fit SlowFeatureAnalysis with expansion='linear', which obs"
        ):
            verb(torch.where(x > 3, torch.nan, x))


def test_forecasts_under_a_posterior_average_over_its_draws() -> None:
    def wander(x):
        step = pyro.sample("step", dist.LogNormal(x.new_tensor(0.0), 0.5))
        one = x.new_ones(1, 1)
        law = LinearGaussianChain(one, one, 0.5 * one[0], transition_covariance=step.square() * one)
        with pyro.plate("data", len(x)):
            pyro.sample("x", law, obs=x)

    x = torch.randn(3, 10, 1).double().cumsum(1)
    fit = lvm.fit(wander, x, inference="svi", max_epochs=1, seed=0, progress=False)
    fit.draws = {"step": 0.3 + torch.rand(1, 8).double()}
    coming, draws = fit.forecast(x, STEPS, num_samples=4000), thinned(fit, 200)
    assert len(draws) == 8
    one = torch.ones(1, 1).double()
    found = []
    for given in draws:
        law = LinearDynamics(0 * one[0], one, one, given["step"] ** 2 * one, 0 * one[0], one, 0.25 * one[0])
        found.append(coming_law(law, x[1]))
    means, covariances = (torch.stack(part) for part in zip(*found, strict=True))
    torch.testing.assert_close(coming.mean[1].flatten(), means.mean(0)[:STEPS])
    spread = covariances.mean(0).diagonal() + means.var(0, correction=0)
    torch.testing.assert_close(coming.covariance[1].flatten(), spread[:STEPS])
    assert coming.samples.shape == (4000, 3, STEPS, 1)
    low, high = coming.interval()
    torch.testing.assert_close(low, coming.samples.quantile(0.05, 0))
    assert ((high - low) / (2 * 1.645 * coming.covariance[..., 0].sqrt()) - 1).abs().max() < 0.15


def test_forecasts_on_the_command_line(tmp_path) -> None:
    x = np.random.default_rng(0).normal(size=(60, 2)).cumsum(0)
    frame = pd.DataFrame(x, columns=["a", "b"]).assign(day=np.repeat(["tue", "mon"], 30))
    frame.to_csv(tmp_path / "x.csv", index=False)
    where = ["--data", tmp_path / "x.csv", "--sequence-column", "day"]
    fitting = [
        "fit",
        "LinearDynamicalSystem",
        *where,
        "--set",
        "latent_dim=1",
        "--max-epochs",
        3,
        "--out",
        tmp_path / "f",
    ]
    forecasting = ["forecast", tmp_path / "f", *where, "--steps", 2, "--out", tmp_path / "y.csv"]
    for words in (fitting, forecasting):
        done = CliRunner().invoke(app, list(map(str, words)))
        assert done.exit_code == 0, done.output
    table = pd.read_csv(tmp_path / "y.csv")
    assert list(table.columns) == ["day", "step", "a", "a_5%", "a_95%", "b", "b_5%", "b_95%", "state_0"]
    coming = lvm.load(tmp_path / "f").forecast([frame.iloc[:30, :2], frame.iloc[30:, :2]], 2)
    np.testing.assert_allclose(table[["a", "b"]], coming.mean.flatten(0, 1), rtol=1e-5)
    options = ["--set", "num_features=1", "--set", "expansion=quadratic", "--out", tmp_path / "q"]
    for words in (["fit", "SlowFeatureAnalysis", *where, *options], ["sample", tmp_path / "q", "-n", 1, "--steps", 2]):
        done = CliRunner().invoke(app, list(map(str, words)))
        assert done.exit_code == 0, done.output
    assert "column 4" in done.output
    np.testing.assert_allclose(table["a_95%"], coming.quantile(0.95)[..., 0].flatten(), rtol=1e-5)


def test_dense_law_is_the_density_of_the_model() -> None:
    """The oracle itself, against the filter."""
    one = torch.ones(1, 1).double()
    law = LinearDynamics(one[0], 2 * one, 0.7 * one, 0.5 * one, one[0], one, 0.3 * one[0])
    mean, joint, size = joint_law(law, 5)
    x = torch.randn(5).double()
    ours = LinearGaussianChain(
        law.transition, law.weight, law.noise.sqrt(), law.loc,
        transition_covariance=law.transition_covariance, initial_loc=law.initial_loc,
        initial_covariance=law.initial_covariance,
    )  # fmt: skip
    theirs = MultivariateNormal(mean[:size], joint[:size, :size]).log_prob(x)
    torch.testing.assert_close(ours.log_prob(x.unsqueeze(-1)), theirs)
