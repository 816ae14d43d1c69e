"""Variants of EM: stepwise, annealed, accelerated, by one's own optimizer or M-step, MAP, and k-means++ starts."""

import functools
import itertools
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import pyro_lvm as lvm
from pyro_lvm.infer.enumeration import expect
from pyro_lvm.testing import laws

START = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)


def counts(x, own=None):
    weights = pyro.param("weights", lambda: x.new_ones(3) / 3, constraint=constraints.simplex)
    rate = pyro.param("rate", lambda: START.to(x), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Poisson(rate[z]), obs=x, infer={} if own is None else {"m_step": own})


@pytest.fixture
def x():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rate = torch.tensor([0.5, 5.0, 15.0], dtype=torch.float64)
        return torch.poisson(rate[torch.randint(3, (3000,))])


@pytest.fixture(autouse=True)
def _own_store():
    with pyro.get_param_store().scope():
        yield


def full_batch(x, steps=200):
    with pyro.get_param_store().scope():
        em = lvm.infer.EM(counts)
        return min(em.step(x) for _ in range(steps))


def test_stepwise_em_finds_what_full_batches_find(x):
    em = lvm.infer.EM(counts, decay=0.7)
    assert not em.full_batch
    for epoch in range(4):
        for batch in x[torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))].split(150):
            em.step(batch)
    best = full_batch(x)
    assert best <= em.loss(x) < best * 1.0005


def test_stepwise_em_on_all_rows_is_em(x):
    """The first step has weight one, whatever the decay."""
    em = lvm.infer.EM(counts, decay=0.7)
    em.step(x)
    stepwise = pyro.param("rate").detach().clone()
    with pyro.get_param_store().scope():
        lvm.infer.EM(counts).step(x)
        torch.testing.assert_close(stepwise, pyro.param("rate").detach(), rtol=1e-12, atol=0.0)


def test_averages_are_those_of_the_paper(x):
    em = lvm.infer.EM(counts, decay=0.6)
    averages = None
    for t, batch in enumerate(x.split(500)):
        factors = expect(counts, 1, (batch,), {}).factors
        weights = factors["x"].weights
        sums = torch.stack([weights.sum(-1), weights @ batch])
        rate = 1.0 if t == 0 else (t + 1) ** -0.6
        averages = sums if averages is None else (1 - rate) * averages + rate * sums
        em.step(batch)
        torch.testing.assert_close(pyro.param("rate").detach(), averages[1] / averages[0], rtol=1e-10, atol=0.0)


def test_stepwise_em_resumes_exactly(x, tmp_path):
    laws.resume_is_exact(
        lambda: lvm.models.GaussianMixture(2, covariance="diag"),
        lvm.datasets.load("faithful").x.double(),
        tmp_path / "fit",
        epochs=2,
        inference=lvm.infer.EM(decay=0.7),
        batch_size=50,
    )


@pytest.mark.parametrize("kind", ["lognormal", "gamma", "exponential", "normal"])
def test_stepwise_em_resumes_exactly_wherever_statistics_are_measured_from(kind, tmp_path):
    x = lvm.datasets.load("faithful").x.double()
    laws.resume_is_exact(
        lambda: lvm.models.HeterogeneousMixture(2, [kind, kind]),
        x,
        tmp_path / "fit",
        epochs=2,
        inference=lvm.infer.EM(decay=0.7),
        batch_size=50,
    )


@pytest.mark.parametrize("model", ["gaps", "t law"])
def test_stepwise_em_with_centres_of_batches_resumes_exactly(model, tmp_path):
    x = lvm.datasets.load("faithful").x.double()
    if model == "gaps":
        x[::5, 0] = torch.nan
        make = functools.partial(lvm.models.GaussianMixture, 2)
    else:
        make = functools.partial(lvm.models.StudentTMixture, 2)
    inference = lvm.infer.EM(decay=0.7)
    laws.resume_is_exact(make, x, tmp_path / "fit", epochs=2, inference=inference, batch_size=50)


