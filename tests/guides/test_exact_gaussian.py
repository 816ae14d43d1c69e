"""The exact posterior of affine programs, ours and a user's."""

from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

import pyro_lvm as lvm


def rows(n=60, d=4, seed=0):
    torch.manual_seed(seed)
    loadings = torch.tensor([[2.0, 0.0], [1.5, 0.5], [0.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)[:d]
    return torch.randn(n, 2).double() @ loadings.mT + 0.5 * torch.randn(n, d).double() + 1.0


def two_traits(x):
    """Scalar latent sites with priors of their own, and two observed sites, one of them scalar."""
    verbal = pyro.param("verbal", lambda: x.new_tensor([1.0, 0.5, 0.1]))
    spatial = pyro.param("spatial", lambda: x.new_tensor([0.2, -0.5, 1.0]))
    slope = pyro.param("slope", lambda: x.new_tensor(0.7))
    noise = pyro.param("noise", lambda: x.new_tensor(0.8), constraint=constraints.positive)
    with pyro.plate("pupils", len(x)):
        v = pyro.sample("v", dist.Normal(x.new_tensor(0.5), 2.0))
        s = pyro.sample("s", dist.Normal(x.new_tensor(0.0), 1.0))
        loc = v.unsqueeze(-1) * verbal + s.unsqueeze(-1) * spatial + 1.0
        pyro.sample("tests", dist.Normal(loc, noise).to_event(1), obs=x[:, :3])
        pyro.sample("mark", dist.Normal(slope * (v + s), 2 * noise), obs=x[:, 3])


def joint_law(x):
    """Mean and covariance of what the user's program observes, written out."""
    value = {name: p.detach() for name, p in pyro.get_param_store().items()}
    v = torch.cat([value["verbal"], value["slope"].reshape(1)])
    s = torch.cat([value["spatial"], value["slope"].reshape(1)])
    mean = 0.5 * v + torch.tensor([1.0, 1.0, 1.0, 0.0]).double()
    noise = value["noise"] * torch.tensor([1.0, 1.0, 1.0, 2.0]).double()
    return dist.MultivariateNormal(mean, 4 * torch.outer(v, v) + torch.outer(s, s) + noise.square().diag())


def test_a_users_program_is_as_likely_as_its_dense_law() -> None:
    x = rows()
    with pyro.get_param_store().scope():
        guide = lvm.guides.ExactGaussian(two_traits)
        found = guide.row_log_likelihood(x)
        torch.testing.assert_close(found.detach(), joint_law(x).log_prob(x), rtol=0, atol=1e-9)


def test_bound_of_a_users_program_has_no_gap_and_the_right_gradient() -> None:
    """Whatever is drawn, log p(x, h) - log q(h | x) is log p(x)."""
    x = rows()
    with pyro.get_param_store().scope():
        guide = lvm.guides.ExactGaussian(two_traits)
        elbo = pyro.infer.Trace_ELBO()
        losses = [elbo.differentiable_loss(two_traits, guide, x) for _ in range(3)]
        exact = -joint_law(x).log_prob(x).sum()
        for loss in losses:
            assert loss.item() == pytest.approx(exact.item(), abs=1e-8)
        slope = pyro.get_param_store()["slope"]
        (theirs,) = torch.autograd.grad(guide.row_log_likelihood(x).sum(), slope)
        (ours,) = torch.autograd.grad(-sum(losses) / 3, slope)
        torch.testing.assert_close(ours, theirs)


def test_em_of_a_users_program_never_falls_and_ends_where_the_gradient_is_zero() -> None:
    x = rows()
    fit = lvm.fit(two_traits, x, inference=lvm.infer.EM(acceleration="squarem"), max_epochs=300, tol=1e-13, seed=0)
    assert type(fit.guide).__name__ == "ExactGaussian"
    losses = fit.history["loss"]
    assert all(b <= a + 1e-8 for a, b in pairwise(losses))
    with fit.scope():
        total = fit.guide.row_log_likelihood(x).sum()
        assert -losses[-1] == pytest.approx(total.item(), abs=1e-5)
        leaves = [pyro.param(name).unconstrained() for name in ("verbal", "spatial", "slope")]
        gradients = torch.autograd.grad(total, leaves)
    assert max(float(g.abs().max()) for g in gradients) < 1e-3
    assert fit.score(x) == pytest.approx(-losses[-1] / len(x), abs=1e-8)
    assert set(fit.transform(x)) == {"v", "s"}


def _curved(x):
    with pyro.plate("data", len(x)):
        h = pyro.sample("h", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(h.tanh().sum(-1, keepdim=True).expand(-1, x.shape[1]), 1.0).to_event(1), obs=x)


def _uneven(x):
    with pyro.plate("data", len(x)):
        h = pyro.sample("h", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        scale = h.square().sum(-1, keepdim=True) + 1
        pyro.sample("x", dist.Normal(h.sum(-1, keepdim=True).expand(-1, x.shape[1]), scale).to_event(1), obs=x)


def _by_row(x, t):
    with pyro.plate("data", len(x)):
        h = pyro.sample("h", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(h * t.unsqueeze(-1), 1.0).expand([len(x), x.shape[1]]).to_event(1), obs=x)


def _shared(x):
    loc = pyro.sample("loc", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("data", len(x)):
        h = pyro.sample("h", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal((h + loc).expand(-1, x.shape[1]), 1.0).to_event(1), obs=x)


def _chained(x):
    with pyro.plate("data", len(x)):
        g = pyro.sample("g", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        h = pyro.sample("h", dist.Normal(g, 1.0).to_event(1))
        pyro.sample("x", dist.Normal(h.expand(-1, x.shape[1]), 1.0).to_event(1), obs=x)


def _counted(x):
    with pyro.plate("data", len(x)):
        h = pyro.sample("h", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Poisson(h.exp().expand(-1, x.shape[1])).to_event(1), obs=x.abs().round())


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (_curved, "not one affine map|one affine map"),
        (_uneven, "variance of its rows"),
        (_shared, "'loc' is shared"),
        (_chained, "depends on another"),
        (_counted, "'x' is Poisson"),
    ],
)
def test_other_programs_are_refused_with_the_reason(program, why) -> None:
    with pyro.get_param_store().scope(), pytest.raises(ValueError, match=why):
        lvm.guides.ExactGaussian(program)(rows())


def test_rows_of_maps_of_their_own_are_refused() -> None:
    x = rows()
    with pyro.get_param_store().scope(), pytest.raises(ValueError, match="the same for all rows"):
        lvm.guides.ExactGaussian(_by_row)(x, torch.linspace(1, 2, len(x)).double())


def test_svi_trains_a_users_program() -> None:
    """Parameters that the guide's run of the program reads are the program's."""
    x = rows()
    svi = lvm.infer.SVI(learning_rate=0.05)
    fit = lvm.fit(two_traits, x, guide="exact-gaussian", inference=svi, max_epochs=300, seed=0, progress=False)
    best = lvm.fit(two_traits, x, inference="squarem", seed=0, progress=False)
    assert best.score(x) - 0.05 < fit.score(x) <= best.score(x) + 1e-6


def _masked(x, known):
    weight, scale = pyro.param("weight", lambda: x.new_ones(4)), pyro.param("scale", lambda: x.new_tensor(1.0))
    with pyro.plate("data", len(x)):
        h = pyro.sample("h", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(1 + h * weight, scale).mask(known).to_event(1), obs=x)


def test_masks_of_the_programs_own_are_gaps() -> None:
    x = rows()
    torch.manual_seed(2)
    known = torch.rand(60, 4) < 0.7
    arguments = {"x": torch.where(known, x, 99.0), "known": known}
    fit = lvm.fit(_masked, arguments, inference="squarem", max_epochs=200, tol=1e-12, seed=0, progress=False)
    weight, variance = fit.params["weight"], fit.params["scale"] ** 2
    total = torch.zeros((), dtype=x.dtype)
    leaf = weight.clone().requires_grad_()
    for row, seen in zip(x, known, strict=True):
        covariance = torch.outer(leaf, leaf) + variance * torch.eye(4, dtype=x.dtype)
        if seen.any():
            law = dist.MultivariateNormal(x.new_ones(int(seen.sum())), covariance[seen][:, seen])
            total = total + law.log_prob(row[seen])
    assert -fit.history["loss"][-1] == pytest.approx(total.item(), abs=1e-4)
    (gradient,) = torch.autograd.grad(total, leaf)
    assert float(gradient.abs().max()) < 1e-2


def _noisier_later(x, scale):
    with pyro.plate("data", len(x)):
        h = pyro.sample("h", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(h.expand(-1, x.shape[1]), scale.unsqueeze(-1)).to_event(1), obs=x)


def _scaled(x):
    with pyro.plate("data", len(x)):
        with pyro.poutine.scale(scale=0.2):
            h = pyro.sample("h", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(h.expand(-1, x.shape[1]), 1.0).to_event(1), obs=x)


def _slope(x, t):
    slope = pyro.param("slope", lambda: x.new_zeros(4))
    with pyro.plate("data", len(x)):
        h = pyro.sample("h", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(h + t.unsqueeze(-1) * slope, 1.0).to_event(1), obs=x)


def test_what_few_rows_do_not_show_is_seen() -> None:
    x = rows()
    scale = torch.ones(60, dtype=x.dtype)
    scale[[5, 7]] = 2.0
    with pyro.get_param_store().scope():
        with pytest.raises(ValueError, match="variance of its rows"):
            lvm.guides.ExactGaussian(_noisier_later)(x, scale)
        with pytest.raises(ValueError, match="not all scaled alike"):
            lvm.guides.ExactGaussian(_scaled)(x)


def test_what_a_start_does_not_show_is_seen_later() -> None:
    x = rows()
    with pytest.raises(ValueError, match="the same for all rows"):
        lvm.fit(
            _slope,
            {"x": x + torch.arange(60.0).double().unsqueeze(-1), "t": torch.arange(60.0).double()},
            inference="em",
            max_epochs=5,
            seed=0,
            progress=False,
        )


@pytest.mark.filterwarnings("ignore:.*Heywood")
def test_single_precision_far_from_the_origin() -> None:
    x = (rows() + 1e4).float()
    fit = lvm.fit(lvm.models.FactorAnalysis(1), x, seed=0, progress=False)
    weight, noise, loc = (fit.params[name].double() for name in ("weight", "noise_scale", "loc"))
    law = dist.MultivariateNormal(loc, weight @ weight.mT + noise.square().diag())
    torch.testing.assert_close(fit.log_likelihood(x).double(), law.log_prob(x.double()), rtol=1e-4, atol=1e-4)


def test_observed_values_that_depend_on_parameters_are_refused() -> None:
    def model(x):
        shift = pyro.param("shift", torch.zeros(()).double())
        with pyro.plate("data", len(x)):
            h = pyro.sample("h", dist.Normal(torch.zeros(()).double(), 1.0))
            pyro.sample("x", dist.Normal(h, 1.0), obs=x - shift)

    with pytest.raises(ValueError, match="what is observed at site 'x' depends on parameters"):
        lvm.fit(model, rows()[:, 0], inference="em", max_epochs=2, seed=0, progress=False)
