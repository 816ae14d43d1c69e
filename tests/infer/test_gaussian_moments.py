"""E-steps by an exact normal posterior: averaged over batches, and of rows that count more or less often."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

import pyro_lvm as lvm
from pyro_lvm.ops.linear_gaussian import LinearGaussian
from pyro_lvm.ops.normal_moments import NormalMoments


def rows(n=60, share=0.2, factors=2):
    """Rows of four columns, with gaps."""
    torch.manual_seed(0)
    loadings = torch.tensor([[2.0, 0.0], [1.5, 0.5], [0.7, 1.0], [-1.0, 1.0]]).double()
    x = torch.randn(n, factors).double() @ loadings[:, :factors].mT + 0.7 * torch.randn(n, 4).double() + 3.0
    return torch.where(torch.rand_like(x) < share, torch.nan, x)


def model_at(x, seed=3):
    model = lvm.models.FactorAnalysis(2)
    model.initialize(x)
    torch.manual_seed(seed)
    with torch.no_grad():
        model.weight_unconstrained.copy_(torch.randn(4, 2))
    return model


def sums(parameters, x, counts):
    """How many rows, and the expected sums of y = (h, x) and of y y', by dense conditioning, row by row."""
    weight, loc, noise = parameters
    mean = torch.cat([weight.new_zeros(2), loc])
    covariance = torch.cat(
        [
            torch.cat([torch.eye(2).double(), weight.mT], 1),
            torch.cat([weight, weight @ weight.mT + noise.square().diag()], 1),
        ]
    )
    first, second = torch.zeros(6).double(), torch.zeros(6, 6).double()
    for row, count in zip(x, counts, strict=True):
        seen = torch.cat([torch.zeros(2, dtype=torch.bool), ~row.isnan()])
        gain = covariance[:, seen] @ covariance[seen][:, seen].inverse()
        expected = mean + gain @ (row[seen[2:]] - mean[seen])
        within = covariance - gain @ covariance[seen]
        first += count * expected
        second += count * (torch.outer(expected, expected) + within)
    return counts.sum(), first, second


def maximum(total, first, second):
    """The M-step of complete data: rows regressed on factors and a one."""
    design = torch.zeros(3, 3).double()
    design[:2, :2], design[2, :2], design[:2, 2], design[2, 2] = second[:2, :2], first[:2], first[:2], total
    cross = torch.cat([second[2:, :2], first[2:].unsqueeze(-1)], 1)
    found = cross @ design.inverse()
    noise = (second[2:, 2:] - found @ cross.mT).diagonal() / total
    return found[:, :2], found[:, 2], noise.sqrt()


def parameters_of(model):
    return [getattr(model, name).detach().clone() for name in ("weight", "loc", "noise_scale")]


