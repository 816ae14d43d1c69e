"""Least squares inside of EM against numpy, against EM written by hand, and against gradients."""

import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import constraints

import pyro_lvm as lvm
from pyro_lvm.infer import regression
from pyro_lvm.testing import laws

pytestmark = pytest.mark.usefixtures("local")
HALF = torch.tensor([0.5, 0.5], dtype=torch.float64)
positive = constraints.positive


def param(name, *shape, start=None, constraint=constraints.real):
    """A parameter in float64 that starts at a pattern without symmetries."""
    steps = torch.arange(1.0, 1.0 + np.prod(shape, dtype=int), dtype=torch.float64)
    value = (steps * 0.618034).frac().sub(0.5).reshape(shape) if start is None else torch.full(shape, start)
    return pyro.param(name, value.double(), constraint=constraint)


def component(n):
    return pyro.plate("data", n), lambda: pyro.sample("z", dist.Categorical(HALF), infer={"enumerate": "parallel"})


def normal(loc, scale, obs, name="x"):
    return pyro.sample(name, dist.Normal(loc, scale), obs=obs)


def lines(x, t):
    beta, intercept = param("beta", 2, t.shape[1]), param("intercept", 2)
    scale = param("scale", 2, start=1.5, constraint=positive)
    plate, latent = component(len(x))
    with plate:
        z = latent()
        normal((t * beta[z]).sum(-1) + intercept[z], scale[z], x)


def shared_slope(x, t):
    beta, intercept = param("beta", t.shape[1]), param("intercept", 2)
    scale = param("scale", start=1.5, constraint=positive)
    plate, latent = component(len(x))
    with plate:
        z = latent()
        normal(t @ beta + intercept[z], scale, x)


def stacked(x, t):
    """A component without covariates, one with a line, by separate parameters."""
    low, high, slope = param("low", start=-1.0), param("high", start=1.0), param("slope", start=0.3)
    scale = param("scale", 2, start=1.5, constraint=positive)
    plate, latent = component(len(x))
    with plate:
        z = latent()
        means = torch.stack([low.expand(len(x)), high + slope * t[:, 0]])
        normal(means[z, torch.arange(len(x))], scale[z], x)


def by_group(x, t):
    """A slope for every component and group, and an offset that is not learned."""
    group = (t[:, 1] > 0).long() + (t[:, 1] > 1).long()
    slope, scale = param("slope", 2, 3), param("scale", 2, start=1.5, constraint=positive)
    plate, latent = component(len(x))
    with plate:
        z = latent()
        normal(slope[z, group] * t[:, 0] + 0.25, scale[z], x)


def outputs(x, t):
    """Two outputs of one row, with a scale each."""
    both = torch.stack([x, x + t[:, 0] ** 2], -1)
    weight, intercept = param("weight", 2, 2, t.shape[1]), param("intercept", 2, 2)
    scale = param("scale", 2, 2, start=1.5, constraint=positive)
    plate, latent = component(len(x))
    with plate:
        z = latent()
        loc = (weight[z] @ t.unsqueeze(-1)).squeeze(-1) + intercept[z]
        pyro.sample("x", dist.Normal(loc, scale[z]).to_event(1), obs=both)


def heteroscedastic(x, t):
    beta, factor = param("beta", 2, t.shape[1]), 0.5 + t[:, 0].abs()
    plate, latent = component(len(x))
    with plate:
        z = latent()
        normal((t * beta[z]).sum(-1), factor, x)


def two_sites(x, t):
    """One slope in two sites, and a plain location in a third that shares the intercept."""
    slope, intercept = param("slope", 2), param("intercept", 2)
    scale = param("scale", 2, start=1.5, constraint=positive)
    plate, latent = component(len(x))
    with plate:
        z = latent()
        normal(slope[z] * t[:, 0] + intercept[z], scale[z], x)
        normal(slope[z] * t[:, 1] + intercept[z], 2.0, x + t[:, 1], "y")
        normal(intercept[z], 1.0, t[:, 2], "w")


