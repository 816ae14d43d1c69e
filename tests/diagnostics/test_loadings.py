"""Loadings and shares of variance are those of the fitted covariance, rotated or not; pictures of them."""

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm.diagnostics import explained_variance, loadings

WINE = lvm.datasets.load("wine")
OPTIONS = {"seed": 0, "progress": False}


@pytest.fixture(scope="module")
def table():
    return pd.DataFrame(WINE.x.double().numpy(), columns=[f"c{i}" for i in range(13)])


@pytest.fixture(scope="module")
def fit(table):
    return lvm.fit(lvm.models.FactorAnalysis(3), table, **OPTIONS)


def numbers(found):
    return found[[c for c in found if c.startswith("factor")]].to_numpy()


@pytest.mark.parametrize("rotation", [None, "varimax", "promax"])
def test_loadings_give_the_correlation_of_the_fit(fit, rotation) -> None:
    found = loadings(fit, rotation)
    assert list(found.index) == [f"c{i}" for i in range(13)]
    weight, noise = fit.params["weight"], fit.params["noise_scale"].square()
    covariance = (weight @ weight.mT + noise.diag()).numpy()
    unit = np.sqrt(np.diag(covariance))
    made = numbers(found) @ found.attrs["correlation"] @ numbers(found).T + np.diag(found.uniqueness)
    np.testing.assert_allclose(made, covariance / unit / unit[:, None], atol=1e-10)
    np.testing.assert_allclose(found.communality + found.uniqueness, 1)
    np.testing.assert_allclose(numbers(loadings(fit, rotation, standardised=False)), numbers(found) * unit[:, None])
    assert (numbers(found)[np.abs(numbers(found)).argmax(0), range(3)] > 0).all()


@pytest.mark.parametrize("rotation", ["varimax", "promax"])
def test_rotated_scores_go_with_rotated_loadings(fit, table, rotation) -> None:
    found = loadings(fit, rotation, standardised=False)
    scores = fit.transform(table).numpy() @ found.attrs["rotation"]
    expected = fit.transform(table).numpy() @ fit.params["weight"].numpy().T
    np.testing.assert_allclose(scores @ numbers(found).T, expected, atol=1e-8 * np.abs(expected).max())


@pytest.mark.parametrize("rotation", ["varimax", "promax"])
def test_rotated_factors_explain_as_much_together(fit, rotation) -> None:
    found, before = explained_variance(fit, rotation), explained_variance(fit)
    assert found.share.iloc[:3].sum() == pytest.approx(before.share.iloc[:3].sum())
    assert found.loc["noise", "share"] == pytest.approx(before.loc["noise", "share"])
    if rotation == "varimax":
        np.testing.assert_allclose(found.variance[:3], (numbers(loadings(fit, rotation)) ** 2).sum(0))


def test_shares_add_up(fit) -> None:
    found = explained_variance(fit)
    assert found.variance.sum() == pytest.approx(13)
    assert found.cumulative.iloc[-1] == pytest.approx(1)
    np.testing.assert_allclose(found.variance[:3], (numbers(loadings(fit)) ** 2).sum(0))


def test_of_principal_components_shares_are_those_of_eigenvalues(table) -> None:
    x = torch.tensor(((table - table.mean()) / table.std(ddof=0)).to_numpy())
    found = explained_variance(lvm.fit(lvm.models.ProbabilisticPCA(3), x, **OPTIONS))
    assert found.cumulative.iloc[-1] == pytest.approx(1)
    assert found.share.iloc[:3].is_monotonic_decreasing


def test_errors_say_what_to_pass(fit, table) -> None:
    with pytest.raises(ValueError, match="rotation to be varimax or promax, or None; got 'quartimax'"):
        loadings(fit, "quartimax")
    mixture = lvm.fit(lvm.models.GaussianMixture(2), table, max_epochs=2, **OPTIONS)
    with pytest.raises(ValueError, match="expected a linear factor model, as FactorAnalysis; got GaussianMixture"):
        explained_variance(mixture)


def test_pictures(fit, table) -> None:
    figure = fit.plot(table, kind="loadings", rotation="varimax")
    figure.draw_without_rendering()
    ax = figure.axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == list(table.columns)
    np.testing.assert_allclose(ax.images[0].get_array(), numbers(loadings(fit, "varimax")))
    figure = fit.plot(table, kind="scree")
    rows, chance = figure.axes[0].lines[:2]
    correlation = np.linalg.eigvalsh(np.corrcoef(table.to_numpy().T))[::-1]
    np.testing.assert_allclose(rows.get_ydata(), correlation, rtol=1e-8)
    assert figure.axes[0].get_title().endswith("3 above chance")
    assert (np.asarray(chance.get_ydata())[:3] < correlation[:3]).all()
    assert any("Loadings" in ax.get_title() for ax in fit.plot(table).axes)
