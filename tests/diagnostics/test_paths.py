"""Hidden paths against brute force over all of them: at a point, under draws, with gaps, and of steps to come."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import constraints

import pyro_lvm as lvm
from pyro_lvm.diagnostics.arviz import groups_of
from pyro_lvm.diagnostics.labels import align, component_axes
from pyro_lvm.diagnostics.latents import thinned
from pyro_lvm.diagnostics.paths import decoded
from pyro_lvm.distributions import HMM
from pyro_lvm.testing.chain_oracles import all_paths

INITIAL = torch.tensor([0.6, 0.3, 0.1]).double()
SWITCH = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]]).double()
LOC = torch.tensor([-2.0, 0.0, 2.5]).double()


def levels(x, lengths=None):
    """Numbers around three levels."""
    initial = pyro.param("initial", INITIAL.clone(), constraint=constraints.simplex)
    switch = pyro.param("switch", SWITCH.clone(), constraint=constraints.simplex)
    loc = pyro.param("loc", LOC.clone())
    with pyro.plate("data", len(x)):
        pyro.sample("x", HMM(initial, switch, dist.Normal(loc, 1.0), lengths=lengths), obs=x, infer={"states": "z"})


def symbols(x):
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.1, 0.8, 0.1]]).double()
    initial = pyro.param("initial", INITIAL.clone(), constraint=constraints.simplex)
    with pyro.plate("data", len(x)):
        pyro.sample("x", HMM(initial, SWITCH, dist.Categorical(probs)), obs=x)


def oracle(x, loc=LOC, initial=INITIAL, switch=SWITCH, density=None):
    emission = dist.Normal(loc, 1.0).log_prob(x.nan_to_num().unsqueeze(-1)) if density is None else density
    return all_paths(initial.log(), switch.log(), torch.where(x.isnan().unsqueeze(-1), 0.0, emission))


def learned(fit):
    """One draw, that of a point fit's parameters, as the oracle takes it."""
    return [fit.params]


def draw(n, steps, seed=0):
    torch.manual_seed(seed)
    law = HMM(INITIAL, SWITCH, dist.Normal(LOC, 1.0), num_steps=steps)
    return law.expand([n]).sample()


@pytest.fixture(scope="module")
def x():
    return draw(5, 6)


@pytest.fixture(scope="module")
def data(x):
    return [row[: 2 + i] for i, row in enumerate(x)]


@pytest.fixture(scope="module")
def point(data):
    """A fit that has not moved from the known parameters."""
    sizes = {"max_epochs": 1, "seed": 0, "progress": False}
    return lvm.fit(levels, data, inference=lvm.infer.SVI(learning_rate=1e-12), **sizes)


PRIOR = {
    "initial": dist.Dirichlet(2 * torch.ones(3).double()),
    "switch": dist.Dirichlet(2 * torch.ones(3, 3).double()).to_event(1),
    "loc": dist.Normal(torch.zeros(3).double(), 5.0).to_event(1),
}


@pytest.fixture(scope="module")
def posterior(x):
    """A fit whose draws are known: scattered around the true parameters."""
    fit = lvm.fit(poutine.lift(levels, prior=PRIOR), x, max_epochs=1, seed=0, progress=False)
    generator = torch.Generator().manual_seed(1)

    def scattered(mean, spread):
        return mean + spread * torch.randn(1, 40, *mean.shape, generator=generator, dtype=torch.float64)

    fit.draws = {
        "initial": scattered(INITIAL.log(), 0.2).softmax(-1),
        "switch": scattered(SWITCH.log(), 0.2).softmax(-1),
        "loc": scattered(LOC, 0.2),
    }
    fit.guide = None
    return fit


def given(fit):
    return thinned(fit, 1000)


def test_point_fits_against_all_paths(point, data):
    tables, paths = point.predict_proba(data), point.predict(data)
    for one, table, path, value in zip(data, tables, paths, point.log_likelihood(data), strict=True):
        known = oracle(one, **point.params)
        torch.testing.assert_close(table, known.marginals, rtol=1e-9, atol=1e-9)
        assert torch.equal(path, known.best(1)[0][0])
        torch.testing.assert_close(value, known.log_likelihood, rtol=1e-9, atol=1e-9)


