"""RELAX: masks, families, mixed guides, scales; files, both SVIs, extreme and bad input."""

from __future__ import annotations

from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from pyro import poutine

import pyro_lvm as lvm
from pyro_lvm.infer import NVIL, RELAX, SVI

ROWS = 4000
GENERATOR = torch.Generator().manual_seed(1)
X = torch.tensor([0.4, -1.0]).double().repeat(ROWS // 2)
LOGITS = torch.tensor([0.5, -1.0, 0.2]).double()
EFFECT = torch.tensor([1.5, -0.7, 0.4]).double()
PRIOR = torch.tensor([-0.3, 0.4, 0.1]).double()


def gradients(model, guide, leaves, steps=20):
    """The gradient of the last of some steps, in which networks have learned."""
    objective = RELAX(learning_rate=0.02)
    for seed in range(steps):
        torch.manual_seed(seed)
        for leaf in leaves:
            leaf.grad = None
        objective.loss_and_grads(model, guide, X)
    return [leaf.grad for leaf in leaves]


def agree(found, exact):
    """Whether the mean over rows of either kind is within 4 standard errors of the exact one."""
    for k in range(2):
        mine = found[k::2].reshape(ROWS // 2, -1)
        error = (mine.std(0) / len(mine) ** 0.5).clamp(min=1e-9)
        if bool(((mine.mean(0) - exact[k].reshape(-1)).abs() > 4 * error).any()):
            return False
    return True


def exact(bound, leaf):
    """The gradient of minus the bound for either kind of row."""
    result = []
    for k in range(2):
        at = leaf.clone().requires_grad_()
        result.append(torch.autograd.grad(-bound(X[k], at), at)[0])
    return result


def copies(leaf):
    return leaf.expand(ROWS, *leaf.shape).clone().requires_grad_()


STATES = torch.tensor(list(product([0.0, 1.0], repeat=3))).double()


@pytest.mark.parametrize("how", ["handler", "distribution", "event"])
def test_masked_entries_of_a_row_have_no_gradient_and_do_no_harm(how):
    kept = torch.tensor([True, False, True])
    logits = copies(LOGITS)

    rows = pyro.plate("data", ROWS, dim=-1 if how == "event" else -2)

    def draw(value):
        if how == "event":
            return pyro.sample("h", dist.Bernoulli(logits=value).mask(kept).to_event(1))
        with pyro.plate("units", 3, dim=-1):
            if how == "distribution":
                return pyro.sample("h", dist.Bernoulli(logits=value).mask(kept))
            with poutine.mask(mask=kept):
                return pyro.sample("h", dist.Bernoulli(logits=value))

    def model(x):
        with rows:
            h = draw(PRIOR.expand(ROWS, 3))
            loc = (h * EFFECT).sum(-1, keepdim=how != "event")
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x if how == "event" else x.unsqueeze(-1))

    def guide(x):
        with rows:
            draw(logits)

    def bound(x, at):
        def bits(logit):
            return STATES * logit - torch.nn.functional.softplus(logit)

        weight = bits(torch.where(kept, at, at.detach())).sum(-1).exp()
        signal = dist.Normal(STATES @ EFFECT, 1.0).log_prob(x) + ((bits(PRIOR) - bits(at)) * kept).sum(-1)
        return (weight * signal).sum()

    (found,) = gradients(model, guide, [logits])
    assert torch.equal(found[:, 1], torch.zeros(ROWS).double())
    assert agree(found, exact(bound, LOGITS))


def classes_bound(x, at):
    log_q = at.log_softmax(-1)
    return (log_q.exp() * (PRIOR.log_softmax(-1) + dist.Normal(EFFECT, 1.0).log_prob(x) - log_q)).sum()


@pytest.mark.parametrize("family", ["categorical", "categorical-probs", "one-hot"])
def test_families_of_classes(family):
    logits = copies(LOGITS)

    def law(value):
        if family == "one-hot":
            return dist.OneHotCategorical(logits=value)
        return dist.Categorical(logits=value) if family == "categorical" else dist.Categorical(value.softmax(-1))

    def model(x):
        with pyro.plate("data", ROWS):
            z = pyro.sample("z", law(PRIOR.expand(ROWS, 3)))
            pyro.sample("x", dist.Normal((z * EFFECT).sum(-1) if family == "one-hot" else EFFECT[z], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", ROWS):
            pyro.sample("z", law(logits))

    (found,) = gradients(model, guide, [logits])
    assert agree(found, exact(classes_bound, LOGITS))


@pytest.mark.parametrize("how", ["deterministic", "clamp"])
def test_what_the_model_computes_from_a_draw_is_no_observation(how):
    """A control variate that saw the draw itself would bias the gradient."""

    def model(x):
        with pyro.plate("data", ROWS):
            z = pyro.sample("z", dist.Categorical(logits=PRIOR))
            if how == "deterministic":
                pyro.deterministic("effect", EFFECT[z], event_dim=0)
            pyro.sample("x", dist.Normal(EFFECT[z], 1.0), obs=x)

    logits = copies(LOGITS)

    def guide(x):
        with pyro.plate("data", ROWS):
            pyro.sample("z", dist.Categorical(logits=logits))

    if how == "clamp":
        nothing = torch.zeros(ROWS, dtype=torch.bool)
        model = lvm.handlers.clamp(model, {"z": torch.zeros(ROWS, dtype=torch.long)}, mask=nothing)
    (found,) = gradients(model, guide, [logits])
    assert agree(found, exact(classes_bound, LOGITS))


def test_a_reparameterised_site_before_a_discrete_one():
    """The exact bound is a sum over the bit and a Gauss-Hermite rule over the normal value."""
    start = torch.tensor([0.3, 0.8, -0.2]).double()
    leaf = copies(start)

    def model(x):
        with pyro.plate("data", ROWS):
            z = pyro.sample("z", dist.Normal(torch.zeros(ROWS).double(), 1.0))
            b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.3).double()))
            pyro.sample("x", dist.Normal(z + 2 * b, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", ROWS):
            z = pyro.sample("z", dist.Normal(leaf[:, 0], 0.7))
            pyro.sample("b", dist.Bernoulli(logits=leaf[:, 1] * z + leaf[:, 2]))

    points, weights = (torch.from_numpy(v) for v in hermegauss(40))

    def bound(x, at):
        z = at[0] + 0.7 * points
        total = 0.0
        for b in (0.0, 1.0):
            q = dist.Bernoulli(logits=at[1] * z + at[2]).log_prob(torch.tensor(b).double())
            signal = dist.Normal(0.0, 1.0).log_prob(z) + dist.Bernoulli(torch.tensor(0.3)).log_prob(torch.tensor(b))
            signal = signal + dist.Normal(z + 2 * b, 1.0).log_prob(x) - dist.Normal(at[0], 0.7).log_prob(z) - q
            total = total + (weights * q.exp() * signal).sum() / weights.sum()
        return total

    (found,) = gradients(model, guide, [leaf])
    assert agree(found, exact(bound, start))


def plain_model(x):
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(loc[z.long()], 1.0), obs=x)


def plain_guide(x):
    slope = pyro.param("slope", torch.tensor(0.1))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=slope * x))


