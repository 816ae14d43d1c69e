"""A law of every row: exact where it is known, kept through batches, found afresh for new rows, resumed exactly."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import constraints

import pyro_lvm as lvm
from pyro_lvm.handlers.rows import settled
from pyro_lvm.testing import laws

STILL = {"inference": lvm.infer.SVI(learning_rate=1e-12), "seed": 0, "progress": False, "tol": 0.0}
BITS = torch.bernoulli(torch.full((40, 6), 0.4), generator=torch.Generator().manual_seed(1)).double()
COUNTS = torch.tensor([0.0, 3.0, 8.0, 1.0, 20.0]).double().repeat(8)


def counts(x):
    """A gamma rate for every row: the posterior of a row is Gamma(x + shape, 1 + rate)."""
    shape = pyro.param("shape", torch.tensor(2.0).double(), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(shape, 0.5))
        pyro.sample("x", dist.Poisson(rate), obs=x)


def two_kinds(x):
    """A normal latent value and a binary one, which is summed out; each explains a column."""
    loc = pyro.param("loc", torch.tensor(0.5).double())
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        kind = pyro.sample("kind", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x[:, 0])
        pyro.sample("y", dist.Normal(2 * kind, 1.0), obs=x[:, 1])


def level(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0).double()), 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def laws_of(fit, rows):
    """Means and standard deviations of the site `z` of rows."""
    with fit.scope(), torch.no_grad():
        guide = settled(fit.guide, (rows,), {})
        law = pyro.poutine.trace(guide).get_trace(rows).nodes["z"]["fn"]
    return law.mean, law.variance.sqrt()


@pytest.mark.parametrize("batch_size", [None, 5])
def test_posteriors_become_exact_in_batches_that_do_not_divide_the_rows(linear, batch_size):
    fit = lvm.fit(linear.model, linear.x, guide="local", batch_size=batch_size, max_epochs=8, **STILL)
    loc, log_scale = fit.guide.table.chunk(2, -1)
    expected, scale = linear.posterior(linear.x)
    torch.testing.assert_close(loc, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(log_scale.exp(), scale, atol=1e-5, rtol=0)


def test_the_bound_is_then_the_log_likelihood_for_every_draw(linear):
    fit = lvm.fit(linear.model, linear.x, guide="local", max_epochs=2, **STILL)
    fresh = torch.randn(23, 3).double()  # as many as were trained on, and yet others
    for rows in (linear.x, fresh, fresh[:1]):
        found = fit.evidence(rows, 2)
        torch.testing.assert_close(found.values, linear.log_likelihood(rows), atol=1e-5, rtol=0)
        assert float(found.standard_error.max()) < 1e-5
        torch.testing.assert_close(fit.transform(rows), linear.posterior(rows)[0], atol=1e-5, rtol=0)
    draws = fit.posterior(fresh, 200)["z"]
    error = linear.posterior(fresh)[1] / 200**0.5
    assert float(((draws.mean(0) - linear.posterior(fresh)[0]) / error).abs().max()) < 4.5


def test_the_model_learns_what_its_likelihood_says():
    """With exact posteriors, steps on the bound are steps on the likelihood: the mean ends at the mean of the rows."""
    x = torch.randn(40, generator=torch.Generator().manual_seed(3)).double() * 1.5 + 1
    svi = lvm.infer.SVI(learning_rate=0.05, schedule="linear", num_particles=2)
    guide = lvm.guides.LocalGaussian(level, num_steps=3)
    fit = lvm.fit(level, x, guide=guide, inference=svi, batch_size=20, max_epochs=60, seed=0, progress=False)
    assert float(fit.params["loc"]) == pytest.approx(float(x.mean()), abs=0.05)
    law = dist.Normal(fit.params["loc"], 1.25**0.5)
    torch.testing.assert_close(fit.log_likelihood(x), law.log_prob(x), atol=1e-5, rtol=0)


def test_held_out_rows_are_searched_for_and_leave_the_rows_of_training_alone(linear):
    held_out = torch.randn(23, 3).double()
    options = {"inference": lvm.infer.SVI(learning_rate=1e-12, loss=Trace_ELBO()), "seed": 0, "progress": False}
    plain, watched = (
        lvm.fit(linear.model, linear.x, guide="local", max_epochs=1, validation=rows, **options)
        for rows in (None, held_out)
    )
    expected = -float(linear.log_likelihood(held_out).sum())
    assert watched.history["validation_loss"][-1] == pytest.approx(expected, abs=1e-3)
    assert torch.equal(plain.guide.table, watched.guide.table)


def test_positive_sites_have_the_optimum_of_their_bound():
    """In log space the bound of a gamma posterior Gamma(a, b) is greatest at log(a / b) - 1 / 2a and a ** -0.5."""
    svi = lvm.infer.SVI(learning_rate=1e-12)
    guide = lvm.guides.LocalGaussian(counts, num_new_steps=300, step_size=0.1)
    fit = lvm.fit(counts, COUNTS, guide=guide, inference=svi, batch_size=16, max_epochs=3, seed=0, progress=False)
    with fit.scope(), torch.no_grad():
        loc, log_scale = settled(fit.guide, (COUNTS,), {}).place.T
    a = COUNTS + 2
    assert float((loc - (a / 1.5).log() + 1 / (2 * a)).reshape(8, 5).mean(0).abs().max()) < 0.05
    assert float((log_scale + a.log() / 2).reshape(8, 5).mean(0).abs().max()) < 0.05
    assert fit.transform(COUNTS).shape == (40,)


def test_discrete_sites_are_summed_out():
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(2)).double()
    fit = lvm.fit(two_kinds, x, guide="local", batch_size=7, max_epochs=6, **STILL)
    torch.testing.assert_close(laws_of(fit, x)[0], (0.5 + 4 * x[:, 0]) / 5, atol=1e-5, rtol=0)
    mixture = torch.stack(
        [0.7 * dist.Normal(0.0, 1.0).log_prob(x[:, 1]).exp(), 0.3 * dist.Normal(2.0, 1.0).log_prob(x[:, 1]).exp()]
    )
    expected = dist.Normal(0.5, 1.25**0.5).log_prob(x[:, 0]) + mixture.sum(0).log()
    torch.testing.assert_close(fit.evidence(x, 2).values, expected, atol=1e-5, rtol=0)


def test_sites_that_rows_share_are_learned_by_the_optimizer():
    """A level common to all rows, with a prior: its posterior is normal and known, if a little narrower under q."""
    x = torch.randn(50, generator=torch.Generator().manual_seed(4)).double() + 2

    def common(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    svi = lvm.infer.SVI(learning_rate=0.05, schedule="linear")
    guide = lvm.guides.LocalGaussian(common, num_steps=3)
    fit = lvm.fit(common, x, guide=guide, inference=svi, max_epochs=150, seed=0, progress=False)
    precision = 50 / 1.25 + 0.01
    assert float(fit.params["mean"]) == pytest.approx(float(x.sum()) / 1.25 / precision, abs=0.1)
    # q has the mean and the rows' values independent: the mean's precision is the conditional one, 50 + 1 / 100
    assert float(fit.draws["mean"].std()) == pytest.approx(50.01**-0.5, abs=0.03)


def test_plates_inside_of_the_rows_and_masks():
    """Two values for every row, in an inner plate; a masked one keeps its prior, and no part of it drifts."""
    known = torch.tensor([True, False]).repeat(10)

    def nested(x):
        masked = pyro.poutine.mask(mask=known.unsqueeze(-1))
        with pyro.plate("data", len(x), dim=-2), pyro.plate("inside", 2, dim=-1), masked:
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    x = torch.randn(20, 2).double()
    fit = lvm.fit(nested, x, guide="local", max_epochs=4, **STILL)
    loc, log_scale = fit.guide.table.chunk(2, -1)
    torch.testing.assert_close(loc[known], 0.8 * x[known], atol=1e-5, rtol=0)
    assert torch.equal(loc[~known], fit.guide.start[:2].expand(10, 2))
    assert torch.equal(log_scale[~known], fit.guide.start[2:].expand(10, 2))


@pytest.mark.parametrize("how", ["all rows", "index", "subsample", "nothing"])
def test_it_trains_under_pyros_own_svi(linear, how):
    """However the rows are told to the guide, the loss ends at the exact one; nothing told means found afresh."""
    x, total = linear.x, len(linear.x)
    if how == "subsample":

        def model(index):
            z_scale = torch.ones(2).double()
            with pyro.plate("data", total, subsample=index):
                z = pyro.sample("z", dist.Normal(0 * z_scale, z_scale).to_event(1))
                pyro.sample("x", linear.model.decode(z), obs=x[index])
    else:
        model = linear.model
    guide = lvm.guides.LocalGaussian(model, num_rows=total if how == "all rows" else None)
    adam = pyro.optim.Adam({"lr": 1e-12})
    svi = pyro.infer.SVI(model, guide, adam, loss=TraceMeanField_ELBO() if how == "index" else Trace_ELBO())
    for epoch in range(1 if how == "nothing" else 5):
        order = torch.randperm(total, generator=torch.Generator().manual_seed(epoch))
        for index in [torch.arange(total)] if how == "all rows" else order.split(10):
            if how == "index":
                with lvm.handlers.rows(index, total), lvm.handlers.minibatch(total=total):
                    loss = svi.step(x[index])
            else:
                loss = svi.step(index if how == "subsample" else x[index])
    if how == "nothing":
        assert not hasattr(guide, "table")
        assert loss == pytest.approx(-float(linear.log_likelihood(x[index]).sum()), abs=1e-4)
    else:
        torch.testing.assert_close(guide.table[:, :2], linear.posterior(x)[0], atol=1e-5, rtol=0)
    if how == "all rows":
        assert loss == pytest.approx(-float(linear.log_likelihood(x).sum()), abs=1e-4)


@pytest.mark.parametrize(
    "objective", [lvm.infer.ImportanceWeighted(3), Trace_ELBO(3, vectorize_particles=True, max_plate_nesting=1)]
)
def test_objectives_with_several_draws(objective):
    svi = lvm.infer.SVI(loss=objective, learning_rate=0.01)
    fit = lvm.fit(
        lvm.models.VAE(2, hidden=[8]), BITS, "local", svi, batch_size=15, max_epochs=8, seed=0, progress=False
    )
    assert fit.history["loss"][-1] < fit.history["loss"][0]


def test_resuming_and_files_are_exact(tmp_path):
    laws.resume_is_exact(lambda: lvm.models.VAE(2, hidden=[8]), BITS, tmp_path / "half", guide="local", batch_size=15)
    fit = lvm.fit(
        lvm.models.VAE(2, hidden=[8]), BITS, guide="local", batch_size=15, max_epochs=2, seed=0, progress=False
    )
    laws.save_load_is_exact(fit, BITS[:5], tmp_path / "fit")
    loaded = lvm.load(tmp_path / "fit")
    assert loaded.guide.num_rows == 40
    assert torch.equal(loaded.guide.table, fit.guide.table)


def test_a_stream_has_every_row_found_afresh(linear):
    loader = torch.utils.data.DataLoader(linear.x, batch_size=10)
    fit = lvm.fit(linear.model, loader, guide="local", max_epochs=1, **STILL)
    torch.testing.assert_close(fit.transform(linear.x), linear.posterior(linear.x)[0], atol=1e-5, rtol=0)


def test_the_command_line_takes_it(tmp_path):
    from typer.testing import CliRunner

    from pyro_lvm.cli import app

    data = ["--data", "digits234", "--set", "latent_dim=2", "--set", "hidden=[8]"]
    arguments = ["fit", "VAE", *data, "--guide", "local", "--max-epochs", "2", "--out", str(tmp_path / "fit")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output


def vectors(x):
    with pyro.plate("data", len(x)):
        pyro.sample("h", dist.Bernoulli(torch.full((3,), 0.5)).to_event(1))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def nothing_of_rows(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def test_refuses():
    for model, message in ((vectors, "site 'h' is neither"), (nothing_of_rows, "plate 'data' of the rows")):
        with pytest.raises(ValueError, match=message):
            lvm.fit(model, BITS[:, 0], guide="local", progress=False)
    for options, message in (({"num_steps": 0}, "num_steps"), ({"step_size": 1.5}, r"step_size in \(0, 1\]")):
        with pytest.raises(ValueError, match=message):
            lvm.guides.LocalGaussian(level, **options)
    fit = lvm.fit(level, BITS[:, 0], guide="local", max_epochs=1, progress=False)
    with pytest.raises(ValueError, match="expected the 40 rows whose laws it holds; got a data set of 30"):
        fit.resume(BITS[:30, 0], max_epochs=1, progress=False)
    with pytest.raises(ValueError, match="Pass total="):
        lvm.handlers.rows(torch.arange(3))


def test_it_starts_where_rows_of_heavy_tailed_priors_are() -> None:
    """Cauchy's law has no moments: a few of its draws are far from any row."""

    def tails(x):
        with pyro.plate("data", len(x)):
            h = pyro.sample("h", dist.Cauchy(x.new_full((len(x),), 3.0), 1.0))
            pyro.sample("x", dist.Normal(h, 1.0), obs=x)

    torch.manual_seed(0)
    guide = lvm.guides.LocalGaussian(tails, num_rows=500)
    guide(torch.zeros(500))
    assert abs(float(guide.start[0]) - 3) < 1
    assert 1 < float(guide.start[1].exp()) < 6
