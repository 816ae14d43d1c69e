"""A row of weight w is w rows: in the start, in the priors that the data suggest, and in what is learned."""

import pyro
import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm.ops.kmeans import kmeans
from pyro_lvm.ops.missing import column_moments

PAIRS = [
    *((lvm.models.GaussianMixture, "faithful", {"covariance": c}) for c in ("full", "diag", "tied", "spherical")),
    (lvm.models.BernoulliMixture, "digits234", {}),
    (lvm.models.PoissonMixture, "visits", {}),
    (lvm.models.CategoricalMixture, "opinions", {}),
]


def counted(name, rows=120):
    """Rows, some of which count twice or not at all, and the same rows repeated."""
    x = lvm.datasets.load(name).x.double()[:rows]
    counts = torch.arange(rows) % 3
    return {"x": x, "sample_weights": counts}, x.repeat_interleave(counts, 0)


def both(make, data, repeated, **options):
    options = {"seed": 0, "progress": False, "max_epochs": 30, **options}
    return lvm.fit(make(), data, **options), lvm.fit(make(), repeated, **options)


def assert_alike(one, two):
    for name, value in one.params.items():
        torch.testing.assert_close(value, two.params[name], rtol=1e-6, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")
    assert one.history["loss"] == pytest.approx(two.history["loss"], rel=1e-8)


@pytest.mark.parametrize("inference", ["em", "coordinate-ascent"])
@pytest.mark.parametrize(("model", "name", "options"), PAIRS)
def test_bayesian_fits_of_weighted_rows_are_those_of_repeated_ones(model, name, options, inference):
    assert_alike(*both(lambda: model(2, priors=True, **options), *counted(name), inference=inference))


def test_the_truncated_dirichlet_process_likewise():
    make = lambda: lvm.models.DirichletProcessMixture(5)  # noqa: E731
    assert_alike(*both(make, *counted("faithful"), inference="coordinate-ascent"))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: lvm.models.StudentTMixture(2), "faithful"),
        (lambda: lvm.models.HeterogeneousMixture(2, ["gamma", "lognormal"]), "faithful"),
        (lambda: lvm.models.HeterogeneousMixture(2, ["exponential", "normal"]), "faithful"),
    ],
)
def test_starts_of_weighted_rows_are_those_of_repeated_ones(make, name):
    assert_alike(*both(make, *counted(name)))


def test_regressions_of_weighted_rows_are_those_of_repeated_ones():
    weighted, repeated = counted("faithful")
    weighted = {**weighted, "x": weighted["x"][:, 1:], "covariates": weighted["x"][:, :1]}
    both_columns = {"x": repeated[:, 1:], "covariates": repeated[:, :1]}
    assert_alike(*both(lambda: lvm.models.MixtureOfExperts(2), weighted, both_columns))


def test_missing_entries_count_with_their_rows():
    weighted, repeated = counted("faithful")
    x, counts = weighted["x"].clone(), weighted["sample_weights"]
    x[::4, 1] = torch.nan
    repeated = x.repeat_interleave(counts, 0)
    make = lambda: lvm.models.GaussianMixture(2, priors=True)  # noqa: E731
    assert_alike(*both(make, {**weighted, "x": x}, repeated, inference="em"))
    for ours, theirs in zip(column_moments(x, counts), column_moments(repeated), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("inference", "gaps"), [("em", False), ("squarem", True), ("svi", True)])
def test_factors_of_weighted_rows_are_those_of_repeated_ones(inference, gaps):
    weighted, repeated = counted("iris")
    if gaps:
        x = weighted["x"].clone()
        x[::4, 1] = torch.nan
        weighted, repeated = {**weighted, "x": x}, x.repeat_interleave(weighted["sample_weights"], 0)
    guide = {"guide": "exact-gaussian"} if inference == "svi" else {}
    make = lambda: lvm.models.ProbabilisticPCA(1)  # noqa: E731
    one, two = both(make, weighted, repeated, inference=inference, max_epochs=5, **guide)
    assert_alike(one, two)
    assert one.score(weighted) == pytest.approx(two.score(repeated), rel=1e-9)
    assert one.bic(weighted) == pytest.approx(two.bic(repeated), rel=1e-9)


