"""An encoder's start improved by search: exact at its end, better than the start alone, and the stated gradient."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch.nn.functional import softplus

import pyro_lvm as lvm
from pyro_lvm.guides.row_search import climb
from pyro_lvm.guides.row_sites import RowSites
from pyro_lvm.handlers.rows import settled
from pyro_lvm.testing import laws

BITS = torch.bernoulli(torch.full((40, 6), 0.4), generator=torch.Generator().manual_seed(1)).double()


# Files are compared by scores, however poor: rows far from what a short fit has learned have poor proposals.
POOR = pytest.mark.filterwarnings("ignore:evidence. .* Pareto k-hat:UserWarning")


def vae():
    return lvm.models.VAE(2, hidden=[8])


def test_enough_steps_end_at_the_exact_posterior_wherever_the_encoder_starts(linear):
    guide = lvm.guides.SemiAmortized(linear.model, hidden=[8], num_steps=60).double()
    with torch.no_grad():
        law = pyro.poutine.trace(guide).get_trace(linear.x).nodes["z"]["fn"].base_dist
        loc, scale = linear.posterior(linear.x)
        assert float((guide.encode(linear.x)[0] - loc).abs().max()) > 0.5
        torch.testing.assert_close(law.loc, loc, atol=1e-5, rtol=0)
        torch.testing.assert_close(law.scale, scale, atol=1e-5, rtol=0)
        bound = -Trace_ELBO().loss(linear.model, guide, linear.x)
    assert bound == pytest.approx(float(linear.log_likelihood(linear.x).sum()), abs=1e-4)


def test_a_few_steps_tighten_the_bound_of_the_encoder_alone(linear):
    start = lvm.guides.AmortizedGaussian(linear.model, hidden=[8]).double()
    exact = float(linear.log_likelihood(linear.x).sum())
    gaps = []
    for num_steps in (None, 1, 4):
        guide = start
        if num_steps is not None:
            guide = lvm.guides.SemiAmortized(linear.model, hidden=[8], num_steps=num_steps).double()
            guide.load_state_dict(start.state_dict())
        with torch.no_grad():
            gaps.append(exact + sum(Trace_ELBO().loss(linear.model, guide, linear.x) for _ in range(20)) / 20)
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0


def test_the_gradient_at_the_end_goes_to_the_encoder_as_if_the_search_had_added_a_constant(linear):
    guide = lvm.guides.SemiAmortized(linear.model, hidden=[8], num_steps=3, step_size=0.2).double()
    torch.manual_seed(1)
    Trace_ELBO().loss_and_grads(linear.model, guide, linear.x)
    found = {name: parameter.grad.clone() for name, parameter in guide.named_parameters()}
    decoder = {name: parameter.grad.clone() for name, parameter in linear.model.named_parameters()}
    guide.zero_grad()
    linear.model.zero_grad()
    torch.manual_seed(1)
    sites = RowSites("test", linear.model, (linear.x,), {})  # takes a draw of the prior from torch's generator
    rows = linear.x * guide.unit + guide.offset
    mean, raw = guide.encoder(rows).chunk(2, -1)
    start = torch.cat([mean, (1e-5 + softplus(raw)).log()], -1)
    end = climb(sites.log_joint, start, 3, 0.2).requires_grad_()
    loc, scale = end[:, :2], end[:, 2:].exp()
    z = loc + scale * torch.randn(23, 2, dtype=torch.float64)
    joint = linear.model.decode(z).log_prob(linear.x).sum() + dist.Normal(0.0, 1.0).log_prob(z).sum()
    (-(joint - dist.Normal(loc, scale).log_prob(z).sum())).backward()
    start.backward(end.grad)
    for name, parameter in guide.named_parameters():
        torch.testing.assert_close(parameter.grad, found[name], msg=lambda text, name=name: f"{name}: {text}")
    for name, parameter in linear.model.named_parameters():
        torch.testing.assert_close(parameter.grad, decoder[name], msg=lambda text, name=name: f"{name}: {text}")


@POOR
def test_it_trains_through_the_front_door_and_plain_pyro(tmp_path):
    x = lvm.datasets.load("digits234").x[:100]
    svi = lvm.infer.SVI(learning_rate=0.01)
    fit = lvm.fit(vae(), x, "semi-amortized", svi, batch_size=64, max_epochs=15, seed=0, progress=False)
    assert fit.history["loss"][-1] < 0.95 * fit.history["loss"][0]
    laws.save_load_is_exact(fit, x[:5], tmp_path / "fit")
    model = vae()
    model.initialize(BITS)
    guide = lvm.guides.SemiAmortized(model)
    before = guide.encoder[0].weight.detach().clone()
    plain = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=Trace_ELBO())
    losses = [plain.step(BITS) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert not torch.equal(before, guide.encoder[0].weight)
    assert len(list(guide.named_parameters())) == 4  # the encoder's alone


def test_resuming_is_exact(tmp_path):
    laws.resume_is_exact(vae, BITS, tmp_path / "half", guide="semi-amortized", batch_size=15)


def test_a_search_is_made_once_for_all_draws_of_a_row(linear):
    guide = lvm.guides.SemiAmortized(linear.model, hidden=[8], num_steps=3).double()
    with torch.no_grad():
        once = settled(guide, (linear.x,), {})
        runs = [pyro.poutine.trace(once).get_trace(linear.x).nodes["z"]["fn"].base_dist.loc for _ in range(2)]
        assert torch.equal(*runs)
        index = torch.tensor([3, 3, 0])
        with lvm.handlers.rows(index, 23):
            some = pyro.poutine.trace(once).get_trace(linear.x[index]).nodes["z"]["fn"].base_dist.loc
        assert torch.equal(some, runs[0][index])


def line(x):
    """A user's program: rows about a line, whose direction is learned."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1).to(x), 1.0).to_event(1))
        direction = pyro.param("direction", torch.ones(3).to(x))
        pyro.sample("x", dist.Normal(z * direction, 0.5).to_event(1), obs=x)