def test_stepwise_em_along_a_chain():
    """References are kept where statistics come from all values at once, too."""

    def chain(x):
        loc = pyro.param("loc", lambda: x.new_tensor([98.0, 106.0]))
        scale = pyro.param("scale", lambda: x.new_ones(2), constraint=constraints.positive)
        step = pyro.param("step", lambda: x.new_tensor([[0.8, 0.2], [0.2, 0.8]]), constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            z = 0
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"z{t}", dist.Categorical(step[z]), infer={"enumerate": "parallel"})
                pyro.sample(f"x{t}", dist.Normal(loc[z], scale[z]), obs=x[:, t])

    generator = torch.Generator().manual_seed(1)
    moods = (torch.rand(400, 6, generator=generator) < 0.3).cumsum(1) % 2
    rows = 100 + 4 * moods + torch.randn(400, 6, generator=generator).double()
    with pyro.get_param_store().scope():
        whole = lvm.infer.EM(chain)
        best = min(whole.step(rows) for _ in range(60))
    em = lvm.infer.EM(chain, decay=0.7)
    for _ in range(6):
        for batch in rows.split(50):
            em.step(batch)
    assert em.loss(rows) < best * 1.002


def test_annealing_flattens_the_first_posteriors(x):
    em = lvm.infer.EM(counts, annealing=(0.1, 0.5))
    with pyro.get_param_store().scope():
        factors = expect(counts, 1, (x,), {}, temperature=0.1).factors
        tempered = factors["x"].weights
        joint = factors["z"].log_density + factors["x"].log_density
        torch.testing.assert_close(tempered, (0.1 * joint).softmax(0), rtol=1e-10, atol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = [em.step(x) for _ in range(200)]
    assert losses[-1] == pytest.approx(full_batch(x), rel=1e-6)
    assert all(b <= a + 1e-9 * a for a, b in itertools.pairwise(losses[2:]))


def test_annealing_of_a_program_that_is_no_mixture():
    def two(x):
        p = pyro.param("p", lambda: x.new_tensor([0.2, 0.7]), constraint=constraints.unit_interval)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(x.new_tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Categorical(x.new_tensor([[0.9, 0.1], [0.4, 0.6]])[y]))
            pyro.sample("x", dist.Bernoulli(p[z]), obs=x)

    rows = torch.bernoulli(torch.full((20,), 0.4)).double()
    expectation = expect(two, 1, (rows,), {}, temperature=0.5)
    plain = expect(two, 1, (rows,), {})
    assert expectation.log_likelihood == pytest.approx(plain.log_likelihood, rel=1e-12)
    prior = rows.new_tensor([0.3, 0.7]).unsqueeze(-1) * rows.new_tensor([[0.9, 0.1], [0.4, 0.6]])
    likelihood = torch.where(rows[:, None] == 1, rows.new_tensor([0.2, 0.7]), 1 - rows.new_tensor([0.2, 0.7]))
    joint = (prior * likelihood[:, None, :]).sqrt()
    posterior = joint.sum(1) / joint.sum((1, 2)).unsqueeze(-1)
    torch.testing.assert_close(expectation.marginals()["z"], posterior, rtol=1e-10, atol=1e-12)


def logistic(x):
    """A rate that is computed, not selected: no closed form."""
    raw = pyro.param("raw", lambda: x.new_tensor([0.0, 1.5, 2.5]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(x.new_ones(3) / 3), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Poisson(torch.nn.functional.softplus(2 * raw)[z]), obs=x)


@pytest.mark.parametrize("optimizer", [None, functools.partial(torch.optim.Adam, lr=0.05)])
def test_generalised_em_by_any_optimizer(x, optimizer):
    em = lvm.infer.EM(logistic, optimizer=optimizer, gradient_steps=5)
    assert [entry.name for entry in em.plan(x).gradient] == ["raw"]
    losses = [em.step(x) for _ in range(150)]
    with pyro.get_param_store().scope():

        def same(x):
            rate = pyro.param("rate", lambda: START.to(x), constraint=constraints.positive)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Categorical(x.new_ones(3) / 3), infer={"enumerate": "parallel"})
                pyro.sample("x", dist.Poisson(rate[z]), obs=x)

        closed = lvm.infer.EM(same)
        best = min(closed.step(x) for _ in range(200))
    assert losses[-1] == pytest.approx(best, rel=1e-4)


def test_an_optimizer_resumes_exactly(x, tmp_path):
    laws.resume_is_exact(
        lambda: logistic,
        x,
        tmp_path / "fit",
        epochs=4,
        inference=lvm.infer.EM(optimizer=functools.partial(torch.optim.Adam, lr=0.05)),
    )


def test_an_m_step_of_ones_own(x):
    def means(fn, value, weights):
        return {"rate": (weights @ value) / weights.sum(-1)}

    program = functools.partial(counts, own=means)
    em = lvm.infer.EM(program)
    assert "your own" in str(em.plan(x))
    losses = [em.step(x) for _ in range(20)]
    with pyro.get_param_store().scope():
        plain = lvm.infer.EM(counts)
        assert losses == pytest.approx([plain.step(x) for _ in range(20)], rel=1e-12)


def test_files_say_that_they_hold_no_code(x, tmp_path):
    fit = lvm.fit(logistic, x, inference=lvm.infer.EM(optimizer=torch.optim.Adam), max_epochs=2, progress=False)
    fit.save(tmp_path / "fit")
    loaded = lvm.load(tmp_path / "fit", model=logistic)
    assert loaded.score(x) == fit.score(x)
    with pytest.raises(ValueError, match=r"optimizer of your own.*lvm.load\(folder, inference=...\)"):
        loaded.resume(x, max_epochs=1, progress=False)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (lambda fn, value, weights: 3, "to return a dict over"),
        (lambda fn, value, weights: {"speed": value}, "got \\['speed'\\]"),
        (lambda fn, value, weights: {"rate": value}, "finite 'rate' of shape \\(3,\\)"),
        (lambda fn, value, weights: {"rate": torch.full((3,), torch.nan)}, "finite 'rate'"),
    ],
)
def test_a_wrong_m_step_of_ones_own(x, own, message):
    with pytest.raises(ValueError, match=message):
        lvm.infer.EM(functools.partial(counts, own=own)).step(x)


