"""EM against hand-written EM, scikit-learn and brute force."""

import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as SklearnMixture
from torch.distributions import constraints

import pyro_lvm as lvm
from pyro_lvm.infer.enumeration import expect
from pyro_lvm.infer.natural import BLOCK_NUMBERS

pytestmark = pytest.mark.usefixtures("local")
simplex, positive = constraints.simplex, constraints.positive


def plain_mixture(x):
    """A user's program: never seen by the package."""
    weights = pyro.param("weights", torch.tensor([0.5, 0.5]).to(x), constraint=simplex)
    loc = pyro.param("loc", torch.tensor([[2.0, 50.0], [4.0, 80.0]]).to(x))
    covariance = pyro.param(
        "covariance", torch.tensor([1.0, 100.0]).to(x).diag().repeat(2, 1, 1), constraint=constraints.positive_definite
    )
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.MultivariateNormal(loc[z], covariance_matrix=covariance[z]), obs=x)


def test_a_users_program_reaches_the_optimum_by_closed_forms_alone(faithful):
    em = lvm.infer.EM(plain_mixture)
    plan = em.plan(faithful)
    assert len(plan.closed) == 3
    assert not plan.gradient
    assert all(word in str(plan) for word in ("closed form", "weights", "loc", "covariance"))
    losses = [em.step(faithful) for _ in range(100)]
    assert losses[-1] == pytest.approx(1130.2640, abs=5e-4)
    assert all(b <= a + 1e-9 * abs(a) for a, b in itertools.pairwise(losses))


@pytest.mark.parametrize("covariance", ["full", "diag", "tied", "spherical"])
@pytest.mark.parametrize("components", [2, 3])
def test_equals_scikit_learn_from_the_same_start(faithful, covariance, components):
    model = lvm.models.GaussianMixture(components, covariance=covariance)
    model.initialize(faithful)
    peer = SklearnMixture(
        components,
        covariance_type=covariance,
        reg_covar=0,
        tol=0,
        max_iter=25,
        weights_init=model.weights.detach().numpy(),
        means_init=model.loc.detach().numpy(),
        precisions_init=np.linalg.inv(model.covariance.detach().numpy())
        if covariance in ("full", "tied")
        else 1 / model.covariance.detach().numpy(),
    )
    with pytest.warns(ConvergenceWarning):
        peer.fit(faithful.numpy())
    em = lvm.infer.EM(model)
    for _ in range(25):
        em.step(faithful)
    for mine, theirs in (
        (model.weights, peer.weights_),
        (model.loc, peer.means_),
        (model.covariance, peer.covariances_),
    ):
        np.testing.assert_allclose(mine.detach().numpy(), theirs, rtol=1e-6, atol=1e-6)
    assert -em.loss(faithful) == pytest.approx(peer.score(faithful.numpy()) * len(faithful), rel=1e-9)


def test_a_network_is_trained_by_gradient_and_the_plan_says_why(faithful):
    network = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Softplus(), torch.nn.Linear(4, 2)).double()

    def program(x, covariate):
        pyro.module("network", network)
        weights = pyro.param("weights", torch.tensor([0.5, 0.5]).double(), constraint=simplex)
        scale = pyro.param("scale", torch.tensor([10.0, 10.0]).double(), constraint=positive)
        means = 70 + 10 * network(covariate - 3.5).T
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(means[z, torch.arange(len(x))], scale[z]), obs=x)

    x, covariate = faithful[:, 1], faithful[:, :1]
    em = lvm.infer.EM(program)
    plan = em.plan(x, covariate)
    assert {p.name for p in plan.closed} == {"weights", "scale"}
    assert {p.name for p in plan.gradient} == {f"network$$${i}.{name}" for i in (0, 2) for name in ("weight", "bias")}
    assert "gradient" in str(plan)
    assert "computed from the parameter" in str(plan)
    losses = [em.step(x, covariate) for _ in range(40)]
    assert all(b <= a + 1e-9 * abs(a) for a, b in itertools.pairwise(losses))
    # one line through all rows is a special case of two
    residual = (
        x
        - x.mean()
        - (covariate[:, 0] - covariate.mean())
        * (
            ((x - x.mean()) * (covariate[:, 0] - covariate.mean())).sum()
            / (covariate - covariate.mean()).square().sum()
        )
    )
    one_line = -dist.Normal(0, residual.std(correction=0)).log_prob(residual).sum().item()
    assert losses[-1] < one_line


