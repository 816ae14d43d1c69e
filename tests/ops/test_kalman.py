"""The Kalman filter and smoother against the dense joint normal law of states and sequences."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from pyro_lvm.ops import kalman_gains, recurrences
from pyro_lvm.ops.associative_scan import scan
from pyro_lvm.ops.kalman import kalman_filter
from pyro_lvm.ops.kalman_gains import LinearDynamics
from pyro_lvm.ops.kalman_smoother import kalman_smoother, sample_dynamics, sample_states
from pyro_lvm.ops.recurrences import recur

SHAPES = {"more columns": (2, 4), "square": (3, 3), "fewer columns": (3, 1)}


def some_dynamics(k, d, noise=1.0):
    torch.manual_seed(1)
    a = torch.randn(k, k).double()
    a = 0.9 * a / torch.linalg.eigvals(a).abs().max()
    root, first = torch.randn(2, k, k).double()
    return LinearDynamics(
        torch.randn(k).double(),
        first @ first.mT + 0.1 * torch.eye(k).double(),
        a,
        root @ root.mT + 0.1 * torch.eye(k).double(),
        3 + torch.randn(d).double(),
        torch.randn(d, k).double(),
        noise * (0.5 + torch.rand(d)).double(),
    )


def dense(law, steps):
    """Means and covariances of all states and of all steps, and the covariance of states with steps."""
    k, d = len(law.initial_loc), len(law.loc)
    loc, covariance = [law.initial_loc], [[law.initial_covariance]]
    for _ in range(steps - 1):
        loc.append(law.transition @ loc[-1])
        row = [law.transition @ c for c in covariance[-1]]
        own = law.transition @ covariance[-1][-1] @ law.transition.mT + law.transition_covariance
        covariance.append([*row, own])
    joint = torch.zeros(steps * k, steps * k).double()
    for t, row in enumerate(covariance):
        for s, block in enumerate(row):
            joint[t * k : (t + 1) * k, s * k : (s + 1) * k] = block
            joint[s * k : (s + 1) * k, t * k : (t + 1) * k] = block.mT
    maps = torch.block_diag(*[law.weight] * steps)
    mean = torch.cat(loc)
    seen = maps @ joint @ maps.mT + law.noise.repeat(steps).diag()
    return mean, joint, maps @ mean + law.loc.repeat(steps), seen, joint @ maps.mT, d


def exact(law, x, length):
    """Log-likelihood, and the mean and covariance of all states, of one sequence."""
    loc, joint, mean, seen, cross, _ = dense(law, length)
    values = x[:length].flatten()
    known = ~values.isnan()
    if not known.any():
        return 0.0, loc, joint
    part = seen[known][:, known]
    value = MultivariateNormal(mean[known], part).log_prob(values[known])
    gain = torch.linalg.solve(part, cross[:, known].mT).mT
    return value, loc + gain @ (values - mean)[known], joint - gain @ cross[:, known].mT


def sequences(kind, n, steps, d):
    torch.manual_seed(2)
    x = 3 + 2 * torch.randn(n, steps, d).double()
    lengths = None
    if kind == "entries missing":
        x = torch.where(torch.rand_like(x) < 0.3, torch.nan, x)
        x[0] = torch.nan
    if kind == "steps missing":
        x[torch.rand(n, steps) < 0.3] = torch.nan
    if kind == "the same missing":
        x[:, 2] = torch.nan
        x[:, 4, 0] = torch.nan
    if kind == "ragged":
        lengths = torch.randint(1, steps + 1, (n,))
        lengths[0] = 1
    if kind == "ragged with gaps":
        lengths = torch.randint(2, steps + 1, (n,))
        x = torch.where(torch.rand_like(x) < 0.3, torch.nan, x)
    return x, lengths


@pytest.fixture(params=["loop", "running products"])
def way(request, monkeypatch):
    """Both ways to covariances and means."""
    monkeypatch.setattr(kalman_gains, "SPARED", 0 if request.param == "loop" else 1e9)
    monkeypatch.setattr(recurrences, "MANY", 1e9 if request.param == "loop" else 1)


KINDS = ["complete", "entries missing", "steps missing", "the same missing", "ragged", "ragged with gaps"]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("way")
def test_everything_is_that_of_the_dense_law(kind, shape) -> None:
    k, d = shape
    law = some_dynamics(k, d)
    x, lengths = sequences(kind, 5, 7, d)
    smoothed = kalman_smoother(law, x, lengths)
    group = smoothed.filtered.patterns.group
    for i, row in enumerate(x):
        length = 7 if lengths is None else int(lengths[i])
        value, loc, covariance = exact(law, row, length)
        assert float(smoothed.filtered.log_likelihood[i]) == pytest.approx(float(value), abs=1e-10)
        torch.testing.assert_close(smoothed.loc[:length, i].flatten(), loc, rtol=0, atol=1e-10)
        g = 0 if group is None else int(group[i])
        for t in range(length):
            here = slice(t * k, (t + 1) * k)
            after = slice((t + 1) * k, (t + 2) * k)
            torch.testing.assert_close(smoothed.covariance[t, g], covariance[here, here], rtol=0, atol=1e-10)
            if t + 1 < length:
                torch.testing.assert_close(smoothed.cross_covariance[t, g], covariance[after, here], rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_long_sequences_settle_and_stay_exact(shape, monkeypatch) -> None:
    """Once covariances have converged, they are kept, and means found by products; gaps begin it anew."""
    monkeypatch.setattr(kalman_gains, "SPARED", 0)
    law = some_dynamics(*shape)
    law = law._replace(transition=0.7 * law.transition)
    x, _ = sequences("complete", 2, 120, shape[1])
    x[:, 60:63] = torch.nan
    smoothed = kalman_smoother(law, x)
    assert len(smoothed.filtered.gains.predicted) < 100
    for i in range(2):
        value, loc, covariance = exact(law, x[i], 120)
        assert float(smoothed.filtered.log_likelihood[i]) == pytest.approx(float(value), rel=1e-11)
        torch.testing.assert_close(smoothed.loc[:, i].flatten(), loc, rtol=0, atol=1e-9)
        parts = covariance.unflatten(0, (120, -1)).unflatten(2, (120, -1))
        ours = smoothed.covariance[:, 0]
        torch.testing.assert_close(ours, torch.stack([parts[t, :, t] for t in range(120)]), rtol=0, atol=1e-9)
        ours = smoothed.cross_covariance[:, 0]
        torch.testing.assert_close(ours, torch.stack([parts[t + 1, :, t] for t in range(119)]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["complete", "entries missing"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.usefixtures("way")
def test_gradients_are_those_of_the_dense_law(kind, shape) -> None:
    law = some_dynamics(*shape)
    x, _ = sequences(kind, 2, 40, shape[1])
    leaves = [part.clone().requires_grad_() for part in law]
    ours = kalman_filter(LinearDynamics(*leaves), x).log_likelihood.sum()
    theirs = sum(dense_log_likelihood(LinearDynamics(*leaves), row) for row in x)
    for a, b in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        a, b = ((g + g.mT if g.dim() == 2 and g.shape[0] == g.shape[1] else g) for g in (a, b))
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def dense_log_likelihood(law, row):
    k, steps = len(law.initial_loc), len(row)
    loc, blocks = [law.initial_loc], [[law.initial_covariance]]
    for _ in range(steps - 1):
        loc.append(law.transition @ loc[-1])
        own = law.transition @ blocks[-1][-1] @ law.transition.mT + law.transition_covariance
        blocks.append([*(law.transition @ c for c in blocks[-1]), own])
    rows = [torch.cat([*row, *(blocks[s][t].mT for s in range(t + 1, steps))], 1) for t, row in enumerate(blocks)]
    joint = torch.cat(rows)
    maps = torch.block_diag(*[law.weight] * steps)
    seen = maps @ joint @ maps.mT + law.noise.repeat(steps).diag()
    values = row.flatten()
    known = ~values.isnan()
    if not known.any():
        return joint.sum() * 0
    mean = maps @ torch.cat(loc) + law.loc.repeat(steps)
    assert k == len(law.transition)
    return MultivariateNormal(mean[known], seen[known][:, known]).log_prob(values[known])


@pytest.mark.usefixtures("way")
def test_singular_covariances_are_taken() -> None:
    """An autoregression of order two has a state that is known for certain."""
    law = some_dynamics(2, 1)._replace(
        transition=torch.tensor([[0.5, 0.3], [1.0, 0.0]]).double(),
        transition_covariance=torch.tensor([[1.0, 0.0], [0.0, 0.0]]).double(),
        initial_covariance=torch.zeros(2, 2).double(),
    )
    x, _ = sequences("complete", 1, 9, 1)
    smoothed = kalman_smoother(law, x)
    value, loc, _ = exact(law, x[0], 9)
    assert float(smoothed.filtered.log_likelihood) == pytest.approx(float(value), abs=1e-10)
    torch.testing.assert_close(smoothed.loc[:, 0].flatten(), loc, rtol=0, atol=1e-10)
    torch.testing.assert_close(smoothed.loc[1:, 0, 1], smoothed.loc[:-1, 0, 0], rtol=0, atol=1e-10)


@pytest.mark.usefixtures("way")
def test_next_to_no_noise_is_exact() -> None:
    """The states are what the columns say, and the likelihood is that of an autoregression."""
    k = 3
    law = some_dynamics(k, k, noise=1e-12)
    states, x = sample_dynamics(law, 30, 1)
    smoothed = kalman_smoother(law, x)
    torch.testing.assert_close(smoothed.loc[:, 0], states[0], rtol=0, atol=1e-4)
    first = MultivariateNormal(law.initial_loc, law.initial_covariance).log_prob(states[0, 0])
    steps = MultivariateNormal(torch.zeros(k).double(), law.transition_covariance)
    found = first + steps.log_prob(states[0, 1:] - states[0, :-1] @ law.transition.mT).sum()
    expected = float(found - 30 * torch.linalg.slogdet(law.weight).logabsdet)
    assert float(smoothed.filtered.log_likelihood) == pytest.approx(expected, abs=1e-3)


def test_next_to_no_noise_in_more_columns_than_states_is_exact() -> None:
    """Given the first columns, the last one is normal about what they say, with the noise of both."""
    law = some_dynamics(2, 3, noise=1e-12)
    states, x = sample_dynamics(law, 30, 1)
    x[0, 3::4, 1:] = torch.nan
    known = ~x[0].isnan().any(-1)
    smoothed = kalman_smoother(law, x)
    torch.testing.assert_close(smoothed.loc[known, 0], states[0, known], rtol=0, atol=1e-4)
    first = kalman_filter(law._replace(weight=law.weight[:2], loc=law.loc[:2], noise=law.noise[:2]), x[..., :2])
    share = torch.linalg.solve(law.weight[:2].mT, law.weight[2])
    mean = law.loc[2] + (x[0, :, :2] - law.loc[:2]) @ share
    last = torch.distributions.Normal(mean.nan_to_num(), (law.noise[2] + law.noise[:2] @ share.square()).sqrt())
    expected = float(first.log_likelihood) + float(last.log_prob(x[0, :, 2].nan_to_num())[known].sum())
    assert float(smoothed.filtered.log_likelihood) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("kind", ["complete", "ragged with gaps"])
def test_states_are_drawn_from_their_posterior(kind) -> None:
    k, d, count = 2, 3, 40_000
    law = some_dynamics(k, d)
    x, lengths = sequences(kind, 2, 4, d)
    draws = sample_states(law, x, lengths, count)
    assert draws.shape == (count, 2, 4, k)
    for i in range(2):
        length = 4 if lengths is None else int(lengths[i])
        _, loc, covariance = exact(law, x[i], length)
        ours = draws[:, i, :length].flatten(1)
        errors = (covariance.diagonal() / count).sqrt()
        assert bool(((ours.mean(0) - loc).abs() < 5 * errors).all())
        spread = covariance.diagonal().sqrt()
        bound = 5 * spread.outer(spread) * math.sqrt(2 / count)
        assert bool(((torch.cov(ours.mT) - covariance).abs() < bound).all())


def test_draws_have_the_moments_of_the_law() -> None:
    law, count = some_dynamics(2, 3), 40_000
    states, x = sample_dynamics(law, 4, count)
    loc, joint, mean, seen, _, _ = dense(law, 4)
    for ours, centre, covariance in ((states, loc, joint), (x, mean, seen)):
        ours = ours.flatten(1)
        assert bool(((ours.mean(0) - centre).abs() < 5 * (covariance.diagonal() / count).sqrt()).all())
        spread = covariance.diagonal().sqrt()
        bound = 5 * spread.outer(spread) * math.sqrt(2 / count)
        assert bool(((torch.cov(ours.mT) - covariance).abs() < bound).all())


@pytest.mark.usefixtures("way")
def test_recurrences_are_those_of_a_loop() -> None:
    matrices = 0.5 * torch.randn(2, 3, 2, 2).double()
    index = [0] * 3 + [1] * 40 + [0] * 17
    inputs, start = torch.randn(60, 5, 2).double(), torch.randn(5, 2).double()
    group = torch.tensor([0, 2, 1, 1, 0])
    expected = [start]
    for i, c in zip(index, inputs, strict=True):
        expected.append(torch.stack([matrices[i, g] @ y for g, y in zip(group, expected[-1], strict=True)]) + c)
    torch.testing.assert_close(recur(matrices, index, inputs, start, group), torch.stack(expected))
    alone = recur(matrices[:, 1:2], index, inputs[:, 2:4], start[2:4], None)
    torch.testing.assert_close(alone, torch.stack(expected)[:, 2:4])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 11, 16])
def test_running_products_are_those_of_a_loop(count) -> None:
    matrices, words = torch.randn(count, 2, 2).double(), torch.arange(count).double()
    first, last = scan(lambda one, two: (two[0] @ one[0], two[1]), (matrices, words))
    now = torch.eye(2).double()
    for t in range(count):
        now = matrices[t] @ now
        torch.testing.assert_close(first[t], now)
    assert torch.equal(last, words)


def test_the_way_is_that_of_less_work(monkeypatch) -> None:
    """A long complete sequence settles; many gaps in few patterns call for running products, in many patterns not."""
    ran, plain = [], kalman_gains._all_at_once
    monkeypatch.setattr(kalman_gains, "_all_at_once", lambda *args: ran.append(1) or plain(*args))
    law = some_dynamics(2, 3)
    x = sample_dynamics(law, 1000, 1)[1]
    assert len(kalman_filter(law, x).gains.predicted) < 100
    many = sample_dynamics(law, 50, 200)[1]
    kalman_filter(law, torch.where(torch.rand_like(many) < 0.2, torch.nan, many))
    assert not ran
    kalman_filter(law, torch.where(torch.rand_like(x) < 0.2, torch.nan, x))
    assert ran
