"""What holds for all mixtures with independent columns: EM by hand, marginals, weights, one component, one column."""

import functools
import warnings

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from scipy import stats
from scipy.special import logsumexp

import pyro_lvm as lvm
from pyro_lvm import models

MIXED = ["bernoulli", "normal", "categorical", "poisson", "bernoulli", "exponential", "categorical"]
ANSWERS = {2: 3, 6: 4}  # by column of the mixed table


def mixed(n=200, seed=0):
    """Kinds side by side and out of order, from two components."""
    draw = np.random.default_rng(seed)
    z = draw.random(n) < 0.4
    columns = [
        draw.random(n) < np.where(z, 0.8, 0.3),
        draw.normal(np.where(z, 2.0, -1.0), np.where(z, 1.0, 0.5)),
        np.where(z, draw.choice(3, n, p=[0.1, 0.2, 0.7]), draw.choice(3, n, p=[0.5, 0.3, 0.2])),
        draw.poisson(np.where(z, 7.0, 2.0)),
        draw.random(n) < np.where(z, 0.1, 0.6),
        draw.exponential(np.where(z, 3.0, 1.0)),
        np.where(z, draw.choice(4, n, p=[0.4, 0.4, 0.1, 0.1]), draw.choice(4, n)),
    ]
    return torch.from_numpy(np.stack(columns, -1).astype(float))


CASES = {
    "bernoulli": (models.BernoulliMixture, [0, 4], {}),
    "poisson": (models.PoissonMixture, [3], {}),
    "categorical": (models.CategoricalMixture, [2, 6], {}),
    "heterogeneous": (models.HeterogeneousMixture, list(range(7)), {"columns": MIXED}),
}
each_case = pytest.mark.parametrize("case", CASES)


def rows_of(case, n=200, missing=0.0):
    _, columns, _ = CASES[case]
    x = mixed(n)[:, columns]
    if missing:
        x[torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) < missing] = torch.nan
    return x


def made(case, num_components=2, **options):
    kind, _, more = CASES[case]
    return kind(num_components, **more, **options)


def kinds_of(case):
    return [MIXED[column] for column in CASES[case][1]]


def by_column(model):
    """Current parameters, one dictionary of arrays (K, ...) a column."""
    found = [{} for _ in range(sum(len(group.columns) for group in model.groups))]
    for group in model.groups:
        for argument, name in group.parameters.items():
            for place, column in enumerate(group.columns):
                found[column][argument] = getattr(model, name).detach().numpy()[:, place].copy()
    return found


def column_log_density(kind, x, p):
    """Shape (n, K), zero where missing."""
    known, x = ~np.isnan(x), np.nan_to_num(x, nan=1.0)[:, None]
    if kind == "categorical":
        value = np.log(p["probs"].T[x[:, 0].astype(int)])
    else:
        value = {
            "bernoulli": lambda: stats.bernoulli.logpmf(x, p["probs"]),
            "normal": lambda: stats.norm.logpdf(x, p["loc"], p["scale"]),
            "poisson": lambda: stats.poisson.logpmf(x, p["rate"]),
            "exponential": lambda: stats.expon.logpdf(x, scale=1 / p["rate"]),
        }[kind]()
    return np.where(known[:, None], value, 0.0)


def maximum(kind, x, r, old):
    """The M-step of one column, from responsibilities (n, K)."""
    known = ~np.isnan(x)
    r, x = r[known], x[known]
    mean = r.T @ x / r.sum(0)
    if kind == "normal":
        return {"loc": mean, "scale": np.sqrt((r * (x[:, None] - mean) ** 2).sum(0) / r.sum(0))}
    if kind == "categorical":
        one_hot = np.eye(old["probs"].shape[-1])[x.astype(int)]
        return {"probs": (r.T @ one_hot) / r.sum(0)[:, None]}
    return {"bernoulli": {"probs": mean}, "poisson": {"rate": mean}, "exponential": {"rate": 1 / mean}}[kind]


def em_by_hand(x, kinds, weights, parameters, steps):
    losses = []
    for _ in range(steps):
        joint = np.log(weights) + sum(column_log_density(k, x[:, j], parameters[j]) for j, k in enumerate(kinds))
        evidence = logsumexp(joint, axis=1)
        losses.append(-evidence.sum())
        r = np.exp(joint - evidence[:, None])
        weights = r.mean(0)
        parameters = [maximum(k, x[:, j], r, parameters[j]) for j, k in enumerate(kinds)]
    return losses, weights, parameters


