"""What is special to mixtures of Student's t: the scale-mixture EM, robustness, degrees of freedom."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import optimize, special, stats
from torch.distributions import constraints

import pyro_lvm as lvm
from pyro_lvm.infer.student_t import LEAST, MOST, _degrees_of_freedom
from pyro_lvm.testing import laws

NAMES = ("weights", "loc", "scale", "degrees_of_freedom")


def mixture(num_components=2, **options):
    return lvm.models.StudentTMixture(num_components, **options)


def fit(model, x, **options):
    return lvm.fit(model, x, **{"seed": 0, "progress": False, **options})


def numpy_em(x, weights, loc, scale, df, steps, learned=True):
    """Peel and McLachlan's EM, degrees of freedom by Liu and Rubin's ECME, to any accuracy.

    `scale` is (K, d, d), or (K, d) for columns that are independent t variables.
    """
    k, d = loc.shape
    full = scale.ndim == 3
    losses = []
    for _ in range(steps):
        log_joint = np.tile(np.log(weights), (len(x), 1))
        distance = []
        for c in range(k):
            centred = x - loc[c]
            if full:
                distance.append(np.einsum("ni,ij,nj->n", centred, np.linalg.inv(scale[c]), centred)[:, None])
                log_joint[:, c] += stats.multivariate_t(loc[c], scale[c], df[c]).logpdf(x)
            else:
                distance.append(centred**2 / scale[c])
                log_joint[:, c] += stats.t(df[c], loc[c], np.sqrt(scale[c])).logpdf(x).sum(1)
        log_rows = np.logaddexp.reduce(log_joint, axis=1)
        losses.append(-log_rows.sum())
        r = np.exp(log_joint - log_rows[:, None])
        weights = r.mean(0)
        loc, scale, df = loc.copy(), scale.copy(), df.copy()
        for c in range(k):
            size = d if full else 1
            u = (df[c] + size) / (df[c] + distance[c])
            w = r[:, c, None] * u
            loc[c] = (w * x).sum(0) / w.sum(0)
            centred = x - loc[c]
            if full:
                scale[c] = (w * centred).T @ centred / r[:, c].sum()
            else:
                scale[c] = (w * centred**2).sum(0) / r[:, c].sum()
            if learned:
                new = np.einsum("ni,ij,nj->n", centred, np.linalg.inv(scale[c]), centred)[:, None] if full else None
                new = centred**2 / scale[c] if new is None else new

                def slope(v, new=new, size=size, r=r[:, c, None]):
                    known = special.digamma((v + size) / 2) - special.digamma(v / 2) - size / v
                    return (r * (known - np.log1p(new / v) + (v + size) * new / (v * (v + new)))).sum()

                df[c] = MOST if slope(MOST) > 0 else optimize.brentq(slope, 1e-2, MOST, xtol=1e-12, rtol=1e-14)
    return losses, weights, loc, scale, df


@pytest.mark.parametrize("degrees_of_freedom", [None, 3.0])
@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_em_is_that_of_a_loop_in_numpy(iris, covariance, degrees_of_freedom, local):
    x = iris.x.double()
    model = mixture(covariance=covariance, degrees_of_freedom=degrees_of_freedom)
    model.initialize(x)
    start = [getattr(model, name).detach().numpy().copy() for name in NAMES]
    em = lvm.infer.EM(model)
    learned = degrees_of_freedom is None
    steps = 80 if learned else 12  # a step of ours looks for the degrees of freedom on a ladder: the ends are the same
    ours = [em.step(x) for _ in range(steps)]
    theirs, *parameters = numpy_em(x.numpy(), *start, steps=steps, learned=learned)
    assert ours[-1] == pytest.approx(theirs[-1], rel=1e-10)
    if not learned:
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)
    for name, value in zip(NAMES, parameters, strict=True):
        np.testing.assert_allclose(getattr(model, name).detach().numpy(), value, rtol=1e-4 if learned else 1e-6)
    assert all(entry.closed for entry in em.plan(x))


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_a_fixed_point_is_a_maximum(covariance):
    """Where EM stops the gradient of the log-likelihood vanishes, that of the degrees of freedom included."""
    truth = dist.StudentT(torch.tensor(3.0).double(), torch.zeros(2).double(), torch.ones(2).double())
    x = truth.sample((400,)) + 12 * (torch.arange(400) % 2).unsqueeze(-1)
    result = fit(mixture(covariance=covariance), x, tol=1e-15)
    found = {name: p.unconstrained for name, p in result.parameters().items()}
    with result.scope(), torch.enable_grad():
        loss = -_log_likelihood(result, x)
        gradients = torch.autograd.grad(loss, list(found.values()), allow_unused=True)
    for name, gradient in zip(found, gradients, strict=True):
        assert gradient is not None, name
        assert float(gradient.abs().max()) / len(x) < 1e-5, name


def _log_likelihood(result, x):
    model = result.model
    terms = []
    for k in range(2):
        df, loc, scale = model.degrees_of_freedom[k], model.loc[k], model.scale[k]
        if scale.dim() == 2:
            law = dist.MultivariateStudentT(df, loc, torch.linalg.cholesky(scale))
        else:
            law = dist.StudentT(df, loc, scale.sqrt()).to_event(1)
        terms.append(model.weights[k].log() + law.log_prob(x))
    return torch.stack(terms).logsumexp(0).sum()


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_outliers_move_the_gaussian_mixture_and_not_this_one(covariance):
    clean = torch.cat([torch.randn(150, 2) - 4, torch.randn(150, 2) + 4]).double()
    x = torch.cat([clean, 60 * torch.rand(15, 2).double() - 30])
    centres = torch.tensor([[-4.0, -4.0], [4.0, 4.0]]).double()

    def error(model):
        loc = fit(model, x, restarts=2, tol=1e-6).params["loc"]
        return float((loc[loc[:, 0].argsort()] - centres).abs().max())

    robust = error(mixture(covariance=covariance))
    assert robust < 0.4  # the centre of 150 rows has a standard error of 0.08
    assert error(lvm.models.GaussianMixture(2, covariance=covariance)) > 3 * robust


@pytest.mark.parametrize(("covariance", "df"), [("full", 3.0), ("full", 8.0), ("diag", 3.0)])
def test_degrees_of_freedom_are_recovered(covariance, df):
    """To four standard deviations of log df over replicas of the simulation."""
    n = 2000
    if covariance == "full":
        root = torch.tensor([[1.0, 0.0], [0.5, 2.0]]).double()
        law = dist.MultivariateStudentT(torch.tensor(df).double(), torch.zeros(2).double(), root)
    else:
        law = dist.StudentT(torch.tensor(df).double(), torch.zeros(2).double(), torch.ones(2).double()).to_event(1)
    x = law.sample((n,))
    result = fit(mixture(1, covariance=covariance), x, tol=1e-9)
    found = float(result.params["degrees_of_freedom"])
    replicas = [
        float(fit(mixture(1, covariance=covariance), law.sample((n,)), tol=1e-9).params["degrees_of_freedom"])
        for _ in range(4)
    ]
    error = float(np.std(np.log(replicas), ddof=1))
    assert abs(np.log(found / df)) < 4 * max(error, 0.03)


def test_normal_rows_have_many_degrees_of_freedom(faithful):
    result = fit(mixture(), faithful, max_epochs=150)
    gaussian = fit(lvm.models.GaussianMixture(2), faithful)
    assert result.score(faithful) > gaussian.score(faithful)  # the normal is a limit of the t
    fixed = fit(mixture(degrees_of_freedom=1e5), faithful)
    assert fixed.score(faithful) == pytest.approx(gaussian.score(faithful), abs=1e-4)
    assert "degrees_of_freedom" not in fixed.params


def test_the_root_search():
    df = torch.tensor([0.05, 0.5, 3.0, 40.0, 1e4, 9e4]).double()
    gap = -(1 + (0.5 * df).log() - torch.digamma(0.5 * df))
    torch.testing.assert_close(
        _degrees_of_freedom(3 * gap, torch.full_like(gap, 3.0), torch.full_like(gap, 3e5)), df, rtol=1e-4, atol=0
    )
    ends = _degrees_of_freedom(*torch.tensor([[-1.0, -1e4, 0.0], [1.0, 1.0, 0.0], [1e5, 1e5, 0.0]]).double())
    assert ends[0] == pytest.approx(1e5, rel=1e-3)
    assert ends[1] == pytest.approx(LEAST, rel=1e-3)
    assert bool(ends[2].isnan())  # no weight: the old value stays


def test_a_plain_program_that_shares_its_parameters():
    """One column, one degree of freedom for both components, a log scale: closed forms, and EM never falls."""
    x = dist.StudentT(4.0).sample((300,)).double() + 9 * (torch.arange(300) % 2)

    def program(x):
        weights = pyro.param("weights", lambda: x.new_tensor([0.4, 0.6]), constraint=constraints.simplex)
        loc = pyro.param("loc", lambda: x.new_tensor([1.0, 8.0]))
        log_scale = pyro.param("log_scale", lambda: x.new_tensor(0.5))
        df = pyro.param("df", lambda: x.new_tensor(9.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.StudentT(df, loc[z], log_scale.exp()), obs=x)

    with pyro.get_param_store().scope():
        assert {p.name for p in lvm.infer.EM(program).plan(x).closed} == {"weights", "loc", "log_scale", "df"}
    laws.em_never_falls(program, x)
    laws.closed_form_is_stationary(program, x)
    result = fit(program, x)
    assert 2 < float(result.params["df"]) < 9


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_one_component_one_column_float32(faithful, covariance):
    x = faithful[:, :1].float()
    result = fit(mixture(1, covariance=covariance, degrees_of_freedom=4), x)
    _, loc, scale = stats.t.fit(x.double().numpy(), fdf=4)
    assert result.params["loc"].dtype == torch.float32
    assert float(result.params["loc"]) == pytest.approx(loc, rel=1e-3)
    assert float(result.params["scale"]) == pytest.approx(scale**2, rel=1e-2)


def test_a_component_without_rows_stays_where_it_was(local):
    x = torch.randn(50, 2).double()
    model = mixture()
    model.initialize(x)
    model.loc = torch.stack([x.mean(0), x.new_full((2,), 1e150)])
    em = lvm.infer.EM(model)
    with pytest.warns(RuntimeWarning, match="has no rows left"):
        em.step(x)
    em.step(x)
    assert bool(torch.isfinite(model.scale).all() & torch.isfinite(model.degrees_of_freedom).all())


def test_errors(faithful):
    for options, message in (
        ({"num_components": 0}, "num_components to be a whole number >= 1; got 0"),
        ({"covariance": "tied"}, "covariance to be one of full, diag; got 'tied'"),
        ({"degrees_of_freedom": 0}, "degrees_of_freedom > 0"),
        ({"degrees_of_freedom": float("nan")}, "Pass None to learn them"),
        ({"data_dim": 0}, "data_dim to be a whole number >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            lvm.models.StudentTMixture(**{"num_components": 2, **options})
    rows = faithful.clone()
    rows[0, 0] = torch.nan
    with pytest.raises(ValueError, match="1 missing value"):
        fit(mixture(), rows)
    with pytest.raises(ValueError, match="neither"):
        mixture(data_dim=2)()


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_learned_tails_in_float32_give_em_nothing_to_undo(faithful, covariance):
    result = fit(mixture(covariance=covariance), faithful.float(), max_epochs=400, tol=0.0)
    assert 1 < float(result.params["degrees_of_freedom"].max()) < 210


def test_degrees_of_freedom_end_where_the_law_is_normal(faithful):
    """The second component's tails are lighter than the normal's: but for ECME, EM would go on for ever."""
    result = fit(mixture(), faithful)
    assert result.converged
    assert len(result.history["loss"]) < 50  # with degrees of freedom of EM's own it is on its way after 2000
    assert -result.history["loss"][-1] == pytest.approx(-1129.9602, abs=1e-4)
    assert float(result.params["degrees_of_freedom"].max()) == pytest.approx(MOST)
    grid = torch.linspace(-30, 30, 200_001).double()
    laws = torch.distributions.StudentT(torch.tensor(MOST).double()), torch.distributions.Normal(0.0, 1.0)
    densities = [law.log_prob(grid).exp() for law in laws]
    assert 0.5 * float((densities[0] - densities[1]).abs().sum()) * 60 / 200_000 < 2e-3
    more = mixture(1, data_dim=2)
    more.initialize(faithful)
    with torch.no_grad():
        more.degrees_of_freedom.fill_(1e4)  # more than that are no reason to fall
    em = lvm.infer.EM(more)
    losses = [em.step(faithful) for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
