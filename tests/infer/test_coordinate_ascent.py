"""Coordinate ascent against exact evidence, scikit-learn's variational mixture, and Monte Carlo."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture
from torch.special import multigammaln

import pyro_lvm as lvm
from pyro_lvm.distributions import InverseWishart

ALPHA = torch.tensor([1.5, 0.8], dtype=torch.float64)


def log_beta(a):
    return torch.lgamma(a).sum(-1) - torch.lgamma(a.sum(-1))


def coins(x):
    weights = pyro.sample("weights", dist.Dirichlet(ALPHA))
    probs = pyro.sample("probs", dist.Beta(x.new_tensor(0.7), x.new_tensor(1.2)).expand([2, 2]).to_event(2))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Bernoulli(probs[z]).to_event(1), obs=x)


def coins_evidence(x, z):
    ones = x.sum(0)
    a = torch.stack([0.7 + ones, 1.2 + len(x) - ones], -1)
    return (log_beta(a) - log_beta(x.new_tensor([0.7, 1.2]))).sum()


def counts(x):
    weights = pyro.sample("weights", dist.Dirichlet(ALPHA))
    rate = pyro.sample("rate", dist.Gamma(x.new_tensor(2.0), x.new_tensor(0.5)).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Poisson(rate[z]), obs=x)


def counts_evidence(x, z):
    a, b = 2.0 + x.sum(), torch.tensor(0.5 + len(x))
    prior = 2.0 * math.log(0.5) - math.lgamma(2.0)
    return prior + torch.lgamma(a) - a * b.log() - torch.lgamma(x + 1).sum()


def waits(x):
    weights = pyro.sample("weights", dist.Dirichlet(ALPHA))
    rate = pyro.sample("rate", dist.Gamma(x.new_tensor(2.0), x.new_tensor(0.5)).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Exponential(rate[z]), obs=x)


def waits_evidence(x, z):
    a, b = torch.tensor(2.0 + len(x)), 0.5 + x.sum()
    return 2.0 * math.log(0.5) - math.lgamma(2.0) + torch.lgamma(a) - a * b.log()


def normals(x):
    """Normal-inverse-gamma: the location's prior shares the rows' scale."""
    weights = pyro.sample("weights", dist.Dirichlet(ALPHA))
    variance = pyro.sample("variance", dist.InverseGamma(x.new_tensor(2.0), x.new_tensor(1.5)).expand([2]).to_event(1))
    loc = pyro.sample("loc", dist.Normal(x.new_tensor(0.3), (4 * variance).sqrt()).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[z], variance[z].sqrt()), obs=x)


def normals_evidence(x, z):
    n, prior_count = len(x), 0.25
    count = n + prior_count
    mean = (x.sum() + prior_count * 0.3) / count
    rate = 1.5 + 0.5 * (x.square().sum() + prior_count * 0.3**2 - count * mean**2)
    a = torch.tensor(2.0 + n / 2)
    log_normalizer = 2.0 * math.log(1.5) - math.lgamma(2.0) + torch.lgamma(a) - a * torch.as_tensor(rate).log()
    return log_normalizer + 0.5 * math.log(prior_count / count) - 0.5 * n * math.log(2 * math.pi)


PROGRAMS = {
    "coins": (coins, coins_evidence, lambda: torch.bernoulli(torch.full((6, 2), 0.4)).double()),
    "counts": (counts, counts_evidence, lambda: torch.poisson(torch.tensor([1.0, 6, 5, 2, 0, 7])).double()),
    "waits": (waits, waits_evidence, lambda: torch.tensor([0.1, 0.3, 2.0, 3.0, 0.2, 5.0]).double()),
    "normals": (normals, normals_evidence, lambda: torch.tensor([-1.0, -0.5, 2.0, 2.2, 1.8, 0.0]).double()),
}


def log_evidence(x, evidence):
    """The sum over all assignments, parameters integrated out."""
    terms = []
    for assignment in itertools.product(range(2), repeat=len(x)):
        z = torch.tensor(assignment)
        occupied = torch.stack([(z == k).double().sum() for k in range(2)])
        term = log_beta(ALPHA + occupied) - log_beta(ALPHA)
        terms.append(term + sum(evidence(x[z == k], k) for k in range(2) if (z == k).any()))
    return torch.stack(terms).logsumexp(0).item()


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_bound_rises_and_stays_below_the_evidence(name):
    model, evidence, draw = PROGRAMS[name]
    torch.manual_seed(0)
    x = draw()
    truth = log_evidence(x, evidence)
    guide = lvm.guides.Conjugate(model)
    ascent = lvm.infer.CoordinateAscent(model, guide)
    bounds = [-ascent.step(x) for _ in range(50)]
    assert all(b >= a - 1e-10 * abs(a) for a, b in itertools.pairwise(bounds))
    assert bounds[-1] <= truth
    assert bounds[-1] > truth - 3.0


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_bound_is_what_its_posterior_gives_by_monte_carlo(name):
    model, _, draw = PROGRAMS[name]
    torch.manual_seed(1)
    x = draw().repeat_interleave(4, 0)
    guide = lvm.guides.Conjugate(model)
    ascent = lvm.infer.CoordinateAscent(model, guide)
    for _ in range(30):
        ascent.step(x)
    responsibilities = ascent.posterior(x)["z"]

    def whole_guide(x):
        guide(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(responsibilities))

    with torch.no_grad():
        draws = torch.tensor([-Trace_ELBO().loss(model, whole_guide, x) for _ in range(600)])
    assert (draws.mean() + ascent.loss(x)).abs() < 5 * draws.std() / 600**0.5


def faithful():
    x = lvm.datasets.load("faithful").x.double()
    return x / x.std(0)


class Priors:
    """Priors that scikit-learn's mixture has too."""

    def __init__(self, x, num_components, kind):
        self.x, self.num_components, self.kind = x, num_components, kind
        self.centre, self.covariance = x.mean(0), torch.cov(x.T)
        self.count, self.df, self.concentration = 0.05, x.shape[1] + 1.5, 0.7

    def model(self):
        k = self.num_components
        covariance = InverseWishart(torch.tensor(self.df).double(), self.covariance)
        return lvm.models.GaussianMixture(
            k,
            covariance=self.kind,
            priors={
                "weights": dist.Dirichlet(torch.full((k,), self.concentration).double()),
                "covariance": covariance.expand([k]).to_event(1) if self.kind == "full" else covariance,
                "loc": lambda m: (
                    dist.MultivariateNormal(self.centre, covariance_matrix=m.covariance / self.count)
                    .expand([k])
                    .to_event(1)
                ),
            },
        )

    def sklearn(self, iterations, **options):
        return BayesianGaussianMixture(
            n_components=self.num_components,
            covariance_type=self.kind,
            weight_concentration_prior_type="dirichlet_distribution",
            weight_concentration_prior=self.concentration,
            mean_precision_prior=self.count,
            mean_prior=self.centre.numpy(),
            degrees_of_freedom_prior=self.df,
            covariance_prior=self.covariance.numpy(),
            reg_covar=0.0,
            tol=0.0,
            max_iter=iterations,
            random_state=0,
            warm_start=True,
            **options,
        )

    def constant(self):
        """What scikit-learn leaves out of its bound: normalizers of the priors and of the rows' density."""
        (n, d), k = self.x.shape, self.num_components
        df = torch.tensor(self.df).double()
        wishart = 0.5 * df * torch.logdet(self.covariance) - 0.5 * df * d * math.log(2) - multigammaln(0.5 * df, d)
        dirichlet = -log_beta(torch.full((k,), self.concentration).double())
        gamma = 0.25 * d * (d - 1) * math.log(math.pi)  # its Wishart normalizer omits this part of log Gamma_d
        return float(
            dirichlet + k * (wishart + gamma + 0.5 * d * math.log(self.count)) - 0.5 * n * d * math.log(2 * math.pi)
        )


