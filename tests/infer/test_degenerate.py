"""EM on data that break estimators: a finite result or one clear sentence; never NaN, never an error of torch's own."""

import math
import re
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import pyro_lvm as lvm
from pyro_lvm.infer.enumeration import expect

pytestmark = pytest.mark.usefixtures("local")

ENUMERATED = {"enumerate": "parallel"}
OURS = re.compile(r"^(EM|Exact enumeration|GaussianMixture|fit|lvm\.fit|check)\b[^\n]*[.:]")


def parameter(name, start, constraint=constraints.real):
    return pyro.param(name, start.clone(), constraint=constraint)


def normals(x, loc, scale):
    """A mixture of normals with one column."""
    weights = parameter("weights", torch.ones_like(loc) / len(loc), constraints.simplex)
    loc, scale = parameter("loc", loc), parameter("scale", scale, constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer=ENUMERATED)
        pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)


def columns(x, loc, scale):
    """A mixture of independent normal columns."""
    weights = parameter("weights", torch.ones_like(loc[:, 0]) / len(loc), constraints.simplex)
    loc, scale = parameter("loc", loc), parameter("scale", scale, constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer=ENUMERATED)
        pyro.sample("x", dist.Normal(loc[z], scale[z]).to_event(1), obs=x)


def multivariate(argument):
    constraint = constraints.lower_cholesky if argument == "scale_tril" else constraints.positive_definite

    def program(x, loc, scale):
        weights = parameter("weights", torch.ones_like(loc[:, 0]) / len(loc), constraints.simplex)
        power = {"covariance_matrix": 2, "scale_tril": 1, "precision_matrix": -2}[argument]
        loc, matrix = parameter("loc", loc), parameter("matrix", torch.diag_embed(scale**power), constraint)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer=ENUMERATED)
            pyro.sample("x", dist.MultivariateNormal(loc[z], **{argument: matrix[z]}), obs=x)

    return program


GAUSSIANS = {
    "columns": columns,
    **{name: multivariate(name) for name in ("covariance_matrix", "scale_tril", "precision_matrix")},
}


