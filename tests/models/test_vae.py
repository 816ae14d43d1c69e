"""The variational autoencoder against formulas by hand, a linear case in closed form, and data that it must refuse."""

import math

import pyro
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

import pyro_lvm as lvm
from pyro_lvm.nn import MLP

BITS = torch.bernoulli(torch.full((40, 6), 0.4), generator=torch.Generator().manual_seed(1)).double()
REALS = torch.randn(40, 3, generator=torch.Generator().manual_seed(2)).double() * torch.tensor([1.0, 5.0, 0.1])


def bits_vae(**options):
    return lvm.models.VAE(2, **{"hidden": [8], **options})


def pair(model, x, **covariates):
    """A model initialised on rows and its guide, away from their start."""
    model.initialize(x, **covariates)
    guide = lvm.guides.AmortizedGaussian(model)
    for program in (model, guide):
        for parameter in program.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model, guide


def by_hand(guide, x):
    """Mean, scale, and a latent vector by the noise that the guide's draw takes from torch's generator."""
    loc, raw = guide.encoder(x * guide.unit + guide.offset).chunk(2, -1)
    scale = softplus(raw) + 1e-5
    return loc, scale, loc + scale * torch.randn(loc.shape, dtype=loc.dtype)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_loss_and_its_gradients_are_those_of_the_formula(likelihood, local):
    x = BITS if likelihood == "bernoulli" else REALS
    model, guide = pair(bits_vae(likelihood=likelihood), x)
    start = {id(p): p.detach().clone() for program in (model, guide) for p in program.parameters()}
    svi = lvm.infer.SVI(model, guide, optimizer=lambda tensors: torch.optim.SGD(tensors, lr=1e-4))
    torch.manual_seed(3)
    loss = svi.step(x)
    moved = {id(p): p.detach().clone() for program in (model, guide) for p in program.parameters()}
    for program in (model, guide):
        for parameter in program.parameters():
            parameter.data.copy_(start[id(parameter)])
    torch.manual_seed(3)
    mean, scale, z = by_hand(guide, x)
    if likelihood == "bernoulli":
        reconstruction = binary_cross_entropy_with_logits(model.decoder(z), x, reduction="sum")
    else:
        loc, raw = model.decoder(z).chunk(2, -1)
        noise = model.spread * (0.01 + softplus(raw))
        standardised = (x - model.centre - model.spread * loc) / noise
        reconstruction = (standardised.square() / 2 + noise.log() + math.log(2 * math.pi) / 2).sum()
    divergence = (mean.square() + scale.square() - 1 - scale.square().log()).sum() / 2
    expected = reconstruction + divergence
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    expected.backward()
    for program in (model, guide):
        for parameter in program.parameters():
            step = start[id(parameter)] - moved[id(parameter)]
            assert torch.allclose(step, 1e-4 * parameter.grad, rtol=1e-6, atol=1e-12)


class Linear(nn.Module):
    """Rows normal about a linear map of the latent vector, with one noise scale."""

    def __init__(self, loading, bias, noise):
        super().__init__()
        self.loading, self.bias = nn.Parameter(loading), nn.Parameter(bias)
        softplus = torch.tensor(noise - 0.01, dtype=torch.float64)
        self.raw = nn.Parameter(softplus.expm1().log())

    def forward(self, z):
        loc = z @ self.loading.T + self.bias
        return torch.cat([loc, self.raw.expand_as(loc)], -1)


class Affine(nn.Module):
    """Posterior means linear in the row, scales alike for all rows."""

    def __init__(self, weight, bias, scale):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.raw = nn.Parameter((scale - 1e-5).expm1().log())

    def forward(self, x):
        loc = x @ self.weight.T + self.bias
        return torch.cat([loc, self.raw.expand_as(loc)], -1)


