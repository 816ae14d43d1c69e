"""The bound has the loss and the gradients of Pyro's own, draw for draw, whatever handlers and sites a program has."""

import contextlib

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal, AutoNormalMessenger

import pyro_lvm as lvm
from pyro_lvm import _pyro
from pyro_lvm.handlers import minibatch
from pyro_lvm.handlers.plate import plate
from pyro_lvm.infer import EvidenceBound
from pyro_lvm.infer.divergence import divergence_at
from pyro_lvm.infer.evidence_bound import is_reparameterised

X = torch.tensor([0.5, -1.0, 2.0, 3.0, 0.0, 1.5]).double()
ONE = torch.tensor(1.0).double()
MASK = torch.tensor([True, False, True, True, False, True])
WEIGHTS = torch.tensor([1.0, 2.0, 0.2, 1.0, 0.5, 3.0]).double()


def program(latent=dist.Normal, own=dist.Normal, around=contextlib.nullcontext, rows=None, extra=None, more=None):
    """A latent level, a latent value for every row, and the rows, with what a case adds to model and guide."""
    rows = rows or (lambda: pyro.plate("data", len(X)))

    def model(x):
        width = pyro.param("width", ONE * 1.3, constraint=dist.constraints.positive)
        level = pyro.sample("level", dist.Normal(0 * ONE, 2.0))
        with around(), rows() as index:
            index = slice(None) if index is None else index
            z = pyro.sample("z", latent(level, width))
            if extra is not None:
                extra(z)
            pyro.sample("x", dist.Normal(z, width), obs=x[index])

    def guide(x):
        loc, slope = pyro.param("loc", ONE * 0.3), pyro.param("slope", ONE * 0.7)
        pyro.sample("level", dist.Normal(loc, 0.5))
        with around(), rows() as index:
            index = slice(None) if index is None else index
            if more is not None:
                more(slope)
            pyro.sample("z", own(slope * x[index], 0.4 + slope.square()))

    return model, guide


def positive(latent, spread):
    return dist.LogNormal(latent / 10, spread)


def gamma(latent, spread):
    return dist.Gamma(1 + latent.square(), spread)


def bent(loc, scale):
    return dist.TransformedDistribution(dist.Normal(loc, scale), [dist.transforms.AffineTransform(0.1, 2.0)])


def subsample():
    return pyro.plate("data", len(X), subsample_size=4)


CASES = {
    "plain": program(),
    "our plate": program(rows=lambda: plate("data", len(X))),
    "scale": program(around=lambda: poutine.scale(scale=2.5)),
    "scale by row": program(around=lambda: poutine.scale(scale=WEIGHTS)),
    "mask": program(around=lambda: poutine.mask(mask=MASK)),
    "no mask at all": program(around=lambda: poutine.mask(mask=False)),
    "subsample": program(rows=subsample),
    "minibatch": program(around=lambda: minibatch(total=60)),
    "no closed form": program(latent=gamma, own=positive),
    "transformed": program(own=bent),
    "a factor in the model": program(extra=lambda z: pyro.factor("fit", -z.square())),
    "a deterministic site": program(extra=lambda z: pyro.deterministic("twice", 2 * z)),
    "a site of the prior": program(extra=lambda z: pyro.sample("noise", dist.Normal(z, 0.1))),
    "zeros and ones": program(
        extra=lambda z: pyro.sample("bit", dist.Bernoulli(logits=z.expand(len(X))), obs=(X > 0).double())
    ),
    "an auxiliary site": program(
        more=lambda slope: pyro.sample("help", dist.Normal(slope, 1.0), infer={"is_auxiliary": True})
    ),
    "a factor in the guide": program(more=lambda slope: pyro.factor("volume", slope.log(), has_rsample=True)),
}


OTHERS = ("a site of the prior", "transformed")
"""What Pyro's bound with closed forms refuses, and where ours has less noise."""


def outcome(objective, model, guide, validation=False, step="loss_and_grads"):
    """Loss, and gradients of all parameters."""
    torch.manual_seed(7)
    with pyro.get_param_store().scope(), _pyro.validation(validation):
        loss = getattr(objective, step)(model, guide, X)
        if step == "differentiable_loss":
            loss.backward()
            loss = loss.item()
        tensors = {name: pyro.param(name).unconstrained() for name in sorted(pyro.get_param_store().keys())}
        return loss, {n: torch.zeros_like(t) if t.grad is None else t.grad for n, t in tensors.items()}