def train(program, *args, steps=15, **options):
    """Losses and parameters after some steps, all finite; warnings are allowed."""
    em = lvm.infer.EM(program, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses = [em.step(*args) for _ in range(steps)] + [em.loss(*args)]
    found = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    assert all(math.isfinite(loss) for loss in losses), losses
    assert all(bool(value.isfinite().all()) for value in found.values()), found
    return losses, found


def outcome(run):
    """What a run returns; an error instead is fine if it is this package's own sentence."""
    message = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return run()
    except (ValueError, lvm.infer.NonFiniteLoss) as error:
        message = str(error)
    assert OURS.match(message), message
    return None


def finite_or_clear(program, *args):
    return outcome(lambda: train(program, *args))


def two_clusters(n=20, d=2, dtype=torch.float64):
    x = torch.randn(n, d, dtype=dtype)
    x[n // 2 :] += 5
    return x


def start(x, components):
    return x[:: max(1, len(x) // components)][:components].clone(), torch.ones(components, x.shape[1]).to(x)


# Components and rows


@pytest.mark.parametrize("kind", GAUSSIANS)
def test_a_component_without_rows_does_no_harm(kind):
    x = torch.randn(20, 2, dtype=torch.float64)
    loc = torch.tensor([[0.0, 0.0], [1e4, 1e4]]).to(x)
    _, found = train(GAUSSIANS[kind], x, loc, torch.ones_like(loc))
    assert found["weights"].sum() == pytest.approx(1)


@pytest.mark.parametrize("kind", GAUSSIANS)
def test_a_component_without_rows_is_reported_by_name(kind):
    x = torch.randn(20, 2, dtype=torch.float64)
    loc = torch.tensor([[0.0, 0.0], [1e4, 1e4]]).to(x)
    em = lvm.infer.EM(GAUSSIANS[kind])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(5):
            em.step(x, loc, torch.ones_like(loc))
    messages = [str(warning.message) for warning in caught]
    assert [m for m in messages if re.search(r"\bz\b.*\b1\b", m)], messages  # the site and its state


@pytest.mark.parametrize("components", [2, 3, 5])
@pytest.mark.parametrize("kind", GAUSSIANS)
def test_duplicated_rows(kind, components):
    x = torch.randn(3, 2, dtype=torch.float64).repeat(5, 1)
    loc = torch.randn(components, 2, dtype=torch.float64)
    train(GAUSSIANS[kind], x, loc, torch.ones_like(loc))


@pytest.mark.parametrize("kind", GAUSSIANS)
def test_collinear_columns(kind):
    x = two_clusters()
    x[:, 1] = 2 * x[:, 0] - 3
    _, found = train(GAUSSIANS[kind], x, *start(x, 2))
    if "matrix" in found:
        assert torch.linalg.eigvalsh(found["matrix"] + found["matrix"].mT).min() > 0 or kind == "scale_tril"


@pytest.mark.parametrize("kind", GAUSSIANS)
def test_a_constant_column(kind):
    x = two_clusters()
    x[:, 1] = 3.0
    train(GAUSSIANS[kind], x, *start(x, 2))


@pytest.mark.parametrize("kind", GAUSSIANS)
def test_one_component_is_the_sample(kind):
    x = two_clusters()
    _, found = train(GAUSSIANS[kind], x, *start(x, 1), steps=2)
    torch.testing.assert_close(found["loc"][0], x.mean(0))
    covariance = torch.cov(x.T, correction=0)
    expected = {
        "columns": covariance.diagonal().sqrt(),
        "covariance_matrix": covariance,
        "scale_tril": torch.linalg.cholesky(covariance),
        "precision_matrix": torch.linalg.inv(covariance),
    }[kind]
    torch.testing.assert_close(found["scale" if kind == "columns" else "matrix"][0], expected)


@pytest.mark.parametrize("kind", GAUSSIANS)
def test_as_many_components_as_rows(kind):
    x = torch.randn(4, 2, dtype=torch.float64)
    train(GAUSSIANS[kind], x, *start(x, 4))


@pytest.mark.parametrize("components", [1, 2])
@pytest.mark.parametrize("kind", GAUSSIANS)
def test_one_row(kind, components):
    x = torch.randn(1, 2, dtype=torch.float64)
    loc = torch.randn(components, 2, dtype=torch.float64)
    finite_or_clear(GAUSSIANS[kind], x, loc, torch.ones_like(loc))


# What the package's own model does with them, through the front door

CATALOGUE = {
    "duplicated": lambda: torch.randn(3, 2).double().repeat(5, 1),
    "collinear": lambda: torch.randn(20, 1).double() * torch.tensor([1.0, 2.0]).double(),
    "constant column": lambda: torch.cat([torch.randn(20, 1), torch.ones(20, 1)], 1).double(),
    "as many rows as components": lambda: torch.randn(2, 2).double(),
    "one row": lambda: torch.randn(1, 2).double(),
    "float32 at a million": lambda: 1e6 + torch.randn(50, 2),
    "huge": lambda: 1e300 * torch.randn(20, 2).double(),
    "tiny": lambda: 1e-300 * torch.randn(20, 2).double(),
    "huge float32": lambda: 1e20 * torch.randn(20, 2),
    "tiny float32": lambda: 1e-20 * torch.randn(20, 2),
    "integers": lambda: torch.randint(0, 9, (20, 2)),
    "far apart": lambda: torch.cat([torch.randn(10, 2), 1e8 + torch.randn(10, 2)]).double(),
}


@pytest.mark.parametrize("covariance", ["full", "diag", "tied", "spherical"])
@pytest.mark.parametrize("rows", CATALOGUE)
def test_gaussian_mixture(rows, covariance):
    x, model = CATALOGUE[rows](), lvm.models.GaussianMixture(2, covariance=covariance)
    fit = outcome(lambda: lvm.fit(model, x, inference="em", seed=0, max_epochs=30, progress=False))
    if fit is not None:
        assert math.isfinite(fit.score(x))
        assert all(bool(value.isfinite().all()) for value in fit.params.values())


@pytest.mark.parametrize(
    ("rows", "spread"), [("huge", "300"), ("tiny", "-300"), ("huge float32", "20"), ("tiny float32", "-20")]
)
@pytest.mark.parametrize("covariance", ["full", "diag", "tied", "spherical"])
def test_a_variance_that_no_number_holds_is_refused_by_name(rows, spread, covariance):
    with pytest.raises(ValueError, match=rf"GaussianMixture: .* column 0, which varies by .*e\+?{spread}. Rescale it"):
        lvm.fit(lvm.models.GaussianMixture(2, covariance=covariance), CATALOGUE[rows](), progress=False)


# Numbers


def test_an_impossible_row_is_named():
    x = torch.tensor([0.0, 1.0, 0.5, 1e200, 2.0], dtype=torch.float64)
    with pytest.raises(lvm.infer.NonFiniteLoss, match=r"'x'|row 3"):
        lvm.infer.EM(normals).step(x, x[:2], torch.ones_like(x[:2]))


@pytest.mark.parametrize("kind", GAUSSIANS)
def test_float32_at_a_million_is_as_good_as_float64(kind):
    x = 1e6 + two_clusters(200, dtype=torch.float32)
    _, single = train(GAUSSIANS[kind], x, *start(x, 2))
    pyro.clear_param_store()
    x = x.double()
    _, double = train(GAUSSIANS[kind], x, *start(x, 2))
    torch.testing.assert_close(single["weights"].double(), double["weights"], rtol=0, atol=0.01)
    torch.testing.assert_close(single["loc"].double(), double["loc"], rtol=0, atol=0.1)
    spread = "scale" if kind == "columns" else "matrix"
    torch.testing.assert_close(single[spread].double(), double[spread], rtol=0.05, atol=0.02)


UNITS = [(kind, factor) for kind in GAUSSIANS for factor in (1e100, 1e-100)]  # a variance must be a number, too
SINGLE_UNITS = [(kind, factor) for kind in GAUSSIANS for factor in (1e10, 1e-10)]


@pytest.mark.parametrize(("kind", "factor"), [*UNITS, ("columns", 1e300), ("columns", 1e-300)])
def test_any_unit_of_measurement_in_float64(kind, factor):
    x = two_clusters()
    loc, scale = start(x, 2)
    finite_or_clear(GAUSSIANS[kind], x * factor, loc * factor, scale * factor)


@pytest.mark.parametrize(("kind", "factor"), [*SINGLE_UNITS, ("columns", 1e20), ("columns", 1e-20)])
def test_any_unit_of_measurement_in_float32(kind, factor):
    x = two_clusters(dtype=torch.float32)
    loc, scale = start(x, 2)
    finite_or_clear(GAUSSIANS[kind], x * factor, loc * factor, scale * factor)


@pytest.mark.parametrize("factor", [1e100, 1e-100])
def test_the_unit_of_measurement_does_not_change_the_result(factor):
    x = two_clusters()
    loc, scale = start(x, 2)
    losses, found = train(columns, x, loc, scale)
    pyro.clear_param_store()
    other_losses, other = train(columns, x * factor, loc * factor, scale * factor)
    assert other_losses[-1] - losses[-1] == pytest.approx(x.numel() * math.log(factor), rel=1e-9)
    for name in ("loc", "scale"):
        torch.testing.assert_close(other[name] / factor, found[name])


@pytest.mark.parametrize("distance", [1e4, 1e8, 1e15, 1e100])
@pytest.mark.parametrize("kind", GAUSSIANS)
def test_huge_separations(kind, distance):
    x = torch.randn(20, 2, dtype=torch.float64)
    x[10:] += distance
    result = finite_or_clear(GAUSSIANS[kind], x, *start(x, 2))
    if result:
        torch.testing.assert_close(result[1]["weights"], torch.tensor([0.5, 0.5]).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("apart", [1.0, 10.0, 20.0, 50.0, 200.0, 800.0])
def test_sites_that_disagree_about_a_row(apart, dtype):
    def program(x, y):
        loc = parameter("loc", torch.tensor([0.0, 1.0]).to(x))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2).to(x) / 2), infer=ENUMERATED)
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)
            pyro.sample("y", dist.Normal(loc[z], 1.0), obs=y)

    x, y = torch.tensor([apart + 0.5]).to(dtype), torch.tensor([0.5 - apart]).to(dtype)
    (posterior,) = expect(program, 1, (x, y), {}).marginals()["z"]
    rounding = 4 * torch.finfo(dtype).eps * apart**2  # four log-densities of about apart^2 / 2 nats each
    assert float(posterior.sum()) == pytest.approx(1.0, abs=1e-5 + rounding)
    torch.testing.assert_close(posterior, torch.tensor([0.5, 0.5]).to(dtype), rtol=0, atol=1e-5 + rounding)


# Data of another make (torch itself refuses integers under a Bernoulli law)

COUNTS = {
    "poisson": (lambda p, z: dist.Poisson(p[z]), torch.tensor([1.0, 4.0]), constraints.positive, 7),
    "categorical": (
        lambda p, z: dist.Categorical(p[z]),
        torch.tensor([[0.2, 0.8], [0.6, 0.4]]),
        constraints.simplex,
        2,
    ),
}


@pytest.mark.parametrize("family", COUNTS)
def test_integers_count_as_numbers(family):
    law, begin, constraint, high = COUNTS[family]

    def program(x):
        weights = parameter("weights", torch.tensor([0.5, 0.5]), constraints.simplex)
        argument = parameter("argument", begin, constraint)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer=ENUMERATED)
            pyro.sample("x", law(argument, z), obs=x)

    x = torch.randint(high, (30,))
    results = []
    for rows in (x, x.float(), x.int()):
        pyro.clear_param_store()
        results.append(train(program, rows)[1])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


