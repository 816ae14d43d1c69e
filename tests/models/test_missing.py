"""Gaussian mixtures of rows with gaps: exact marginals, EM, imputation, and the other inferences."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats
from torch.distributions import constraints
from typer.testing import CliRunner

import pyro_lvm as lvm
from pyro_lvm.cli import app
from pyro_lvm.protocols import LatentVariableModel
from pyro_lvm.testing import laws

COVARIANCES = ("full", "diag", "tied", "spherical")
each_covariance = pytest.mark.parametrize("covariance", COVARIANCES)


def with_gaps(x, share=0.2, seed=0):
    """Entries missing completely at random."""
    gaps = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share
    return x.masked_fill(gaps, torch.nan)


@pytest.fixture
def rows(iris):
    return with_gaps(iris.x.double())


def mixture(num_components=2, **options):
    return lvm.models.GaussianMixture(num_components, **options)


def fit(model, x, **options):
    return lvm.fit(model, x, **{"seed": 0, "progress": False, **options})


def matrices(covariance, k, d):
    """Covariances as K matrices, however they are parametrised."""
    if covariance.shape == (k, d, d):
        return covariance
    if covariance.shape == (d, d):
        return np.stack([covariance] * k)
    if covariance.shape == (k, d):
        return np.stack([np.diag(c) for c in covariance])
    return np.stack([c * np.eye(d) for c in covariance])


def numpy_em(x, kind, weights, loc, covariance, steps):
    """Row by row, component by component; diag and spherical from the known entries alone."""
    n, d, k = len(x), x.shape[1], len(weights)
    known = ~np.isnan(x)
    losses = []
    for _ in range(steps):
        full = matrices(covariance, k, d)
        log_joint = np.tile(np.log(weights), (n, 1))
        mean, left = np.zeros((n, k, d)), np.zeros((n, k, d, d))
        for i in range(n):
            o, m = known[i], ~known[i]
            for c in range(k):
                mean[i, c] = np.where(o, x[i], loc[c])
                left[i, c][np.ix_(m, m)] = full[c][np.ix_(m, m)]
                if not o.any():
                    continue
                log_joint[i, c] += stats.multivariate_normal(loc[c, o], full[c][np.ix_(o, o)]).logpdf(x[i, o])
                gain = np.linalg.solve(full[c][np.ix_(o, o)], full[c][np.ix_(o, m)]).T
                mean[i, c, m] = loc[c, m] + gain @ (x[i, o] - loc[c, o])
                left[i, c][np.ix_(m, m)] -= gain @ full[c][np.ix_(o, m)]
        log_rows = np.logaddexp.reduce(log_joint, axis=1)
        losses.append(-log_rows.sum())
        r = np.exp(log_joint - log_rows[:, None])
        weights = r.mean(0)
        if kind in ("full", "tied"):
            loc = np.einsum("nk,nkd->kd", r, mean) / r.sum(0)[:, None]
            centred = mean - loc
            scatter = np.einsum("nk,nki,nkj->kij", r, centred, centred) + np.einsum("nk,nkij->kij", r, left)
            covariance = scatter / r.sum(0)[:, None, None] if kind == "full" else scatter.sum(0) / n
        else:
            seen = r[:, :, None] * known[:, None, :]
            filled = np.where(known, x, 0.0)
            loc = np.einsum("nkd,nd->kd", seen, filled) / seen.sum(0)
            square = (seen * (filled[:, None] - loc) ** 2).sum(0)
            covariance = square / seen.sum(0) if kind == "diag" else square.sum(1) / seen.sum((0, 2))
    return losses, weights, loc, covariance


@each_covariance
def test_em_is_that_of_a_loop_in_numpy(rows, covariance, local):
    rows = rows[::3].clone()
    rows[4] = torch.nan
    model = mixture(covariance=covariance)
    model.initialize(rows)
    start = [getattr(model, name).detach().numpy().copy() for name in ("weights", "loc", "covariance")]
    em = lvm.infer.EM(model)
    ours = [em.step(rows) for _ in range(15)]
    theirs, *parameters = numpy_em(rows.numpy(), covariance, *start, steps=15)
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)
    for name, value in zip(("weights", "loc", "covariance"), parameters, strict=True):
        np.testing.assert_allclose(getattr(model, name).detach().numpy(), value, rtol=1e-7, atol=1e-9)
    assert all(entry.closed for entry in em.plan(rows))


@each_covariance
def test_laws_hold_with_gaps(rows, covariance):
    rows[7] = torch.nan
    laws.em_never_falls(mixture(covariance=covariance), rows)
    laws.enumeration_agrees_with_conditioning(mixture(covariance=covariance), rows)
    laws.em_gradient_is_exact(mixture(covariance=covariance), rows)
    laws.minibatches_are_unbiased(mixture(covariance=covariance), rows)


@pytest.mark.parametrize(
    ("num_components", "covariance"), [(2, kind) for kind in COVARIANCES] + [(3, "diag"), (3, "tied"), (3, "spherical")]
)
def test_a_fifth_of_iris_missing(iris, num_components, covariance):
    """The observed part is as likely as under the complete-data fit, to 2 %, and imputation beats column means."""
    x = iris.x.double()
    rows = with_gaps(x)
    complete = fit(mixture(num_components, covariance=covariance), x, restarts=6)
    partial = fit(mixture(num_components, covariance=covariance), rows, restarts=6)
    reference, ours = complete.score(rows), partial.score(rows)
    gap = (ours - reference) / abs(reference)
    factor = _rmse(_column_means(rows), x, rows) / _rmse(partial.impute(rows), x, rows)
    print(f"\niris, a fifth missing, {num_components} {covariance}: {100 * gap:+.2f} % off complete-data EM")
    print(f"imputation {factor:.2f} times better than column means")
    assert partial.converged
    assert gap > -1e-9  # it maximises this very figure
    assert abs(gap) < 0.02
    assert factor > 1.5


def test_three_full_components_overfit_iris_further_with_gaps(iris):
    """44 parameters from 480 numbers: the observed part gets likelier than 2 % above the complete-data fit's."""
    x = iris.x.double()
    rows = with_gaps(x)
    complete, partial = (fit(mixture(3), each, restarts=4, tol=1e-7) for each in (x, rows))
    assert partial.score(rows) > complete.score(rows)
    assert _rmse(partial.impute(rows), x, rows) < _rmse(_column_means(rows), x, rows) / 1.5