def test_a_site_may_ask_for_gradient_steps(x):
    em = lvm.infer.EM(functools.partial(counts, own="gradient"))
    assert [entry.name for entry in em.plan(x).gradient] == ["rate"]
    losses = [em.step(x) for _ in range(60)]
    assert losses[-1] == pytest.approx(full_batch(x), rel=1e-5)


def test_restarts_of_a_plain_function_differ_and_help():
    """Its starting values are constants: later restarts begin from k-means++ clusters."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.cat([centre + torch.randn(60, 2, generator=generator) for centre in (0.0, 20.0, 40.0)]).double()

    def clusters(x):
        loc = pyro.param("loc", lambda: x.new_full((3, 2), 20.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(x.new_ones(3) / 3), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(loc[z], 3.0).to_event(1), obs=x)

    alone = lvm.fit(clusters, rows, seed=0, progress=False)
    several = lvm.fit(clusters, rows, restarts=4, seed=0, progress=False)
    assert len({round(run["loss"], 6) for run in several.restarts}) > 1
    assert several.history["loss"][-1] < alone.history["loss"][-1] - 100
    centres = several.params["loc"][:, 0].sort().values
    np.testing.assert_allclose(centres, [0, 20, 40], atol=1)


def test_seeding_a_program_that_is_no_mixture_moves_it():
    def chain(x):
        p = pyro.param("p", lambda: x.new_tensor([0.4, 0.6]), constraint=constraints.unit_interval)
        with pyro.plate("data", len(x)):
            z = 0
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"z{t}", dist.Categorical(x.new_tensor([[0.8, 0.2], [0.2, 0.8]])[z]))
                pyro.sample(f"x{t}", dist.Bernoulli(p[z]), obs=x[:, t])

    rows = torch.bernoulli(torch.full((20, 4), 0.5)).double()
    em = lvm.infer.EM(chain)
    em.seed(rows)
    assert not torch.equal(pyro.param("p").detach(), rows.new_tensor([0.4, 0.6]))
    assert bool(torch.isfinite(pyro.param("p")).all())


def test_a_mode_on_the_boundary_is_kept_inside_and_reported():
    def sparse(x):
        weights = pyro.sample("weights", dist.Dirichlet(x.new_tensor([0.3, 0.3, 0.3])))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(x.new_tensor([0.0, 5.0, 50.0])[z], 1.0), obs=x)

    rows = torch.cat([torch.randn(20), 5 + torch.randn(20)]).double()
    with pytest.warns(RuntimeWarning, match=r"prior of 'MAP.weights' \(Dirichlet.*kept just inside"):
        fit = lvm.fit(sparse, rows, inference="em", seed=0, progress=False)
    weights = fit.draws["weights"][0, 0]
    assert bool((weights > 0).all())
    assert weights[2] < 1e-5
    assert np.isfinite(fit.history["loss"]).all()


@pytest.mark.parametrize("inference", ["svi", "mcmc"])
def test_weights_of_rows_are_refused_where_pyro_gets_them_wrong(x, inference):
    """Pyro scales inside of the sum over states."""
    data = {"x": x[:50, None], "sample_weights": torch.ones(50)}
    with pytest.raises(ValueError, match="cannot sum discrete sites out under weights of each row"):
        lvm.fit(lvm.models.PoissonMixture(2, priors=True), data, inference=inference, progress=False)


def test_coordinate_ascent_counts_weights_as_repeated_rows(x):
    rows, weights = x[:60, None], torch.arange(60).double() % 4
    rate = dist.Gamma(x.new_tensor(2.0), x.new_tensor(0.5)).expand([2, 1]).to_event(2)
    model = lvm.models.PoissonMixture(2, priors={"weights": dist.Dirichlet(x.new_ones(2)), "rate": rate})
    weighted = lvm.fit(
        model, {"x": rows, "sample_weights": weights}, inference="coordinate-ascent", seed=0, progress=False
    )
    repeated = lvm.fit(
        model, rows.repeat_interleave(weights.long(), 0), inference="coordinate-ascent", seed=0, progress=False
    )
    bounds = [min(fit.history["loss"]) for fit in (weighted, repeated)]
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-6)


def test_a_parameter_that_a_closed_form_leaves_out_is_not_frozen(x):
    from pyro_lvm.infer.m_step import ClosedForm, closed_form, closed_form_of

    class Shifted(dist.Normal):
        pass

    whole = closed_form(dist.Normal(0.0, 1.0))

    @closed_form_of(Shifted)
    class _OnlyTheScale(ClosedForm):
        arguments = whole.arguments[1:]

        def statistics(self, fn, value, weights, variance_floor):
            return whole.statistics(dist.Normal(fn.loc, fn.scale), value, weights, variance_floor)

    def model(x):
        loc = pyro.param("loc", lambda: x.new_zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", Shifted(loc, 1.0), obs=x)

    plan = lvm.infer.EM(model).plan(x)
    assert [(entry.name, "leaves it out" in entry.reason) for entry in plan.gradient] == [("loc", True)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 0.5}, "0.5 < decay <= 1"),
        ({"decay": 1.1}, "0.5 < decay <= 1"),
        ({"acceleration": "fast"}, "None or 'squarem'"),
        ({"acceleration": "squarem", "decay": 0.7}, "got both"),
        ({"annealing": (0.0,)}, r"inverse temperatures in \(0, 1\]"),
    ],
)
def test_options(options, message):
    with pytest.raises(ValueError, match=message):
        lvm.infer.EM(counts, **options)


def gappy(n, seed):
    """Rows of a correlated normal far from zero, a third of the entries missing."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.tensor([[1.2, 0.0], [0.9, 0.8]], dtype=torch.float64)
    rows = 100 + torch.randn(n, 2, generator=generator, dtype=torch.float64) @ root.T
    return torch.where(torch.rand(n, 2, generator=generator) < 1 / 3, torch.nan, rows)


