"""Linear dynamical systems: EM against dense algebra, gaps, ragged sequences, weights, series, bad input."""

import math
from itertools import pairwise

import pytest
import torch
from torch.distributions import MultivariateNormal

import pyro_lvm as lvm
from pyro_lvm.models import linear_dynamical_system
from pyro_lvm.ops.dynamics_updates import first_state_update
from pyro_lvm.ops.kalman_gains import LinearDynamics
from pyro_lvm.ops.kalman_smoother import sample_dynamics


def truth(k=2, d=3):
    torch.manual_seed(4)
    turn = torch.tensor([[0.9, 0.25], [-0.25, 0.9]]).double() if k == 2 else 0.8 * torch.eye(k).double()
    eye = torch.eye(k).double()
    return LinearDynamics(
        torch.ones(k).double(),
        2 * eye,
        turn,
        eye,
        3 + torch.randn(d).double(),
        torch.randn(d, k).double(),
        (0.3 + torch.rand(d)).double(),
    )


def some_sequences(kind="complete", n=4, steps=6):
    x = sample_dynamics(truth(), steps, n)[1]
    lengths = None
    if kind in ("gaps", "ragged with gaps"):
        x = torch.where(torch.rand_like(x) < 0.25, torch.nan, x)
        x[1, 2] = torch.nan
    if kind in ("ragged", "ragged with gaps"):
        lengths = torch.tensor([steps, 2, steps - 1, 3])
    return x, lengths


def numbers(model):
    names = ("transition", "weight", "loc", "noise_scale", "initial_loc", "initial_covariance")
    return {name: getattr(model, name).detach().clone() for name in names}


def blocks(model, x):
    """Mean and covariance of all states of one sequence given what is known of it; by dense linear algebra."""
    p, steps = numbers(model), len(x)
    k = len(p["initial_loc"])
    loc, own = [p["initial_loc"]], [p["initial_covariance"]]
    for _ in range(steps - 1):
        loc.append(p["transition"] @ loc[-1])
        own.append(p["transition"] @ own[-1] @ p["transition"].mT + torch.eye(k).double())
    joint = torch.zeros(steps * k, steps * k).double()
    for s in range(steps):
        for t in range(s, steps):
            block = torch.linalg.matrix_power(p["transition"], t - s) @ own[s]
            joint[t * k : (t + 1) * k, s * k : (s + 1) * k] = block
            joint[s * k : (s + 1) * k, t * k : (t + 1) * k] = block.mT
    maps = torch.block_diag(*[p["weight"]] * steps)
    seen = maps @ joint @ maps.mT + p["noise_scale"].square().repeat(steps).diag()
    mean = maps @ torch.cat(loc) + p["loc"].repeat(steps)
    known = ~x.flatten().isnan()
    gain = torch.linalg.solve(seen[known][:, known], maps[known] @ joint).mT
    errors = (x.flatten() - mean)[known]
    value = MultivariateNormal(mean[known], seen[known][:, known]).log_prob(x.flatten()[known])
    states = (torch.cat(loc) + gain @ errors).unflatten(0, (steps, k))
    left = joint - gain @ maps[known] @ joint
    return float(value), states, left.unflatten(0, (steps, k)).unflatten(2, (steps, k))