def test_drawn_paths_have_their_probabilities(point, data):
    paths = point.posterior(data, 4000)["z"]
    assert paths.shape == (4000, 5, 6)
    for i, one in enumerate(data):
        known = oracle(one, **point.params)
        assert (paths[:, i, len(one) :] == -1).all()
        places = 3 ** torch.arange(len(one)).flip(0)
        counts = torch.bincount((paths[:, i, : len(one)] * places).sum(-1), minlength=len(known.probabilities))
        error = (known.probabilities * (1 - known.probabilities) / 4000).sqrt()
        assert ((counts / 4000 - known.probabilities).abs() < 5 * error + 1e-3).all()


def test_posteriors_are_averages_over_draws(posterior, x):
    tables = torch.zeros(5, 6, 3).double()
    values = torch.zeros(5, 40).double()
    for s, draw in enumerate(given(posterior)):
        for i, one in enumerate(x):
            known = oracle(one, draw["loc"], draw["initial"], draw["switch"])
            tables[i] += known.marginals / 40
            values[i, s] = known.log_likelihood
    torch.testing.assert_close(posterior.predict_proba(x), tables, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(posterior.log_likelihood(x), values.logsumexp(1) - math.log(40))
    torch.testing.assert_close(groups_of(posterior, posterior.arguments(x)).log_likelihood["x"][0].T, values.numpy())


def test_paths_of_a_posterior_agree_with_viterbi_where_draws_do(posterior, x):
    one = given(posterior)[:1]
    arguments = posterior.arguments(x)
    single = decoded(posterior, arguments, one)["z"]
    assert torch.equal(single, torch.stack([oracle(row, **one[0]).best(1)[0][0] for row in x]))
    assert torch.equal(decoded(posterior, arguments, one * 3)["z"], single)
    assert (posterior.predict(x) == posterior.predict_proba(x).argmax(-1)).double().mean() > 0.9
    draws = posterior.posterior(x, 30)
    assert draws["z"].shape == (30, 5, 6)
    assert draws["loc"].shape == (30, 3)


def test_switched_labels_change_nothing(posterior, x):
    order = torch.stack([torch.randperm(3) for _ in range(40)])
    kept, honest = posterior.draws, groups_of(posterior, posterior.arguments(x))
    tables, paths, coming = posterior.predict_proba(x), posterior.predict(x), posterior.forecast(x, 2)
    switched = {name: value.clone() for name, value in kept.items()}
    for s, turn in enumerate(order):
        for name, value in switched.items():
            value[0, s] = value[0, s][turn][:, turn] if name == "switch" else value[0, s][turn]
    posterior.draws = switched
    try:
        turn = order[0].argsort()  # the first draw numbers the states
        torch.testing.assert_close(posterior.predict_proba(x)[..., turn], tables)
        assert torch.equal(order[0][posterior.predict(x)], paths)
        torch.testing.assert_close(posterior.forecast(x, 2).states[..., turn], coming.states)
        torch.testing.assert_close(posterior.forecast(x, 2).mean, coming.mean)
        aligned = groups_of(posterior, posterior.arguments(x)).posterior
    finally:
        posterior.draws = kept
    for name, axes in {"initial": (2,), "loc": (2,), "switch": (2, 3)}.items():
        wanted = honest.posterior[name]
        for axis in axes:
            wanted = wanted.take(order[0].numpy(), axis)
        assert (abs(aligned[name] - wanted) < 1e-12).all()


def test_axes_of_states_are_found(posterior, x):
    axes, states = component_axes(posterior, posterior.arguments(x), given(posterior)[0])
    assert states == 3
    assert axes == {"initial": (0,), "switch": (0, 1), "loc": (0,)}
    groups = groups_of(posterior, posterior.arguments(x))
    assert groups.dims["switch"] == ["state", "next_state"]
    assert groups.dims["x"] == ["sequence", "step"]


def test_states_that_the_program_tells_apart_keep_their_numbers(x):
    def one_way(x):
        allowed = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]).double()
        switch = pyro.sample("switch", PRIOR["switch"]) * allowed
        loc = pyro.sample("loc", PRIOR["loc"])
        with pyro.plate("data", len(x)):
            first = torch.tensor([1.0, 0.0, 0.0]).double()
            pyro.sample("x", HMM(first, switch / switch.sum(-1, keepdim=True), dist.Normal(loc, 1.0)), obs=x)

    fit = lvm.fit(one_way, x, max_epochs=3, seed=0, progress=False)
    arguments = fit.arguments(x)
    assert component_axes(fit, arguments, given(fit)[0]) == ({}, 0)
    aligned = align(fit, arguments, fit.draws)
    assert all(torch.equal(aligned[name], value) for name, value in fit.draws.items())
    assert fit.predict(x).shape == x.shape
    assert (fit.predict(x).diff() >= 0).all()
    assert (fit.predict(x)[:, 0] == 0).all()