@pytest.mark.parametrize("num_components", [2, 3])
def test_it_is_sklearns_variational_mixture(num_components):
    x = faithful()
    priors = Priors(x, num_components, "full")
    theirs = priors.sklearn(1)
    with pytest.warns(ConvergenceWarning):
        theirs.fit(x.numpy())
    with pyro.settings.context(module_local_params=True):
        model = priors.model()
        model.initialize(x)
        guide = lvm.guides.Conjugate(model)
        ascent = lvm.infer.CoordinateAscent(model, guide)
        ascent.step(x)
        df = torch.tensor(theirs.degrees_of_freedom_)
        guide.update("weights", concentration=torch.tensor(theirs.weight_concentration_))
        guide.update("covariance", df=df, scale=torch.tensor(theirs.covariances_) * df[:, None, None])
        guide.update("loc", loc=torch.tensor(theirs.means_), count=torch.tensor(theirs.mean_precision_))
        theirs.max_iter = 15
        with pytest.warns(ConvergenceWarning):
            theirs.fit(x.numpy())
        for _ in range(15):
            ascent.step(x)
        np.testing.assert_allclose(guide.weights__concentration, theirs.weight_concentration_, rtol=1e-8)
        np.testing.assert_allclose(guide.loc__loc, theirs.means_, rtol=1e-8)
        np.testing.assert_allclose(guide.loc__count, theirs.mean_precision_, rtol=1e-8)
        np.testing.assert_allclose(guide.covariance__df, theirs.degrees_of_freedom_, rtol=1e-8)
        if num_components == 2:  # scikit-learn states its bound between half-steps: the same where it has converged
            theirs.max_iter = 500
            with pytest.warns(ConvergenceWarning):
                theirs.fit(x.numpy())
            for _ in range(500):
                ascent.step(x)
            assert -ascent.loss(x) == pytest.approx(theirs.lower_bound_ + priors.constant(), rel=1e-9)


