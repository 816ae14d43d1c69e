"""The flow guide: densities against the Jacobian by autograd, a posterior that a normal law cannot have."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm.testing import laws

BITS = torch.bernoulli(torch.full((40, 6), 0.4), generator=torch.Generator().manual_seed(1)).double()


def vae():
    return lvm.models.VAE(3, hidden=[8])


@pytest.mark.parametrize(("num_flows", "features"), [(1, 0), (3, 4)])
def test_the_density_of_a_draw_is_that_of_its_noise_over_the_jacobian(num_flows, features):
    model = vae()
    model.initialize(BITS)
    guide = lvm.guides.InverseAutoregressive(model, num_flows=num_flows, flow_features=features)
    for parameter in guide.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    law = guide.posterior(BITS[:1])
    base = law.base_dist.base_dist

    def flow(noise):
        value = base.loc + base.scale * noise
        for step in law.transforms:
            value = step(value)
        return value

    noise = torch.randn(1, 3).double()
    jacobian = torch.autograd.functional.jacobian(flow, noise).reshape(3, 3)
    expected = dist.Normal(0.0, 1.0).log_prob(noise).sum() - torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(law.log_prob(flow(noise))[0].detach(), expected.double())
    assert law.event_shape == (3,)
    # a normal law with a flow is more than a normal law: coordinates depend on each other
    assert float((jacobian - jacobian.diagonal().diag()).abs().max()) > 0.01


def banana(x):
    """z has a standard normal prior, and x sees a parabola in it: the posterior is bent."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2).to(x), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z[..., 1:] - 2 * z[..., :1].square(), 0.2).to_event(1), obs=x)


def test_it_bends_where_a_normal_law_cannot():
    x = torch.zeros(200, 1).double()
    svi = lvm.infer.SVI(learning_rate=0.01, schedule="linear")
    sizes = {"latent_dim": 2, "data_dim": 1, "hidden": [4]}
    losses = {}
    for guide in (
        lvm.guides.AmortizedGaussian(banana, **sizes),
        lvm.guides.InverseAutoregressive(banana, num_flows=3, flow_hidden=16, flow_features=2, **sizes),
    ):
        fit = lvm.fit(banana, x, guide=guide, inference=svi, max_epochs=500, seed=0, progress=False, tol=0.0)
        losses[type(guide).__name__] = sum(fit.history["loss"][-50:]) / 50 / 200
    grid = torch.linspace(-6, 6, 20001).double()
    exact = (
        dist.Normal(0.0, 1.0).log_prob(grid) + dist.Normal(-2 * grid.square(), 1.04**0.5).log_prob(torch.zeros(()))
    ).exp()
    evidence = float(torch.trapezoid(exact, grid).log())
    assert -evidence - 0.02 < losses["InverseAutoregressive"] < losses["AmortizedGaussian"] - 0.1


def test_flows_keep_volumes():
    """A scale could be traded for that of the normal law, until the noise of the closed form breaks training down."""
    guide = lvm.guides.InverseAutoregressive(lvm.models.VAE(3, 6, hidden=[8]))
    for parameter in guide.flows.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    with torch.no_grad():
        law = guide.posterior(BITS[:5].float())
        start = law.base_dist.sample()
        bent = start
        for transform in law.transforms:
            bent = transform(bent)
        assert not torch.allclose(bent, start)
        torch.testing.assert_close(law.log_prob(bent), law.base_dist.log_prob(start))


@pytest.mark.filterwarnings("ignore:evidence:UserWarning")  # two epochs leave a poor guide
def test_resuming_and_files_are_exact(tmp_path):
    laws.resume_is_exact(vae, BITS, tmp_path / "half", guide="inverse-autoregressive", batch_size=15)
    guide = lvm.guides.InverseAutoregressive(lvm.models.VAE(3, 6, hidden=[8]).double(), num_flows=1, flow_features=2)
    fit = lvm.fit(vae(), BITS, guide=guide.double(), max_epochs=2, seed=0, progress=False)
    laws.save_load_is_exact(fit, BITS, tmp_path / "fit")


@pytest.mark.parametrize("options", [{"num_flows": 0}, {"flow_features": -1}, {"flow_hidden": 2}])
def test_refuses(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        lvm.guides.InverseAutoregressive(lvm.models.VAE(3, 6), **options)