def linear_case():
    """A linear Gaussian autoencoder, its exact marginal and posterior, and a guide that is not the posterior."""
    torch.manual_seed(5)
    loading, bias, noise = torch.randn(3, 2).double(), torch.randn(3).double(), 0.7
    x = torch.randn(6, 3).double()
    decoder = Linear(loading, bias, noise)
    model = lvm.models.VAE(2, 3, likelihood="gaussian", decoder=decoder).double()
    model.decoder.load_state_dict(decoder.state_dict())  # models begin in single precision
    covariance = loading @ loading.T + noise**2 * torch.eye(3).double()
    marginal = torch.distributions.MultivariateNormal(bias, covariance).log_prob(x)
    spread = torch.linalg.inv(torch.eye(2).double() + loading.T @ loading / noise**2)
    posterior = torch.distributions.MultivariateNormal((x - bias) @ loading @ spread / noise**2, spread)
    exact = (loading @ spread / noise**2).T
    weight, scale = exact + 0.1, spread.diagonal().sqrt() * 1.3
    encoder = Affine(weight, -bias @ exact.T, scale)
    guide = lvm.guides.AmortizedGaussian(model, encoder=encoder).double()
    guide.encoder.load_state_dict(encoder.state_dict())
    own = torch.distributions.MultivariateNormal(x @ weight.T - bias @ exact.T, scale_tril=torch.diag(scale))
    return model, guide, x, marginal, torch.distributions.kl_divergence(own, posterior)


@pytest.mark.parametrize("objective", [None, pyro.infer.Trace_ELBO(), lvm.infer.ImportanceWeighted(1)])
def test_bound_and_divergence_add_up_to_the_evidence_of_a_linear_gaussian_case(local, monkeypatch, objective):
    """To rounding: the bound is the mean of a quadratic function of normal noise, so four sigma points integrate it."""
    model, guide, x, marginal, divergence = linear_case()
    svi, losses = lvm.infer.SVI(model, guide, loss=objective), []
    for column in (0, 1):
        for sign in (-1.0, 1.0):
            noise = torch.zeros(len(x), 2, dtype=x.dtype)
            noise[:, column] = sign * math.sqrt(2)
            monkeypatch.setattr(torch.distributions.normal, "_standard_normal", lambda *_, noise=noise, **__: noise)
            losses.append(svi.loss(x))
    assert -sum(losses) / 4 == pytest.approx((marginal - divergence).sum().item(), rel=1e-10)
    assert divergence.min() > 0.01


def test_importance_weighting_finds_the_evidence_of_a_linear_gaussian_case(local):
    model, guide, x, marginal, _ = linear_case()
    bounds = [-lvm.infer.SVI(model, guide, loss=lvm.infer.ImportanceWeighted(k)).loss(x) for k in (1, 10, 100_000)]
    assert bounds[0] < bounds[1] < marginal.sum() + 0.05
    assert bounds[2] == pytest.approx(marginal.sum().item(), abs=0.1)


def test_a_column_that_does_not_vary_leaves_training_finite():
    x = REALS.clone()
    x[:, 1] = 0.0
    for hidden in ([8], [8, 8]):
        fit = lvm.fit(bits_vae(likelihood="gaussian", hidden=hidden), x, max_epochs=150, seed=0, progress=False)
        assert all(map(math.isfinite, fit.history["loss"]))
        assert fit.history["loss"][-1] < fit.history["loss"][0]
        with torch.no_grad():
            scale = fit.model.decode(torch.randn(100, 2).double()).base_dist.scale
        assert scale[:, 1].min() >= 0.01


def test_logits_start_at_the_log_odds_of_the_means():
    model = bits_vae()
    model.initialize(BITS)
    probs = model.decode(torch.zeros(1, 2).double()).base_dist.probs[0]
    assert torch.allclose(probs, BITS.mean(0), atol=0.02)


def test_extreme_logits_have_finite_densities():
    model = bits_vae(data_dim=6)
    model.decoder[-1].bias.data.fill_(1e4)
    density = model.decode(torch.zeros(40, 2)).log_prob(BITS.float())
    assert bool(density.isfinite().all())