def test_a_prior_that_is_not_conjugate_is_named():
    def model(x):
        rate = pyro.sample("rate", dist.LogNormal(x.new_zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(x.new_ones(2)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Poisson(rate[z]), obs=x)

    with pytest.raises(ValueError, match=r"site 'rate' has no conjugate update \(its prior \(LogNormal\)"):
        lvm.infer.CoordinateAscent(model, lvm.guides.Conjugate(model)).step(torch.ones(5).double())


def test_a_point_parameter_is_named():
    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(ALPHA))
        rate = pyro.param("rate", lambda: x.new_tensor([1.0, 2.0]), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Poisson(rate[z]), obs=x)

    with pytest.raises(ValueError, match="'rate' is a point"):
        lvm.infer.CoordinateAscent(model, lvm.guides.Conjugate(model)).step(torch.ones(5).double())


def test_without_a_guide():
    with pytest.raises(ValueError, match=r"expected a model and a lvm\.guides"):
        lvm.infer.CoordinateAscent(coins).step(torch.ones(5, 2))
    with pytest.raises(ValueError, match="a guide that was trained"):
        lvm.guides.Conjugate(coins)()


def normal_evidence(x, kind):
    """Of one normal law under the default priors of `GaussianMixture`: Murphy (2007), equations 266 and 204."""
    (n, d), prior_count = x.shape, 0.01
    mean, spread = x.mean(0), x.var(0, correction=0)
    count = n + prior_count
    scatter = (x - mean).T @ (x - mean)  # the prior's mean is the data's
    if kind in ("full", "tied"):
        before, after = spread.diag_embed(), spread.diag_embed() + scatter
        df = torch.tensor(d + 2.0).double()
        terms = multigammaln((df + n) / 2, d) - multigammaln(df / 2, d)
        terms = terms + 0.5 * df * before.logdet() - 0.5 * (df + n) * after.logdet()
        constant = -0.5 * n * d * math.log(math.pi)
    else:
        columns = 1 if kind == "diag" else d
        squares, rate = scatter.diagonal(), 0.5 * spread
        if kind == "spherical":
            squares, rate = squares.sum(), 0.5 * spread.mean()
        a = torch.tensor(1.5).double()
        more = a + 0.5 * n * columns
        terms = (torch.lgamma(more) - torch.lgamma(a) + a * rate.log() - more * (rate + 0.5 * squares).log()).sum()
        constant = -0.5 * n * d * math.log(2 * math.pi)
    return float(terms + constant + 0.5 * d * math.log(prior_count / count))


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_the_bound_of_one_component_is_the_evidence(kind):
    x = lvm.datasets.load("faithful").x.double()
    model = lvm.models.GaussianMixture(1, covariance=kind, priors=True)
    fit = lvm.fit(model, x, inference="coordinate-ascent", seed=0, progress=False)
    assert -fit.history["loss"][-1] == pytest.approx(normal_evidence(x, kind), rel=1e-9)
    torch.testing.assert_close(fit.draws["weights"], torch.ones(1, 500, 1).double())
    assert torch.equal(fit.predict(x), torch.zeros(len(x), dtype=torch.long))


def test_the_bound_of_one_class_is_the_evidence():
    x = lvm.datasets.load("opinions").x.double()
    fit = lvm.fit(lvm.models.CategoricalMixture(1, priors=True), x, inference="coordinate-ascent", progress=False)
    evidence = 0.0
    for column in x.T:
        counts = column.long().bincount().double()
        evidence += float(log_beta(1 + counts) - log_beta(torch.ones_like(counts)))
    assert -fit.history["loss"][-1] == pytest.approx(evidence, rel=1e-9)


def test_a_question_with_one_answer_says_nothing():
    x = lvm.datasets.load("opinions").x.double()[:200]
    more = torch.nn.functional.pad(x, (0, 2))
    losses = []
    for rows in (x, more):
        torch.manual_seed(0)
        model = lvm.models.CategoricalMixture(2, priors=True)
        fit = lvm.fit(model, rows, inference="coordinate-ascent", seed=0, max_epochs=20, progress=False)
        losses.append(fit.history["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    plan = lvm.fit(lvm.models.CategoricalMixture(2), more, seed=0, max_epochs=2, progress=False).plan(more)
    assert all(entry.closed for entry in plan)
