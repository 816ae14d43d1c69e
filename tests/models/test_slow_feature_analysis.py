"""Slow feature analysis: the closed form, its law, gaps, noise, expansions, bad input."""

import math
from itertools import pairwise

import pytest
import torch
from torch.distributions import MultivariateNormal

import pyro_lvm as lvm
from pyro_lvm.ops.slow_features import expanded


def correlation(one, other):
    return float(torch.corrcoef(torch.stack([one, other]))[0, 1].abs())


def signals(steps=500):
    """Wiskott and Sejnowski's: what is slow in them is hidden by a square."""
    t = torch.linspace(0, 2 * math.pi, steps, dtype=torch.float64)
    return torch.stack([t.sin() + (11 * t).cos() ** 2, (11 * t).cos()], -1), t.sin()


def with_gaps(x, steps=True):
    torch.manual_seed(1)
    lost = torch.rand(len(x), 1 if steps else x.shape[1]) < 0.2
    return torch.where(lost, torch.nan, x)


def fitted(x, *arguments, **options):
    options = {"max_epochs": 20, **options}
    return lvm.fit(lvm.models.SlowFeatureAnalysis(*arguments), x, seed=0, progress=False, **options)


def test_the_slow_signal_is_recovered() -> None:
    x, slow = signals()
    features = fitted(x, 3, "quadratic").transform(x)
    assert correlation(features[:, 0], slow) >= 1 - 1e-9
    torch.testing.assert_close(features.mT @ features / len(x), torch.eye(3).double(), rtol=0, atol=1e-6)
    assert features.mean(0).abs().max() < 1e-6
    moved = (features[1:] - features[:-1]).square().mean(0)
    assert bool((moved[1:] > moved[:-1]).all())


def test_linear_features_are_not_enough_there() -> None:
    x, slow = signals()
    assert correlation(fitted(x, 1).transform(x)[:, 0], slow) < 0.95


def test_features_do_not_move_in_training() -> None:
    x, _ = signals()
    model = lvm.models.SlowFeatureAnalysis(2, "quadratic")
    model.initialize(x.unsqueeze(0))
    before = model.weight.detach().clone()
    fit = fitted(x, 2, "quadratic", inference="em")
    torch.testing.assert_close(fit.params["weight"], before, rtol=0, atol=0)
    losses = fit.history["loss"]
    assert all(b <= a + 1e-9 * abs(a) for a, b in pairwise(losses))
    assert "none" in str(fit.plan(x))