def masked(x, t):
    with poutine.mask(mask=t[:, 1] > -0.5):
        lines(x, t)


def weighted(x, t):
    with poutine.scale(scale=t[:, 2].abs() + 0.1):
        lines(x, t)


def autoregression(x, t):
    """A switching autoregression by pyro.markov."""
    slope, intercept = param("slope", 2), param("intercept", 2)
    scale = param("scale", 2, start=1.5, constraint=positive)
    transition = torch.tensor([[0.8, 0.2], [0.3, 0.7]]).double()
    x = x.reshape(-1, 5)
    with pyro.plate("sequences", len(x)):
        z = None
        for i in pyro.markov(range(x.shape[1])):
            law = HALF if z is None else transition[z]
            z = pyro.sample(f"z_{i}", dist.Categorical(law), infer={"enumerate": "parallel"})
            loc = intercept[z] + slope[z] * x[:, i - 1] if i else intercept[z]
            normal(loc, scale[z], x[:, i], f"x_{i}")


def no_latent(x, t):
    beta, intercept = param("beta", t.shape[1]), param("intercept")
    scale = param("scale", start=1.5, constraint=positive)
    with pyro.plate("data", len(x)):
        normal(t @ beta + intercept, scale, x)


def linear_module(x, t):
    network = pyro.module("network", NETWORK)
    scale = param("scale", 2, start=1.5, constraint=positive)
    plate, latent = component(len(x))
    with plate:
        z = latent()
        normal(network(t).T[z, torch.arange(len(x))], scale[z], x)


with torch.random.fork_rng():
    NETWORK = torch.nn.Linear(3, 2).double()


def two_factors(x, t):
    """Effects of two discrete sites add up, which determines them up to a constant."""
    first, second, slope = param("first", 2), param("second", 3), param("slope")
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Categorical(HALF), infer={"enumerate": "parallel"})
        b = pyro.sample("b", dist.Categorical(torch.ones(3).double()), infer={"enumerate": "parallel"})
        normal(first[a] + second[b] + slope * t[:, 0], 0.5, x)


def plate_of_outputs(x, t):
    """Outputs are a plate: each has coefficients of its own, so it is none of rows."""
    both = torch.stack([x, x + t[:, 0] ** 2], -1)
    weight, scale = param("weight", 2, 3), param("scale", 2, start=1.5, constraint=positive)
    with pyro.plate("outputs", 2, dim=-1), pyro.plate("data", len(x), dim=-2):
        normal(t @ weight.T, scale, both)


PROGRAMS = (
    lines,
    shared_slope,
    stacked,
    by_group,
    outputs,
    heteroscedastic,
    two_sites,
    masked,
    weighted,
    autoregression,
    no_latent,
    linear_module,
    two_factors,
    plate_of_outputs,
)


@pytest.fixture
def data():
    """Two lines in three covariates."""
    t = torch.randn(120, 3).double()
    z = torch.rand(120) < 0.4
    beta = torch.where(z.unsqueeze(-1), torch.tensor([2.0, -1.0, 0.5]), torch.tensor([-1.0, 0.5, 0.0]))
    return (t * beta).sum(-1) + 1.0 + 0.4 * torch.randn(120).double(), t


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_every_program_has_a_closed_form_that_gradients_cannot_better(program, data):
    with pyro.get_param_store().scope():
        plan = lvm.infer.EM(program).plan(*data)
    assert not plan.gradient, str(plan)
    assert "least squares" in str(plan)
    laws.closed_form_is_stationary(program, *data)
    laws.em_never_falls(program, *data)


def test_one_component_equals_lstsq(data):
    x, t = data
    em = lvm.infer.EM(no_latent)
    assert "beta       (3,)   closed form  it is a coefficient of x.loc (least squares)" in str(em.plan(x, t))
    em.step(x, t)
    design = np.c_[t.numpy(), np.ones(len(x))]
    expected, (squares,), *_ = np.linalg.lstsq(design, x.numpy())
    store = pyro.get_param_store()
    np.testing.assert_allclose(store["beta"].detach().numpy(), expected[:3], rtol=1e-12)
    np.testing.assert_allclose(store["intercept"].item(), expected[3], rtol=1e-12)
    np.testing.assert_allclose(store["scale"].item() ** 2, squares / len(x), rtol=1e-12)


