"""NVIL: its gradient against enumeration, a quieter one than without baseline, files, both SVIs, bad input."""

from __future__ import annotations

from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceGraph_ELBO

import pyro_lvm as lvm
from pyro_lvm.infer import NVIL, SVI

ROWS = 4000
STATES = torch.tensor(list(product([0.0, 1.0], repeat=3))).double()
KINDS = torch.tensor([[1.0, 0, 1, 1], [0, 0, 1, 0]]).double()
X = KINDS.repeat(ROWS // 2, 1)
LOGITS = torch.tensor([0.5, -1.0, 0.2]).double()
PRIOR = torch.tensor([-0.3, 0.4, 0.1]).double()
WEIGHT = (0.8 * torch.randn(3, 4, generator=torch.Generator().manual_seed(1))).double()
COUNTS = torch.tensor([2.0, 0.5]).double().repeat(ROWS // 2)


class Program:
    """Every row has parameters of its own: the gradient in them is one draw of the estimator."""

    def __init__(self):
        self.logits = LOGITS.expand(ROWS, 3).clone().requires_grad_()
        self.weight = WEIGHT.expand(ROWS, 3, 4).clone().requires_grad_()

    def model(self, x):
        with pyro.plate("data", len(x)), poutine.scale(scale=COUNTS):
            h = pyro.sample("h", dist.Bernoulli(logits=PRIOR).to_event(1))
            out = (h.unsqueeze(-2) @ self.weight).squeeze(-2)
            pyro.sample("x", dist.Bernoulli(logits=out).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)), poutine.scale(scale=COUNTS):
            pyro.sample("h", dist.Bernoulli(logits=self.logits).to_event(1))


def gradients(objective, steps=0):
    program = Program()
    for seed in range(steps + 1):
        torch.manual_seed(seed)
        program.logits.grad = program.weight.grad = None
        objective.loss_and_grads(program.model, program.guide, X)
    return program.logits.grad, program.weight.grad


def exact(kind, count):
    """The gradient of a row, over all states, without Pyro."""
    logits, weight = LOGITS.clone().requires_grad_(), WEIGHT.clone().requires_grad_()

    def bits(value, logit):
        return (value * logit - torch.nn.functional.softplus(logit)).sum(-1)

    log_q = bits(STATES, logits)
    bound = (log_q.exp() * (bits(STATES, PRIOR) + bits(kind, STATES @ weight) - log_q)).sum()
    return torch.autograd.grad(-count * bound, [logits, weight])


def excess(found):
    """The largest distance from the exact gradient, in standard errors of the mean."""
    worst = 0.0
    for k, kind in enumerate(KINDS):
        for draws, true in zip(found, exact(kind, COUNTS[k]), strict=True):
            mine = draws[k::2]
            error = (mine.std(0) / len(mine) ** 0.5).clamp(min=1e-9)
            worst = max(worst, float(((mine.mean(0) - true).abs() / error).max()))
    return worst


def test_the_gradient_is_unbiased_and_quieter_than_without_baseline():
    found = gradients(NVIL(normalize=False, learning_rate=0.05), steps=30)
    assert excess(found) < 4
    plain = gradients(TraceGraph_ELBO())
    assert excess(plain) < 4
    for k in range(2):
        assert found[0][k::2].var(0).sum() < 0.5 * plain[0][k::2].var(0).sum()


class Attached(NVIL):
    """The baseline sees the draw that it is subtracted for."""

    def surrogate(self, draws):
        self.networks.get("row", draws.observed).forward = lambda context: draws.score.detach()
        return super().surrogate(draws)


class WrongSign(NVIL):
    def surrogate(self, draws):
        draws.score = -draws.score
        return super().surrogate(draws)


class TwiceScaled(NVIL):
    def surrogate(self, draws):
        draws.score = draws.scale * draws.score
        return super().surrogate(draws)


@pytest.mark.parametrize("mistake", [Attached, WrongSign, TwiceScaled])
def test_planted_mistakes_are_seen(mistake):
    assert excess(gradients(mistake(normalize=False))) > 4


def test_normalising_shortens_the_guides_gradient_only():
    plain, objective = NVIL(normalize=False), NVIL()
    for one in (plain, objective):
        one.averages = torch.tensor([1.0, -3.0, 16.0]).double()
    (guide, model), (short, same) = gradients(plain), gradients(objective)
    torch.testing.assert_close(short, guide / 4)
    torch.testing.assert_close(same, model)


def test_training_resumes_exactly_from_a_file(tmp_path):
    x = (torch.rand(60, 6, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    options = {"batch_size": 20, "progress": False}

    def start(epochs):
        model = lvm.models.SigmoidBeliefNet((4,))
        return lvm.fit(model, x, "recognition-net", "nvil", seed=0, max_epochs=epochs, **options)

    whole, half = start(4), start(2)
    half.save(tmp_path / "half")
    again = lvm.load(tmp_path / "half")
    assert isinstance(again.inference.objective, NVIL)
    again.resume(x, max_epochs=2, **options)
    assert all(torch.equal(value, again.tensors()[name]) for name, value in whole.tensors().items())
    mine, theirs = whole.inference.objective.state_dict(), again.inference.objective.state_dict()
    assert torch.equal(mine["averages"], theirs["averages"])
    mine, theirs = (state["networks"]["row 6 0"]["state"] for state in (mine, theirs))
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def plain_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def plain_guide(x):
    slope = pyro.param("slope", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=slope * x))


@pytest.mark.parametrize("rows", [1, 50])
def test_stock_svi_trains_by_it_and_nothing_hides_in_the_store(rows):
    torch.manual_seed(0)
    x = torch.linspace(-3, 3, rows) if rows > 1 else torch.tensor([2.0])
    svi = pyro.infer.SVI(plain_model, plain_guide, pyro.optim.Adam({"lr": 0.1}), loss=NVIL())
    assert all(torch.isfinite(torch.tensor(svi.step(x))) for _ in range(100))
    assert float(pyro.param("slope").detach()) > 0.3
    assert list(pyro.get_param_store().keys()) == ["slope"]


def test_extreme_logits_stay_finite():
    x = torch.tensor([1e4, -1e4, 1e6])
    svi = SVI(plain_model, plain_guide, loss=NVIL(), learning_rate=1.0)
    for _ in range(5):
        svi.step(x / 1e3)
    assert bool(pyro.param("slope").isfinite())


def test_what_is_turned_away():
    with pytest.raises(ValueError, match=r"expected decay in \[0, 1\); got 1"):
        NVIL(decay=1)
    with pytest.raises(ValueError, match="expected learning_rate > 0; got 0"):
        NVIL(learning_rate=0)


def test_the_network_reads_the_rows_that_a_plate_has_picked():
    x = torch.arange(8.0)

    def model(x):
        with pyro.plate("data", len(x), subsample_size=3) as index:
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=3) as index:
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("slope", torch.tensor(0.1)) * x[index]))

    objective = NVIL()
    torch.manual_seed(0)
    objective.loss_and_grads(model, guide, x)
    torch.manual_seed(0)
    picked = poutine.trace(guide).get_trace(x).nodes["data"]["value"]
    network = objective.networks.by_name["row 1 0"]
    torch.testing.assert_close(network.center, x[picked].mean(0, keepdim=True))