@pytest.mark.parametrize("guide", ["amortized", "inverse-autoregressive"])
def test_covariates_reach_model_and_guide(guide, tmp_path):
    torch.manual_seed(0)
    covariates = (torch.rand(300, 1) < 0.5).double()
    x = torch.bernoulli(0.1 + 0.8 * covariates.expand(-1, 6))
    svi = lvm.infer.SVI(learning_rate=0.02)
    data = {"x": x, "covariates": covariates}
    fit = lvm.fit(bits_vae(), data, guide=guide, inference=svi, max_epochs=60, seed=0, progress=False)
    assert fit.model.covariate_dim == fit.guide.covariate_dim == 1
    with torch.no_grad():
        ones = [fit.model(size=500, covariates=torch.full((500, 1), c)).mean().item() for c in (0.0, 1.0)]
    fit.save(tmp_path / "fit")
    rows = lvm.load(tmp_path / "fit").sample(500, covariates=torch.ones(500, 1))
    assert rows.mean().item() == pytest.approx(ones[1], abs=0.05)
    assert ones[0] < 0.25
    assert ones[1] > 0.75


def test_batches_of_one_row_and_floats_of_one_kind():
    fit = lvm.fit(bits_vae(), BITS[:5].float(), batch_size=1, max_epochs=3, seed=0, progress=False)
    assert {p.dtype for program in (fit.model, fit.guide) for p in program.parameters()} == {torch.float32}
    fit = lvm.fit(bits_vae(), BITS[:5], batch_size=1, max_epochs=3, seed=0, progress=False)
    assert {p.dtype for program in (fit.model, fit.guide) for p in program.parameters()} == {torch.float64}
    lvm.fit(bits_vae(), BITS[:5].long(), max_epochs=3, seed=0, progress=False)


def grey(x):
    return x * 0.5


REFUSED = {
    "grey": (lambda: grey(BITS), {}, "zeros and ones.*0.5.*gaussian"),
    "NaN": (lambda: BITS / BITS, {}, "NaN"),
    "one row": (lambda: BITS[:1], {}, "2 rows"),
    "images": (lambda: BITS.reshape(40, 2, 3), {}, r"shape \(n, d\).*reshape"),
    "other columns": (lambda: BITS, {"data_dim": 5}, "data_dim=6"),
    "covariates of other rows": (
        lambda: {"x": BITS, "covariates": torch.zeros(39, 2)},
        {},
        r"covariates of shape \(40, q\)",
    ),
    "flat covariates": (lambda: {"x": BITS, "covariates": torch.zeros(40)}, {}, r"covariates.reshape"),
    "no covariates": (lambda: BITS, {"covariate_dim": 2}, r"covariates of shape \(40, 2\).*none"),
    "unwanted covariates": (
        lambda: {"x": BITS, "covariates": torch.zeros(40, 2)},
        {"covariate_dim": 0},
        "no covariates",
    ),
    "short decoder": (lambda: BITS, {"decoder": nn.Linear(2, 5)}, "decoder of 6 outputs"),
    "decoder of others": (
        lambda: BITS,
        {"decoder": nn.Linear(3, 6)},
        r"decoder of vectors of length 2 .* cannot be multiplied .*\. Change its first layer\.$",
    ),
}


@pytest.mark.parametrize(("data", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses(data, options, message):
    with pytest.raises(ValueError, match=message):
        lvm.fit(bits_vae(**options), data(), max_epochs=2, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"likelihood": "poisson"}, "bernoulli, gaussian"),
        ({"hidden": [8, 0]}, "hidden"),
        ({"min_scale": 0.0}, "min_scale > 0"),
        ({"covariate_dim": -1}, "covariate_dim"),
    ],
)
def test_refuses_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        bits_vae(**options)


def test_trains_under_plain_pyro():
    model, guide = pair(bits_vae(), BITS)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=pyro.infer.Trace_ELBO())
    losses = [svi.step(BITS) for _ in range(100)]
    assert losses[-1] < losses[0]


def test_networks_of_the_users_own_are_copied_and_trained():
    decoder, encoder = MLP(2, [4], 6, activation="silu").double(), MLP(6, [4], 4, activation="tanh").double()
    before = decoder[0].weight.detach().clone()
    model = bits_vae(decoder=decoder, data_dim=6)
    guide = lvm.guides.AmortizedGaussian(model, encoder=encoder)
    fit = lvm.fit(model, BITS, guide=guide, max_epochs=5, seed=0, progress=False)
    assert torch.equal(decoder[0].weight, before)
    assert not torch.equal(fit.model.decoder[0].weight, before)
