"""Mixture of experts on simulated and real data, and what it says to covariates that do not fit."""

import copy
import functools

import numpy as np
import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm.testing import laws

MixtureOfExperts = lvm.models.MixtureOfExperts
fit = functools.partial(lvm.fit, seed=0, progress=False)


@pytest.fixture
def crossing():
    """Two lines that cross; the left is mostly the falling one's, the right the rising one's."""
    covariates = 4 * torch.rand(1500, 1).double() - 2
    rising = torch.rand(1500) < torch.sigmoid(1.0 + 2.0 * covariates[:, 0])
    slope, intercept = torch.where(rising, 2.0, -1.0), torch.where(rising, 1.0, 0.5)
    noise = torch.where(rising, 0.3, 0.2)
    x = slope * covariates[:, 0] + intercept + noise * torch.randn(1500)
    return {"x": x.unsqueeze(-1).double(), "covariates": covariates}


def test_recovers_experts_and_gate(crossing):
    found = fit(MixtureOfExperts(2), crossing, restarts=3)
    slope = found.params["coefficients"].flatten()
    order = slope.argsort()
    assert slope[order].tolist() == pytest.approx([-1.0, 2.0], abs=0.06)
    assert found.params["intercept"].flatten()[order].tolist() == pytest.approx([0.5, 1.0], abs=0.06)
    assert found.params["scale"].flatten()[order].tolist() == pytest.approx([0.2, 0.3], abs=0.04)
    grid = torch.linspace(-2, 2, 9).double().unsqueeze(-1)
    with torch.no_grad():
        share = found.model._logits(grid).softmax(-1)[:, order[1]]
    torch.testing.assert_close(share, torch.sigmoid(1.0 + 2.0 * grid[:, 0]), atol=0.08, rtol=0)
    expected = share * (2 * grid[:, 0] + 1) + (1 - share) * (0.5 - grid[:, 0])
    torch.testing.assert_close(found.model.mean(grid)[:, 0], expected, atol=0.1, rtol=0)


def test_the_experts_are_least_squares_and_the_gate_a_gradient(crossing):
    model = MixtureOfExperts(2)
    model.initialize(**crossing)
    plan = lvm.infer.EM(model).plan(**crossing)
    assert {p.name for p in plan if p.regression} == {"coefficients", "intercept"}
    assert {p.name for p in plan.gradient} == {"gate_coefficients", "gate_intercept"}


def test_svi_and_em_agree(crossing):
    by_em = fit(MixtureOfExperts(2), crossing)
    by_svi = fit(MixtureOfExperts(2), crossing, inference=lvm.infer.SVI(learning_rate=0.02))
    assert by_svi.score(crossing) == pytest.approx(by_em.score(crossing), abs=1e-3)


def test_one_expert_is_linear_regression(iris):
    x, covariates = iris.x[:, 2:], iris.x[:, :2]
    found = fit(MixtureOfExperts(1), {"x": x, "covariates": covariates})
    design = np.c_[covariates.numpy(), np.ones(len(x))]
    expected, squares, *_ = np.linalg.lstsq(design, x.numpy())
    np.testing.assert_allclose(found.params["coefficients"][0].numpy(), expected[:2].T, rtol=1e-7)
    np.testing.assert_allclose(found.params["intercept"][0].numpy(), expected[2], rtol=1e-7)
    np.testing.assert_allclose(found.params["scale"][0].numpy() ** 2, squares / len(x), rtol=1e-7)
    assert found.predict({"x": x, "covariates": covariates}).unique().tolist() == [0]


def test_waiting_times_on_the_length_of_eruptions(faithful):
    """Two regimes beat one line and, at equal numbers of parameters or fewer, a quadratic."""
    data = {"x": faithful[:, 1:], "covariates": faithful[:, :1]}
    one, two = (fit(MixtureOfExperts(k), data, restarts=2) for k in (1, 2))
    assert two.converged
    assert two.score(data) * 272 == pytest.approx(-851.31526, abs=1e-3)
    curve = {"x": data["x"], "covariates": torch.cat([faithful[:, :1], faithful[:, :1] ** 2], 1)}
    quadratic = fit(MixtureOfExperts(1), curve)
    assert two.aic(data) < quadratic.aic(curve) < one.aic(data)
    proba = two.predict_proba(data)
    assert torch.equal(proba.argmax(-1), two.predict(data))
    short = faithful[:, 0] < 2.5
    assert len(two.predict(data)[short].unique()) == 1


def test_a_network_as_gate(crossing):
    gate = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    before = [p.detach().clone() for p in gate.parameters()]
    found = fit(MixtureOfExperts(2, gate=gate), crossing, max_epochs=40)
    assert any(name.startswith("gate.") for name in found.params)
    assert all(torch.equal(a, b) for a, b in zip(before, gate.parameters(), strict=True))
    linear = fit(MixtureOfExperts(2), crossing)
    assert found.score(crossing) > linear.score(crossing) - 0.01
    laws.em_never_falls(MixtureOfExperts(2, gate=gate), **crossing)


def test_samples_follow_their_covariates(crossing):
    found = fit(MixtureOfExperts(2), crossing)
    at = torch.full((4000, 1), 1.5).double()
    drawn = found.sample(4000, covariates=at)
    assert drawn.shape == (4000, 1)
    expected = found.model.mean(at[:1]).item()
    assert drawn.mean().item() == pytest.approx(expected, abs=5 * drawn.std().item() / 4000**0.5)


