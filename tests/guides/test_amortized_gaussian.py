"""The amortised normal guide: its law by hand, its scale in data units, sizes from models, users' encoders."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

import pyro_lvm as lvm
from pyro_lvm.testing import laws

REALS = torch.randn(40, 3, generator=torch.Generator().manual_seed(2)).double() * torch.tensor([1.0, 5.0, 0.1]) + 7
BITS = torch.bernoulli(torch.full((40, 6), 0.4), generator=torch.Generator().manual_seed(1)).double()


def line(x):
    """A user's program: rows about a line."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1).to(x), 1.0).to_event(1))
        direction = pyro.param("direction", torch.ones(3).to(x))
        pyro.sample("x", dist.Normal(z * direction, 0.5).to_event(1), obs=x)


def test_the_law_is_the_encoders():
    model = lvm.models.VAE(2, likelihood="gaussian", hidden=[8])
    model.initialize(REALS)
    guide = lvm.guides.AmortizedGaussian(model)
    law = guide.posterior(REALS)
    assert (law.batch_shape, law.event_shape) == ((40,), (2,))
    loc, raw = guide.encoder((REALS - REALS.mean(0)) / REALS.std(0)).chunk(2, -1)
    torch.testing.assert_close(law.mean, loc)
    torch.testing.assert_close(law.variance.sqrt(), softplus(raw) + 1e-5)


def test_a_row_has_the_same_law_in_whatever_company():
    model = lvm.models.VAE(2, hidden=[8])
    model.initialize(BITS)
    guide = lvm.guides.AmortizedGaussian(model)
    torch.testing.assert_close(guide.posterior(BITS[3:4]).mean[0], guide.posterior(BITS).mean[3])


def test_the_encoder_sees_the_same_whatever_the_unit_of_the_data():
    means = []
    for unit in (1.0, 1000.0):
        torch.manual_seed(0)
        model = lvm.models.VAE(2, likelihood="gaussian", hidden=[8])
        model.initialize(REALS * unit)
        means.append(lvm.guides.AmortizedGaussian(model).posterior(REALS * unit).mean)
    torch.testing.assert_close(*means)


def test_saturated_encoders_have_finite_densities():
    guide = lvm.guides.AmortizedGaussian(lvm.models.VAE(2, 6, hidden=[8]))
    guide.encoder[-1].bias.data.fill_(-1e4)
    law = guide.posterior(BITS.float())
    assert bool(law.log_prob(law.rsample()).isfinite().all())


def test_a_users_program_and_encoder(tmp_path):
    """Rank one and normal: the posterior is linear in the row, so a linear encoder finds it."""
    x = torch.randn(200, 1).double() + 0.5 * torch.randn(200, 3).double()
    guide = lvm.guides.AmortizedGaussian(line, encoder=nn.Linear(3, 2).double(), latent_dim=1, data_dim=3)
    svi = lvm.infer.SVI(learning_rate=0.05, schedule="linear")
    fit = lvm.fit(line, x, guide=guide, inference=svi, max_epochs=300, seed=0, progress=False)
    direction = fit.params["direction"]
    precision = 1 + float(direction.square().sum()) / 0.25
    torch.testing.assert_close(fit.transform(x), (x @ direction / 0.25 / precision).unsqueeze(-1), atol=0.05, rtol=0)
    fit.save(tmp_path / "fit")
    with pytest.raises(ValueError, match="your own code"):
        lvm.load(tmp_path / "fit", model=line)
    loaded = lvm.load(tmp_path / "fit", model=line, guide=guide)
    assert torch.equal(loaded.transform(x), fit.transform(x))


def exact_means(model, precision):
    """A guide whose encoder is the posterior's affine mean, with standard deviations for this diagonal precision."""
    guide = lvm.guides.AmortizedGaussian(model)
    weight, noise = model.weight.detach(), model.noise_scale.detach().square().expand(3)
    covariance = (torch.eye(2).double() + weight.mT @ (weight / noise.unsqueeze(-1))).inverse()
    gain = covariance @ (weight / noise.unsqueeze(-1)).mT
    (layer,) = guide.encoder
    layer.weight.data = torch.cat([gain * model.spread, torch.zeros(2, 3).double()])
    layer.bias.data = torch.cat([gain @ (model.centre - model.loc.detach()), (precision.rsqrt() - 1e-5).expm1().log()])
    return guide