def em_step(model, x, lengths, weights):
    """Shumway and Stoffer's step by loops over sequences, steps and columns, in units of the moves' covariance."""
    k, d = model.weight.shape[1], x.shape[-1]
    zero = torch.zeros(k, k).double()
    s11, s10, s00, first, moment, moves = zero, zero, zero, torch.zeros(k).double(), zero, 0.0
    left, right = torch.zeros(d, k + 1, k + 1).double(), torch.zeros(d, k + 1).double()
    squares, counts, likelihood = torch.zeros(d).double(), torch.zeros(d).double(), 0.0
    for i, row in enumerate(x):
        w = float(weights[i])
        row = row if lengths is None else row[: lengths[i]]
        value, loc, covariance = blocks(model, row)
        likelihood += w * value
        first = first + w * loc[0]
        moment = moment + w * (covariance[0, :, 0] + loc[0].outer(loc[0]))
        for t, step in enumerate(row):
            now = covariance[t, :, t] + loc[t].outer(loc[t])
            if t:
                s11 = s11 + w * now
                s00 = s00 + w * (covariance[t - 1, :, t - 1] + loc[t - 1].outer(loc[t - 1]))
                s10 = s10 + w * (covariance[t, :, t - 1] + loc[t].outer(loc[t - 1]))
                moves += w
            extended = torch.zeros(k + 1, k + 1).double()
            extended[:k, :k], extended[:k, k], extended[k, :k], extended[k, k] = now, loc[t], loc[t], 1.0
            for j in range(d):
                if not step[j].isnan():
                    left[j] += w * extended
                    right[j] += w * step[j] * torch.cat([loc[t], torch.ones(1).double()])
                    squares[j] += w * step[j] ** 2
                    counts[j] += w
    total = float(weights.sum())
    transition = s10 @ torch.linalg.inv(s00)
    q = (s11 - transition @ s10.mT) / moves
    rows = torch.stack([torch.linalg.solve(left[j], right[j]) for j in range(d)])
    noise = (squares - (rows * right).sum(-1)) / counts
    m0 = first / total
    p0 = moment / total - m0.outer(m0)
    values, vectors = torch.linalg.eigh(q)
    root, inverse = vectors @ values.sqrt().diag() @ vectors.mT, vectors @ values.rsqrt().diag() @ vectors.mT
    new = {
        "transition": inverse @ transition @ root,
        "weight": rows[:, :k] @ root,
        "loc": rows[:, k],
        "noise_scale": noise.sqrt(),
        "initial_loc": inverse @ m0,
        "initial_covariance": inverse @ p0 @ inverse,
    }
    return likelihood, new


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["complete", "gaps", "ragged", "ragged with gaps"])
def test_a_step_of_em_is_that_of_dense_algebra(kind, weighted) -> None:
    x, lengths = some_sequences(kind)
    weights = torch.tensor([1.0, 3.0, 0.5, 2.0]).double() if weighted else torch.ones(4).double()
    model = lvm.models.LinearDynamicalSystem(2)
    model.initialize(x, lengths)
    likelihood, expected = em_step(model, x, lengths, weights)
    loss = lvm.infer.EM(model).step(x, lengths, **({"sample_weights": weights} if weighted else {}))
    assert -loss == pytest.approx(likelihood, abs=1e-9)
    for name, value in numbers(model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-8, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", ["complete", "gaps"])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_likelihood_never_falls(kind, k) -> None:
    """With as many latent dimensions as there are, fewer, and more than columns."""
    x, _ = some_sequences(kind, 4, 40)
    model = lvm.models.LinearDynamicalSystem(k)
    model.initialize(x)
    em = lvm.infer.EM(model)
    losses = [em.step(x) for _ in range(40)]
    assert all(b <= a + 1e-9 * abs(a) for a, b in pairwise(losses))
    assert losses[-1] < losses[0] - 1


def test_the_likelihood_of_a_single_series_does_not_fall_at_the_bound_of_its_first_state(monkeypatch) -> None:
    monkeypatch.setattr(linear_dynamical_system, "CERTAIN", 0.01)
    x, _ = some_sequences("complete", 1, 60)
    model = lvm.models.LinearDynamicalSystem(2)
    model.initialize(x)
    em = lvm.infer.EM(model)
    losses = [em.step(x) for _ in range(150)]
    assert all(b <= a + 1e-9 * abs(a) for a, b in pairwise(losses))
    assert float(torch.linalg.eigvalsh(model.initial_covariance.detach()).min()) == pytest.approx(0.01, rel=1e-6)


def test_the_first_state_of_a_single_series_is_where_the_likelihood_is_greatest() -> None:
    x, _ = some_sequences("complete", 1, 40)
    x[0, 3:5, :2] = torch.nan
    model = lvm.models.LinearDynamicalSystem(2)
    model.initialize(x)
    torch.testing.assert_close(model.initial_covariance.detach(), 1e-4 * torch.eye(2).double())
    law = model._law()
    with torch.no_grad():
        found = law.statistics(x)
    best, gain = first_state_update(found, law.initial_loc.double().detach(), 1e-4)
    before, after = law.log_prob(x), model._law(initial_loc=best.requires_grad_()).log_prob(x)
    assert float(gain) == pytest.approx(float((after - before).detach()), rel=1e-5)
    assert float(gain) > 1e-3
    (slope,) = torch.autograd.grad(after.sum(), best)
    assert float(slope.abs().max()) < 1e-4
    em = lvm.infer.EM(model)
    losses = [em.step(x) for _ in range(10)]
    assert all(b <= a + 1e-9 * abs(a) for a, b in pairwise(losses))
    (slope,) = torch.autograd.grad(model._law().log_prob(x).sum(), model.initial_loc)
    assert float(slope.abs().max()) < 0.1
    torch.testing.assert_close(model.initial_covariance.detach(), 1e-4 * torch.eye(2).double())
    assert model.fixed_entries("initial_covariance") == 3


def test_a_step_of_em_for_a_single_series_moves_the_first_state_with_its_scale() -> None:
    """Parameter expansion: the best covariance of moves where the first state's is a share of it, by gradients."""
    x, _ = some_sequences("complete", 1, 30)
    model = lvm.models.LinearDynamicalSystem(2)
    model.initialize(x)
    em = lvm.infer.EM(model, acceleration=None)
    em.step(x)
    law = model._law()
    with torch.no_grad():
        better, _ = first_state_update(law.statistics(x), law.initial_loc.double(), 1e-4)
    with torch.no_grad():
        _, loc, joint = blocks_at(model, x[0], better)
    em.step(x)
    a = model.transition.detach()
    moments = joint + loc.flatten().outer(loc.flatten()).unflatten(0, loc.shape).unflatten(2, loc.shape)
    ahead = sum(moments[t, :, t - 1] for t in range(1, 30))
    earlier = sum(moments[t, :, t] for t in range(29))
    plain = ahead @ torch.linalg.inv(earlier)
    later = sum(moments[t, :, t] for t in range(1, 30))
    q = (later - plain @ ahead.mT + joint[0, :, 0] / 1e-4) / 30
    values, vectors = torch.linalg.eigh(q)
    root, inverse = vectors @ values.sqrt().diag() @ vectors.mT, vectors @ values.rsqrt().diag() @ vectors.mT
    torch.testing.assert_close(a, inverse @ plain @ root, rtol=1e-7, atol=1e-7)


def blocks_at(model, x, loc):
    """Moments of all states with another mean of the first one."""
    kept = model.initial_loc.detach().clone()
    model.initial_loc = loc
    try:
        return blocks(model, x)
    finally:
        model.initial_loc = kept


def test_training_stops_where_an_epoch_gains_next_to_nothing() -> None:
    """Per known entry, and only where no `tol` is given."""
    x = lvm.datasets.load("geyser").x
    options = {"seed": 0, "progress": False}
    fit = lvm.fit(lvm.models.LinearDynamicalSystem(1), x, max_epochs=100, **options)
    losses = fit.history["loss"]
    assert fit.converged
    assert losses[-2] - losses[-1] < 598e-7 <= losses[-3] - losses[-2]
    longer = lvm.fit(lvm.models.LinearDynamicalSystem(1), x, max_epochs=len(losses) + 1, tol=0.0, **options)
    assert len(longer.history["loss"]) == len(losses) + 1


def test_em_ends_at_a_stationary_point_near_the_truth() -> None:
    x, _ = some_sequences("gaps", 20, 60)
    fit = lvm.fit(lvm.models.LinearDynamicalSystem(2), x, max_epochs=300, tol=1e-12, seed=0, progress=False)
    parameters = [fit.model.transition_unconstrained, fit.model.weight_unconstrained, fit.model.loc_unconstrained]
    total = fit.model._law(num_steps=60).log_prob(x).sum()
    assert max(float(g.abs().max()) for g in torch.autograd.grad(total, parameters)) < 0.05
    found = torch.linalg.eigvals(fit.params["transition"])
    expected = torch.linalg.eigvals(truth().transition)
    assert float(found.abs().mean()) == pytest.approx(float(expected.abs().mean()), abs=0.03)
    assert float(found.angle().abs().mean()) == pytest.approx(float(expected.angle().abs().mean()), abs=0.03)


def test_squarem_needs_fewer_steps_than_plain_em() -> None:
    x, _ = some_sequences("complete", 5, 50)
    plain = lvm.fit(lvm.models.LinearDynamicalSystem(2), x, inference="em", max_epochs=2000, seed=0, progress=False)
    fast = lvm.fit(lvm.models.LinearDynamicalSystem(2), x, seed=0, progress=False)
    assert fast.inference.evaluations < plain.inference.evaluations
    assert fast.score(x) > plain.score(x) - 1e-4


def test_gradients_reach_what_em_reaches() -> None:
    x, _ = some_sequences("complete", 10, 30)
    em = lvm.fit(lvm.models.LinearDynamicalSystem(2), x, seed=0, progress=False)
    svi = lvm.infer.SVI(learning_rate=0.05)
    other = lvm.fit(lvm.models.LinearDynamicalSystem(2), x, inference=svi, max_epochs=150, seed=0, progress=False)
    assert other.score(x) == pytest.approx(em.score(x), rel=0.01)


def test_weights_are_repetitions() -> None:
    x, _ = some_sequences("gaps", 4, 20)
    weights = torch.tensor([2.0, 1.0, 3.0, 1.0]).double()
    options = {"inference": "em", "max_epochs": 10, "seed": 0, "progress": False}
    some = lvm.fit(lvm.models.LinearDynamicalSystem(2, 3), {"x": x, "sample_weights": weights}, **options)
    model = lvm.models.LinearDynamicalSystem(2)
    model.initialize(x)
    em = lvm.infer.EM(model)
    repeated = x.repeat_interleave(weights.long(), 0)
    losses = [em.step(repeated) for _ in range(10)]
    assert some.history["loss"][0] == pytest.approx(losses[0], rel=1e-9)
    assert some.history["loss"][9] == pytest.approx(losses[9], rel=1e-9)


def test_verbs_answer_in_the_form_of_the_data() -> None:
    x, _ = some_sequences("gaps", 4, 12)
    ragged = [x[0], x[1, :7], x[2, :9]]
    fit = lvm.fit(lvm.models.LinearDynamicalSystem(2), ragged, max_epochs=5, seed=0, progress=False)
    assert [tuple(part.shape) for part in fit.transform(ragged)] == [(12, 2), (7, 2), (9, 2)]
    filled = fit.impute(ragged)
    assert [tuple(part.shape) for part in filled] == [(12, 3), (7, 3), (9, 3)]
    assert not any(part.isnan().any() for part in filled)
    assert fit.posterior(ragged, 5)["h"].shape == (5, 3, 12, 2)
    assert fit.transform(x[0]).shape == (12, 2)
    assert fit.sample(3, num_steps=7).shape == (3, 7, 3)
    means = fit.transform(ragged)[1] @ fit.params["weight"].mT + fit.params["loc"]
    lost = ragged[1].isnan()
    torch.testing.assert_close(filled[1][lost], means[lost])
    torch.testing.assert_close(fit.log_likelihood(ragged)[1], fit.log_likelihood(x[1, :7])[0])
    with pytest.raises(ValueError, match="no discrete latent site"):
        fit.predict(x)


def test_missing_entries_are_filled_better_than_by_means() -> None:
    whole, _ = some_sequences("complete", 10, 50)
    x = torch.where(torch.rand_like(whole) < 0.3, torch.nan, whole)
    fit = lvm.fit(lvm.models.LinearDynamicalSystem(2), x, max_epochs=50, seed=0, progress=False)
    lost = x.isnan()
    means = x.flatten(0, 1).nanmean(0).expand_as(x)
    assert (fit.impute(x) - whole)[lost].square().mean() < 0.4 * (means - whole)[lost].square().mean()


def test_far_from_the_origin_in_single_precision() -> None:
    x, _ = some_sequences("complete", 10, 30)
    near = lvm.fit(lvm.models.LinearDynamicalSystem(2), x.float(), max_epochs=20, seed=0, progress=False)
    far = lvm.fit(lvm.models.LinearDynamicalSystem(2), x.float() + 1000, max_epochs=20, seed=0, progress=False)
    assert far.score(x.float() + 1000) == pytest.approx(near.score(x.float()), rel=2e-3)


def test_parameters_are_counted_without_those_that_a_rotation_takes_away() -> None:
    x, _ = some_sequences("complete", 4, 20)
    fit = lvm.fit(lvm.models.LinearDynamicalSystem(2), x, max_epochs=2, seed=0, progress=False)
    free = (fit.aic(x) + 2 * float(fit.log_likelihood(x).sum())) / 2
    assert free == pytest.approx(4 + 6 - 1 + 3 + 3 + 2 + 3)
    x[0, 3:5] = torch.nan
    x[1, 7, 0] = torch.nan
    data = {"x": x, "lengths": torch.tensor([20, 20, 15, 20])}
    total = float(fit.log_likelihood(data).sum())
    assert fit.bic(data) == pytest.approx(free * math.log(20 + 18 + 20 + 15) - 2 * total)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda x: x[:, :1], "at least 2 steps"),
        (lambda x: torch.cat([x, torch.ones_like(x[..., :1])], -1), "constant column 3"),
        (lambda x: x.unsqueeze(0), "shape"),
        (lambda x: torch.cat([x, x[..., :1] * torch.nan], -1), "all of column 3 is missing"),
    ],
)
def test_bad_sequences_are_refused(spoil, why) -> None:
    x, _ = some_sequences()
    with pytest.raises(ValueError, match=why):
        lvm.fit(lvm.models.LinearDynamicalSystem(2), spoil(x), seed=0, progress=False)


def test_states_that_grow_are_told_of():
    steps = torch.arange(60).double()
    x = (1.05**steps).unsqueeze(-1) + 0.01 * torch.randn(60, 1, generator=torch.Generator().manual_seed(0))
    with pytest.warns(RuntimeWarning, match=r"states grow, as the transition has an eigenvalue of modulus 1\.0"):
        lvm.fit(lvm.models.LinearDynamicalSystem(1), x, max_epochs=30, seed=0, progress=False)