@pytest.mark.parametrize("missing", [0.0, 0.25], ids=["complete", "missing"])
@each_case
def test_em_equals_em_by_hand(local, case, missing):
    x, model = rows_of(case, missing=missing), made(case)
    model.initialize(x)
    em = lvm.infer.EM(model)
    weights, parameters = model.weights.detach().numpy().copy(), by_column(model)
    losses = [em.step(x) for _ in range(12)]
    by_hand, weights, parameters = em_by_hand(x.numpy(), kinds_of(case), weights, parameters, 12)
    np.testing.assert_allclose(losses, by_hand, rtol=1e-8)
    np.testing.assert_allclose(model.weights.detach().numpy(), weights, rtol=1e-8)
    for ours, theirs in zip(by_column(model), parameters, strict=True):
        for name, value in theirs.items():
            np.testing.assert_allclose(ours[name], value, rtol=1e-8, atol=1e-12)


@each_case
def test_every_m_step_is_closed(local, case):
    x, model = rows_of(case, missing=0.2), made(case)
    model.initialize(x)
    assert not lvm.infer.EM(model).plan(x).gradient


GRIDS = {
    "bernoulli": (np.arange(2.0), 0.0),
    "categorical": (None, 0.0),
    "poisson": (np.arange(150.0), 0.0),
    "normal": (np.linspace(-12, 12, 4001), np.log(24 / 4000)),
    "exponential": (np.linspace(0, 80, 40001)[:-1] + 0.001, np.log(80 / 40000)),
}


@each_case
def test_a_missing_entry_is_summed_out(case):
    x = rows_of(case)
    fit = lvm.fit(made(case), x, seed=0, max_epochs=10, progress=False)
    for column, kind in enumerate(kinds_of(case)):
        grid, log_width = GRIDS[kind]
        grid = np.arange(float(x[:, column].max()) + 1) if grid is None else grid
        for row in x[:3]:
            gap = row.clone()
            gap[column] = torch.nan
            filled = row.repeat(len(grid), 1)
            filled[:, column] = torch.from_numpy(grid)
            brute_force = fit.log_likelihood(filled).logsumexp(0) + log_width
            torch.testing.assert_close(fit.log_likelihood(gap[None])[0], brute_force, rtol=1e-5, atol=1e-5)


@each_case
def test_a_row_with_nothing_known_says_nothing(case):
    x = rows_of(case, missing=0.2)
    x[5] = torch.nan
    fit = lvm.fit(made(case), x, seed=0, max_epochs=20, progress=False)
    assert fit.log_likelihood(x)[5].abs() < 1e-12
    torch.testing.assert_close(fit.predict_proba(x)[5], fit.params["weights"])
    assert torch.isfinite(fit.log_likelihood(x)).all()


@each_case
def test_weights_scale_the_joint_density_as_repeated_rows_do(local, case):
    x, model = rows_of(case, 20), made(case)
    model.initialize(x)
    times = torch.arange(20) % 3
    z = torch.arange(20) % 2

    def log_joint(z, *args, **kwargs):
        return poutine.trace(poutine.condition(model, {"z": z})).get_trace(*args, **kwargs).log_prob_sum()

    repeated = log_joint(z.repeat_interleave(times), x.repeat_interleave(times, 0))
    torch.testing.assert_close(log_joint(z, x, sample_weights=times), repeated)


@each_case
def test_weights_equal_repeated_rows_in_em(local, case):
    x, times = rows_of(case), torch.arange(200) % 3
    weighted, repeated = made(case), made(case)
    for model in (weighted, repeated):
        torch.manual_seed(0)
        model.initialize(x)
    em, plain = lvm.infer.EM(weighted), lvm.infer.EM(repeated)
    more = x.repeat_interleave(times, 0)
    for _ in range(8):
        assert em.step(x, sample_weights=times.double()) == pytest.approx(plain.step(more), rel=1e-10)
    for ours, theirs in zip(by_column(weighted), by_column(repeated), strict=True):
        for name, value in theirs.items():
            np.testing.assert_allclose(ours[name], value, rtol=1e-7, atol=1e-12)


@each_case
def test_bad_weights_are_turned_away(case):
    x = rows_of(case)
    with pytest.raises(ValueError, match=r"sample_weights of shape \(200,\), one a row; got \(3,\)"):
        made(case).initialize(x, torch.ones(3))
    with pytest.raises(ValueError, match="sample_weights >= 0, not all 0"):
        made(case).initialize(x, -torch.ones(200))