def one_normal(x):
    loc = pyro.param("loc", lambda: x.new_tensor([99.0, 102.0]))
    covariance = pyro.param("covariance", lambda: torch.eye(2).to(x), constraint=constraints.positive_definite)
    filled, known = x.nan_to_num(), ~x.isnan()
    with pyro.plate("data", len(x)):
        pyro.sample("x", lvm.distributions.PartialMultivariateNormal(loc, covariance, known), obs=filled)


def test_averages_of_rows_with_gaps_are_those_of_the_paper():
    """Batches have centres of their own: moments about zero, averaged, tell the truth."""
    em, averages = lvm.infer.EM(one_normal, decay=0.6), None
    loc, covariance = torch.tensor([99.0, 102.0]).double(), torch.eye(2).double()
    for t, batch in enumerate(gappy(600, 0).split(100)):
        sums = [0.0, torch.zeros(2).double(), torch.zeros(2, 2).double()]
        for row in batch:
            known = ~row.isnan()
            gain = covariance[:, known] @ torch.linalg.inv(covariance[known][:, known])
            mean = loc + gain @ (row[known] - loc[known])
            second = covariance - gain @ covariance[known] + mean.outer(mean)
            sums = [sums[0] + 1, sums[1] + mean, sums[2] + second]
        rate = 1.0 if t == 0 else (t + 1) ** -0.6
        averages = sums if t == 0 else [(1 - rate) * a + rate * s for a, s in zip(averages, sums, strict=True)]
        loc = averages[1] / averages[0]
        covariance = averages[2] / averages[0] - loc.outer(loc)
        em.step(batch)
        torch.testing.assert_close(pyro.param("loc").detach(), loc, rtol=1e-9, atol=0.0)
        torch.testing.assert_close(pyro.param("covariance").detach(), covariance, rtol=1e-6, atol=1e-8)


