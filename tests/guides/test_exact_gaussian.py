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