def test_tensors_that_are_not_contiguous():
    x = two_clusters(40)
    expected = None
    for view in (x, x.T.contiguous().T, torch.stack([x, x], 1)[:, 1], x.repeat_interleave(2, 0)[::2]):
        pyro.clear_param_store()
        _, found = train(GAUSSIANS["covariance_matrix"], view, *(t.clone() for t in start(x, 2)))
        expected = expected or found
        torch.testing.assert_close(found, expected)


# Sites outside plates, and maxima at infinity


def with_coin(site):
    """A program with one hidden coin and whatever `site` adds."""

    def program():
        z = pyro.sample(
            "z", dist.Bernoulli(parameter("p", torch.tensor(0.3), constraints.unit_interval)), infer=ENUMERATED
        )
        site(z.long())

    return program


def test_a_scalar_parameter_outside_all_plates():
    def site(z):
        rate = parameter("rate", torch.tensor(0.5), constraints.positive)
        pyro.sample("x", dist.Poisson(rate), obs=torch.tensor(3.0))

    _, found = train(with_coin(site))
    assert float(found["rate"]) == pytest.approx(3.0)


def test_a_normal_of_a_single_value():
    def site(z):
        loc, scale = parameter("loc", torch.tensor(0.5)), parameter("scale", torch.ones(2), constraints.positive)
        pyro.sample("x", dist.Normal(loc, scale[z]), obs=torch.tensor(3.0))

    finite_or_clear(with_coin(site))


@pytest.mark.parametrize(
    ("law", "begin", "x"),
    [
        (lambda v: dist.Bernoulli(logits=v[0]), torch.zeros(1), torch.ones(30)),
        (lambda v: dist.Categorical(logits=v), torch.zeros(3), torch.arange(30) % 2),
        (lambda v: dist.Poisson(v[0].exp()), torch.zeros(1), torch.zeros(30)),
    ],
    ids=["bernoulli", "categorical", "poisson"],
)
def test_a_maximum_at_infinity_is_approached(law, begin, x):
    def program(x):
        value = parameter("value", begin)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(0.5), infer=ENUMERATED)
            pyro.sample("x", law(value), obs=x)

    losses, _ = train(program, x)
    best = 30 * math.log(2) if begin.numel() == 3 else 0.0
    assert losses[-1] == pytest.approx(best, abs=1e-2)