def assert_steps_are_those_of_the_oracle(batches, decay):
    """Batches are pairs of rows and how often each of them counts."""
    every = torch.cat([x for x, _ in batches])
    model = model_at(every)
    em = lvm.infer.EM(model, lvm.guides.ExactGaussian(model), decay=decay, variance_floor=0.0)
    expected, averages = parameters_of(model), None
    for step, (x, counts) in enumerate(batches):
        new = sums(expected, x, torch.ones(len(x)).double() if counts is None else counts)
        rate = 1.0 if decay is None else (step + 1) ** -decay
        averages = new if averages is None else [(1 - rate) * a + rate * b for a, b in zip(averages, new, strict=True)]
        expected = maximum(*averages)
        em.loss(x + 1)  # keeps nothing
        em.step(x) if counts is None else em.step(x, sample_weights=counts)
        for ours, theirs in zip(parameters_of(model), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_steps_of_batches_are_those_of_averaged_sums(share):
    batches = rows(60, share).split([25, 20, 15])
    assert_steps_are_those_of_the_oracle([(x, None) for x in batches], 0.7)


def test_weights_of_rows_count_in_averaged_sums():
    x, counts = rows(60, 0.3), torch.arange(60.0).double() % 3
    assert_steps_are_those_of_the_oracle(list(zip(x.split(30), counts.split(30), strict=True)), 0.7)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_weights_of_rows_count_in_full_batches(share):
    x, counts = rows(60, share), torch.arange(60.0).double() % 3
    assert_steps_are_those_of_the_oracle([(x, counts)] * 2, None)


def test_scales_of_a_users_program_are_weights():
    """Of any size, by whatever sets them; the bound of a step by gradients has no gap either."""

    def program(x, often):
        slopes = pyro.param("slopes", lambda: x.new_tensor([1.0, 0.5, 0.1, 0.2]))
        with pyro.plate("pupils", len(x)), pyro.poutine.scale(scale=often):
            v = pyro.sample("v", dist.Normal(x.new_tensor(0.5), 2.0))
            pyro.sample("x", dist.Normal(3 + v.unsqueeze(-1) * slopes, 0.7).to_event(1), obs=x)

    x, often = rows(30, 0.0), 0.5 + torch.arange(30.0).double()
    with pyro.get_param_store().scope():
        guide = lvm.guides.ExactGaussian(program)
        expected = -float((often @ guide.row_log_likelihood(x, often)).detach())
        assert pyro.infer.Trace_ELBO().loss(program, guide, x, often) == pytest.approx(expected, rel=1e-9)
        em = lvm.infer.EM(program, guide, acceleration="squarem")
        losses = [em.step(x, often) for _ in range(30)]
        assert losses[0] == pytest.approx(expected, rel=1e-9)
        total = often @ guide.row_log_likelihood(x, often)
        (gradient,) = torch.autograd.grad(total, pyro.get_param_store()["slopes"])
        assert float(gradient.abs().max()) < 1e-3


def test_moments_of_gaps_are_those_of_rows_one_by_one():
    x = rows(30, 0.4)
    x[3] = torch.nan
    counts = torch.arange(30.0).double() % 3
    torch.manual_seed(1)
    weight, loc, noise = torch.randn(4, 2).double(), torch.randn(4).double(), 0.5 + torch.rand(4).double()
    law = LinearGaussian(loc, weight, noise.square(), torch.zeros(2).double(), torch.ones(2).double())
    found = NormalMoments.of_posterior(law, x, law.posterior(x), counts)
    total, first, second = sums((weight, loc, noise), x, counts)
    torch.testing.assert_close(found.total, total)
    torch.testing.assert_close(found.mean, first / total)
    torch.testing.assert_close(found.covariance, second / total - torch.outer(first, first) / total**2)
    points = found.points()
    torch.testing.assert_close(points.mean(0), found.mean)
    torch.testing.assert_close(points.T.cov(correction=0), found.covariance)


@pytest.mark.parametrize("streamed", [False, True])
def test_batches_in_two_passes_come_close_to_all_rows_and_losses_are_of_all(streamed):
    x = rows(2000, 0.1, factors=1)
    best = lvm.fit(lvm.models.FactorAnalysis(1), x, seed=0, progress=False)
    data = {"data": _Stream(x.split(100))} if streamed else {"data": x, "batch_size": 100}
    em = lvm.infer.EM(decay=0.6)
    fit = lvm.fit(lvm.models.FactorAnalysis(1), **data, inference=em, max_epochs=2, seed=0, progress=False)
    assert best.score(x) - 1e-3 * abs(best.score(x)) < fit.score(x) <= best.score(x) + 1e-9
    assert fit.history["loss"][-1] == pytest.approx(-len(x) * fit.score(x), rel=5e-3)


class _Stream:
    def __init__(self, parts):
        self.parts = parts

    def __iter__(self):
        yield from self.parts


def test_resuming_averages_is_exact(tmp_path):
    x = rows(200)
    options = {"batch_size": 50, "progress": False}
    fit = lambda epochs: lvm.fit(  # noqa: E731
        lvm.models.FactorAnalysis(2), x, inference=lvm.infer.EM(decay=0.6), max_epochs=epochs, seed=0, **options
    )
    whole, part = fit(3), fit(1)
    part.save(tmp_path / "part")
    resumed = lvm.load(tmp_path / "part").resume(x, max_epochs=2, **options)
    for name, value in whole.params.items():
        assert torch.equal(value, resumed.params[name])


def test_a_users_program_in_batches():
    def traits(x):
        slopes = pyro.param("slopes", lambda: x.new_tensor([1.0, 0.5, 0.1, 0.2]))
        noise = pyro.param("noise", lambda: x.new_tensor(0.8), constraint=constraints.positive)
        with pyro.plate("pupils", len(x)):
            v = pyro.sample("v", dist.Normal(x.new_tensor(0.5), 2.0))
            pyro.sample("x", dist.Normal(3 + v.unsqueeze(-1) * slopes, noise).to_event(1), obs=x)

    x = rows(1000, 0.0, factors=1)
    best = lvm.fit(traits, x, inference="squarem", seed=0, progress=False)
    fit = lvm.fit(traits, x, inference=lvm.infer.EM(decay=0.6), batch_size=100, max_epochs=3, seed=0, progress=False)
    assert fit.score(x) > best.score(x) - 2e-3 * abs(best.score(x))


def test_moments_of_a_law_are_dense_ones():
    model = model_at(rows())
    weight, loc, noise = (model.weight.detach().double(), model.loc.detach().double(), model.noise_scale.detach())
    prior_loc, prior = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 3.0]).double()
    found = NormalMoments.of_law(LinearGaussian(loc, weight, noise.double().square(), prior_loc, prior), torch.ones(()))
    both = torch.cat([torch.eye(2).double(), weight])
    expected = both @ prior.diag() @ both.mT
    expected[2:, 2:] += noise.double().square().diag()
    torch.testing.assert_close(found.covariance, expected)
    torch.testing.assert_close(found.mean, torch.cat([prior_loc, loc + weight @ prior_loc]))


@pytest.mark.parametrize("kind", [lvm.models.FactorAnalysis, lvm.models.ProbabilisticPCA])
def test_batches_of_single_rows_do_not_forget_the_start(kind):
    x = rows(8, share=0.0)
    model = kind(1)
    model.initialize(x)
    em = lvm.infer.EM(model, lvm.guides.ExactGaussian(model), decay=0.7)
    em.step(x[:1], sample_weights=torch.zeros(1))  # the first batch may not count at all
    losses = [em.step(row[None], sample_weights=torch.ones(1)) for row in x]
    assert max(losses) < 100  # by one row alone, there is no noise: 1e+10 at least
    assert model.weight.detach().norm(dim=0).min() > 1