def chain(x, mask=None):
    """A hidden Markov model written with pyro.markov, tied over time."""
    initial = pyro.param("initial", torch.tensor([0.6, 0.4], dtype=torch.float64), constraint=simplex)
    transition = pyro.param(
        "transition", torch.tensor([[0.7, 0.3], [0.2, 0.8]], dtype=torch.float64), constraint=simplex
    )
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]).double())
    scale = pyro.param("scale", torch.tensor(1.0).double(), constraint=positive)
    mask = torch.ones(x.shape, dtype=torch.bool) if mask is None else mask
    with pyro.plate("sequences", len(x)):
        z = None
        for t in pyro.markov(range(x.shape[1])):
            with poutine.mask(mask=mask[:, t]):
                law = initial if z is None else transition[z]
                z = pyro.sample(f"z_{t}", dist.Categorical(law), infer={"enumerate": "parallel"})
                pyro.sample(f"x_{t}", dist.Normal(loc[z], scale), obs=x[:, t])


def brute_force(x, lengths, initial, transition, loc, scale):
    """Baum-Welch statistics by summing over all paths of every sequence."""
    states = len(initial)
    first, pairs = np.zeros(states), np.zeros((states, states))
    total, moment, square, log_z = np.zeros(states), np.zeros(states), np.zeros(states), 0.0
    for row, length in zip(x, lengths, strict=True):
        paths = list(itertools.product(range(states), repeat=length))
        joint = np.array(
            [
                initial[p[0]]
                * np.prod([transition[a, b] for a, b in itertools.pairwise(p)])
                * np.prod([np.exp(-0.5 * ((v - loc[k]) / scale) ** 2) for v, k in zip(row, p, strict=False)])
                for p in paths
            ]
        )
        log_z += np.log(joint.sum()) - 0.5 * length * np.log(2 * np.pi * scale**2)
        for p, w in zip(paths, joint / joint.sum(), strict=True):
            first[p[0]] += w
            for a, b in itertools.pairwise(p):
                pairs[a, b] += w
            for v, k in zip(row, p, strict=False):
                total[k] += w
                moment[k] += w * v
                square[k] += w * v * v
    mean = moment / total
    variance = (square - 2 * mean * moment + mean**2 * total).sum() / total.sum()
    return log_z, first / first.sum(), pairs / pairs.sum(1, keepdims=True), mean, np.sqrt(variance)


def test_ragged_markov_chains_equal_baum_welch_by_brute_force():
    x = torch.randn(5, 5, dtype=torch.float64) * 2
    lengths = [5, 3, 1, 4, 2]
    mask = torch.arange(5) < torch.tensor(lengths).unsqueeze(-1)
    em = lvm.infer.EM(chain)
    assert not em.plan(x, mask).gradient
    start = [np.array(v) for v in ([0.6, 0.4], [[0.7, 0.3], [0.2, 0.8]], [-1.0, 1.0])]
    log_z, *expected = brute_force(x.numpy(), lengths, *start, 1.0)
    assert -em.step(x, mask) == pytest.approx(log_z, rel=1e-12)
    store = pyro.get_param_store()
    for name, value in zip(("initial", "transition", "loc", "scale"), expected, strict=True):
        np.testing.assert_allclose(store[name].detach().numpy(), value, rtol=1e-9)