def test_averages_of_a_t_law_are_those_of_the_paper():
    def one(x):
        loc = pyro.param("loc", lambda: x.new_tensor(99.0))
        scale = pyro.param("scale", lambda: x.new_tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.StudentT(4.0, loc, scale), obs=x)

    generator = torch.Generator().manual_seed(1)
    x = 100 + 2 * torch.randn(600, generator=generator, dtype=torch.float64)
    em, averages, loc, variance = lvm.infer.EM(one, decay=0.6), None, torch.tensor(99.0), torch.tensor(1.0)
    for t, batch in enumerate(x.split(100)):
        precision = 5 / (4 + (batch - loc).square() / variance)
        sums = torch.stack([torch.tensor(100.0).double(), *((precision * batch**k).sum() for k in range(3))])
        rate = 1.0 if t == 0 else (t + 1) ** -0.6
        averages = sums if t == 0 else (1 - rate) * averages + rate * sums
        count, total, first, second = averages
        loc = first / total
        variance = (second - total * loc.square()) / count
        em.step(batch)
        torch.testing.assert_close(pyro.param("loc").detach(), loc, rtol=1e-9, atol=0.0)
        torch.testing.assert_close(pyro.param("scale").detach(), variance.sqrt(), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("kind", ["full", "diag"])
@pytest.mark.parametrize("model", ["gaps", "t law"])
def test_stepwise_em_finds_what_full_batches_find_wherever_batches_lie(kind, model):
    generator = torch.Generator().manual_seed(2)
    x = 50 + torch.randn(4000, 2, generator=generator).double()
    x[2000:] += 8
    if model == "gaps":
        x[torch.rand(x.shape, generator=generator) < 0.2] = torch.nan
        make = functools.partial(lvm.models.GaussianMixture, 2, covariance=kind)
    else:
        make = functools.partial(lvm.models.StudentTMixture, 2, covariance=kind, degrees_of_freedom=5.0)
    x = x[torch.randperm(len(x), generator=generator)]
    whole = lvm.fit(make(), x, inference="em", seed=0, progress=False)
    steps = lvm.infer.EM(decay=0.9)
    fit = lvm.fit(make(), x, inference=steps, batch_size=100, max_epochs=8, seed=0, progress=False)
    for name, value in whole.params.items():
        torch.testing.assert_close(fit.params[name], value, rtol=0.03, atol=0.05, msg=lambda m, n=name: f"{n}: {m}")
