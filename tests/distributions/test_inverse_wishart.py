"""Inverse-Wishart against scipy and by simulation."""

import numpy as np
import pytest
import scipy.stats
import torch
from torch.distributions import biject_to

from pyro_lvm.distributions import InverseWishart

SCALE = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)


def test_log_density_equals_scipy():
    law = InverseWishart(6.0, SCALE)
    draws = law.sample((5,))
    expected = scipy.stats.invwishart(6, SCALE.numpy()).logpdf(draws.permute(1, 2, 0).numpy())
    np.testing.assert_allclose(law.log_prob(draws).numpy(), expected, rtol=1e-10)


def test_draws_have_the_mean_of_the_law_and_of_its_inverse():
    draws = InverseWishart(8.0, SCALE).sample((50_000,))
    for values, mean in ((draws, SCALE / 5), (torch.linalg.inv(draws), 8 * torch.linalg.inv(SCALE))):
        error = values.std(0) / len(values) ** 0.5
        assert ((values.mean(0) - mean).abs() < 5 * error).all()


@pytest.mark.parametrize("d", [1, 2, 4])
def test_the_bijection_inverts_and_knows_its_jacobian(d):
    transform = biject_to(InverseWishart.support)
    v = torch.randn(d * (d + 1) // 2, dtype=torch.float64)
    torch.testing.assert_close(transform.inv(transform(v)), v)
    row, column = torch.tril_indices(d, d)
    jacobian = torch.autograd.functional.jacobian(lambda u: transform(u)[row, column], v)
    torch.testing.assert_close(transform.log_abs_det_jacobian(v, transform(v)), jacobian.det().abs().log())


def test_batches_and_bad_arguments():
    law = InverseWishart(torch.tensor([5.0, 9.0]), SCALE.float())
    assert law.batch_shape == (2,)
    assert law.sample((3,)).shape == (3, 2, 2, 2)
    assert law.expand([4, 2]).log_prob(SCALE.float()).shape == (4, 2)
    torch.testing.assert_close(law.mode[0], SCALE.float() / 8)
    with pytest.raises(ValueError, match="expected df > 1"):
        InverseWishart(0.5, SCALE)


def test_divergence_is_that_of_draws():
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 6).double(), torch.randn(2, 3, 9).double()
    q = InverseWishart(torch.tensor([9.0, 11.0]).double(), a @ a.mT)
    p = InverseWishart(torch.tensor([5.0, 6.0]).double(), b @ b.mT)
    draws = q.sample((20_000,))
    ratios = q.log_prob(draws) - p.log_prob(draws)
    gap = torch.distributions.kl_divergence(q, p) - ratios.mean(0)
    assert (gap.abs() < 5 * ratios.std(0) / 20_000**0.5).all()
