"""Baselines in every setting: both SVIs, particles, subsampling, masks, files; and what is turned away."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceGraph_ELBO
from torch import nn

import pyro_lvm as lvm

KINDS = ["moving-average", "constant", "network", "self-critic", "optimal"]
X = (torch.rand(12, 4, generator=torch.Generator().manual_seed(5)) < 0.5).float()


def model(x):
    prior = pyro.param("prior", torch.zeros(3))
    weight = pyro.param("weight", torch.linspace(-1, 1, 12).reshape(3, 4))
    with pyro.plate("data", len(x)):
        h = pyro.sample("h", dist.Bernoulli(logits=prior).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=h @ weight).to_event(1), obs=x)


def guide(x):
    weight = pyro.param("recognition", torch.zeros(4, 3))
    with pyro.plate("data", len(x)):
        pyro.sample("h", dist.Bernoulli(logits=x @ weight).to_event(1))


def attach(kind, program=guide, **options):
    if kind == "self-critic":
        options.setdefault("model", model)
    return lvm.handlers.baseline(program, kind, **options)


def state(guided):
    return {n: t.clone() for n, t in guided.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_baseline_learns_under_stock_svi(kind):
    guided = attach(kind)
    svi = pyro.infer.SVI(model, guided, pyro.optim.Adam({"lr": 0.02}), loss=TraceGraph_ELBO())
    svi.step(X)
    before = state(guided)
    for _ in range(5):
        svi.step(X)
    assert any(not torch.equal(before[n], t) for n, t in state(guided).items())
    hidden = [name for name in pyro.get_param_store() if name.startswith("_")]
    assert not hidden


@pytest.mark.parametrize("kind", KINDS)
def test_vectorised_particles_and_a_batch_of_one(kind):
    for x in (X, X[:1]):
        guided = attach(kind)
        loss = TraceGraph_ELBO(num_particles=7, vectorize_particles=True, max_plate_nesting=1)
        svi = pyro.infer.SVI(model, guided, pyro.optim.Adam({"lr": 0.02}), loss=loss)
        assert all(torch.isfinite(torch.tensor(svi.step(x))) for _ in range(3))


@pytest.mark.parametrize("kind", KINDS)
def test_training_resumes_exactly_from_a_file(kind, tmp_path):
    options = {"batch_size": 4, "progress": False, "tol": 0.0, "patience": 100}

    def run(epochs):
        torch.manual_seed(0)  # for the network's start
        guided, inference = attach(kind), lvm.infer.SVI(loss=TraceGraph_ELBO())
        return lvm.fit(model, X, guided, inference, seed=0, max_epochs=epochs, **options)

    whole, half = run(4), run(2)
    half.save(tmp_path / "half")
    inference = lvm.infer.SVI(loss=TraceGraph_ELBO())
    again = lvm.load(tmp_path / "half", model=model, guide=attach(kind), inference=inference)
    again.resume(X, max_epochs=2, **options)
    ours, theirs = whole.tensors(), again.tensors()
    assert any("parts" in name for name in ours)
    assert "store:recognition" in ours
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def cost_of(scale, mask):
    """What the moving average learns in one step from a guide with a single outcome."""

    def certain(x):
        with pyro.plate("data", len(x)), poutine.scale(scale=scale), poutine.mask(mask=mask):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.0)) + 200.0))

    def ours(x):
        with pyro.plate("data", len(x)), poutine.scale(scale=scale), poutine.mask(mask=mask):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guided = lvm.handlers.baseline(certain)
    TraceGraph_ELBO().loss_and_grads(ours, guided, torch.tensor([0.0, 3.0, 1.0]))
    return float(guided.parts["z"](None))


def test_costs_are_learned_in_nats_of_a_row_without_scale_and_mask():
    rows = dist.Normal(1.0, 1.0).log_prob(torch.tensor([0.0, 3.0, 1.0])) + torch.tensor(0.5).log()
    everything = torch.tensor([True, True, True])
    assert cost_of(1.0, everything) == pytest.approx(float(rows.mean()), abs=1e-5)
    assert cost_of(50.0, everything) == pytest.approx(float(rows.mean()), abs=1e-5)
    assert cost_of(torch.tensor([1.0, 0.1, 4.0]), everything) == pytest.approx(float(rows.mean()), abs=1e-5)
    assert cost_of(2.0, torch.tensor([True, True, False])) == pytest.approx(float(rows[:2].mean()), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_subsampled_plate(kind):
    def ours(x):
        with pyro.plate("data", len(x), subsample_size=5) as index:
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([5, 4]).to_event(1), obs=x[index])

    def theirs(x):
        with pyro.plate("data", len(x), subsample_size=5) as index:
            pyro.sample("z", dist.Bernoulli(logits=x[index] @ pyro.param("slope", torch.zeros(4))))

    guided = attach(kind, theirs, **({"model": ours} if kind == "self-critic" else {}))
    svi = pyro.infer.SVI(ours, guided, pyro.optim.Adam({"lr": 0.02}), loss=TraceGraph_ELBO())
    assert all(torch.isfinite(torch.tensor(svi.step(X))) for _ in range(3))


def test_the_network_is_given_the_rows_of_a_subsample():
    seen = []

    class Sees(nn.Linear):
        def forward(self, x):
            seen.append(x)
            return super().forward(x)

    def theirs(x):
        with pyro.plate("data", len(x), subsample_size=5) as index:
            seen.append(index)
            pyro.sample("z", dist.Bernoulli(torch.full((5,), 0.5)))

    guided = lvm.handlers.baseline(theirs, "network", network=Sees(1, 1))
    rows = torch.arange(12.0).unsqueeze(-1)
    guided(rows)
    index, given = seen
    assert torch.equal(given, rows[index] - rows[index].mean())


def test_extreme_logits_give_finite_gradients():
    def extreme(x):
        weight = pyro.param("recognition", torch.full((4, 3), 1e4))
        with pyro.plate("data", len(x)):
            pyro.sample("h", dist.Bernoulli(logits=x @ weight).to_event(1))

    for kind in KINDS:
        guided = attach(kind, extreme)
        TraceGraph_ELBO().loss_and_grads(model, guided, X)
        assert pyro.get_param_store()["recognition"].unconstrained().grad.isfinite().all()


def test_without_gradients_the_guide_is_left_alone():
    guided = attach("network")
    with torch.no_grad():
        trace = poutine.trace(guided).get_trace(X)
    assert "baseline" not in trace.nodes["h"]["infer"]


def test_what_is_turned_away():
    def continuous(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def both(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("k", dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match=r"all of its sites \(z\) have them\. Use the guide without baseline"):
        lvm.handlers.baseline(continuous)(X)
    with pytest.raises(ValueError, match=r"got one with reparameterised draws \(Normal\)\. Leave it out"):
        lvm.handlers.baseline(both, sites=["z"])(X)
    with pytest.raises(ValueError, match="got no such site"):
        lvm.handlers.baseline(both, sites="h")(X)
    with pytest.raises(ValueError, match="expected kind to be one of moving-average, constant"):
        lvm.handlers.baseline(guide, "mean")
    with pytest.raises(ValueError, match=r"expected decay in \[0, 1\); got 1"):
        lvm.handlers.baseline(guide, decay=1)
    with pytest.raises(ValueError, match="expected a model for kind='self-critic'"):
        lvm.handlers.baseline(guide, "self-critic")
    with pytest.raises(ValueError, match="expected a network only for kind='network'"):
        lvm.handlers.baseline(guide, "optimal", network=nn.Linear(4, 1))
