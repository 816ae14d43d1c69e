"""Programs on which an independent tester once found wrong numbers without a word."""

from contextlib import nullcontext

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch.distributions import constraints

import pyro_lvm as lvm


@pytest.fixture(autouse=True)
def _own_store():
    with pyro.get_param_store().scope():
        yield


def enumerated(model, *args):
    return TraceEnum_ELBO(max_plate_nesting=1).loss(config_enumerate(model), lambda *args: None, *args)


def test_rows_of_a_batch_are_not_averaged_with_other_rows():
    g = torch.randint(3, (600,))
    x = torch.poisson(torch.tensor([1.0, 10.0, 50.0])[g])

    def model(x, g):
        r = pyro.param("r", torch.full((3,), 5.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(r[g]), obs=x)

    em = lvm.infer.EM(decay=0.7)
    fit = lvm.fit(model, {"x": x, "g": g}, inference=em, batch_size=50, max_epochs=50, progress=False, seed=0)
    means = torch.stack([x[g == k].mean() for k in range(3)])
    torch.testing.assert_close(fit.params["r"], means, rtol=0.1, atol=0.1)


def test_a_parameter_that_only_later_rows_use_is_learned():
    g = torch.cat([torch.zeros(300), torch.ones(300)]).double()
    x = torch.poisson(torch.tensor([2.0, 12.0]).double()[torch.randint(2, (600,))] * torch.exp(0.7 * g))

    def model(x, g):
        r = pyro.param("r", torch.tensor([3.0, 8.0]).double(), constraint=constraints.positive)
        beta = pyro.param("beta", torch.tensor(0.0).double())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(x.new_ones(2) / 2), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Poisson(r[z] * torch.exp(beta * g)), obs=x)

    fit = lvm.fit(model, {"x": x, "g": g}, inference="em", progress=False, max_epochs=60)
    assert fit.params["beta"] == pytest.approx(0.7, abs=0.1)


def test_a_selection_by_an_argument_is_found_anew():
    def model(x, subject):
        r = pyro.param("r", torch.ones(3), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(r[subject]), obs=x)

    em = lvm.infer.EM(model)
    for i in range(3):
        em.step(torch.full((5,), 10.0 * (i + 1)), i)
    assert pyro.param("r").tolist() == pytest.approx([10.0, 20.0, 30.0], rel=1e-6)


def test_a_factor_that_is_a_statistic_of_the_data():
    x = torch.cat([torch.randn(50) * 3, torch.randn(350)]).double()

    def model(x):
        v = pyro.param("v", torch.tensor(1e-3).double(), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, (v * x.var()).sqrt()), obs=x)

    fit = lvm.fit(model, x, inference="em", progress=False)
    assert fit.params["v"].item() == pytest.approx((x.square().mean() / x.var()).item(), rel=1e-6)


def test_annealing_through_fit_ends_at_temperature_one():
    x = lvm.datasets.load("faithful").x.double()
    em = lvm.infer.EM(annealing=(0.1, 0.2, 0.4, 0.8))
    fit = lvm.fit(lvm.models.GaussianMixture(2), x, inference=em, seed=0, progress=False)
    assert fit.log_likelihood(x).sum().item() == pytest.approx(-1130.264, abs=1e-3)


def test_the_scale_of_a_prior_counts():
    x = torch.poisson(torch.tensor([2.0, 9.0])[torch.randint(2, (40,))]).double()

    def model(x, scale):
        with poutine.scale(scale=scale):
            r = pyro.sample("r", dist.Gamma(x.new_full((2,), 50.0), x.new_tensor(10.0)).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(x.new_tensor([0.4, 0.6])), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Poisson(r[z]), obs=x)

    for scale in (1.0, 0.1):
        data = {"x": x, "scale": scale}
        fit = lvm.fit(model, data, inference="em", restarts=2, seed=0, progress=False, max_epochs=2000)
        mode = fit.draws["r"][0, 0].clone().requires_grad_()
        joint = enumerated(poutine.condition(model, {"r": mode}), x, scale)
        with torch.enable_grad():
            elbo = TraceEnum_ELBO(max_plate_nesting=1)
            loss = elbo.differentiable_loss(
                config_enumerate(poutine.condition(model, {"r": mode})), lambda *args: None, x, scale
            )
            (slope,) = torch.autograd.grad(loss, mode)
        assert joint == pytest.approx(fit.history["loss"][-1], rel=1e-6)
        assert slope.abs().max() < 1e-3


def test_coordinate_ascent_refuses_several_trials():
    def model(c):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("data", 2):
            pyro.sample("c", dist.Multinomial(total_count=6, probs=p), obs=c)

    ascent = lvm.infer.CoordinateAscent(model, lvm.guides.Conjugate(model))
    with pytest.raises(ValueError, match="no conjugate update"):
        ascent.step(torch.tensor([[2.0, 1.0, 3.0], [2.0, 1.0, 3.0]]))


