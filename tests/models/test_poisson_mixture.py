"""Special to the Poisson mixture."""

import pytest
import torch

import pyro_lvm as lvm


@pytest.mark.parametrize("value", [0.5, -1.0])
def test_other_values_than_counts_are_turned_away(value):
    x = torch.arange(10.0).reshape(-1, 1)
    x[4] = value
    with pytest.raises(ValueError, match=rf"expected counts 0, 1, 2, ... in column 0; got {value:g} in row 4"):
        lvm.fit(lvm.models.PoissonMixture(2), x, progress=False)


def test_whole_numbers_of_any_type():
    x = torch.poisson(torch.tensor([[2.0], [9.0]]).repeat(50, 1))
    fits = [lvm.fit(lvm.models.PoissonMixture(2), rows, seed=0, progress=False) for rows in (x, x.long(), x.numpy())]
    assert fits[0].score(x) == pytest.approx(fits[1].score(x)) == pytest.approx(fits[2].score(x))


def test_a_column_of_zeros_does_no_harm():
    x = torch.poisson(torch.tensor([[2.0, 1e-9], [9.0, 1e-9]]).double().repeat(50, 1))
    fit = lvm.fit(lvm.models.PoissonMixture(2), x, seed=0, progress=False)
    alone = lvm.fit(lvm.models.PoissonMixture(2), x[:, :1], seed=0, progress=False)
    assert fit.score(x) == pytest.approx(alone.score(x[:, :1]), abs=1e-6)
    assert fit.log_likelihood(torch.ones(1, 2).double()).item() == -torch.inf  # what the likelihood says


def test_visits_need_more_than_one_rate():
    x = lvm.datasets.load("visits").x
    scores = [lvm.fit(lvm.models.PoissonMixture(k), x, seed=0, progress=False).bic(x) for k in (1, 3)]
    assert scores[1] < scores[0] - 1000
