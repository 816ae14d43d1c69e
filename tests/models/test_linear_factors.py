"""Factor analysis and probabilistic PCA: maxima, limits, gaps, bad rows."""

import math
from itertools import pairwise

import pytest
import torch
from torch.distributions import MultivariateNormal

import pyro_lvm as lvm
from pyro_lvm.ops.linear_gaussian import principal_parts

EACH = [lvm.models.FactorAnalysis, lvm.models.ProbabilisticPCA]


@pytest.fixture(scope="module")
def wine():
    return lvm.datasets.load("wine").x.double()


@pytest.fixture(scope="module")
def iris():
    return lvm.datasets.load("iris").x.double()


def dense(fit):
    weight, noise = fit.params["weight"], fit.params["noise_scale"].square()
    d = len(weight)
    return MultivariateNormal(fit.params["loc"], weight @ weight.mT + noise * torch.eye(d, dtype=weight.dtype))


def with_gaps(x, share=0.2):
    torch.manual_seed(3)
    return torch.where(torch.rand_like(x) < share, torch.nan, x)


def from_elsewhere(model, x):
    """A start far from the maximum."""
    model.initialize(x)
    torch.manual_seed(7)
    with torch.no_grad():
        model.weight_unconstrained.copy_(torch.randn_like(model.weight_unconstrained))
        model.loc_unconstrained.zero_()
        model.noise_scale_unconstrained.fill_(0.5)
    return model


def test_em_reaches_the_closed_form_of_probabilistic_pca(iris) -> None:
    """Noise and subspace to 1e-6, from a start elsewhere."""
    model = from_elsewhere(lvm.models.ProbabilisticPCA(2), iris)
    guide = lvm.guides.ExactGaussian(model)
    em = lvm.infer.EM(model, guide, acceleration="squarem")
    losses = [em.step(iris) for _ in range(60)]
    assert all(b <= a + 1e-9 for a, b in pairwise(losses))
    covariance = (iris - iris.mean(0)).mT @ (iris - iris.mean(0)) / len(iris)
    weight, noise = principal_parts(covariance, 2)
    assert float(model.noise_scale.detach().square()) == pytest.approx(float(noise), rel=1e-6)
    ours, theirs = (torch.linalg.qr(w.detach())[0] for w in (model.weight, weight))
    torch.testing.assert_close(ours @ ours.mT, theirs @ theirs.mT, rtol=0, atol=1e-6)
    torch.testing.assert_close((model.weight @ model.weight.mT).detach(), weight @ weight.mT, rtol=1e-6, atol=1e-6)


def test_start_of_probabilistic_pca_is_its_maximum(iris) -> None:
    fit = lvm.fit(lvm.models.ProbabilisticPCA(2), iris, seed=0, progress=False)
    assert fit.history["loss"][0] == pytest.approx(fit.history["loss"][-1], abs=1e-8)
    values = torch.linalg.eigvalsh((iris - iris.mean(0)).mT @ (iris - iris.mean(0)) / len(iris)).flip(0)
    noise = values[2:].mean()
    expected = -0.5 * (4 * math.log(2 * math.pi) + values[:2].log().sum() + 2 * noise.log() + 4)  # equation 9 there
    assert fit.score(iris) == pytest.approx(float(expected), abs=1e-9)