def test_weights_are_the_posterior_of_every_cell():
    x = torch.randn(1, 3, dtype=torch.float64)
    expectation = expect(chain, 1, (x,), {})
    marginals = expectation.marginals()
    for name in ("z_0", "z_1", "z_2"):
        assert marginals[name].shape == (1, 2)
        torch.testing.assert_close(marginals[name].sum(-1), torch.ones(1, dtype=torch.float64))


def test_parameters_shared_between_sites_and_tied_over_components():
    x, y = torch.randn(50).double() + 3, torch.randn(50, 2).double()

    def program(x, y):
        loc = pyro.param("loc", torch.tensor([0.0, 1.0]).double())
        scale = pyro.param("scale", torch.tensor(2.0).double(), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5]).double()), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(loc[z], scale), obs=x)
            pyro.sample("y", dist.Normal(loc[z].unsqueeze(-1), scale.expand(2)).to_event(1), obs=y)

    def flat(x, y):
        loc = pyro.param("loc", torch.tensor([0.0, 1.0]).double())
        scale = pyro.param("scale", torch.tensor(2.0).double(), constraint=positive)
        both = torch.cat([x.unsqueeze(-1), y], -1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5]).double()), infer={"enumerate": "parallel"})
            pyro.sample("both", dist.Normal(loc[z].unsqueeze(-1), scale.expand(3)).to_event(1), obs=both)

    results = []
    for model in (program, flat):
        with pyro.get_param_store().scope():
            em = lvm.infer.EM(model)
            assert not em.plan(x, y).gradient
            losses = [em.step(x, y) for _ in range(10)]
            results.append((losses, pyro.param("loc").detach(), pyro.param("scale").detach()))
    for a, b in zip(results[0][1:], results[1][1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)


def test_selection_by_a_covariate_follows_the_data():
    """`loc[z, group]`: the index is the row's own, so it must be found again for other rows."""
    group = torch.tensor([0, 1, 1, 0, 2, 2, 0, 1])
    x = torch.randn(8).double() + 5 * group

    def program(x, group):
        loc = pyro.param("loc", torch.arange(6.0).double().reshape(2, 3))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7]).double()), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(loc[z, group], 1.0), obs=x)

    em = lvm.infer.EM(program)
    assert not em.plan(x, group).gradient
    for rows in (slice(0, 8), slice(0, 4), [7, 6, 5, 4]):
        a, g = x[rows], group[rows]
        weights = em.posterior(a, g)["z"]
        before = pyro.param("loc").detach().clone()
        em.step(a, g)
        after = pyro.param("loc").detach()
        for k, j in itertools.product(range(2), range(3)):
            w = weights[:, k] * (g == j)
            expected = (w * a).sum() / w.sum() if w.sum() > 0 else before[k, j]
            assert after[k, j] == pytest.approx(expected.item(), rel=1e-10)


def test_a_wrong_closed_form_is_undone_and_demoted(faithful):
    """Clamping looks like a selection until the new value is cut off."""

    def program(x):
        scale = pyro.param("scale", torch.tensor(30.0).double(), constraint=positive)
        loc = pyro.param("loc", torch.tensor(60.0).double())
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc.clamp(max=65.0) + 0.0, scale), obs=x)

    em = lvm.infer.EM(program)
    x = faithful[:, 1]
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        losses = [em.step(x) for _ in range(30)]
    assert all(b <= a + 1e-9 * abs(a) for a, b in itertools.pairwise(losses))


def test_an_undone_step_warns_and_names_the_parameter(faithful, monkeypatch):
    from pyro_lvm.infer import em as module

    honest = module.maximise

    def wrong(*args):
        updates = honest(*args)
        if "loc" in updates:
            updates["loc"] = updates["loc"] + 1e3
        return updates

    monkeypatch.setattr(module, "maximise", wrong)
    em = lvm.infer.EM(plain_mixture)
    first = em.step(faithful)
    with pytest.warns(RuntimeWarning, match="loc will be updated by gradient"):
        second = em.step(faithful)
    assert second <= first
    assert [p.name for p in em.plan(faithful).gradient] == ["loc"]