def test_a_binomial_latent_site():
    x = torch.cat([torch.randn(60), torch.randn(60) * 0.6 + 4]).double()

    def model(x):
        p = pyro.param("p", torch.tensor(0.3).double(), constraint=constraints.unit_interval)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Binomial(3, p), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(x.new_tensor([0.0, 1.0, 3.0, 4.0])[z.long()], 1.0), obs=x)

    assert lvm.infer.EM(model).loss(x) == pytest.approx(enumerated(model, x), rel=1e-10)


@pytest.mark.parametrize("correlation", [0.99, 0.9999, 0.99999])
def test_single_precision_of_correlated_columns(correlation):
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(5000, 2, generator=generator)
    x = torch.stack([u[:, 0], correlation * u[:, 0] + (1 - correlation**2) ** 0.5 * u[:, 1]], -1)
    covariance = torch.tensor([[1.0, correlation], [correlation, 1.0]])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(x.new_ones(2) / 2), infer={"enumerate": "parallel"})
            loc = x.new_tensor([[0.0, 0.0], [0.1, 0.1]])[z]
            pyro.sample("x", dist.MultivariateNormal(loc, covariance_matrix=covariance.to(x)), obs=x)

    exact = lvm.infer.EM(model).loss(x.double())
    plain = abs(enumerated(model, x) - exact)
    assert abs(lvm.infer.EM(model).loss(x) - exact) < max(2 * plain, 1e-6 * abs(exact))


def test_a_base_measure_that_depends_on_an_argument():
    def model(x, n):
        p = pyro.param("p", torch.tensor([0.3, 0.8]).double(), constraint=constraints.unit_interval)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(x.new_ones(2) / 2), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Binomial(n, p[z]), obs=x)

    x, em = torch.randint(0, 5, (30,)).double(), lvm.infer.EM(model)
    for n in (5.0, 10.0):
        total = torch.tensor(n).double()
        assert em.loss(x, total) == pytest.approx(enumerated(model, x, total), rel=1e-10)


def test_posteriors_do_not_carry_the_scale():
    def model(x):
        with pyro.plate("data", len(x)), poutine.scale(scale=x.new_tensor([1.0, 2.0, 3.0, 0.5])):
            z = pyro.sample("z", dist.Categorical(x.new_ones(2) / 2), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(x.new_tensor([0.0, 1.0])[z], 1.0), obs=x)

    posterior = lvm.infer.EM(model).posterior(torch.randn(4).double())["z"]
    torch.testing.assert_close(posterior.sum(-1), torch.ones(4).double())


def test_known_labels_and_one_component_under_coordinate_ascent():
    z = torch.arange(200) % 2
    x = z[:, None] * 4.0 + torch.randn(200, 2)
    labels = torch.where(torch.arange(200) < 20, z, -1)
    model = lvm.models.GaussianMixture(2, priors=True)
    fit = lvm.fit(model, {"x": x, "z": labels}, inference="coordinate-ascent", seed=0, progress=False)
    assert (fit.predict(x) == z).double().mean() > 0.95


def test_columns_of_a_table_are_found_by_name():
    x = pd.DataFrame(torch.randn(100, 3).numpy() * [1.0, 10.0, 100.0], columns=list("abc"))
    fit = lvm.fit(lvm.models.GaussianMixture(2), x, seed=0, progress=False)
    assert fit.score(x[["c", "a", "b"]]) == pytest.approx(fit.score(x), rel=1e-12)
    with pytest.raises(ValueError, match="expected columns a, b, c; got a, b, u"):
        fit.score(x.rename(columns={"c": "u"}))


def test_values_outside_of_the_support_are_named():
    def model(x):
        r = pyro.param("r", torch.tensor([1.0, 3.0]), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Exponential(r[z]), obs=x)

    x = torch.rand(1000)
    x[7] = -3.0
    with pytest.raises(ValueError, match=r"site 'x' \(Exponential\).*got -3 at \(7,\)"):
        lvm.infer.EM(model).step(x)


def test_a_plan_leaves_no_parameters_behind():
    def model(x):
        r = pyro.param("r", torch.tensor([1.0, 3.0]), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Exponential(r[z]), obs=x)

    lvm.infer.EM(model).plan(torch.rand(20))
    assert list(pyro.get_param_store()) == []


