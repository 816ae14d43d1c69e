"""Restricted Boltzmann machines as models: starts, what they learn, exchange of zeros and ones, bad rows."""

import math

import pytest
import torch

import pyro_lvm as lvm


def patterns(n=400):
    """Two halves, each all ones or all zeros but for one flip in twenty."""
    torch.manual_seed(1)
    halves = (torch.rand(n, 2) < 0.5).repeat_interleave(4, -1)
    return (halves ^ (torch.rand(n, 8) < 0.05)).double()


def entropy():
    """The entropy of the law of `patterns`, nats a row, by its closed form: two independent halves."""
    bits = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 4)
    ones = bits.sum(-1)
    probs = 0.5 * (0.95**ones * 0.05 ** (4 - ones) + 0.05**ones * 0.95 ** (4 - ones))
    return -2 * float((probs * probs.log()).sum())


def test_start_is_independent_units():
    x = patterns()
    model = lvm.models.RBM(3)
    model.initialize(x)
    with torch.no_grad():
        law = model.law()
        law.weight.zero_()
        share = (x.sum(0) + 0.5) / (len(x) + 1)
        expected = torch.distributions.Bernoulli(share).log_prob(x).sum(-1)
    torch.testing.assert_close(law.log_prob(x), expected)


def test_learns_patterns():
    train, test = patterns().split([300, 100])
    many = lvm.infer.SVI(loss=lvm.infer.ContrastiveDivergence(persistent=True, num_chains=300), learning_rate=0.003)
    fit = lvm.fit(lvm.models.RBM(4), train, inference=many, max_epochs=400, batch_size=50, seed=0, progress=False)
    assert fit.score(test) > -entropy() - 0.35


def test_rows_with_zeros_and_ones_exchanged_are_learned_as_well():
    many = lvm.infer.SVI(loss=lvm.infer.ContrastiveDivergence(persistent=True, num_chains=300), learning_rate=0.003)
    options = {"inference": many, "max_epochs": 100, "batch_size": 50, "seed": 0, "progress": False}
    x = patterns() * torch.tensor([1, 1, 1, 0, 1, 1, 1, 1]).double()
    scores = [lvm.fit(lvm.models.RBM(4), rows, **options).score(rows) for rows in (x, 1 - x)]
    assert abs(scores[0] - scores[1]) < 0.1


def test_gaussian_machine_learns_two_clusters(faithful):
    x = (faithful - faithful.mean(0)) / faithful.std(0)
    fit = lvm.fit(lvm.models.GaussianRBM(2), x, max_epochs=100, batch_size=50, seed=0, progress=False)
    one_normal = float(torch.distributions.MultivariateNormal(x.mean(0), x.T.cov()).log_prob(x).mean())
    assert fit.score(x) > one_normal


@pytest.mark.parametrize("inference", ["pcd", "cd"])
@pytest.mark.parametrize("unit", [1e-6, 1e-2, 1e4])
def test_gaussian_machine_learns_alike_in_all_units(faithful, inference, unit):
    options = {"inference": inference, "max_epochs": 20, "batch_size": 50, "seed": 0, "progress": False}
    x = faithful.double()
    fits = [lvm.fit(lvm.models.GaussianRBM(2), rows, **options) for rows in (x, unit * x)]
    shifted = fits[1].log_likelihood(unit * x) + 2 * math.log(unit)
    torch.testing.assert_close(shifted, fits[0].log_likelihood(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fits[1].model.law().weight, unit * fits[0].model.law().weight, rtol=1e-4, atol=0)
    assert fits[0].history["loss"] == pytest.approx(fits[1].history["loss"], rel=1e-4)


def test_parameters_of_known_shape_are_there_at_once():
    assert lvm.models.RBM(3, 5).weight.shape == (5, 3)
    assert lvm.models.GaussianRBM(3, 5).noise_scale.shape == (5,)


def test_generates_and_keeps_types():
    fit = lvm.fit(lvm.models.RBM(3), patterns().float(), max_epochs=2, seed=0, progress=False)
    drawn = fit.sample(4)
    assert drawn.shape == (4, 8)
    assert drawn.dtype == torch.float32
    assert set(drawn.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("kind", ["int", "bool", "double", "constant", "batch of one"])
def test_harmless_rows(kind):
    x = patterns(60)
    x[:, 0] = 1.0 if kind == "constant" else x[:, 0]
    x = {"int": x.long(), "bool": x.bool()}.get(kind, x)
    size = 1 if kind == "batch of one" else 20
    fit = lvm.fit(lvm.models.RBM(2), x, max_epochs=2, batch_size=size, seed=0, progress=False)
    assert math.isfinite(fit.score(x))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x + 0.5, r"RBM: expected zeros and ones; got \S+ at row 0, column 0. Threshold it"),
        (lambda x: x.flatten(), r"expected x of shape \(n, d\)"),
        (lambda x: x[:1], "at least 2 rows"),
        (lambda x: x.where(x > 0, math.nan), "NaN"),
    ],
)
def test_bad_rows(spoil, message):
    with pytest.raises(ValueError, match=message):
        lvm.fit(lvm.models.RBM(2), spoil(patterns()), max_epochs=1, progress=False)


def test_neither_rows_nor_size():
    with pytest.raises(ValueError, match="rows x or a size"):
        lvm.models.RBM(2, 3)()
