"""Independent component analysis: maxima, sources that are found, units, conventions, noise, bad rows."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from scipy.optimize import linear_sum_assignment

import pyro_lvm as lvm
from pyro_lvm.distributions import IndependentComponents
from pyro_lvm.distributions.sources import source_law

ICA = lvm.models.IndependentComponentAnalysis
OPTIONS = {"seed": 0, "progress": False}
SMOOTH = ["logistic", "student-t", "sech"]


@pytest.fixture(scope="module")
def iris():
    return lvm.datasets.load("iris").x.double()


@pytest.fixture(scope="module")
def mixed():
    """Rows of three mixed Laplace sources, the sources and the mixing matrix."""
    torch.manual_seed(0)
    h = torch.distributions.Laplace(0.0, math.sqrt(0.5)).sample((3000, 3)).double()
    mixing = torch.tensor([[3.0, 0.5, -0.2], [1.0, -2.0, 0.3], [0.4, 0.6, 1.0]], dtype=torch.float64)
    return h @ mixing.mT + 5, h, mixing


def dense(fit, x):
    """Log-density of rows, by the inverse of the mixing matrix."""
    inverse = torch.linalg.inv(fit.params["weight"])
    freedom = fit.params.get("degrees_of_freedom")
    law = source_law("test", fit.model.source, x, freedom)
    return law.log_prob((x - fit.params["loc"]) @ inverse.mT).sum(-1) + inverse.det().abs().log()


def interference(found):
    power = found.square()
    share = power / power.sum(1, keepdim=True)
    own = share[linear_sum_assignment(-share.numpy())]
    return float(((1 - own) / own).mean())


@pytest.mark.parametrize("source", ["laplace", *SMOOTH])
def test_sources_are_found(source, mixed):
    """To within a few times of what the Cramér-Rao bound allows, by every density more peaked than the normal."""
    x, h, mixing = mixed
    fit = lvm.fit(ICA(source), x, **OPTIONS)
    assert interference(torch.linalg.solve(fit.params["weight"], mixing)) < 5 * 2 * 2 / (3 * len(x))
    correlations = torch.corrcoef(torch.cat([fit.transform(x).mT, h.mT]))[:3, 3:]
    assert float(correlations.abs().amax(1).min()) > 0.998
    torch.testing.assert_close(fit.log_likelihood(x), dense(fit, x), rtol=0, atol=1e-9)
    assert "exact" in fit.evidence(x).estimator
    assert fit.converged
    assert len(fit.history["loss"]) < 10


@pytest.mark.parametrize("source", SMOOTH)
def test_the_end_is_flat(source, iris):
    fit = lvm.fit(ICA(source), iris, tol=1e-14, **OPTIONS)
    leaves = {name: value.clone().requires_grad_() for name, value in fit.params.items()}
    law = IndependentComponents(
        source_law("test", source, iris, leaves.get("degrees_of_freedom")), leaves["weight"], leaves["loc"]
    )
    gradients = torch.autograd.grad(law.log_prob(iris).mean(), list(leaves.values()))
    scaled = dict(zip(leaves, gradients, strict=True))
    weight = fit.params["weight"]
    assert float((scaled["weight"].mT @ weight).abs().max()) < 1e-6
    assert float((weight.mT @ scaled["loc"]).abs().max()) < 1e-6
    if "degrees_of_freedom" in leaves:
        freedom = fit.params["degrees_of_freedom"]
        inside = (freedom > 1.001) & (freedom < 199.9)
        assert float((scaled["degrees_of_freedom"] * freedom)[inside].abs().max()) < 1e-6


def test_the_end_is_a_maximum_of_laplaces_likelihood(mixed):
    """No direction out of many leads up by more than rounding off kinks allows."""
    x = mixed[0]
    fit = lvm.fit(ICA("laplace"), x, **OPTIONS)
    best = float(fit.log_likelihood(x).sum())
    torch.manual_seed(1)
    for size in (1e-4, 1e-3, 1e-2):
        for _ in range(20):
            turn = torch.linalg.matrix_exp(size * torch.randn(3, 3).double())
            law = IndependentComponents(
                source_law("test", "laplace", x), fit.params["weight"] @ turn, fit.params["loc"]
            )
            assert float(law.log_prob(x).sum()) < best + 0.05


@pytest.mark.parametrize("source", ["laplace", "sech"])
def test_units_do_not_matter(source, mixed):
    x = mixed[0][:500]
    units, shift = torch.tensor([1e-3, 7.0, 1e4], dtype=torch.float64), torch.tensor([1.0, -20.0, 1e5]).double()
    one, other = (lvm.fit(ICA(source), rows, **OPTIONS) for rows in (x, x * units + shift))
    change = float(units.log().sum())
    assert other.score(x * units + shift) + change == pytest.approx(one.score(x), abs=1e-5)
    ours, theirs = (fit.transform(rows) for fit, rows in ((one, x), (other, x * units + shift)))
    correlations = torch.corrcoef(torch.cat([ours.mT, theirs.mT]))[:3, 3:]
    assert float(correlations.abs().amax(1).min()) > 0.9999


def test_columns_come_by_size_and_sign(mixed):
    weight = lvm.fit(ICA("sech"), mixed[0], **OPTIONS).params["weight"]
    norms = weight.norm(dim=0)
    assert bool((norms.diff() <= 0).all())
    assert bool((weight.gather(0, weight.abs().argmax(0, keepdim=True)) > 0).all())
    torch.testing.assert_close(weight.norm(dim=0), mixed[2].norm(dim=0), rtol=0.1, atol=0)


def test_degrees_of_freedom_follow_their_columns():
    torch.manual_seed(0)
    h = torch.stack([dist.StudentT(df, 0.0, 1.0).sample((5000,)) for df in (2.5, 30.0)], -1).double()
    x = h @ torch.tensor([[0.5, 2.0], [0.3, -3.0]]).double()
    fit = lvm.fit(ICA("student-t"), x, **OPTIONS)
    light, heavy = fit.params["degrees_of_freedom"]
    assert light > 10
    assert 2 < heavy < 3
    given = lvm.fit(ICA("student-t", degrees_of_freedom=4), x, **OPTIONS)
    assert "degrees_of_freedom" not in given.params
    assert given.score(x) < fit.score(x)


def test_restarts_turn_the_start(iris):
    fit = lvm.fit(ICA("laplace"), iris, restarts=3, **OPTIONS)
    losses = [run["loss"] for run in fit.restarts]
    assert len(set(losses)) > 1
    assert fit.history["loss"][-1] == min(losses)


def test_a_law_of_the_users_own(mixed, tmp_path):
    """One that is not symmetric, and one with a parameter to learn, which gets gradient steps."""
    torch.manual_seed(0)
    x = dist.Gumbel(0.0, 1.0).sample((2000, 2)).double() @ -torch.tensor([[1.0, 0.5], [0.2, 1.0]]).double()
    fit = lvm.fit(ICA(dist.Gumbel(0.0, 1.0)), x, restarts=4, **OPTIONS)
    assert (
        interference(torch.linalg.solve(fit.params["weight"], torch.tensor([[1.0, 0.2], [0.5, 1.0]]).double())) < 0.01
    )
    assert fit.score(x) > lvm.fit(ICA("laplace"), x, **OPTIONS).score(x)
    fit.save(tmp_path / "own")
    again = lvm.load(tmp_path / "own", model=ICA(dist.Gumbel(0.0, 1.0)))
    assert torch.equal(again.log_likelihood(x), fit.log_likelihood(x))

    def tails():
        return dist.StudentT(pyro.param("tails", torch.tensor(9.0), constraint=dist.constraints.positive), 0.0, 1.0)

    y = mixed[0][:300]
    em = lvm.infer.EM(gradient_steps=30)
    fit = lvm.fit(ICA(tails), y, inference=em, max_epochs=20, **OPTIONS)
    assert "gradient" in str(fit.plan(y))
    assert float(fit.params["tails"]) != pytest.approx(9.0, abs=0.1)


def test_stochastic_batches(mixed):
    x = mixed[0]
    best = lvm.fit(ICA("sech"), x, **OPTIONS).score(x)
    svi = lvm.infer.SVI(learning_rate=0.02)
    fit = lvm.fit(ICA("sech"), x, inference=svi, batch_size=300, max_epochs=60, **OPTIONS)
    assert fit.score(x) > best - 0.02


def test_rows_determine_their_sources(iris):
    fit = lvm.fit(ICA("sech"), iris, **OPTIONS)
    h = fit.transform(iris)
    torch.testing.assert_close(h @ fit.params["weight"].mT + fit.params["loc"], iris)
    draws = fit.posterior(iris[:5], 7)["h"]
    torch.testing.assert_close(draws, h[:5].expand(7, 5, 4))
    assert torch.equal(fit.reconstruct(iris), iris)
    assert fit.sample(9).shape == (9, 4)
    with pytest.raises(ValueError, match="discrete"):
        fit.predict(iris)
    half = {name: lvm.fit(ICA(name), iris[::2], **OPTIONS) for name in ("laplace", "sech")}
    table = lvm.compare(half, iris[1::2])
    assert set(table.index) == set(half)


def test_one_column_is_a_fit_of_its_law():
    torch.manual_seed(0)
    x = torch.distributions.Laplace(3.0, 2.0).sample((501, 1)).double()
    fit = lvm.fit(ICA("laplace"), x, **OPTIONS)
    median = x.median()
    scale = float((x - median).abs().mean())
    best = -math.log(2 * scale) - 1
    assert best - 1e-4 < fit.score(x) <= best + 1e-9
    two = lvm.fit(ICA("laplace"), torch.tensor([[0.0], [2.0]]), **OPTIONS)
    assert two.score(torch.tensor([[0.0], [2.0]])) == pytest.approx(-math.log(2) - 1, abs=1e-3)


# Sources that are flatter than the normal law


@pytest.fixture(scope="module")
def waves():
    """Rows that mix two sines, a Laplace source and uniform noise, and the mixing matrix."""
    torch.manual_seed(0)
    t = torch.arange(2000, dtype=torch.float64)
    laplace, uniform = torch.distributions.Laplace(0.0, 0.7).sample((2000,)).double(), torch.rand(2000).double()
    h = torch.stack([torch.sin(t / 7), torch.sin(t / 3.1 + 1), laplace, uniform], -1)
    mixing = torch.randn(4, 4, dtype=torch.float64)
    return h @ mixing.mT, mixing


def amari(found):
    size = found.abs()
    return float(torch.cat([size.sum(i) / size.amax(i) - 1 for i in (0, 1)]).mean()) / (len(size) - 1)


@pytest.mark.parametrize("inference", ["em", "svi"])
def test_adaptive_sources_are_flat_or_peaked_as_rows_ask(waves, tmp_path, inference):
    x, mixing = waves
    batches = {} if inference == "em" else {"max_epochs": 20, "batch_size": 500}
    fit = lvm.fit(ICA("adaptive"), x, inference=inference, **OPTIONS, **batches)
    found = torch.linalg.solve(fit.params["weight"], mixing)
    assert amari(found) < 0.05
    assert fit.model.flat.tolist() == (found.abs().argmax(1) != 2).tolist()
    law = source_law("test", "adaptive", x, flat=fit.model.flat)
    inverse = torch.linalg.inv(fit.params["weight"])
    expected = law.log_prob((x - fit.params["loc"]) @ inverse.mT).sum(-1) + inverse.det().abs().log()
    torch.testing.assert_close(fit.log_likelihood(x), expected, rtol=0, atol=1e-9)
    fit.save(tmp_path / "fit")
    assert torch.equal(lvm.load(tmp_path / "fit").log_likelihood(x), fit.log_likelihood(x))


def test_a_choice_of_the_start_that_was_wrong_is_taken_back(waves):
    """Steps start from peaked sources, and the likelihood never falls."""
    x, mixing = waves
    model = ICA("adaptive")
    model.initialize(x)
    model.flat.zero_()
    model.weight = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    em = lvm.infer.EM(model)
    losses = torch.tensor([em.step(x) for _ in range(6)])
    assert bool((losses.diff() < 1e-6).all())
    assert amari(torch.linalg.solve(model.weight.detach(), mixing)) < 0.05


def test_flat_sources_of_a_peaked_density_are_told_of(waves, iris):
    x, mixing = waves
    with pytest.warns(
        RuntimeWarning, match=r"'laplace'\): \d of 4 sources are flatter than the normal.*source='adaptive'"
    ):
        fit = lvm.fit(ICA("laplace"), x, **OPTIONS)
    assert amari(torch.linalg.solve(fit.params["weight"], mixing)) > 0.1
    assert lvm.fit(ICA("laplace"), iris, **OPTIONS).remarks() == []


def test_sub_gaussian_sources_are_found():
    torch.manual_seed(0)
    square = torch.sign(torch.sin(torch.arange(1000) / 5.0)).double()
    h = torch.stack([square, torch.rand(1000).double(), torch.rand(1000).double().acos()], -1)
    mixing = torch.randn(3, 3, dtype=torch.float64)
    fit = lvm.fit(ICA("sub-gaussian"), h @ mixing.mT, **OPTIONS)
    assert amari(torch.linalg.solve(fit.params["weight"], mixing)) < 0.05


# With noise


def test_noisy_sources_are_found_and_missing_entries_left_out(mixed):
    """Two sources in four noisy columns, a tenth of the entries missing."""
    torch.manual_seed(0)
    h = mixed[1][:600, :2]
    mixing = torch.tensor([[2.0, 0.3], [1.0, -1.5], [0.5, 1.0], [-1.0, 0.8]], dtype=torch.float64)
    x = h @ mixing.mT + 0.2 * torch.randn(600, 4).double()
    x = torch.where(torch.rand_like(x) < 0.1, torch.nan, x)
    model = ICA("laplace", num_components=2, noise=True)
    fit = lvm.fit(model, x, inference=lvm.infer.SVI(learning_rate=0.02), max_epochs=120, **OPTIONS)
    assert type(fit.guide).__name__ == "LocalGaussian"
    correlations = torch.corrcoef(torch.cat([fit.transform(x).mT, h.mT]))[:2, 2:]
    assert float(correlations.abs().amax(1).min()) > 0.95
    torch.testing.assert_close(fit.params["noise_scale"], torch.full((4,), 0.2).double(), rtol=0, atol=0.12)
    expected = fit.transform(x) @ fit.params["weight"].mT + fit.params["loc"]
    filled = fit.impute(x)
    assert torch.equal(filled[~x.isnan()], x[~x.isnan()])
    torch.testing.assert_close(filled[x.isnan()], expected[x.isnan()], rtol=0, atol=0.2)
    assert float((filled - h @ mixing.mT)[x.isnan()].square().mean().sqrt()) < 0.5


def test_more_sources_than_columns(mixed):
    x = mixed[0][:100, :2]
    fit = lvm.fit(ICA("laplace", num_components=3, noise=True), x, max_epochs=20, **OPTIONS)
    assert fit.params["weight"].shape == (2, 3)
    assert fit.transform(x).shape == (100, 3)
    assert fit.sample(4).shape == (4, 2)


def test_the_noisy_start_has_the_covariance_of_the_rows(mixed):
    x = mixed[0]
    for count in (None, 2, 5):
        model = ICA("student-t", num_components=count, noise=True, degrees_of_freedom=5)
        model.initialize(x)
        weight, noise = model.weight.detach(), model.noise_scale.detach()
        found = 5 / 3 * weight @ weight.mT + noise.square().diag()
        torch.testing.assert_close(found.diagonal(), x.var(0, correction=0), rtol=0.12, atol=0)


def test_posterior_of_a_noisy_source_by_nuts_is_the_grids():
    """One source of two rows: draws against sums over a grid."""
    torch.set_default_dtype(torch.float64)
    try:
        model = ICA("laplace", num_components=1, noise=True, data_dim=2)
        with torch.no_grad():
            model.weight_unconstrained.copy_(torch.tensor([[1.0], [0.5]]))
            model.noise_scale_unconstrained.copy_(torch.tensor([0.8, 0.6]).log())
        x = torch.tensor([[1.5, 0.2], [-0.4, 0.1]])
        grid = torch.linspace(-12, 12, 24_001)
        table = source_law("test", "laplace", grid).log_prob(grid)[:, None].expand(-1, 2)
        for j, (w, s) in enumerate(((1.0, 0.8), (0.5, 0.6))):
            table = table + dist.Normal(w * grid[:, None], s).log_prob(x[:, j])
        expected = (table.softmax(0) * grid[:, None]).sum(0)
        torch.manual_seed(0)
        mcmc = MCMC(NUTS(model), num_samples=500, warmup_steps=100, disable_progbar=True)
        mcmc.run(x)
        draws = mcmc.get_samples()["h"][..., 0]
        torch.testing.assert_close(draws.mean(0), expected, rtol=0, atol=0.1)
    finally:
        torch.set_default_dtype(torch.float32)


# What is refused


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"source": "gauss"}, "laplace, logistic, student-t, sech"),
        ({"source": dist.Exponential(1.0)}, "over all real numbers"),
        ({"num_components": 0}, "num_components"),
        ({"source": "adaptive", "noise": True}, "Pass a source by name"),
        ({"num_components": 3, "data_dim": 4}, "Pass noise=True"),
        ({"degrees_of_freedom": 3.0}, "student-t"),
        ({"source": "student-t", "degrees_of_freedom": -1}, "degrees_of_freedom"),
        ({"data_dim": 0}, "data_dim"),
    ],
)
def test_bad_arguments_are_refused(arguments, why):
    with pytest.raises(ValueError, match=why):
        ICA(**arguments)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda x: x[:1], "at least 2 rows"),
        (lambda x: x[[0, 60]], "got 2 rows in 1, whose likelihood is unbounded"),
        (lambda x: torch.cat([x, torch.ones(len(x), 1).double()], 1), "constant column 4"),
        (lambda x: torch.cat([x, x[:, :1] - x[:, 1:2]], 1), "Keep 4 columns or principal components"),
        (lambda x: torch.cat([x, x[:, :1] - x[:, 1:2]], 1).float(), "Keep 4 columns or principal components"),
        (lambda x: x[:, 0], "expected x of shape"),
        (lambda x: torch.cat([x, x[:1] * torch.nan]), "missing value"),
    ],
)
def test_bad_rows_are_refused(spoil, why, iris):
    with pytest.raises(ValueError, match=why):
        lvm.fit(ICA(), spoil(iris), **OPTIONS)


def test_another_number_of_components_takes_noise(iris):
    with pytest.raises(ValueError, match=r"as many components as columns \(4\).*noise=True"):
        lvm.fit(ICA(num_components=3), iris, **OPTIONS)
    assert not ICA().handles_missing
    assert ICA(noise=True).handles_missing


@pytest.mark.parametrize("source", ["laplace", *SMOOTH])
def test_single_precision(source, iris):
    fit = lvm.fit(ICA(source), iris.float() + 100, **OPTIONS)
    best = lvm.fit(ICA(source), iris, **OPTIONS).score(iris)
    assert fit.params["weight"].dtype == torch.float32
    assert fit.score(iris.float() + 100) == pytest.approx(best, abs=0.02)


def test_declared_without_rows():
    model = ICA("student-t", data_dim=2)
    assert model(size=3).shape == (3, 2)
    with pytest.raises(ValueError, match="rows x or a size"):
        model()
