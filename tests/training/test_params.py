"""What a fit learned, by the names in the model, whatever found it."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import pyro_lvm as lvm

GUIDES = {"em": "map", "coordinate-ascent": "conjugate", "svi": "normal"}
NAMES = ["covariance", "loc", "weights"]


def bayesian(faithful, inference, **options):
    guide = GUIDES.get(inference) if isinstance(inference, str) else None
    return lvm.fit(
        lvm.models.GaussianMixture(2, priors=True), faithful, guide, inference, seed=0, progress=False, **options
    )


@pytest.mark.parametrize("inference", GUIDES)
def test_names_are_the_models(faithful, inference):
    fit = bayesian(faithful, inference, max_epochs=300)
    point = lvm.fit(lvm.models.GaussianMixture(2), faithful, seed=0, progress=False)
    assert sorted(fit.params) == sorted(point.params) == NAMES
    assert {name: value.shape for name, value in fit.params.items()} == {n: v.shape for n, v in point.params.items()}
    centres = [each.params["loc"][each.params["loc"][:, 0].argsort()] for each in (fit, point)]
    torch.testing.assert_close(*centres, atol=0.5, rtol=0.02)
    assert not any(value.requires_grad for value in fit.params.values())
    assert not set(fit.parameters()) & set(NAMES)


def test_map_gives_its_point(faithful):
    fit = bayesian(faithful, "em")
    for name, value in fit.params.items():
        assert torch.equal(value, fit.parameters()[f"MAP.{name}"].value.detach())


def test_coordinate_ascent_gives_exact_means(faithful):
    fit = bayesian(faithful, "coordinate-ascent")
    torch.testing.assert_close(fit.params["loc"], fit.guide.loc__loc)
    concentration = fit.guide.weights__concentration
    torch.testing.assert_close(fit.params["weights"], concentration / concentration.sum())
    for name, values in fit.draws.items():
        error = values[0].std(0) / values.shape[1] ** 0.5
        assert ((values[0].mean(0) - fit.params[name]).abs() < 4.5 * error).all()


@pytest.mark.parametrize("inference", ["svi", lvm.infer.MCMC(num_samples=5, warmup_steps=5, max_tree_depth=3)])
def test_others_give_means_of_draws(faithful, inference):
    fit = bayesian(faithful, inference, max_epochs=50)
    assert sorted(fit.params) == NAMES
    for name, value in fit.params.items():
        torch.testing.assert_close(value, fit.draws[name].mean((0, 1)))


def test_parameters_of_the_model_and_sites_that_all_rows_share_but_not_those_of_rows():
    def model(x):
        spread = pyro.param("spread", torch.tensor(1.0), constraint=dist.constraints.positive)
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Normal(loc, spread))
            pyro.sample("x", dist.Normal(y, 0.5), obs=x)

    x = 3 + torch.randn(50)
    fit = lvm.fit(model, x, guide=AutoNormal, max_epochs=50, seed=0, progress=False)
    inside = {name: parameter.value.detach() for name, parameter in fit.parameters().items()}
    assert sorted(fit.params) == ["loc", "spread"]
    error = float(inside["AutoNormal.scales.loc"]) / 500**0.5
    assert float(fit.params["loc"]) == pytest.approx(float(inside["AutoNormal.locs.loc"]), abs=4 * error)
    assert "AutoNormal.locs.y" in inside


def test_a_guide_of_ones_own_is_known_by_the_sites():
    def model(x):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x):
        shape = pyro.param("shape", torch.tensor(20.0), constraint=dist.constraints.positive)
        pyro.sample("rate", dist.Gamma(shape, shape / 3))

    x = torch.poisson(torch.full((30,), 3.0))
    fit = lvm.fit(model, x, guide=guide, inference="svi", max_epochs=50, seed=0, progress=False)
    assert list(fit.params) == ["rate"]
    assert list(fit.parameters()) == ["shape"]


def test_saved_and_loaded(faithful, tmp_path):
    for inference in GUIDES:
        fit = bayesian(faithful, inference, max_epochs=20)
        fit.save(tmp_path / inference)
        again = lvm.load(tmp_path / inference)
        for name, value in fit.params.items():
            assert torch.equal(value, again.params[name])
        if inference == "em":
            again.resume(faithful, max_epochs=20, progress=False)
            assert not torch.equal(fit.params["loc"], again.params["loc"])