def test_gaps_are_filled_with_posterior_means(point, posterior, x):
    gone = x.clone()
    gone[0, 2], gone[3, 5], gone[4] = torch.nan, torch.nan, torch.nan
    for fit, draws in ((point, learned(point)), (posterior, given(posterior))):
        filled = fit.impute(gone)
        assert torch.equal(filled[~gone.isnan()], x[~gone.isnan()])
        for i, t in gone.isnan().nonzero().tolist():
            means = [(oracle(gone[i], **d).marginals[t] * d["loc"]).sum() for d in draws]
            torch.testing.assert_close(filled[i, t], torch.stack(means).mean(), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(point.log_likelihood(gone)[0], oracle(gone[0], **point.params).log_likelihood)


def test_missing_symbols_become_the_most_probable_ones():
    x = torch.tensor([[0.0, 2.0, 2.0, torch.nan, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0, 0.0, torch.nan]]).double()
    fit = lvm.fit(symbols, x, inference=lvm.infer.SVI(learning_rate=1e-12), max_epochs=1, seed=0, progress=False)
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.1, 0.8, 0.1]]).double()
    filled, coming = fit.impute(x), fit.forecast(x, 1)
    for i, t in ((0, 3), (1, 5)):
        density = probs.log()[:, x[i].nan_to_num().long()].T
        marginals = oracle(x[i], density=density).marginals
        assert filled[i, t] == (marginals[t] @ probs).argmax()
        torch.testing.assert_close(coming.mean[i, 0], marginals[-1] @ SWITCH @ probs)
    assert coming.samples.shape == (100, 2, 1)


def test_forecasts_of_ragged_sequences(point, data):
    coming = point.forecast(data, 4, num_samples=20000)
    assert coming.states.shape == (5, 4, 3)
    assert coming.samples.shape == coming.paths.shape == (20000, 5, 4)
    for i, one in enumerate(data):
        law = oracle(one, **point.params).marginals[-1]
        for h in range(4):
            law = law @ point.params["switch"]
            torch.testing.assert_close(coming.states[i, h], law, rtol=1e-8, atol=1e-8)
            torch.testing.assert_close(coming.mean[i, h], law @ point.params["loc"], rtol=1e-8, atol=1e-8)
            spread = (law @ (LOC**2 + 1) - (law @ LOC) ** 2).sqrt()
            assert (coming.samples[:, i, h].mean() - law @ LOC).abs() < 4 * spread / math.sqrt(20000)
            counts = torch.bincount(coming.paths[:, i, h], minlength=3) / 20000
            assert ((counts - law).abs() < 5 * (law * (1 - law) / 20000).sqrt()).all()
    alone = point.forecast([data[1]], 4)
    torch.testing.assert_close(alone.mean, coming.mean[1:2])
    with pytest.raises(ValueError, match=r"expected sequences of shape \(n, T, ...\); got \(3,\)"):
        point.forecast(data[1], 4)
    assert (coming.quantile(0.05) < coming.quantile(0.95)).all()


def test_forecasts_under_a_posterior(posterior, x):
    coming = posterior.forecast(x, 2)
    assert coming.samples.shape == (100, 5, 2)
    for i, one in enumerate(x):
        laws = [oracle(one, **d).marginals[-1] @ d["switch"] @ d["switch"] for d in given(posterior)]
        torch.testing.assert_close(coming.states[i, 1], torch.stack(laws).mean(0), rtol=1e-8, atol=1e-8)
        means = [law @ d["loc"] for law, d in zip(laws, given(posterior), strict=True)]
        torch.testing.assert_close(coming.mean[i, 1], torch.stack(means).mean(), rtol=1e-8, atol=1e-8)