def agree(first, second):
    assert first[0] == pytest.approx(second[0], rel=1e-6)
    assert first[1].keys() == second[1].keys()
    for name, gradient in first[1].items():
        assert torch.allclose(gradient, second[1][name], rtol=1e-6, atol=1e-9), name


@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
@pytest.mark.parametrize("validation", [False, True], ids=["unchecked", "checked"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_sampled_bound(case, validation):
    model, guide = CASES[case]
    agree(
        outcome(EvidenceBound(closed_divergence=False), model, guide, validation),
        outcome(Trace_ELBO(), model, guide),
    )


@pytest.mark.parametrize("case", [case for case in CASES if case not in OTHERS])
def test_equals_the_bound_with_closed_divergences(case):
    model, guide = CASES[case]
    expected = TraceMeanField_ELBO()
    if case == "a factor in the guide":  # Pyro asserts that it is marked as auxiliary, which `pyro.factor` does
        assert "volume" in poutine.trace(guide).get_trace(X)
    for step in ("loss_and_grads", "differentiable_loss"):
        agree(
            outcome(EvidenceBound(closed_divergence=True), model, guide, step=step),
            outcome(expected, model, guide, step=step),
        )
    torch.manual_seed(1)
    ours = EvidenceBound(closed_divergence=True).loss(model, guide, X)
    torch.manual_seed(1)
    assert ours == pytest.approx(expected.loss(model, guide, X), rel=1e-6)


@pytest.mark.parametrize(("case", "closed"), [("plain", True), ("minibatch", True), ("mask", False), ("scale", True)])
def test_finds_by_itself_where_closed_forms_may_stand(case, closed):
    model, guide = CASES[case]
    expected = (TraceMeanField_ELBO if closed else Trace_ELBO)()
    agree(outcome(EvidenceBound(), model, guide), outcome(expected, model, guide))


def test_closed_forms_do_not_stand_where_the_guide_draws_in_another_order():
    model, _ = program()

    def guide(x):
        slope = pyro.param("slope", ONE * 0.9)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(slope * x, 1.0))
        pyro.sample("level", dist.Normal(z.mean(), 0.5))

    agree(outcome(EvidenceBound(), model, guide), outcome(Trace_ELBO(), model, guide))


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("case", ["plain", "scale by row", "no closed form"])
def test_several_draws(case, vectorize):
    model, guide = CASES[case]
    expected = TraceMeanField_ELBO(num_particles=3, vectorize_particles=vectorize, max_plate_nesting=1)
    bound = EvidenceBound(num_particles=3, vectorize=vectorize, closed_divergence=True)
    agree(outcome(bound, model, guide), outcome(expected, model, guide))


def test_guides_that_run_the_model_themselves():
    model, _ = program()
    with pyro.get_param_store().scope():
        guide = AutoNormalMessenger(model)
        guide(X)
        results = []
        for objective in (EvidenceBound(closed_divergence=False), Trace_ELBO()):
            torch.manual_seed(0)
            results.append(objective.loss(model, guide, X))
    assert results[0] == pytest.approx(results[1])


def test_learns_under_plain_pyro():
    model, _ = program()
    guide = AutoNormal(model)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), loss=EvidenceBound())
    losses = [svi.step(X) for _ in range(80)]
    assert sum(losses[-20:]) < sum(losses[:20])


def test_is_the_default_and_learns_what_a_function_declares():
    model, guide = program()
    svi = lvm.infer.SVI(learning_rate=0.05)
    fit = lvm.fit(model, X, guide=guide, inference=svi, max_epochs=30, seed=0, progress=False)
    assert isinstance(fit.inference.objective, EvidenceBound)
    assert abs(float(fit.params["width"]) - 1.3) > 0.01


@pytest.mark.parametrize("objective", [EvidenceBound(3, vectorize=True), lvm.infer.ImportanceWeighted(3)])
def test_looking_at_a_program_first_does_not_hide_its_parameters(objective):
    model, guide = program()
    svi = lvm.infer.SVI(learning_rate=0.05, loss=objective)
    fit = lvm.fit(model, X, guide=guide, inference=svi, max_epochs=30, seed=0, progress=False)
    assert abs(float(fit.params["width"]) - 1.3) > 0.01