@each_case
def test_one_component_is_the_columns_alone(case):
    x = rows_of(case)
    fit = lvm.fit(made(case, 1), x, seed=0, progress=False)
    assert fit.params["weights"].tolist() == [1.0]
    alone = sum(
        column_log_density(kind, x[:, j].numpy(), maximum(kind, x[:, j].numpy(), np.ones((200, 1)), p))
        for j, (kind, p) in enumerate(zip(kinds_of(case), by_column(fit.model), strict=True))
    )
    np.testing.assert_allclose(fit.log_likelihood(x).numpy(), alone[:, 0], rtol=1e-8, atol=1e-12)


@each_case
def test_one_column(case):
    kind, columns, more = CASES[case]
    x = mixed()[:, columns[:1]]
    fit = lvm.fit(kind(2, **({"columns": MIXED[:1]} if more else {})), x, seed=0, max_epochs=5, progress=False)
    assert fit.sample(7).shape == (7, 1)
    assert fit.log_likelihood(x).shape == (200,)


@each_case
def test_samples_keep_the_order_of_the_columns(case):
    x = rows_of(case, 2000)
    fit = lvm.fit(made(case, 3), x, seed=0, max_epochs=3, progress=False)  # every M-step keeps the overall means
    rows = fit.sample(4000).double()
    assert rows.shape == (4000, x.shape[1])
    error = (x.var(0) / 2000 + rows.var(0) / 4000).sqrt()
    assert ((rows.mean(0) - x.mean(0)).abs() < 5 * error).all()


@each_case
def test_stock_pyro_trains_it(local, case):
    x, model = rows_of(case, missing=0.1), made(case, priors=True)
    model.initialize(x)
    guide = lvm.guides.AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), TraceEnum_ELBO(max_plate_nesting=1))
    losses = [svi.step(x) for _ in range(150)]
    assert np.mean(losses[-20:]) < np.mean(losses[:20])


@each_case
def test_priors_by_name(local, case):
    x = rows_of(case)
    with pytest.raises(ValueError, match=r"expected priors for .*weights; got colour"):
        made(case, priors={"colour": None}).initialize(x)
    model = made(case, priors={"weights": pyro.distributions.Dirichlet(torch.tensor([3.0, 3.0]).double())})
    model.initialize(x)
    trace = poutine.trace(model).get_trace(x)
    assert trace.nodes["weights"]["fn"].concentration.tolist() == [3.0, 3.0]
    for name in model.dims:
        assert trace.nodes[name]["type"] == "sample"
        assert not trace.nodes[name]["cond_indep_stack"]
        assert trace.nodes[name]["value"].shape == model.initial_values[name].shape


@each_case
def test_axes_are_named(case):
    x = rows_of(case)
    fit = lvm.fit(made(case), x, seed=0, max_epochs=3, progress=False)
    data = fit.to_arviz(x)
    for name, axes in fit.model.dims.items():
        assert data.posterior[name].dims == ("chain", "draw", *axes)
        assert axes[0] == "component"


@each_case
def test_a_column_without_known_entries(case):
    x = rows_of(case)
    x[:, 0] = torch.nan
    with pytest.raises(ValueError, match="column 0 has none"):
        lvm.fit(made(case), x, progress=False)


def test_complete_rows_build_the_plain_distribution(local):
    model = models.BernoulliMixture(2)
    x = rows_of("bernoulli")
    model.initialize(x)
    site = functools.partial(lambda x: poutine.trace(model).get_trace(x).nodes["x"]["fn"])
    assert type(site(x).base_dist).__name__ == "Bernoulli"
    x[0, 0] = torch.nan
    assert type(site(x).base_dist).__name__ == "MaskedDistribution"


def test_facts():
    for kind, _, _ in CASES.values():
        assert kind.handles_missing
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert models.BernoulliMixture(2, data_dim=3).config == {"num_components": 2, "data_dim": 3, "priors": None}


@each_case
def test_one_component_with_gaps(case):
    x = rows_of(case, missing=0.2)
    fit = lvm.fit(made(case, 1), x, seed=0, progress=False)
    alone = sum(
        column_log_density(kind, x[:, j].numpy(), maximum(kind, x[:, j].numpy(), np.ones((200, 1)), p))
        for j, (kind, p) in enumerate(zip(kinds_of(case), by_column(fit.model), strict=True))
    )
    np.testing.assert_allclose(fit.log_likelihood(x).numpy(), alone[:, 0], rtol=1e-8, atol=1e-12)