def test_without_noise_latent_means_are_principal_components(iris) -> None:
    fit = lvm.fit(lvm.models.ProbabilisticPCA(2), iris, seed=0, progress=False)
    with torch.no_grad():
        fit.model.noise_scale_unconstrained.fill_(math.log(1e-6))
    centred = iris - fit.params["loc"]
    weight = fit.params["weight"]
    expected = torch.linalg.lstsq(weight, centred.mT).solution.mT
    torch.testing.assert_close(fit.transform(iris), expected, rtol=1e-8, atol=1e-8)
    axes = torch.linalg.svd(centred, full_matrices=False)[2][:2]
    torch.testing.assert_close(fit.transform(iris) @ weight.mT, centred @ axes.mT @ axes, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", EACH)
def test_marginal_likelihood_is_the_dense_laws(kind, wine) -> None:
    fit = lvm.fit(kind(2), wine, seed=0, progress=False)
    torch.testing.assert_close(fit.log_likelihood(wine), dense(fit).log_prob(wine), rtol=0, atol=1e-9)
    assert "exact" in fit.evidence(wine).estimator
    assert fit.history["loss"][-1] == pytest.approx(-float(dense(fit).log_prob(wine).sum()), rel=1e-6)


@pytest.mark.parametrize("kind", EACH)
def test_gaps_are_marginalised_in_learning_too(kind) -> None:
    """Log-likelihoods are those of sub-vectors, no step falls, and the end is a stationary point."""
    torch.manual_seed(1)
    loadings = torch.tensor([2.0, 1.5, 1.0, -1.0, 0.8], dtype=torch.float64)
    whole = 3 + torch.randn(150, 1).double() * loadings + 0.6 * torch.randn(150, 5).double()
    x = with_gaps(whole)
    x[5] = torch.nan
    model = kind(1)
    fit = lvm.fit(model, x, inference=lvm.infer.EM(acceleration="squarem"), max_epochs=400, tol=1e-13, seed=0)
    law = dense(fit)
    expected = []
    for row in x:
        known = ~row.isnan()
        if known.any():
            part = MultivariateNormal(law.loc[known], law.covariance_matrix[known][:, known])
            expected.append(float(part.log_prob(row[known])))
        else:
            expected.append(0.0)
    torch.testing.assert_close(fit.log_likelihood(x), torch.tensor(expected, dtype=x.dtype), rtol=0, atol=1e-9)
    losses = fit.history["loss"]
    assert all(b <= a + 1e-8 for a, b in pairwise(losses))
    leaves = [fit.model.weight_unconstrained, fit.model.loc_unconstrained]
    total = fit.guide.row_log_likelihood(x).sum()
    assert max(float(g.abs().max()) for g in torch.autograd.grad(total, leaves)) < 0.02
    filled = fit.impute(x)
    means = torch.where(x.isnan(), x.nanmean(0), x)
    lost = x.isnan()
    assert (filled - whole)[lost].square().mean() < 0.5 * (means - whole)[lost].square().mean()
    assert torch.equal(filled[~lost], x[~lost])


def test_steps_do_not_see_the_rows(wine) -> None:
    """Rows are passed over once; from then on as many points as columns tell what a step needs."""
    x = wine.repeat(50, 1)
    model = from_elsewhere(lvm.models.FactorAnalysis(2), x)
    sizes = []
    forward = type(model).forward

    class Counting(lvm.models.FactorAnalysis):
        def forward(self, x=None, *, size=None):
            sizes.append(len(x))
            return forward(self, x, size=size)

    model.__class__ = Counting
    em = lvm.infer.EM(model, lvm.guides.ExactGaussian(model))
    em.step(x)
    sizes.clear()
    before = em.step(x)
    assert max(sizes) <= 2 * 13 + 2 * 2
    assert em.step(x) < before
    assert em.loss(x) == pytest.approx(50 * em.loss(wine), rel=1e-9)


def test_svi_has_no_gap_under_the_exact_guide_and_one_under_a_mean_field(iris) -> None:
    fit = lvm.fit(lvm.models.ProbabilisticPCA(2), iris, seed=0, progress=False, max_epochs=20)
    exact = lvm.infer.SVI(fit.model, fit.guide)
    assert exact.loss(iris) == pytest.approx(-float(fit.log_likelihood(iris).sum()), rel=1e-9)
    rough = lvm.fit(lvm.models.ProbabilisticPCA(2), iris, inference="svi", guide="local", max_epochs=20, seed=0)
    bound = -sum(rough.inference.loss(iris) for _ in range(50)) / 50
    assert bound < -float(dense(rough).log_prob(iris).sum().neg())


@pytest.mark.parametrize("kind", EACH)
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda x: x[:1], "at least 2 rows"),
        (lambda x: x[:, :1], "at most as many factors"),
        (lambda x: x[:, 0], "expected x of shape"),
    ],
)
def test_bad_rows_are_refused(kind, spoil, why, iris) -> None:
    with pytest.raises(ValueError, match=why):
        lvm.fit(kind(2), spoil(iris), seed=0, progress=False)