@pytest.mark.usefixtures("local")
def test_sample_weights_count_rows(crossing):
    count = torch.randint(0, 3, (1500,))
    repeated = {name: value.repeat_interleave(count, 0) for name, value in crossing.items()}
    model = MixtureOfExperts(2)
    model.initialize(**repeated)
    results = []
    for data in (repeated, {**crossing, "sample_weights": count.double()}):
        em = lvm.infer.EM(copy.deepcopy(model))
        results.append([em.step(**data) for _ in range(10)])
    assert results[0] == pytest.approx(results[1], rel=1e-9)


def test_integers_as_covariates(crossing):
    whole = crossing["covariates"].mul(3).round().long()
    a = fit(MixtureOfExperts(2), {**crossing, "covariates": whole}, max_epochs=10)
    b = fit(MixtureOfExperts(2), {**crossing, "covariates": whole.double()}, max_epochs=10)
    assert a.history == b.history


def test_dtypes_are_kept(crossing):
    for dtype in (torch.float32, torch.float64):
        found = fit(MixtureOfExperts(2), {name: value.to(dtype) for name, value in crossing.items()}, max_epochs=5)
        assert {value.dtype for value in found.params.values()} == {dtype}


BAD_COVARIATES = {
    "none": (lambda c: None, r"covariates of shape \(1500, .\); got none"),
    "one-dimensional": (lambda c: c[:, 0], r"got \(1500,\)\. Pass covariates.reshape\(-1, 1\)"),
    "too few": (lambda c: c[:10], r"got \(10, 1\)\. Give one row of covariates for each row"),
    "NaN": (lambda c: c.clone().fill_(torch.nan), "finite"),
}


@pytest.mark.parametrize("kind", BAD_COVARIATES)
def test_covariates_that_do_not_fit(kind, crossing):
    spoil, message = BAD_COVARIATES[kind]
    bad = {"x": crossing["x"], "covariates": spoil(crossing["covariates"])}
    good = fit(MixtureOfExperts(2), crossing, max_epochs=2)
    with pytest.raises(ValueError, match=message) as at_fit:
        fit(MixtureOfExperts(2), bad)
    with pytest.raises(ValueError, match=message) as at_score:
        good.score(bad)
    for error in (at_fit, at_score):
        assert "\n" not in str(error.value)


def test_other_mistakes(crossing):
    good = fit(MixtureOfExperts(2), crossing, max_epochs=2)
    with pytest.raises(ValueError, match=r"expected covariates of shape \(3, 1\); got none.*sample\(n, covariates=c\)"):
        good.sample(3)
    wide = torch.cat([crossing["covariates"]] * 2, 1)
    with pytest.raises(ValueError, match="Pass covariate_dim=2, or give 1 columns"):
        good.score({**crossing, "covariates": wide})
    with pytest.raises(ValueError, match=r"expected x of shape \(n, 1\); got \(1500, 2\)"):
        good.score({**crossing, "x": wide})
    with pytest.raises(ValueError, match=r"Pass x.reshape\(-1, 1\)"):
        fit(MixtureOfExperts(2), {**crossing, "x": crossing["x"][:, 0]})
    with pytest.raises(ValueError, match="got constant column 0"):
        fit(MixtureOfExperts(2), {**crossing, "x": torch.ones(1500, 1)})
    with pytest.raises(ValueError, match="expected at least 3 rows"):
        fit(MixtureOfExperts(3), {name: value[:2] for name, value in crossing.items()})
    with pytest.raises(ValueError, match=r"sample_weights of shape \(1500,\)"):
        fit(MixtureOfExperts(2), {**crossing, "sample_weights": -torch.ones(1500)})
    for wrong in ({"num_components": 0}, {"num_components": 2, "data_dim": 0}, {"num_components": 2, "gate": "soft"}):
        with pytest.raises(ValueError, match="MixtureOfExperts: expected"):
            MixtureOfExperts(**wrong)


def test_a_constant_covariate_does_no_harm(crossing):
    constant = torch.cat([crossing["covariates"], torch.full((1500, 1), 7.0).double()], 1)
    plain = fit(MixtureOfExperts(2), crossing)
    found = fit(MixtureOfExperts(2), {**crossing, "covariates": constant})
    assert found.score({**crossing, "covariates": constant}) == pytest.approx(plain.score(crossing), abs=1e-6)


def test_files_hold_it(crossing, tmp_path):
    found = fit(MixtureOfExperts(2), crossing, max_epochs=3)
    found.save(tmp_path / "fit")
    loaded = lvm.load(tmp_path / "fit")
    assert torch.equal(loaded.log_likelihood(crossing), found.log_likelihood(crossing))
    gate = torch.nn.Linear(1, 2)
    found = fit(MixtureOfExperts(2, gate=gate), crossing, max_epochs=3)
    found.save(tmp_path / "network")
    loaded = lvm.load(tmp_path / "network", model=MixtureOfExperts(2, gate=gate, data_dim=1, covariate_dim=1))
    assert torch.equal(loaded.log_likelihood(crossing), found.log_likelihood(crossing))