def test_a_minibatchs_scale_multiplies_the_gradient():
    x = torch.tensor([-1.0, 0.3, 2.0])

    def slope(total):
        programs = [lvm.handlers.minibatch(program, total=total) for program in (plain_model, plain_guide)]
        torch.manual_seed(0)
        objective = RELAX(3)
        loss = objective.loss_and_grads(*programs, x)
        leaf = pyro.get_param_store()["slope"].unconstrained()
        grad, leaf.grad = leaf.grad, None
        return loss, grad, objective.networks.by_name["z 1 1"]

    (loss, grad, network), (more, longer, same) = slope(3), slope(30)
    assert more == pytest.approx(10 * loss, rel=1e-5)
    torch.testing.assert_close(longer, 10 * grad)
    torch.testing.assert_close(network.average(None), same.average(None))
    for mine, theirs in zip(network.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("rows", [1, 50])
def test_stock_svi_trains_by_it_and_nothing_hides_in_the_store(rows):
    torch.manual_seed(0)
    x = torch.linspace(-3, 3, rows) if rows > 1 else torch.tensor([2.0])
    svi = pyro.infer.SVI(plain_model, plain_guide, pyro.optim.Adam({"lr": 0.1}), loss=RELAX())
    assert all(torch.isfinite(torch.tensor(svi.step(x))) for _ in range(60))
    assert float(pyro.param("slope").detach()) > 0.3
    assert sorted(pyro.get_param_store().keys()) == ["loc", "slope"]


def test_training_resumes_exactly_from_a_file(tmp_path):
    x = (torch.rand(60, 6, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    options = {"batch_size": 20, "progress": False}

    def start(epochs):
        model = lvm.models.SigmoidBeliefNet((4, 2))
        return lvm.fit(model, x, "recognition-net", "relax", seed=0, max_epochs=epochs, **options)

    whole, half = start(4), start(2)
    half.save(tmp_path / "half")
    again = lvm.load(tmp_path / "half")
    assert isinstance(again.inference.objective, RELAX)
    again.resume(x, max_epochs=2, **options)
    assert all(torch.equal(value, again.tensors()[name]) for name, value in whole.tensors().items())
    mine, theirs = (fit.inference.objective.state_dict()["networks"] for fit in (whole, again))
    assert list(mine) == list(theirs) == ["h1 6 4", "h2 10 2"]
    for name, part in mine.items():
        assert all(torch.equal(value, theirs[name]["state"][key]) for key, value in part["state"].items())


def test_extreme_rows_and_log_odds_stay_finite():
    x = torch.tensor([1e4, -1e4, 1e6])
    svi = SVI(plain_model, plain_guide, loss=RELAX(), learning_rate=1.0)
    for _ in range(5):
        svi.step(x / 1e3)
    assert bool(pyro.param("slope").isfinite())
    assert all(
        bool(v.isfinite().all()) for n in svi.objective.networks.by_name.values() for v in n.state_dict().values()
    )


@pytest.mark.parametrize("objective", [NVIL, RELAX])
def test_a_row_out_of_reach_leaves_the_state_alone(objective):
    made = objective()
    good = torch.tensor([1.0, -0.5, 2.0])
    made.loss_and_grads(plain_model, plain_guide, good)
    before = made.state_dict()
    with pyro.validation_enabled(False):
        assert not torch.tensor(made.loss_and_grads(plain_model, plain_guide, good * torch.inf)).isfinite()
    after = made.state_dict()
    for name, part in before["networks"].items():
        assert all(torch.equal(value, after["networks"][name]["state"][key]) for key, value in part["state"].items())
    if objective is NVIL:
        assert torch.equal(before["averages"], after["averages"])


def test_rows_of_other_lengths_have_networks_of_their_own():
    """A latent bit that all rows share: then all of them are one row."""

    def model(x):
        p = pyro.sample("p", dist.Bernoulli(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(p, 1.0), obs=x)

    def guide(x):
        pyro.sample("p", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.0))))

    objective = RELAX()
    for rows in (4, 3, 4):
        objective.loss_and_grads(model, guide, torch.ones(rows))
    assert list(objective.networks.by_name) == ["p 4 1", "p 3 1"]


def test_what_is_turned_away():
    def counting(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Poisson(2.0))

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Poisson(2.0))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def continuous(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Normal(0.0, 1.0))

    x = torch.zeros(3)
    sentence = r"RELAX: expected Bernoulli, .*; site 'k' \(Poisson\) is neither\. Use inference='leave-one-out'"
    with pytest.raises(ValueError, match=sentence):
        RELAX().loss_and_grads(model, counting, x)
    with pytest.raises(ValueError, match=sentence):
        lvm.fit(model, x, counting, "relax", max_epochs=1, progress=False)
    with pytest.raises(ValueError, match=r"draws Bernoulli, Categorical or one-hot sites; got none\. Use inference"):
        RELAX().loss_and_grads(continuous, continuous, x)
    with pytest.raises(ValueError, match="expected learning_rate > 0; got 0"):
        RELAX(learning_rate=0)
    with pytest.raises(ValueError, match="expected hidden to be a whole number >= 1; got 0"):
        RELAX(hidden=0)
    with pytest.raises(ValueError, match="expected num_samples"):
        RELAX(0)