def test_forecasts_need_covariates_in_the_steps_to_come(x):
    def driven(x, u):
        slope = pyro.param("slope", torch.tensor([1.0, 0.0, -1.0]).double())
        with pyro.plate("data", len(x)):
            pyro.sample("x", HMM(INITIAL, SWITCH, dist.Normal(u.unsqueeze(-1) * slope, 1.0)), obs=x)

    u = torch.linspace(0, 1, 6).double().expand(5, 6)
    still = lvm.infer.SVI(learning_rate=1e-12)
    fit = lvm.fit(driven, {"x": x, "u": u}, inference=still, max_epochs=1, seed=0, progress=False)
    with pytest.raises(ValueError, match=r"expected 'u' in the steps to come, shape \(5, 2\); got none. Pass u=..."):
        fit.forecast({"x": x, "u": u}, 2)
    with pytest.raises(ValueError, match=r"expected 'u' of shape \(5, 2\) in the steps to come; got \(5, 3\)"):
        fit.forecast({"x": x, "u": u}, 2, u=torch.zeros(5, 3))
    with pytest.raises(ValueError, match="expected covariates out of u; got 'v'"):
        fit.forecast({"x": x, "u": u}, 2, u=torch.zeros(5, 2), v=1)
    coming = fit.forecast({"x": x, "u": u}, 2, num_samples=4000, u=torch.tensor([2.0, 3.0]).expand(5, 2))
    slope = torch.tensor([1.0, 0.0, -1.0]).double()
    torch.testing.assert_close(coming.mean[:, 1], coming.states[:, 1] @ (3 * slope), rtol=1e-6, atol=1e-6)
    assert ((coming.samples.mean(0) - coming.mean).abs() < 5 * 3 / math.sqrt(4000)).all()


def test_forecasts_of_steps_that_depend_on_steps_before_them():
    """One state and x_t = 0.8 x_(t-1) + noise: the law of the step h ahead is known."""

    def autoregression(x):
        past = torch.nn.functional.pad(x[:, :-1], (1, 0)).unsqueeze(-1)
        slope = pyro.param("slope", torch.tensor([0.8]).double())
        with pyro.plate("data", len(x)):
            one = torch.ones(1, 1).double()
            pyro.sample("x", HMM(one[0], one, dist.Normal(past * slope, 0.5)), obs=x)

    x = torch.tensor([[0.0, 1.0, 3.0], [1.0, 0.0, -2.0]]).double()
    still = lvm.infer.SVI(learning_rate=1e-12)
    fit = lvm.fit(autoregression, x, inference=still, max_epochs=1, seed=0, progress=False)
    coming = fit.forecast(x, 3, num_samples=4000)
    assert coming.samples.shape == (4000, 2, 3)
    for h in range(3):
        mean = 0.8 ** (h + 1) * x[:, -1]
        spread = 0.5 * math.sqrt(sum(0.64**i for i in range(h + 1)))
        assert ((coming.mean[:, h] - mean).abs() <= 5 * spread / math.sqrt(4000)).all()
        assert ((coming.samples[:, :, h].mean(0) - mean).abs() < 5 * spread / math.sqrt(4000)).all()
        assert ((coming.samples[:, :, h].std(0) / spread - 1).abs() < 5 / math.sqrt(8000)).all()


def test_known_states_reach_every_verb(point, x):
    known = torch.full((5, 6), -1)
    known[:, 2] = 1
    labelled = {"x": x, "z": known}
    assert (point.predict(labelled)[:, 2] == 1).all()
    for one, table in zip(x, point.predict_proba(labelled), strict=True):
        paths = oracle(one, **point.params)
        weights = torch.where(paths.states[:, 2] == 1, paths.probabilities, 0.0)
        wanted = torch.einsum("p,ptk->tk", weights / weights.sum(), paths.visits)
        torch.testing.assert_close(table, wanted, rtol=1e-8, atol=1e-8)
    assert (point.posterior(labelled, 20)["z"][:, :, 2] == 1).all()
    torch.testing.assert_close(point.forecast({"x": x, "z": known}, 1).mean.shape, torch.Size([5, 1]))