def test_a_covariate_far_from_zero_settles_at_lstsq(data):
    """Years: the normal equations lose digits, which the next steps win back."""
    x, t = data
    t = t + torch.tensor([2000.0, 0.0, 0.0])
    em = lvm.infer.EM(no_latent)
    for _ in range(3):
        em.step(x, t)
    expected, *_ = np.linalg.lstsq(np.c_[t.numpy(), np.ones(len(x))], x.numpy())
    np.testing.assert_allclose(pyro.param("beta").detach().numpy(), expected[:3], rtol=1e-9)


def by_hand(x, t, beta, intercept, scale, steps):
    design = np.c_[t.numpy(), np.ones(len(x))]
    coefficients, x, losses = np.c_[beta, intercept], x.numpy(), []
    for _ in range(steps):
        log_joint = np.log(0.5) - 0.5 * ((x[:, None] - design @ coefficients.T) / scale) ** 2
        log_joint = log_joint - np.log(scale) - 0.5 * np.log(2 * np.pi)
        log_rows = np.logaddexp.reduce(log_joint, 1)
        losses.append(-log_rows.sum())
        weights = np.exp(log_joint - log_rows[:, None])
        for k, w in enumerate(weights.T):
            coefficients[k] = np.linalg.solve((design.T * w) @ design, (design.T * w) @ x)
            scale[k] = np.sqrt(w @ (x - design @ coefficients[k]) ** 2 / w.sum())
    return coefficients, scale, losses


def test_a_mixture_of_regressions_equals_em_written_by_hand(data):
    em = lvm.infer.EM(lines)
    em.loss(*data)
    store = pyro.get_param_store()
    start = [store[name].detach().numpy().copy() for name in ("beta", "intercept", "scale")]
    losses = [em.step(*data) for _ in range(30)]
    coefficients, scale, expected = by_hand(*data, *start, 30)
    np.testing.assert_allclose(losses, expected, rtol=1e-9)
    np.testing.assert_allclose(store["beta"].detach().numpy(), coefficients[:, :3], rtol=1e-9)
    np.testing.assert_allclose(store["intercept"].detach().numpy(), coefficients[:, 3], rtol=1e-9)
    np.testing.assert_allclose(store["scale"].detach().numpy(), scale, rtol=1e-9)


def test_collinear_columns_give_the_same_fit(data):
    x, t = data
    doubled = torch.cat([t, t[:, :1] + t[:, 1:2]], 1)
    losses = []
    for covariates in (t, doubled):
        with pyro.get_param_store().scope():
            em = lvm.infer.EM(no_latent)
            for _ in range(2):
                em.step(x, covariates)
            losses.append(em.loss(x, covariates))
            assert pyro.param("beta").detach().abs().max() < 10
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    laws.em_never_falls(lines, x, doubled)


def test_integer_covariates(data):
    x, t = data
    whole = t.mul(2).round().long()
    fits = []
    for covariates in (whole, whole.double()):
        with pyro.get_param_store().scope():
            em = lvm.infer.EM(lines)
            assert not em.plan(x, covariates).gradient
            fits.append([em.step(x, covariates) for _ in range(5)])
    assert fits[0] == pytest.approx(fits[1], rel=1e-12)