def _rmse(filled, x, rows):
    return float((filled - x)[rows.isnan()].square().mean().sqrt())


def _column_means(rows):
    return torch.where(rows.isnan(), rows.nanmean(0), rows)


@each_covariance
def test_rows_of_which_nothing_is_known(rows, covariance):
    rows[[3, 60]] = torch.nan
    kept = torch.ones(150, dtype=torch.bool)
    kept[[3, 60]] = False
    result = fit(mixture(covariance=covariance), rows)
    assert result.converged
    assert result.log_likelihood(rows)[[3, 60]].abs().max() < 1e-12
    weights, loc = result.params["weights"], result.params["loc"]
    torch.testing.assert_close(result.predict_proba(rows)[3], weights)
    assert int(result.predict(rows)[60]) == int(weights.argmax())
    filled = result.impute(rows)
    torch.testing.assert_close(filled[3], weights @ loc)
    assert bool(torch.isfinite(filled).all())
    assert torch.equal(filled[~rows.isnan()], rows[~rows.isnan()])
    without = fit(mixture(covariance=covariance), rows[kept])
    assert result.score(rows) * 150 == pytest.approx(without.score(rows[kept]) * 148, rel=1e-6)


@each_covariance
def test_learning_where_no_row_is_complete(iris, covariance):
    x = iris.x.double()
    rows = x.clone()
    rows[torch.arange(150), torch.arange(150) % 4] = torch.nan
    assert bool(rows.isnan().any(1).all())
    result = fit(mixture(covariance=covariance), rows, restarts=4)
    reference = fit(mixture(covariance=covariance), x, restarts=4)
    assert result.converged
    assert result.score(rows) >= reference.score(rows) - 1e-9
    assert _rmse(result.impute(rows), x, rows) < _rmse(_column_means(rows), x, rows) / 1.5
    agreement = float((result.predict(rows) == reference.predict(x)).double().mean())
    assert max(agreement, 1 - agreement) > 0.95


def test_gaps_only_after_the_rows_that_plans_are_made_from(iris):
    """The plan comes from the first rows, which are complete; the statistics must not take fillers for data."""
    x = iris.x.double()[torch.randperm(150)]
    rows = torch.cat([x[:100], with_gaps(x[100:], 0.5)])
    result = fit(mixture(), rows)
    order = torch.randperm(150)
    assert result.score(rows) >= fit(mixture(), rows[order]).score(rows) - 1e-2
    with result.scope():
        theirs, *_ = numpy_em(
            rows.numpy(), "full", *(result.params[n].numpy() for n in ("weights", "loc", "covariance")), steps=3
        )
    assert theirs[2] == pytest.approx(result.history["loss"][-1], rel=1e-8)