def test_the_law_without_noise_is_one_of_independent_autoregressions() -> None:
    """By change of variables from the features."""
    x, _ = signals(200)
    z = expanded(x, "quadratic")
    fit = fitted(z, 5)
    rate, weight = fit.params["autocorrelation"], fit.params["weight"]
    y = torch.linalg.solve(weight, (z - fit.params["loc"]).mT).mT
    joint = rate.unsqueeze(-1).unsqueeze(-1) ** (torch.arange(200).unsqueeze(0) - torch.arange(200).unsqueeze(1)).abs()
    zero = torch.zeros(200).double()
    total = sum(MultivariateNormal(zero, c).log_prob(v) for c, v in zip(joint, y.mT, strict=True))
    expected = float(total - 200 * torch.linalg.slogdet(weight).logabsdet)
    assert float(fit.log_likelihood(z)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("steps", [True, False], ids=["steps", "entries"])
@pytest.mark.parametrize(("count", "noise"), [(2, False), (5, True)])
def test_the_slow_signal_survives_gaps(count, noise, steps) -> None:
    x, slow = signals()
    gaps = with_gaps(expanded(x, "quadratic"), steps)
    fit = fitted(gaps, count, "linear", noise, max_epochs=8)
    assert correlation(fit.transform(gaps)[:, 0], slow) >= 0.95
    lost = gaps.isnan()
    whole = expanded(x, "quadratic")
    spread = (whole - whole.mean(0))[lost].square().mean()
    assert (fit.impute(gaps) - whole)[lost].square().mean() < 0.05 * spread


def test_gaps_in_columns_that_are_expanded_are_summed_out() -> None:
    x, slow = signals()
    gaps = with_gaps(x)
    fit = fitted(gaps, 1, "quadratic")
    assert correlation(fit.transform(gaps)[:, 0], slow) >= 0.95


def from_noise():
    torch.manual_seed(2)
    rate = torch.tensor([0.98, 0.9, 0.5]).double()
    h = [torch.randn(6, 3).double()]
    for _ in range(199):
        h.append(rate * h[-1] + (1 - rate**2).sqrt() * torch.randn(6, 3).double())
    h = torch.stack(h, 1)
    return h, 1 + h @ torch.randn(3, 5).double() + 0.3 * torch.randn(6, 200, 5).double()


def test_noise_is_learned_and_the_likelihood_never_falls() -> None:
    h, x = from_noise()
    model = lvm.models.SlowFeatureAnalysis(3, noise=True)
    model.initialize(x)
    em = lvm.infer.EM(model)
    losses = [em.step(x) for _ in range(60)]
    assert all(b <= a + 1e-9 * abs(a) for a, b in pairwise(losses))
    fit = fitted(x, 3, "linear", True, max_epochs=200)
    assert fit.params["autocorrelation"].tolist() == pytest.approx([0.98, 0.9, 0.5], abs=0.04)
    assert fit.params["noise_scale"].tolist() == pytest.approx([0.3] * 5, abs=0.03)
    ours, plain = (correlation(f.transform(x)[..., 0].flatten(), h[..., 0].flatten()) for f in (fit, fitted(x, 1)))
    assert ours > plain + 0.005
    total = fit.model._law(num_steps=200).log_prob(x).sum()
    leaves = [fit.model.autocorrelation_unconstrained, fit.model.weight_unconstrained]
    assert max(float(g.abs().max()) for g in torch.autograd.grad(total, leaves)) < 2


def test_features_stay_in_order_when_autocorrelations_cross() -> None:
    _, x = from_noise()
    model = lvm.models.SlowFeatureAnalysis(3, noise=True)
    model.initialize(x)
    with torch.no_grad():
        for name in ("autocorrelation_unconstrained", "weight_unconstrained"):
            tensor = getattr(model, name)
            tensor.copy_(tensor.flip(-1))
    em = lvm.infer.EM(model)
    before = em.loss(x)
    em.step(x)
    rate = model.autocorrelation.detach()
    assert bool((rate[:-1] >= rate[1:]).all())
    assert em.loss(x) < before


def test_verbs_answer_in_the_form_of_the_data() -> None:
    _, x = from_noise()
    ragged = [x[0], x[1, :50], x[2, :30]]
    fit = fitted(ragged, 2)
    assert [tuple(part.shape) for part in fit.transform(ragged)] == [(200, 2), (50, 2), (30, 2)]
    assert fit.posterior(ragged, 4)["h"].shape == (4, 3, 200, 2)
    assert fit.sample(2, num_steps=9).shape == (2, 9, 5)
    wide = fitted(x, 2, "quadratic")
    assert wide.sample(2, num_steps=9).shape == (2, 9, 20)
    assert wide.transform(x).shape == (6, 200, 2)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((0,), "num_features"),
        ((1, "cubic"), "expansion to be one of linear, quadratic"),
    ],
)
def test_bad_arguments_are_refused(arguments, why) -> None:
    with pytest.raises(ValueError, match=why):
        lvm.models.SlowFeatureAnalysis(*arguments)


def test_more_features_than_directions_are_refused() -> None:
    _, x = from_noise()
    doubled = torch.cat([x, 2 * x[..., :1]], -1)
    with pytest.raises(ValueError, match=r"directions in which the columns vary, 5; got 6"):
        fitted(doubled, 6)
    assert fitted(doubled, 5, max_epochs=2).transform(doubled).shape == (6, 200, 5)


@pytest.mark.parametrize("noise", [False, True])
def test_weights_are_repetitions_of_sequences(noise) -> None:
    torch.manual_seed(0)
    walks = [torch.randn(length, 3, dtype=torch.float64).cumsum(0) for length in (40, 25, 30)]
    options = {"max_epochs": 5, "seed": 0, "progress": False}
    data = {"x": walks, "sample_weights": torch.tensor([3.0, 1.0, 0.0])}
    weighted = lvm.fit(lvm.models.SlowFeatureAnalysis(1, noise=noise), data, **options)
    repeated = lvm.fit(lvm.models.SlowFeatureAnalysis(1, noise=noise), [walks[0]] * 3 + walks[1:2], **options)
    for name, value in repeated.params.items():
        torch.testing.assert_close(weighted.params[name], value, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("dtype", "origin", "least"), [(torch.float32, 1e4, 0.999), (torch.float64, 1e6, 1 - 1e-6)])
def test_products_do_not_depend_on_the_origin(dtype, origin, least) -> None:
    t = torch.linspace(0, 4 * torch.pi, 400, dtype=torch.float64)
    x = torch.stack([t.sin() + (11 * t).cos() ** 2, (11 * t).cos()], -1)
    far = (x + origin).to(dtype)
    fit = lvm.fit(lvm.models.SlowFeatureAnalysis(1, "quadratic"), far, max_epochs=3, seed=0, progress=False)
    feature = fit.transform(far)[:, 0].double()
    assert float(torch.corrcoef(torch.stack([feature, t.sin()]))[0, 1].abs()) > least
    assert float(feature.std()) == pytest.approx(1, abs=0.01)