def test_a_guide_without_reparameterised_draws():
    model, _ = program(latent=gamma)

    def guide(x):
        rate = pyro.param("rate", ONE * 0.9)
        pyro.sample("level", dist.Normal(0 * ONE, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Geometric(rate.sigmoid()).mask(True))

    with pytest.raises(ValueError, match=r"reparameterised sites in the guide; site 'z' .*TraceGraph_ELBO"):
        EvidenceBound().loss_and_grads(model, guide, X)
    rejected = dist.Rejector(dist.Normal(0.0, 1.0), lambda z: 0 * z, torch.tensor(0.0))
    assert not is_reparameterised({"fn": rejected})


def test_two_sites_of_one_name():
    def model(x):
        pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("a", dist.Normal(0.0, 1.0))

    with pytest.raises(RuntimeError, match="'a'"), _pyro.validation(False):
        EvidenceBound(closed_divergence=True).loss(model, lambda x: None, X)


@pytest.mark.parametrize("number", [0, 1.5])
def test_refuses_arguments(number):
    with pytest.raises(ValueError, match="num_particles"):
        EvidenceBound(number)


def test_a_step_runs_each_program_once_and_sends_no_message_for_a_network():
    """What the speed of a step rests on; how fast it is, `benchmarks/overhead.py` tells."""
    rows = torch.bernoulli(torch.full((40, 6), 0.4))
    model = lvm.models.VAE(2, hidden=[4])
    seen = []

    def count(run):
        handler = poutine.messenger.Messenger()
        handler._pyro_post_sample = lambda msg: seen.append(msg["name"])
        with handler, _pyro.validation(False):
            run.inference.step(rows[:10])
        return True

    lvm.fit(model, rows, batch_size=10, max_epochs=1, seed=0, progress=False, callbacks=count)
    assert seen == ["z", "z", "x"]


def test_a_bent_law_takes_the_closed_form_of_what_it_bends():
    """Both estimates have one mean; where the map is the identity the closed form has no variance at all."""
    base, prior = dist.Normal(torch.full((4000,), 0.7).double(), 0.6), dist.Normal(torch.zeros(4000).double(), 1.5)
    bent = dist.TransformedDistribution(base, [dist.transforms.AffineTransform(0.3, 1.2)])
    z = bent.rsample()
    exact = torch.distributions.kl_divergence(dist.Normal(0.3 + 1.2 * 0.7, 1.2 * 0.6), dist.Normal(0.0, 1.5)).item()
    plain, ours = bent.log_prob(z) - prior.log_prob(z), divergence_at(bent, prior, z)
    for estimate in (plain, ours):
        assert abs(estimate.mean() - exact) < 4 * estimate.std() / 4000**0.5
    assert ours.std() < plain.std() / 2
    same = dist.TransformedDistribution(base, [dist.transforms.AffineTransform(0.0, 1.0)])
    z = same.rsample()
    closed = torch.distributions.kl_divergence(base, prior)
    assert torch.allclose(divergence_at(same, prior, z), closed, atol=1e-12)


def test_a_bent_law_of_other_values_has_no_closed_form():
    positive = dist.LogNormal(torch.zeros(3), 1.0)
    assert divergence_at(positive, dist.Gamma(torch.ones(3), 1.0), positive.rsample()) is None


@pytest.mark.parametrize("num_flows", [1, 3])
def test_flows_start_as_the_identity_and_their_divergence_keeps_near_its_closed_form(num_flows, local):
    model = lvm.models.VAE(2, hidden=[4])
    rows = torch.bernoulli(torch.full((4000, 6), 0.4)).double()
    model.initialize(rows)
    guide = lvm.guides.InverseAutoregressive(model, num_flows=num_flows)
    law, prior = guide.posterior(rows), dist.Normal(torch.zeros(4000, 2).double(), 1.0).to_event(1)
    closed = torch.distributions.kl_divergence(law.base_dist, prior).detach()
    torch.testing.assert_close(divergence_at(law, prior, law.rsample()).detach(), closed)
    for parameter in guide.flows.parameters():
        parameter.data += 0.03 * torch.randn_like(parameter)
    with torch.no_grad():
        law = guide.posterior(rows)
        z = law.rsample()
        plain, ours = law.log_prob(z) - prior.log_prob(z), divergence_at(law, prior, z)
    assert float((ours - closed).abs().max()) > 1e-3
    assert abs((ours - plain).mean()) < 4 * (ours - plain).std() / 4000**0.5
    assert (ours - closed).std() < 0.3 * (plain - closed).std()