def test_a_users_program_learns_its_parameters_and_knows_its_likelihood():
    x = torch.randn(50, 1).double() * torch.tensor([3.0, 0.0, -1.0]).double() + 0.5 * torch.randn(50, 3).double()
    guide = lvm.guides.SemiAmortized(line, hidden=[4], latent_dim=1, data_dim=3).double()
    svi = lvm.infer.SVI(learning_rate=0.1, schedule="linear")
    fit = lvm.fit(line, x, guide, svi, max_epochs=60, seed=0, progress=False)
    direction = fit.params["direction"]
    assert float(direction[0] / direction[2]) == pytest.approx(-3, abs=0.5)
    covariance = torch.outer(direction, direction) + 0.25 * torch.eye(3).double()
    marginal = torch.distributions.MultivariateNormal(torch.zeros(3).double(), covariance)
    torch.testing.assert_close(fit.evidence(x, 2).values, marginal.log_prob(x), atol=1e-4, rtol=0)


def test_covariates_reach_the_search():
    torch.manual_seed(0)
    covariates = (torch.rand(100, 1) < 0.5).double()
    data = {"x": torch.bernoulli(0.1 + 0.8 * covariates.expand(-1, 6)), "covariates": covariates}
    fit = lvm.fit(vae(), data, guide="semi-amortized", max_epochs=3, seed=0, progress=False)
    assert fit.transform(data).shape == (100, 2)
    assert fit.transform({name: value[:1] for name, value in data.items()}).shape == (1, 2)


def two_sites(x):
    with pyro.plate("data", len(x)):
        pyro.sample("w", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).to_event(1), obs=x)


def test_refuses():
    guide = lvm.guides.SemiAmortized(two_sites, latent_dim=2, data_dim=6)
    with pytest.raises(ValueError, match="one continuous latent site 'z', a vector of 2; got w, z"):
        guide(BITS)
    with pytest.raises(ValueError, match="expected rows x"):
        guide()
    with pytest.raises(ValueError, match=r"step_size in \(0, 1\]; got 0"):
        lvm.guides.SemiAmortized(two_sites, latent_dim=2, data_dim=6, step_size=0)
    with pytest.raises(ValueError, match="num_steps"):
        lvm.guides.SemiAmortized(two_sites, latent_dim=2, data_dim=6, num_steps=0)
    with pytest.raises(ValueError, match="that tells its latent_dim; got two_sites"):
        lvm.guides.SemiAmortized(two_sites)
