"""Woodbury's k x k matrices against dense normal laws."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from pyro_lvm.ops.linear_gaussian import LinearGaussian


@pytest.fixture
def law():
    torch.manual_seed(0)
    d, k = 6, 3
    parts = torch.randn(d), torch.randn(d, k), 0.1 + torch.rand(d), torch.randn(k), 0.5 + torch.rand(k)
    return LinearGaussian(*(part.double() for part in parts))


def _rows(missing: float) -> torch.Tensor:
    torch.manual_seed(1)
    x = 2 * torch.randn(40, 6, dtype=torch.float64)
    return torch.where(torch.rand_like(x) < missing, torch.nan, x)


@pytest.mark.parametrize("missing", [0.0, 0.3, 0.9])
def test_rows_are_as_likely_as_under_the_dense_law(law, missing) -> None:
    x = _rows(missing)
    found = law.posterior(x).log_likelihood
    for row, value in zip(x, found, strict=True):
        known = ~row.isnan()
        covariance = law.covariance[known][:, known]
        expected = 0.0
        if known.any():
            expected = float(MultivariateNormal(law.mean[known], covariance).log_prob(row[known]))
        assert float(value) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_posteriors_are_those_of_conditioning_the_joint_law(law, missing) -> None:
    x = _rows(missing)
    found = law.posterior(x)
    prior = law.prior_variance.diag()
    for n, row in enumerate(x):
        known = ~row.isnan()
        cross = prior @ law.weight[known].mT
        gain = torch.linalg.solve(law.covariance[known][:, known], cross.mT).mT
        loc = law.prior_loc + gain @ (row - law.mean)[known]
        torch.testing.assert_close(found.loc[n], loc)
        torch.testing.assert_close(found.covariance[found.pattern[n]], prior - gain @ cross.mT)
        scale = found.scale_tril[found.pattern[n]]
        torch.testing.assert_close(scale @ scale.mT, found.covariance[found.pattern[n]])


def test_one_matrix_for_each_pattern_of_gaps(law) -> None:
    x = _rows(0.0)
    x[::2, 1] = torch.nan
    assert len(law.posterior(x).covariance) == 2