def products(x, y, zeros):
    """Locations a and abc: what multiplies c is zero at the start."""
    a = pyro.param("a", lambda: x.new_tensor(0.0))
    b = pyro.param("b", lambda: x.new_tensor(0.0 if zeros > 1 else 1.0))
    c = pyro.param("c", lambda: x.new_tensor(2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(a, 1.0), obs=y)
        pyro.sample("x", dist.Normal(a * b * c + b, 1.0), obs=x)


@pytest.mark.parametrize("zeros", [1, 2])
def test_a_parameter_behind_a_factor_of_zero_is_seen(zeros):
    x, y = torch.tensor([3.0, 5.0, 7.0]).double(), torch.tensor([1.0, 2.0, 3.0]).double()
    em = lvm.infer.EM(products)
    plan = em.plan(x, y, zeros)
    assert all("x" in entry.sites for entry in plan)
    for _ in range(50):
        em.step(x, y, zeros)
    a, b, c = (pyro.param(name).item() for name in "abc")
    assert a == pytest.approx(2.0, rel=1e-3)
    assert a * b * c + b == pytest.approx(5.0, rel=1e-3)


def test_parameters_that_are_joined_and_taken_apart_do_not_depend_on_each_other():
    def pairs(x):
        first = pyro.param("first", lambda: x.new_tensor([1.0, 4.0]), constraint=dist.constraints.positive)
        second = pyro.param("second", lambda: x.new_tensor([2.0, 3.0]), constraint=dist.constraints.positive)
        one, two = torch.stack([first, second * second], -1).unbind(-1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(x.new_ones(2)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Poisson(one[z]), obs=x)
            pyro.sample("y", dist.Poisson(two[z].detach() + 1), obs=x)

    plan = lvm.infer.EM(pairs).plan(torch.tensor([1.0, 5.0, 2.0]).double())
    assert plan.parameters["first"].closed
    assert not plan.parameters["second"].sites


def half_masked(x, known, inner):
    weights = pyro.param("weights", lambda: x.new_tensor([0.3, 0.7]), constraint=constraints.simplex)
    loc = pyro.param("loc", lambda: x.new_tensor([0.0, 1.0]))
    prior = dist.Categorical(weights)
    with pyro.plate("data", len(x)):
        with poutine.mask(mask=known & True if inner in ("site", "both") else torch.tensor(True)):
            z = pyro.sample("z", prior.mask(known) if inner == "law" else prior, infer={"enumerate": "parallel"})
        with poutine.mask(mask=known if inner == "both" else torch.tensor(True)):
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def test_a_mask_around_a_discrete_site_alone_is_refused():
    x, known = torch.tensor([0.3, -1.0, 2.0, 4.0]).double(), torch.tensor([True, False, True, False])
    with pytest.raises(ValueError, match="expected site 'x', which depends on 'z', to be masked wherever 'z' is"):
        lvm.infer.EM(half_masked).step(x, known, "site")
    assert lvm.infer.EM(half_masked).step(x, torch.ones(4, dtype=torch.bool), "site") > 0


@pytest.mark.parametrize("inner", ["law", "both"])
def test_masks_around_a_mixture_against_brute_force(inner):
    """A masked law weighs all states alike; rows that are masked too are not there."""
    x, known = torch.tensor([0.3, -1.0, 2.0, 4.0]).double(), torch.tensor([True, False, True, False])
    weights, loc = x.new_tensor([0.3, 0.7]), x.new_tensor([0.0, 1.0])
    counted = known.unsqueeze(-1).double()
    likelihood = dist.Normal(loc, 1.0).log_prob(x.unsqueeze(-1))
    em = lvm.infer.EM(half_masked)
    if inner == "law":
        joint, present = counted * weights.log() + likelihood, torch.ones(4, 1).double()
    else:
        joint, present = weights.log() + counted * likelihood, counted
    assert em.loss(x, known, inner) == pytest.approx(-float(joint.logsumexp(-1).sum()), rel=1e-10)
    posterior = joint.softmax(-1)
    expected = (present * posterior * x.unsqueeze(-1)).sum(0) / (present * posterior).sum(0)
    em.step(x, known, inner)
    torch.testing.assert_close(pyro.param("loc").detach(), expected, rtol=1e-10, atol=0.0)
    share = (counted * posterior).sum(0) / counted.sum()
    torch.testing.assert_close(pyro.param("weights").detach(), share, rtol=1e-10, atol=0.0)


def two_points(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


@pytest.mark.parametrize("kind", [AutoDelta, AutoNormal])
def test_em_takes_a_guide_of_points_and_no_other(kind):
    x, hidden = torch.tensor([0.3, -1.0, 2.0, 4.0]), poutine.block(two_points, hide=["z"])
    refusal = pytest.raises(ValueError, match="EM: expected a guide of points; got one that draws site 'loc_uncons")
    with nullcontext() if kind is AutoDelta else refusal:
        lvm.fit(two_points, x, kind(hidden), "em", max_epochs=2, seed=0, progress=False)
    with nullcontext() if kind is AutoDelta else refusal:
        lvm.infer.EM(two_points, kind(hidden)).step(x)


def test_coordinate_ascent_takes_no_autoguide():
    x, model = (
        torch.randn(20, 2, generator=torch.Generator().manual_seed(0)),
        lvm.models.GaussianMixture(2, priors=True),
    )
    guide = AutoNormal(poutine.block(model, hide=["z"]))
    with pytest.raises(ValueError, match=r"expected a model and a lvm\.guides\.Conjugate; got guide AutoNormal"):
        lvm.fit(model, x, guide, "coordinate-ascent", seed=0, progress=False)