def test_masked_rows_count_for_nothing(data):
    x, t = data
    known = t[:, 1] > -0.5
    results = []
    for program, rows in ((masked, slice(None)), (lines, known)):
        with pyro.get_param_store().scope():
            em = lvm.infer.EM(program)
            losses = [em.step(x[rows], t[rows]) for _ in range(5)]
            results.append((losses, pyro.param("beta").detach(), pyro.param("scale").detach()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    for a, b in zip(results[0][1:], results[1][1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_groups_that_the_first_rows_do_not_have(data):
    """The plan is made on few rows; sorted, they show one group only."""
    x, t = data
    order = t[:, 1].argsort()
    shuffled, ordered = [], []
    for rows, found in ((slice(None), shuffled), (order, ordered)):
        with pyro.get_param_store().scope():
            em = lvm.infer.EM(by_group)
            found += [em.step(x[rows], t[rows]) for _ in range(5)]
            found += pyro.param("slope").flatten().tolist()
    assert ordered == pytest.approx(shuffled, rel=1e-9)


def test_an_empty_component_keeps_its_coefficients(data):
    x, t = data

    def program(x, t):
        beta = param("beta", 2, 3)
        intercept = pyro.param("intercept", torch.tensor([0.0, 1e6]).double())
        plate, latent = component(len(x))
        with plate:
            z = latent()
            normal((t * beta[z]).sum(-1) + intercept[z], 1.0, x)

    em = lvm.infer.EM(program)
    em.loss(x, t)
    before = pyro.param("beta").detach().clone()
    with pytest.warns(RuntimeWarning, match="'z' has no rows left in state 1"):
        em.step(x, t)
    assert pyro.param("intercept")[1].item() == 1e6
    assert torch.equal(pyro.param("beta")[1], before[1])
    assert not torch.equal(pyro.param("beta")[0], before[0])


def test_zero_is_no_accident(data):
    """At zero the intercept looks like the whole location, which it is not."""
    x, t = data

    def program(x, t):
        slope, intercept = param("slope", 2, start=0.0), pyro.param("intercept", torch.tensor([-1.0, 1.0]).double())
        plate, latent = component(len(x))
        with plate:
            z = latent()
            normal(slope[z] * t[:, 0] + intercept[z], 1.0, x)

    plan = lvm.infer.EM(program).plan(x, t)
    assert {p.name for p in plan if p.regression} == {"slope", "intercept"}
    laws.closed_form_is_stationary(program, x, t)


def test_a_variance_cannot_collapse_on_the_few_rows_that_a_line_meets():
    x = torch.cat([torch.tensor([60.0, 64.0, 70.0]), torch.randn(60)]).double()
    t = torch.cat([torch.tensor([10.0, 12.0, 15.0]), torch.randn(60)]).double()

    def program(x, t):
        slope = pyro.param("slope", torch.tensor([2.0, 0.0]).double())
        intercept = pyro.param("intercept", torch.tensor([40.0, 0.0]).double())
        scale = pyro.param("scale", torch.tensor([1.0, 1.0]).double(), constraint=positive)
        plate, latent = component(len(x))
        with plate:
            z = latent()
            normal(slope[z] * t + intercept[z], scale[z], x)

    em = lvm.infer.EM(program, variance_floor=1e-4)
    losses = [em.step(x, t) for _ in range(60)]
    assert np.isfinite(losses).all()
    assert pyro.param("scale").min().item() == pytest.approx((1e-4 * x.var(correction=0)).sqrt().item(), rel=1e-9)


def test_a_line_through_all_rows_leaves_a_scale_above_zero():
    t = torch.linspace(0, 1, 9).double().unsqueeze(-1)
    for x in (3 * t[:, 0] + 1, torch.ones(9).double()):
        with pyro.get_param_store().scope():
            em = lvm.infer.EM(no_latent)
            losses = [em.step(x, t) for _ in range(3)]
            assert np.isfinite(losses).all()
            assert pyro.param("scale").item() > 0


def test_a_normal_prior_makes_it_ridge_regression(data):
    x, t = data

    def program(x, t):
        beta = pyro.sample("beta", dist.Normal(torch.full((3,), 0.2, dtype=torch.float64), 0.3).to_event(1))
        with pyro.plate("data", len(x)):
            normal(t @ beta, 0.7, x)

    guide = lvm.guides.MAP(program)
    em = lvm.infer.EM(program, guide)
    assert "(least squares), with a Normal prior (beta)" in str(em.plan(x, t))
    before = em.step(x, t)
    gram = t.T @ t / 0.7**2 + torch.eye(3).double() / 0.3**2
    expected = torch.linalg.solve(gram, t.T @ x / 0.7**2 + 0.2 / 0.3**2)
    torch.testing.assert_close(guide.median()["beta"], expected, rtol=1e-12, atol=1e-12)
    assert em.step(x, t) < before


def test_priors_on_a_mixture_of_regressions(data):
    x, t = data

    def program(x, t):
        spread = pyro.param("spread", torch.tensor(1.0).double(), constraint=positive)
        beta = pyro.sample("beta", dist.Normal(torch.zeros(2, 3).double(), spread).to_event(2))
        intercept = pyro.param("intercept", torch.tensor([-1.0, 1.0]).double())
        plate, latent = component(len(x))
        with plate:
            z = latent()
            normal((t * beta[z]).sum(-1) + intercept[z], 0.7, x)

    with pyro.settings.context(module_local_params=False), pyro.get_param_store().scope():
        em = lvm.infer.EM(program, lvm.guides.MAP(program))
        plan = em.plan(x, t)
        assert not plan.gradient, str(plan)
        losses = [em.step(x, t) for _ in range(200)]
        assert all(b <= a + 1e-9 * abs(a) for a, b in itertools.pairwise(losses))
        spread = pyro.param("spread")
        beta = em.guide.median()["beta"]
        assert spread.item() == pytest.approx(beta.square().mean().sqrt().item(), rel=1e-6)


def product(x, t):
    slope, gain = param("slope", 3), param("gain", start=1.0)
    with pyro.plate("data", len(x)):
        normal(gain * (t @ slope), 1.0, x)


def curve(x, t):
    rate, height = param("rate"), param("height")
    with pyro.plate("data", len(x)):
        normal(height + (rate * t[:, 0]).exp(), 1.0, x)


def bent(x, t):
    slope = param("slope", 3)
    with pyro.plate("data", len(x)):
        normal((t @ slope).relu(), 1.0, x)


def constrained(x, t):
    slope = param("slope", start=1.0, constraint=positive)
    with pyro.plate("data", len(x)):
        normal(slope * t[:, 0], 1.0, x)


def seen_by_the_scale(x, t):
    slope = param("slope")
    with pyro.plate("data", len(x)):
        normal(slope * t[:, 0], slope.exp(), x)


def laplace_prior(x, t):
    slope = pyro.sample("slope", dist.Laplace(torch.zeros(3).double(), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        normal(t @ slope, 1.0, x)


REFUSED = {
    product: "x.loc is not linear in slope, gain",
    curve: "x.loc is not linear in",
    bent: "x.loc is not linear in it",
    constrained: "it is constrained",
    seen_by_the_scale: "it is seen by x.variance too",
    laplace_prior: "slope is Laplace, not Normal",
}


@pytest.mark.parametrize("program", REFUSED, ids=lambda p: p.__name__)
def test_what_is_not_linear_gets_gradients_and_a_reason(program, data):
    guide = lvm.guides.MAP(program) if program is laplace_prior else None
    em = lvm.infer.EM(program, guide)
    plan = em.plan(*data)
    assert not plan.regressions
    assert f"and not by least squares: {REFUSED[program]}" in str(plan), str(plan)
    losses = [em.step(*data) for _ in range(5)]
    assert all(b <= a + 1e-9 * abs(a) for a, b in itertools.pairwise(losses))


def test_colours_are_as_few_as_can_be(data):
    expected = {lines: 4, shared_slope: 4, by_group: 3, outputs: 4, plate_of_outputs: 3, two_factors: 3}
    for program, colours in expected.items():
        with pyro.get_param_store().scope():
            (found,) = lvm.infer.EM(program).plan(*data).regressions
            assert [table.shape[1] for table in found.colours.values()] == [colours], program.__name__


def test_too_many_coefficients_get_gradients(data, monkeypatch):
    monkeypatch.setattr(regression, "MOST_COEFFICIENTS", 3)
    assert "takes up to 3 coefficients, here are 4" in str(lvm.infer.EM(no_latent).plan(*data))


def test_minibatches_get_gradients(data):
    em = lvm.infer.EM(lines, decay=0.7)
    plan = em.plan(*data)
    assert {p.name for p in plan.gradient} == {"beta", "intercept", "scale"}
    assert "the parameters of x differ from row to row" in str(plan)
    assert "least squares needs all rows at once (decay=None)" in str(plan)
    fit = lvm.fit(
        lines,
        {"x": data[0], "t": data[1]},
        inference=lvm.infer.EM(decay=0.7),
        batch_size=40,
        max_epochs=20,
        seed=0,
        progress=False,
    )
    best = lvm.fit(lines, {"x": data[0], "t": data[1]}, restarts=5, seed=0, progress=False)
    assert fit.score({"x": data[0], "t": data[1]}) > best.score({"x": data[0], "t": data[1]}) - 0.3


def test_a_wrong_step_is_undone_for_all_coefficients(data, monkeypatch):
    honest = regression.Regression.solve

    def wrong(self, expectation):
        new, moved = honest(self, expectation)
        return {**new, "beta": new["beta"] + 100}, moved

    em = lvm.infer.EM(lines)
    em.step(*data)
    monkeypatch.setattr(regression.Regression, "solve", wrong)
    losses = [em.step(*data)]
    with pytest.warns(RuntimeWarning, match="beta will be updated by gradient"):
        losses.append(em.step(*data))
    assert losses[1] <= losses[0]
    assert {"beta", "intercept"} <= {p.name for p in em.plan(*data).gradient}


def test_the_law_of_stationarity_sees_a_wrong_slope(data, monkeypatch):
    honest = regression.Regression.solve

    def wrong(self, expectation):
        new, moved = honest(self, expectation)
        return {**new, "beta": 1.001 * new["beta"]}, moved

    monkeypatch.setattr(regression.Regression, "solve", wrong)
    with pytest.raises(AssertionError, match="'beta' has slope"):
        laws.closed_form_is_stationary(lines, *data)


@pytest.mark.parametrize("program", [lines, outputs, two_sites], ids=lambda p: p.__name__)
def test_squarem_reaches_the_same_optimum(program, data):
    found = []
    for acceleration in (None, "squarem"):
        with pyro.get_param_store().scope():
            em = lvm.infer.EM(program, acceleration=acceleration)
            for _ in range(300):
                em.step(*data)
            found.append(em.loss(*data))
    assert found[1] == pytest.approx(found[0], rel=1e-8)


def test_single_precision(data):
    x, t = (tensor.float() for tensor in data)

    def program(x, t):
        beta = pyro.param("beta", torch.tensor([[0.1, 0.4, -0.3], [-0.2, 0.0, 0.5]]))
        scale = pyro.param("scale", torch.ones(2), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(HALF.float()), infer={"enumerate": "parallel"})
            normal((t * beta[z]).sum(-1), scale[z], x)

    laws.em_never_falls(program, x, t)


def test_design_matrices_are_kept_once_for_all_states():
    """Nothing of (states, rows, columns) is formed beyond a block, however large that would be."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out._base is None and out.is_contiguous():
                self.numel = max(self.numel, out.numel())
            return out

    n, d, k = 50_000, 30, 6
    x, t = torch.randn(n).double(), torch.randn(n, d).double()

    def program(x, t):
        beta = param("beta", k, d)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(k).double()), infer={"enumerate": "parallel"})
            normal((beta @ t.T)[z, torch.arange(len(x))], 1.0, x)

    em = lvm.infer.EM(program)
    assert em.plan(x, t).regressions
    with Largest() as seen:
        em.step(x, t)
    assert seen.numel <= max(n * k, n * d)