def test_complete_rows_cost_nothing(iris, local):
    x = iris.x
    model = mixture(data_dim=4)
    for value, family in ((x, dist.MultivariateNormal), (with_gaps(x), lvm.distributions.PartialMultivariateNormal)):
        trace = poutine.trace(model).get_trace(value)
        assert type(trace.nodes["x"]["fn"]) is family
    assert poutine.trace(model).get_trace(x).nodes["x"]["value"] is x


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_svi_and_nuts(iris, covariance):
    x = iris.x
    rows = with_gaps(x)
    model = mixture(covariance=covariance, priors=True)
    em = fit(mixture(covariance=covariance), rows, restarts=4)
    for options in ({"guide": "map"}, {"guide": "normal"}):
        svi = fit(model, rows, inference=lvm.infer.SVI(learning_rate=0.05), max_epochs=150, **options)
        assert svi.score(rows) > em.score(rows) - 0.3
        assert _rmse(svi.impute(rows), x, rows) < _rmse(_column_means(rows), x, rows) / 1.3
    sampler = lvm.infer.MCMC(num_samples=10, warmup_steps=10, num_chains=1, max_tree_depth=3)
    nuts = fit(model, rows, inference=sampler)
    assert nuts.score(rows) > em.score(rows) - 0.5
    assert _rmse(nuts.impute(rows), x, rows) < _rmse(_column_means(rows), x, rows) / 1.3


def test_imputation_of_a_posterior_averages_over_its_draws(rows):
    model = mixture(priors=True)
    svi = fit(model, rows, inference=lvm.infer.SVI(learning_rate=0.05), max_epochs=100, guide="normal")
    svi._draws = {name: values[:, :3] for name, values in svi.draws.items()}
    row = int((rows.isnan().any(1) & ~rows.isnan().all(1)).nonzero()[0])
    draws = zip(*(svi.draws[name][0] for name in ("weights", "loc", "covariance")), strict=True)
    filled = torch.stack([_conditional(rows[row], *draw) for draw in draws])
    torch.testing.assert_close(svi.impute(rows)[row], filled.mean(0))


def _conditional(row, weights, loc, covariance):
    """Posterior mean of one row's missing entries, by solving the ragged systems."""
    o, m = ~row.isnan(), row.isnan()
    log_joint, means = [], []
    for w, mean, matrix in zip(weights, loc, covariance, strict=True):
        log_joint.append(w.log() + dist.MultivariateNormal(mean[o], matrix[o][:, o]).log_prob(row[o]))
        filled = row.clone()
        filled[m] = mean[m] + matrix[m][:, o] @ torch.linalg.solve(matrix[o][:, o], row[o] - mean[o])
        means.append(filled)
    return torch.stack(log_joint).softmax(0) @ torch.stack(means)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_one_column_one_component_float32(faithful, covariance):
    rows = faithful[:, :1].float()
    rows[::5] = torch.nan
    result = fit(mixture(1, covariance=covariance), rows)
    known = rows[~rows.isnan()]
    assert result.params["loc"].dtype == torch.float32
    assert float(result.params["loc"].squeeze()) == pytest.approx(float(known.mean()), rel=1e-5)
    assert float(result.params["covariance"].squeeze()) == pytest.approx(float(known.var(correction=0)), rel=1e-4)
    assert result.impute(rows)[0].item() == pytest.approx(float(known.mean()), rel=1e-5)


def test_a_fit_with_gaps_can_be_kept_resumed_compared_and_drawn(rows, tmp_path):
    result = fit(mixture(), rows, max_epochs=5)
    laws.save_load_is_exact(result, rows, tmp_path / "fit")
    laws.resume_is_exact(mixture, rows, tmp_path / "resumed")
    observed = np.asarray(result.to_arviz(rows).observed_data["x"])
    np.testing.assert_array_equal(np.isnan(observed), rows.isnan().numpy())
    with pytest.warns(UserWarning, match="trained on these rows"):
        lvm.compare({"a": result}, rows)
    assert not bool(result.sample(20).isnan().any())
    assert result.posterior(rows, 3)["z"].shape == (3, 150)
    frame = pd.DataFrame(rows.numpy(), columns=list("abcd"))
    torch.testing.assert_close(result.impute(frame), result.impute(rows))
    assert torch.equal(result.impute(np.ma.masked_invalid(rows.numpy())), result.impute(rows))


def test_errors(faithful):
    rows = faithful.clone()
    rows[:, 1] = torch.nan
    with pytest.raises(ValueError, match="all of column 1 is missing"):
        fit(mixture(), rows)
    rows[0, 1] = 3.0
    with pytest.raises(ValueError, match="got constant column 1"):
        fit(mixture(), rows)
    rows = faithful.clone()
    rows[5, 1] = torch.inf
    with pytest.raises(ValueError, match="1 infinite value"):
        fit(mixture(), rows)

    def program(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Cauchy(pyro.param("loc", torch.zeros(2)), 1.0).to_event(1), obs=x)

    rows[5, 1] = torch.nan
    with pytest.raises(ValueError, match="expected x to be finite; got 1 missing value"):
        fit(program, rows, inference="svi")


# Other programs with gaps


