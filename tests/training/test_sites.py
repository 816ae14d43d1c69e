"""Programs and their rows: plates of fixed size, axes without a plate, nothing observed, impossible rows."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_lvm as lvm


def two_normals(size):
    def program(x):
        weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=dist.constraints.simplex)
        loc = pyro.param("loc", torch.tensor([2.0, 4.0]))
        with pyro.plate("data", size or len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    return program


@pytest.fixture
def durations(faithful):
    return faithful[:, 0].float()


@pytest.mark.parametrize("rows", [1, 10, 500])
def test_a_plate_of_fixed_size_takes_no_other_rows(durations, rows, tmp_path):
    program = two_normals(272)
    fit = lvm.fit(program, durations, max_epochs=3, progress=False)
    fit.save(tmp_path / "fit")
    other = torch.linspace(1, 5, rows)
    message = (
        rf"plate 'data' has 272 rows whatever the data; got {rows}\. Open it with pyro\.plate\(\"data\", len\(x\)\)"
    )
    for verb in (fit.score, fit.predict, fit.posterior, fit.to_arviz, fit.resume, fit.bic):
        with pytest.raises(ValueError, match=message):
            verb(other)
    for call in (
        lambda: fit.sample(rows),
        lambda: lvm.load(tmp_path / "fit", model=program).score(other),
        lambda: lvm.fit(program, durations, validation=other, progress=False),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert fit.sample(272).shape == (272,)
    assert fit.predict(durations).shape == (272,)


def test_a_plate_of_fixed_size_is_never_cut_into_batches(durations):
    with pytest.raises(
        ValueError, match=r"272 rows whatever the batch; got batch_size=10\. .* or leave batch_size out"
    ):
        lvm.fit(two_normals(272), durations, inference="svi", batch_size=10, progress=False)
    many = torch.linspace(1, 5, 5000)
    fit = lvm.fit(two_normals(5000), many, inference="svi", max_epochs=2, progress=False)
    assert len(fit.history["loss"]) == 2
    for rows in (10, 500):
        with pytest.raises(ValueError, match=rf"site 'x' has {rows} rows in plate 'data' of 272\. Give the plate"):
            lvm.fit(two_normals(272), many[:rows], progress=False)
    assert lvm.fit(two_normals(None), durations, progress=False).score(many[::10]) < 0


def loose(x):
    weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=dist.constraints.simplex)
    z = pyro.sample("z", dist.Categorical(weights.expand(len(x), 2)))
    pyro.sample("x", dist.Normal(torch.tensor([2.0, 4.0])[z], 1.0), obs=x)


def one_for_all(x):
    weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=dist.constraints.simplex)
    z = pyro.sample("z", dist.Categorical(weights))
    pyro.sample("x", dist.Normal(torch.tensor([2.0, 4.0])[z], 1.0), obs=x)


def no_latent(x):
    loc = pyro.param("loc", torch.tensor(2.0))
    pyro.sample("x", dist.Normal(loc, 1.0).expand([len(x)]), obs=x)


@pytest.mark.parametrize("inference", ["em", "svi"])
@pytest.mark.parametrize(("program", "site"), [(loose, "z"), (one_for_all, "x")])
def test_an_axis_without_a_plate(durations, program, site, inference):
    message = (
        rf"site '{site}' has an axis of 272 that stands in no plate\. Put the site in `with pyro\.plate\(\"data\", "
    )
    with pytest.raises(ValueError, match=message):
        lvm.fit(program, durations, inference=inference, progress=False)


def test_what_needs_no_plate(durations):
    with pytest.raises(ValueError, match="site 'x' has an axis of 272 that stands in no plate"):
        lvm.fit(no_latent, durations, progress=False)
    fit = lvm.fit(no_latent, durations, inference="svi", max_epochs=3, progress=False)
    assert len(fit.history["loss"]) == 3

    def whole(x):
        with poutine.mask(mask=torch.tensor(True)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])))
            loc = torch.tensor([2.0, 4.0])[z].unsqueeze(-1)
            pyro.sample("x", dist.Normal(loc, 1.0).expand([*z.shape, len(x)]).to_event(1), obs=x)

    assert lvm.fit(whole, durations, progress=False).predict(durations).shape == ()


def latent_only(x):
    with pyro.plate("data", len(x)):
        pyro.deterministic("y", pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5]))))


@pytest.mark.parametrize("inference", [None, "em", "svi", "mcmc"])
@pytest.mark.parametrize("program", [lambda x: None, latent_only])
def test_a_model_that_observes_nothing(durations, program, inference):
    with pytest.raises(ValueError, match=r"fit: the model observes nothing\. Add pyro\.sample\(\.\.\., obs=x\)\."):
        lvm.fit(program, durations, inference=inference, progress=False)


def boxes(x):
    weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=dist.constraints.simplex)
    low = torch.tensor([0.0, 5.0])
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Uniform(low[z], low[z] + 2, validate_args=False), obs=x)


def test_rows_of_probability_zero_have_no_posterior():
    fit = lvm.fit(boxes, torch.tensor([0.5, 1.5, 5.5]), progress=False)
    rows = torch.tensor([0.5, 3.0, 5.5, 9.0])
    assert fit.log_likelihood(rows).isinf().tolist() == [False, True, False, True]
    for verb in (fit.posterior, fit.predict, fit.predict_proba):
        with pytest.raises(
            ValueError, match=r"got 1 of probability zero \(row 1\), .* Drop them, or check their values"
        ):
            verb(rows[:3])
        with pytest.raises(ValueError, match=r"got 3 of probability zero \(rows 0, 1, \.\.\.\)"):
            verb(rows[[1, 3, 1]])


def test_a_model_without_parameters(durations):
    def program(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])))
            pyro.sample("x", dist.Normal(2.0 + 2 * z, 1.0), obs=x)

    fit = lvm.fit(program, durations, progress=False)
    assert fit.params == {}
    data = fit.to_arviz(durations)
    assert data.sample_stats["row_log_likelihood"].shape == (1, 1, 272)
    assert data.attrs["inference_library"] == "pyro_lvm"
    assert fit.to_arviz().attrs["kind"] == "one point"
    assert fit.aic(durations) == pytest.approx(-2 * fit.score(durations) * 272)