def test_components_of_weighted_rows_are_those_of_repeated_ones():
    one, two = both(lambda: lvm.models.IndependentComponentAnalysis("logistic"), *counted("iris"), max_epochs=5)
    torch.testing.assert_close(one.params["weight"], two.params["weight"], rtol=1e-4, atol=1e-6)
    assert one.history["loss"] == pytest.approx(two.history["loss"], rel=1e-8)


def test_relevance_of_weighted_rows_is_that_of_repeated_ones():
    one, two = both(
        lambda: lvm.models.ProbabilisticPCA(1, priors=True), *counted("iris"), inference="svi", max_epochs=3
    )
    assert one.history["loss"] == pytest.approx(two.history["loss"], rel=1e-9)


def test_weights_that_sum_to_one_start_where_weights_of_one_do():
    """A start smooths clusters by a row or so: weights are not to be drowned by it."""
    x = lvm.datasets.load("faithful").x.double()
    starts = []
    for weights in (torch.ones(272), torch.full((272,), 1 / 272)):
        torch.manual_seed(0)
        model = lvm.models.HeterogeneousMixture(2, ["normal", "normal"])
        model.initialize(x, sample_weights=weights.double())
        starts.append(model.normal_loc.detach())
    torch.testing.assert_close(*starts)


def test_clusters_of_weighted_rows_are_those_of_repeated_ones():
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    counts = torch.arange(200) % 4
    for weights, rows in ((counts, x.repeat_interleave(counts, 0)), (torch.ones(200), x)):
        torch.manual_seed(1)
        ours = kmeans(x, 5, sample_weights=weights)
        torch.manual_seed(1)
        assert torch.equal(ours.repeat_interleave(weights.long()), kmeans(rows, 5))


def test_clusters_follow_any_weights():
    """Of two groups with two places each, the one that has the weight gets both of the clusters."""
    x = torch.tensor([0.0, 1.0, 10.0, 10.5]).repeat(50).unsqueeze(-1)
    weights = torch.tensor([1.0, 1.0, 1e-6, 1e-6]).repeat(50)
    for seed in range(5):
        torch.manual_seed(seed)
        assert kmeans(x, 2)[:4].tolist() == [0, 0, 1, 1]
        torch.manual_seed(seed)
        assert kmeans(x, 2, sample_weights=weights)[:4].tolist() == [0, 1, 1, 1]


def test_guides_count_latent_vectors_of_rows_as_their_rows_count():
    weighted, _ = counted("iris", 30)
    weights = 4 * weighted["sample_weights"]  # sites that count once are then told from those that count so often
    x = weighted["x"]
    model = lvm.models.ProbabilisticPCA(1)
    model.initialize(x)
    bound, losses = pyro.infer.Trace_ELBO(), []
    for rows, options in ((x, {"sample_weights": weights}), (x.repeat_interleave(weights, 0), {})):
        guide = lvm.guides.LocalGaussian(model).settle(rows, **options)
        losses.append(sum(bound.loss(model, guide, rows, **options) for _ in range(6)) / 6)
    assert losses[0] == pytest.approx(losses[1], abs=0.5)
    with pytest.raises(ValueError, match="AutoNormal counts the latent sites of every row once"):
        lvm.fit(model, weighted, inference="svi", guide="normal", max_epochs=1, seed=0, progress=False)


def test_weights_for_a_model_without_them_are_refused_in_a_sentence():
    x = {"x": (torch.rand(20, 6) > 0.5).float(), "sample_weights": torch.ones(20)}
    with pytest.raises(ValueError, match=r"VAE.*It takes no weights: repeat the rows that count more"):
        lvm.fit(lvm.models.VAE(2), x, max_epochs=1, progress=False)
    fit = lvm.fit(lvm.models.RBM(2), x["x"], max_epochs=1, progress=False)
    with pytest.raises(ValueError, match="It takes no weights"):
        fit.log_likelihood(x)