@pytest.mark.parametrize("kind", [lvm.models.FactorAnalysis, lvm.models.ProbabilisticPCA])
def test_of_factor_models_it_is_the_posterior_once_factors_are_turned(kind):
    model = kind(2)
    model.initialize(REALS)
    if kind is lvm.models.FactorAnalysis:  # no maximum of three columns
        model.weight_unconstrained.data = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).double()
        model.canonicalise()
    exact = -float(lvm.guides.ExactGaussian(model).row_log_likelihood(REALS).sum().detach())

    def precision():
        scaled = model.weight.detach() / model.noise_scale.detach().expand(3).unsqueeze(-1)
        return torch.eye(2).double() + scaled.mT @ scaled

    assert model.weight.shape == (3, 2)
    bound = pyro.infer.Trace_ELBO()
    loss = bound.loss(model, exact_means(model, precision().diagonal()), REALS)
    assert loss == pytest.approx(exact, rel=1e-9)  # whatever is drawn
    turn = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]).double() / 2**0.5
    model.weight_unconstrained.data = model.weight_unconstrained.data @ turn
    off = precision()
    gap = 0.5 * len(REALS) * float(off.diagonal().log().sum() - torch.logdet(off))
    guide = exact_means(model, off.diagonal())
    losses = torch.tensor([bound.loss(model, guide, REALS) for _ in range(300)])
    error = float(losses.std()) / 300**0.5
    assert gap > 10 * error
    assert float(losses.mean()) == pytest.approx(exact + gap, abs=5 * error)


def test_factors_of_rows_with_gaps_and_weights():
    """A missing entry is to the encoder as one at its centre; a row of weight two is two rows."""
    x = torch.where(torch.rand(REALS.shape, generator=torch.Generator().manual_seed(3)) < 0.2, torch.nan, REALS)
    model = lvm.models.ProbabilisticPCA(1)
    model.initialize(x)
    guide = lvm.guides.AmortizedGaussian(model)
    torch.testing.assert_close(guide.posterior(x).mean, guide.posterior(torch.where(x.isnan(), model.centre, x)).mean)
    guide.encoder[-1].bias.data[1] = -4.0  # draws that differ little
    guide.encoder[-1].weight.data[1] = 0.0
    bound, counts = pyro.infer.Trace_ELBO(), 3 * (torch.arange(40) % 3)
    exact = float(lvm.guides.ExactGaussian(model).row_log_likelihood(x).detach() @ counts.double())
    weighted = [bound.loss(model, guide, x, sample_weights=counts) for _ in range(100)]
    repeated = [bound.loss(model, guide, x.repeat_interleave(counts, 0)) for _ in range(100)]
    spread = torch.tensor([weighted, repeated]).std() / 100**0.5
    assert sum(weighted) / 100 == pytest.approx(sum(repeated) / 100, abs=6 * float(spread))
    assert sum(weighted) / 100 > -exact


@pytest.mark.filterwarnings("ignore:evidence")
@pytest.mark.parametrize("guide", ["amortized", "semi-amortized", "inverse-autoregressive"])
def test_encoders_train_with_factor_models(guide, tmp_path):
    x = torch.randn(60, 1).double() @ torch.ones(1, 3).double() + 0.5 * torch.randn(60, 3).double()
    fit = lvm.fit(lvm.models.ProbabilisticPCA(2), x, guide=guide, max_epochs=2, seed=0, progress=False)
    assert type(fit.inference).__name__ == "SVI"
    assert fit.transform(x).shape == (60, 2)
    laws.save_load_is_exact(fit, x[:5], tmp_path / "fit")


def test_files_hold_it(tmp_path):
    fit = lvm.fit(lvm.models.VAE(2, hidden=[8, 4]), BITS, guide="amortized", max_epochs=2, seed=0, progress=False)
    assert fit.guide.config["hidden"] == [4, 8]
    laws.save_load_is_exact(fit, BITS[:5], tmp_path / "fit")


def test_refuses():
    with pytest.raises(ValueError, match="that tells its latent_dim; got line"):
        lvm.guides.AmortizedGaussian(line)
    with pytest.raises(ValueError, match="expected data_dim"):
        lvm.guides.AmortizedGaussian(lvm.models.VAE(2))
    with pytest.raises(ValueError, match="hidden"):
        lvm.guides.AmortizedGaussian(lvm.models.VAE(2, 6), hidden=[0])
    guide = lvm.guides.AmortizedGaussian(line, encoder=nn.Linear(3, 3), latent_dim=1, data_dim=3)
    with pytest.raises(ValueError, match="expected an encoder of 2 outputs; got 3"):
        guide(REALS.float())
    with pytest.raises(ValueError, match="expected rows x"):
        guide()