def test_parameters_shared_across_components_and_columns_through_a_mask(rows):
    """One scale for all cells, one column of locations shared: closed forms are stationary, EM never falls."""
    known, filled = ~rows.isnan(), torch.where(rows.isnan(), 0.0, rows)

    def program(x):
        weights = pyro.param("weights", lambda: x.new_tensor([0.4, 0.6]), constraint=constraints.simplex)
        loc = pyro.param("loc", lambda: x.new_tensor([[5.0, 1.0], [6.0, 4.0]]))
        scale = pyro.param("scale", lambda: x.new_tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            each = loc[z][..., [0, 0, 1, 1]]
            pyro.sample("x", dist.Normal(each, scale).mask(known).to_event(1), obs=x)

    with pyro.get_param_store().scope():
        assert {p.name for p in lvm.infer.EM(program).plan(filled).closed} == {"weights", "loc", "scale"}
    laws.closed_form_is_stationary(program, filled)
    laws.em_never_falls(program, filled)


class Survey(LatentVariableModel):
    """Questions with three answers each, in two classes of people."""

    handles_missing = True

    def forward(self, x=None, *, size=None):
        known = ~x.isnan()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(self.weights), infer={"enumerate": "parallel"})
            law = dist.Categorical(self.probs[z]).mask(known).to_event(1)
            return pyro.sample("x", law, obs=torch.where(known, x, 0.0))

    def initialize(self, x):
        self.declare("weights", x.new_tensor([0.5, 0.5]), constraints.simplex)
        self.declare("probs", torch.rand(2, x.shape[1], 3).to(x).softmax(-1), constraints.simplex)

    def check(self, x):
        pass


def test_categorical_columns_get_their_most_probable_answer():
    z = torch.arange(200) % 2
    answers = torch.stack([z * 2, z, 2 - 2 * z, torch.ones(200)], 1).double()
    rows = with_gaps(answers, 0.15)
    result = fit(Survey(), rows)
    filled = result.impute(rows)
    several = (~rows.isnan())[:, :3].any(1)
    assert torch.equal(filled[several], answers[several])


# Sample weights


def test_sample_weights_scale_every_row(faithful, local):
    model = mixture(data_dim=2)
    weights = torch.rand(272).double()
    weights[3] = 0.0
    plain = poutine.trace(model).get_trace(faithful)
    replayed = poutine.trace(poutine.replay(model, trace=plain)).get_trace(faithful, sample_weights=weights)
    plain.compute_log_prob()
    expected = (weights * (plain.nodes["z"]["log_prob"] + plain.nodes["x"]["log_prob"])).sum()
    assert float(replayed.log_prob_sum().detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    start = mixture()
    start.initialize(torch.cat([faithful, torch.full((1, 2), 1e6)]), sample_weights=torch.arange(273.0).lt(272))
    assert float(start.loc.detach().max()) < 100
    for bad, message in ((torch.ones(3), "one a row"), (-torch.ones(272), ">= 0"), (torch.zeros(272), "not all 0")):
        with pytest.raises(ValueError, match=message):
            mixture().initialize(faithful, sample_weights=bad)


@pytest.mark.parametrize("model", [lvm.models.GaussianMixture, lvm.models.StudentTMixture])
def test_sample_weights_are_repetitions(faithful, model, local):
    faithful = faithful[:100]
    counts = torch.arange(100) % 3
    weighted, repeated = model(2), model(2)
    for each in (weighted, repeated):
        torch.manual_seed(0)
        each.initialize(faithful)
    one, two = lvm.infer.EM(weighted), lvm.infer.EM(repeated)
    many = faithful.repeat_interleave(counts, 0)
    for _ in range(5):
        assert one.step(faithful, sample_weights=counts.double()) == pytest.approx(two.step(many), rel=1e-10)


# The command line


def test_impute_on_the_command_line(tmp_path, rows):
    table = pd.DataFrame(rows.numpy(), columns=["a", "b", "c", "d"])
    table.to_csv(tmp_path / "gaps.csv", index=False)

    def run(*arguments):
        return CliRunner().invoke(app, [str(a) for a in arguments])

    data = ("--data", tmp_path / "gaps.csv")
    done = run("fit", "GaussianMixture", *data, "--set", "num_components=2", "--out", tmp_path / "fit")
    assert done.exit_code == 0, done.output
    done = run("impute", tmp_path / "fit", *data, "--out", tmp_path / "filled.csv")
    assert done.exit_code == 0, done.output
    assert f"{int(rows.isnan().sum())} of 600 cells filled in" in done.output
    filled = pd.read_csv(tmp_path / "filled.csv")
    assert list(filled.columns) == list(table.columns)
    assert not filled.isna().any().any()
    same = table.notna().to_numpy()
    np.testing.assert_array_equal(filled.to_numpy()[same], table.to_numpy()[same])
    assert run("impute", tmp_path / "fit", *data).output.count("\n") == 152
