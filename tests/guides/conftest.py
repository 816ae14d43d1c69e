"""A linear Gaussian autoencoder whose posterior is normal and independent by coordinate: every answer is known."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import pyro_lvm as lvm

NOISE = 0.7


class Linear(nn.Module):
    """Rows normal about a linear map of the latent vector, with one noise scale."""

    def __init__(self, loading, bias):
        super().__init__()
        self.loading, self.bias = nn.Parameter(loading), nn.Parameter(bias)
        self.raw = nn.Parameter(torch.tensor(NOISE - 0.01).double().expm1().log())  # the inverse of softplus

    def forward(self, z):
        loc = z @ self.loading.T + self.bias
        return torch.cat([loc, self.raw.expand_as(loc)], -1)


@pytest.fixture
def linear():
    """Model, rows, exact posterior of any rows, and exact log-likelihood of any rows."""
    torch.manual_seed(5)
    loading = torch.linalg.qr(torch.randn(3, 2).double()).Q * torch.tensor([1.0, 4.0]).double()  # orthogonal columns
    bias, x = torch.randn(3).double(), torch.randn(23, 3).double() * 2
    precision = 1 + loading.square().sum(0) / NOISE**2

    def posterior(rows):
        loc = (rows - bias) @ loading / NOISE**2 / precision
        return loc, precision.rsqrt().expand_as(loc)

    marginal = torch.distributions.MultivariateNormal(bias, loading @ loading.T + NOISE**2 * torch.eye(3).double())
    model = lvm.models.VAE(2, 3, likelihood="gaussian", decoder=Linear(loading, bias)).double()
    return SimpleNamespace(model=model, x=x, posterior=posterior, log_likelihood=marginal.log_prob)