@pytest.mark.parametrize("n", [1, 2])
def test_one_component_and_few_rows(n):
    x = torch.tensor([[1.0, 2.0], [3.0, 5.0]]).double()[:n]

    def program(x):
        weights = pyro.param("weights", torch.ones(1).double(), constraint=simplex)
        loc = pyro.param("loc", torch.zeros(1, 2).double())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(loc[z], 1.0).to_event(1), obs=x)

    em = lvm.infer.EM(program)
    em.step(x)
    torch.testing.assert_close(pyro.param("loc").detach(), x.mean(0, keepdim=True))
    assert em.posterior(x)["z"].shape == (n, 1)


def test_an_empty_component_keeps_its_parameters(faithful):
    def program(x):
        weights = pyro.param("weights", torch.tensor([0.5, 0.5]).double(), constraint=simplex)
        loc = pyro.param("loc", torch.tensor([[3.5, 71.0], [1e6, 1e6]]).double())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(loc[z], 10.0).to_event(1), obs=x)

    em = lvm.infer.EM(program)
    with pytest.warns(RuntimeWarning, match="'z' has no rows left in state 1"):
        losses = [em.step(faithful) for _ in range(3)]
    assert np.isfinite(losses).all()
    assert pyro.param("loc")[1].tolist() == [1e6, 1e6]


def test_a_collapsing_variance_is_floored():
    x = torch.cat([torch.full((5,), 20.0), torch.randn(50)]).double()

    def program(x):
        loc = pyro.param("loc", torch.tensor([20.0, 1.0]).double())
        scale = pyro.param("scale", torch.tensor([1e-1, 1.0]).double(), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5]).double()), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)

    em = lvm.infer.EM(program, variance_floor=1e-4)
    losses = [em.step(x) for _ in range(50)]
    assert np.isfinite(losses).all()
    floor = (1e-4 * x.var(correction=0)).sqrt().item()
    assert pyro.param("scale").min().item() == pytest.approx(floor, rel=1e-9)


def test_a_latent_site_that_cannot_be_enumerated():
    def program(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Poisson(torch.tensor(3.0)))
            pyro.sample("x", dist.Normal(rate, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"site 'rate' \(Poisson\) is latent and its support cannot be enumerated"):
        lvm.infer.EM(program).step(torch.randn(3))


def test_data_of_probability_zero_name_the_cause():
    def program(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])), infer={"enumerate": "parallel"})
            low = torch.tensor([0.0, 1.0])[z]
            pyro.sample("x", dist.Uniform(low, low + 1, validate_args=False), obs=x)

    with pytest.raises(ValueError, match="probability zero"):
        lvm.infer.EM(program).step(torch.tensor([5.0]))


def test_without_a_model():
    with pytest.raises(ValueError, match="expected a model"):
        lvm.infer.EM().step(torch.zeros(2))
    with pytest.raises(ValueError, match="variance_floor >= 0"):
        lvm.infer.EM(variance_floor=-1)


def test_nothing_of_components_times_rows_times_columns_is_formed(faithful):
    """The largest tensor of a step is (components, rows): a block of rows at a time is all that has columns too."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out._base is None and out.is_contiguous():
                self.numel = max(self.numel, out.numel())
            return out

    n, d, k = 60_000, 8, 6
    x = torch.randn(n, d, dtype=torch.float64)
    for covariance in ("full", "diag"):
        model = lvm.models.GaussianMixture(k, covariance=covariance)
        model.initialize(x)
        em = lvm.infer.EM(model)
        em.step(x)
        with Largest() as seen:
            em.step(x)
        assert seen.numel <= max(n * k, n * d, BLOCK_NUMBERS)