def test_chains_of_a_mixture_of_chains(x):
    """Rows of two kinds, each with its own levels: states are averaged over the kinds."""
    locs = torch.stack([LOC, LOC + 0.7])

    def kinds(x):
        share = pyro.param("share", torch.tensor([0.3, 0.7]).double(), constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            kind = pyro.sample("kind", dist.Categorical(share), infer={"enumerate": "parallel"})
            pyro.sample("x", HMM(INITIAL, SWITCH, dist.Normal(locs[kind].unsqueeze(-2), 1.0)), obs=x)

    still = lvm.infer.SVI(learning_rate=1e-12)
    fit = lvm.fit(kinds, x, inference=still, max_epochs=1, seed=0, progress=False)
    found = fit.predict_proba(x)
    for i, one in enumerate(x):
        known = [oracle(one, loc) for loc in locs]
        joint = torch.tensor([0.3, 0.7]).log() + torch.stack([k.log_likelihood for k in known])
        torch.testing.assert_close(found["kind"][i], joint.softmax(0), rtol=1e-6, atol=1e-6)
        states = sum(w * k.marginals for w, k in zip(joint.softmax(0), known, strict=True))
        torch.testing.assert_close(found["x_states"][i], states, rtol=1e-6, atol=1e-6)
    assert fit.predict(x)["x_states"].shape == (5, 6)
    draws = fit.posterior(x, 7)
    assert draws["kind"].shape == (7, 5)
    assert draws["x_states"].shape == (7, 5, 6)


def test_criteria_count_observed_steps_and_free_parameters(point, data, x):
    total, free = float(point.log_likelihood(data).sum()), 2 + 6 + 3
    assert point.aic(data) == pytest.approx(2 * free - 2 * total)
    assert point.bic(data) == pytest.approx(free * math.log(sum(map(len, data))) - 2 * total)
    gone = x.clone()
    gone[0, 1:3] = torch.nan
    assert point.bic(gone) == pytest.approx(free * math.log(28) - 2 * float(point.log_likelihood(gone).sum()))
    x = x.unsqueeze(-1)
    one_way = lvm.fit(lvm.models.GaussianHMM(3, topology="left-to-right"), x, seed=0, progress=False, max_epochs=2)
    assert one_way.aic(x) == pytest.approx(2 * (0 + 2 + 3 + 3) - 2 * float(one_way.log_likelihood(x).sum()))


def test_impossible_sequences_are_named():
    def coins(x):
        probs = pyro.param("probs", torch.tensor([0.2, 0.5]), constraint=constraints.unit_interval)
        with pyro.plate("data", len(x)):
            pyro.sample("x", HMM(torch.tensor([0.5, 0.5]), torch.eye(2), dist.Bernoulli(probs)), obs=x)

    x = torch.tensor([[0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    fit = lvm.fit(coins, x, seed=0, progress=False, max_epochs=1)
    states = torch.tensor([[0, 0, 0], [0, 1, 1], [-1, -1, -1]])
    labelled = {"x": x, "x_states": states}
    for verb in (fit.predict_proba, fit.posterior, lambda x: fit.forecast(x, 1)):
        with pytest.raises(ValueError, match=r"got 1 of probability zero \(row 1\)"):
            verb(labelled)
    assert fit.log_likelihood(labelled)[1] == -torch.inf
    assert fit.predict({"x": x, "x_states": states[:1].expand(3, 3)}).tolist() == [[0, 0, 0]] * 3


def test_what_is_no_chain_has_no_forecast(faithful):
    fit = lvm.fit(lvm.models.GaussianMixture(2), faithful, max_epochs=1, seed=0, progress=False)
    with pytest.raises(ValueError, match="one hidden Markov site, or sequences of normal states; got none"):
        fit.forecast(faithful, 2)
    with pytest.raises(ValueError, match="steps to be a whole number >= 1; got 0"):
        fit.forecast(faithful, 0)