def test_constant_columns_need_noise_that_is_shared(iris) -> None:
    x = torch.cat([iris, torch.full((len(iris), 1), 3.0).double()], 1)
    with pytest.raises(ValueError, match="constant column 4"):
        lvm.fit(lvm.models.FactorAnalysis(2), x, seed=0, progress=False)
    fit = lvm.fit(lvm.models.ProbabilisticPCA(2), x, seed=0, progress=False)
    torch.testing.assert_close(fit.log_likelihood(x), dense(fit).log_prob(x), rtol=0, atol=1e-8)


def test_a_column_that_factors_explain_keeps_a_little_noise(iris) -> None:
    """A Heywood case: the likelihood would have no maximum."""
    x = torch.cat([iris, 2 * iris[:, :1]], 1)
    with pytest.warns(RuntimeWarning, match=r"explain column 0, 2, 4 wholly \(a Heywood case\)"):
        fit = lvm.fit(lvm.models.FactorAnalysis(2), x, max_epochs=200, seed=0, progress=False)
    assert bool(torch.isfinite(fit.params["noise_scale"]).all())
    assert float(fit.params["noise_scale"].min()) > 0
    assert math.isfinite(fit.score(x))


@pytest.mark.filterwarnings("ignore:.*Heywood")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_from_the_origin(dtype, iris) -> None:
    x = (iris + 1000).to(dtype)
    fit = lvm.fit(lvm.models.FactorAnalysis(1), x, seed=0, progress=False)
    near = lvm.fit(lvm.models.FactorAnalysis(1), iris.to(dtype), seed=0, progress=False)
    assert fit.score(x) == pytest.approx(near.score(iris.to(dtype)), abs=2e-3)


def rows(count=400, factors=2, noise=0.8, seed=5):
    """Rows of six columns of different units, from a few factors."""
    torch.manual_seed(seed)
    loadings = torch.tensor([[2.0, 0, 1, 1, 0, -1], [0, 1.5, -1, 0.5, 2, 0], [1.0, 0, 0, -1, 0.5, 1]]).double()
    units = torch.tensor([1.0, 10, 0.1, 1, 3, 1]).double()
    x = torch.randn(count, factors).double() @ loadings[:factors] + noise * torch.randn(count, 6).double()
    return 4 + x * units


def test_start_of_factor_analysis_is_the_maximum_that_em_climbs_to() -> None:
    x = rows()
    model = lvm.models.FactorAnalysis(2)
    model.initialize(x)
    guide = lvm.guides.ExactGaussian(model)
    total = guide.row_log_likelihood(x).sum()
    leaves = list(model.parameters())
    unit = x.std(0)
    for leaf, gradient in zip(leaves, torch.autograd.grad(total, leaves), strict=True):
        assert float((gradient * (unit if leaf.shape[:1] == (6,) and leaf.dim() == 1 else 1)).abs().max()) < 1e-3
    other = from_elsewhere(lvm.models.FactorAnalysis(2), x)
    em = lvm.infer.EM(other, lvm.guides.ExactGaussian(other), acceleration="squarem")
    losses = [em.step(x) for _ in range(300)]
    assert losses[-1] == pytest.approx(-float(total.detach()), abs=1e-6)
    torch.testing.assert_close(
        (other.weight @ other.weight.mT).detach(), (model.weight @ model.weight.mT).detach(), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("kind", EACH)
def test_factors_come_in_an_order_and_with_signs_that_are_agreed_on(kind) -> None:
    """Also where gaps move them after the start; their law of rows does not change."""
    x = with_gaps(rows(), 0.1)
    fit = lvm.fit(kind(2), x, max_epochs=40, seed=0, progress=False)
    weight, noise = fit.params["weight"], fit.params["noise_scale"]
    information = weight.mT @ (weight / (noise.square() * torch.ones(6)).unsqueeze(-1))
    assert float(information[0, 1].abs()) < 1e-8 * float(information[0, 0])
    assert information[0, 0] > information[1, 1]
    scaled = weight / (noise * torch.ones(6)).unsqueeze(-1)
    assert bool((scaled.gather(0, scaled.abs().argmax(0, keepdim=True)) > 0).all())
    assert fit.history["loss"][-1] == pytest.approx(-float(fit.log_likelihood(x).sum()), rel=1e-6)
