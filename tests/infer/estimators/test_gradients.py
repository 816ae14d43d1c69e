"""Estimated gradients against exact ones, by enumeration, for every parameter of model and guide.

Programs hold one copy of their parameters for each of many draws, in an outer plate: the gradient in a copy is one
draw of the estimator, and one run makes thousands. Four standard errors are exceeded by chance in one coordinate in
16,000.
"""

from __future__ import annotations

import functools
from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceGraph_ELBO

import pyro_lvm as lvm
from pyro_lvm.infer import NVIL, RELAX, VIMCO, LeaveOneOut
from pyro_lvm.infer.estimators import relax
from pyro_lvm.ops import relaxation

DRAWS = 3000
ROWS = torch.tensor([[1.0, 0, 1, 1], [0, 0, 1, 0]]).double()
WEIGHTS = torch.tensor([2.0, 0.5]).double()  # rows count differently


def start(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return {n: 0.7 * torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}


BELIEF = start(
    {
        "prior": (2,),
        "w1": (3, 2),
        "b1": (3,),
        "wx": (4, 3),
        "bx": (4,),
        "v1": (3, 4),
        "c1": (3,),
        "v2": (2, 3),
        "c2": (2,),
    },
    seed=1,
)
CHOICE = start({"prior": (3,), "hidden": (5, 3), "out": (4, 5), "q": (3, 4), "bias": (3,)}, seed=2)


class Program:
    """A model and its guide, and the same as log-densities for the oracle."""

    def __init__(self, values, draws=DRAWS):
        self.draws = draws
        self.copies = {n: v.expand(draws, *v.shape).clone().requires_grad_() for n, v in values.items()}
        self.values = values

    def read(self):
        """Parameters by `param` message; leading dimensions are those of the plates of draws and of rows."""
        return {n: pyro.param(n, v).unsqueeze(1) for n, v in self.copies.items()}

    def plates(self, x):
        return pyro.plate("draws", self.draws, dim=-2), pyro.plate("data", len(x), dim=-1)

    def model(self, x, run=None):
        p, (draws, rows) = self.read(), self.plates(x)
        with draws, rows, poutine.scale(scale=WEIGHTS):
            self.generate(p, lambda name, fn, obs=None: pyro.sample(name, fn, obs=obs), x)

    def guide(self, x):
        p, (draws, rows) = self.read(), self.plates(x)
        with draws, rows, poutine.scale(scale=WEIGHTS):
            self.infer(p, lambda name, fn: pyro.sample(name, fn), x)

    def terms(self, p, x):
        """Log p and log q of every configuration of the latents and row, shape (configurations, rows)."""
        ours, theirs = [], []
        for state in self.states():
            log_p, log_q = [], []

            def note(log, state=state):
                def sample(name, fn, obs=None):
                    value = state[name] if obs is None else obs
                    log.append(fn.log_prob(value))
                    return value

                return sample

            self.generate(p, note(log_p), x)
            self.infer(p, note(log_q), x)
            ours.append(sum(log_p).expand(len(x)))
            theirs.append(sum(log_q).expand(len(x)))
        return torch.stack(ours), torch.stack(theirs)

    def exact(self, num_samples=1):
        """The gradient of the bound of `num_samples` draws, over all tuples of configurations."""
        p = {n: v.clone().requires_grad_() for n, v in self.values.items()}
        log_p, log_q = self.terms(p, ROWS)
        total = 0.0
        for chosen in product(range(len(log_p)), repeat=num_samples):
            index = list(chosen)
            log_weight = (log_p - log_q)[index]
            bound = log_weight.logsumexp(0) - torch.tensor(float(num_samples)).log()
            total = total + log_q[index].sum(0).exp() * bound
        return dict(zip(p, torch.autograd.grad(-(WEIGHTS * total).sum(), list(p.values())), strict=True))


def linear(weight, value):
    return (weight @ value.unsqueeze(-1)).squeeze(-1)


class BeliefNet(Program):
    """A sigmoid belief net of 2 units above 3 above 4 observed ones."""

    def __init__(self, draws=DRAWS):
        super().__init__(BELIEF, draws)

    def generate(self, p, sample, x):
        def bits(logits):
            return dist.Bernoulli(logits=logits).to_event(1)

        h2 = sample("h2", bits(p["prior"]))
        h1 = sample("h1", bits(linear(p["w1"], h2) + p["b1"]))
        sample("x", bits(linear(p["wx"], h1) + p["bx"]), x)

    def infer(self, p, sample, x):
        h1 = sample("h1", dist.Bernoulli(logits=linear(p["v1"], x) + p["c1"]).to_event(1))
        sample("h2", dist.Bernoulli(logits=linear(p["v2"], h1) + p["c2"]).to_event(1))

    def states(self):
        for bits in product([0.0, 1.0], repeat=5):
            value = torch.tensor(bits).double()
            yield {"h1": value[:3], "h2": value[3:]}


class Choice(Program):
    """A Categorical latent with a neural decoder."""

    def __init__(self, draws=DRAWS):
        super().__init__(CHOICE, draws)

    def generate(self, p, sample, x):
        z = sample("z", dist.Categorical(logits=p["prior"]))
        one_hot = torch.nn.functional.one_hot(z.long(), 3).double()
        hidden = linear(p["hidden"], one_hot).tanh()
        sample("x", dist.Bernoulli(logits=linear(p["out"], hidden)).to_event(1), x)

    def infer(self, p, sample, x):
        sample("z", dist.Categorical(logits=linear(p["q"], x) + p["bias"]))

    def states(self):
        for k in range(3):
            yield {"z": torch.tensor(k)}


@pytest.fixture(params=[BeliefNet, Choice], ids=["belief-net", "choice"])
def program(request):
    return request.param()


def gradients(program, objective, guide=None, seed=0):
    """Draws of the gradient, each of shape (draws, ...), by parameter."""
    for value in program.copies.values():
        value.grad = None
    torch.manual_seed(seed)
    objective.loss_and_grads(program.model, guide or program.guide, ROWS)
    store = pyro.get_param_store()
    found = {n: store[n].unconstrained() for n in program.copies}
    result = {n: torch.zeros_like(v) if v.grad is None else v.grad.clone() for n, v in found.items()}
    for value in found.values():
        value.grad = None
    return result


def excess(found, exact):
    """The largest distance from the exact gradient, in standard errors of the mean."""
    worst = 0.0
    for name, draws in found.items():
        error = (draws.std(0) / len(draws) ** 0.5).clamp(min=1e-9)
        worst = max(worst, float(((draws.mean(0) - exact[name]).abs() / error).max()))
    return worst


def variance(found):
    return float(sum(draws.var(0).sum() for draws in found.values()))


def attach(program, kind, **options):
    if kind == "self-critic":
        options["model"] = program.model
    return lvm.handlers.baseline(program.guide, kind, **options).double()


def warm(program, guide, steps=15, rate=0.1):
    """Let a baseline learn while the program stands still."""
    optimizer = None
    for seed in range(steps):
        gradients(program, TraceGraph_ELBO(), guide, seed=100 + seed)
        parts = list(guide.parts.parameters())
        if parts:
            optimizer = optimizer or torch.optim.Adam(parts, lr=rate)
            optimizer.step()
            optimizer.zero_grad()


KINDS = ["moving-average", "constant", "network", "self-critic", "optimal"]


@pytest.mark.parametrize("kind", KINDS)
def test_baselines_keep_the_gradient_and_lower_its_variance(program, kind):
    guide = attach(program, kind)
    warm(program, guide)
    found = gradients(program, TraceGraph_ELBO(), guide)
    none = gradients(program, TraceGraph_ELBO())
    assert excess(found, program.exact()) < 4
    assert variance(found) < variance(none)


def test_leave_one_out_keeps_the_gradient(program):
    found = gradients(program, LeaveOneOut(4))
    assert excess(found, program.exact()) < 4
    assert 4 * variance(found) < variance(gradients(program, TraceGraph_ELBO()))


def test_nvil_keeps_the_gradient_and_lowers_its_variance():
    program = Choice()
    objective = NVIL(normalize=False, learning_rate=0.05)
    for seed in range(10):
        gradients(program, objective, seed=100 + seed)
    found = gradients(program, objective)
    assert excess(found, program.exact()) < 4
    assert variance(found) < variance(gradients(program, TraceGraph_ELBO()))


def train_relax(program, steps=12):
    objective = RELAX(learning_rate=0.02)
    for seed in range(steps):
        gradients(program, objective, seed=100 + seed)
    return objective


@functools.cache
def relax_state(kind):
    with pyro.get_param_store().scope():
        return train_relax(kind()).state_dict()


def trained_relax(program):
    objective = RELAX(learning_rate=0.02)
    objective.load_state_dict(relax_state(type(program)))
    return objective


def test_relax_keeps_the_gradient_and_lowers_its_variance(program):
    untrained = gradients(program, RELAX())
    assert excess(untrained, program.exact()) < 4
    found = gradients(program, trained_relax(program))
    assert excess(found, program.exact()) < 4
    assert 2 * variance(found) < variance(gradients(program, TraceGraph_ELBO()))


def flip_the_slope(kind, patch):
    right = kind.moved
    patch.setattr(kind, "moved", lambda self, slope: -right(self, slope))


def leave_the_slope_out(kind, patch):
    patch.setattr(kind, "moved", lambda self, slope: 0 * slope)


def halve_the_score(kind, patch):
    right = kind.score.fget
    patch.setattr(kind, "score", property(lambda self: 0.5 * right(self)))


def forget_the_draw(kind, patch):
    """Values are drawn as if another draw had been made."""
    right = kind.behind.__func__

    def behind(cls, logits, hard):
        made = right(cls, logits, hard.roll(1, 1))
        return cls(made.logits, hard, *list(vars(made).values())[2:])

    patch.setattr(kind, "behind", classmethod(behind))


@pytest.mark.parametrize("mistake", [flip_the_slope, leave_the_slope_out, halve_the_score, forget_the_draw])
def test_planted_mistakes_in_relax_are_seen(program, mistake, monkeypatch):
    objective = trained_relax(program)
    for kind in (relaxation.Bits, relaxation.Classes):
        mistake(kind, monkeypatch)
    assert excess(gradients(program, objective), program.exact()) > 4


def test_relax_that_looks_at_its_own_draw_is_seen(program, monkeypatch):
    """The network is shown the draw, not only the values behind it, as if it had been made earlier."""
    right = relax._behind

    def behind(site, rows):
        values, logits, weights = right(site, rows)
        return (
            type(values)(values.logits, values.hard, values.hard.clone(), *list(vars(values).values())[3:]),
            logits,
            weights,
        )

    monkeypatch.setattr(relax, "_behind", behind)
    objective = train_relax(program)
    assert excess(gradients(program, objective), program.exact()) > 4


def test_vimco_keeps_the_gradient(program):
    assert excess(gradients(program, VIMCO(2)), program.exact(2)) < 4


def test_the_optimal_constant_is_the_exact_one_and_the_best():
    program = Choice()
    guide = attach(program, "optimal", decay=0.95)
    warm(program, guide, steps=40)
    p = {n: v.clone().requires_grad_() for n, v in program.values.items()}
    log_p, log_q = program.terms(p, ROWS)
    weight, cost, square = log_q.exp().detach(), (log_p - log_q).detach(), torch.zeros(log_q.shape).double()
    for k in range(log_q.shape[0]):
        for n in range(log_q.shape[1]):
            scores = torch.autograd.grad(log_q[k, n], [p["q"], p["bias"]], retain_graph=True)
            square[k, n] = sum((s**2).sum() for s in scores)
    # the mean over rows, alike, as the baseline estimates it in nats of one row
    best = float((weight * square * cost).sum() / (weight * square).sum())
    assert float(guide.parts["z"](None)) == pytest.approx(best, abs=0.02)
    mean = float((weight * cost).sum() / weight.sum())

    def second_moment(b):
        return float((weight * square * (cost - b) ** 2).sum())

    assert all(second_moment(best) < second_moment(b) for b in (0.0, mean, best - 0.1, best + 0.1))


@pytest.mark.parametrize("kind", ["moving-average", "constant"])
def test_the_optimal_constant_is_the_best_of_the_kinds(kind):
    program = Choice()
    least, other = attach(program, "optimal"), attach(program, kind)
    warm(program, least)
    warm(program, other)
    assert variance(gradients(program, TraceGraph_ELBO(), least)) < variance(
        gradients(program, TraceGraph_ELBO(), other)
    )


class WrongSign(LeaveOneOut):
    def surrogate(self, draws):
        draws.score = -draws.score
        return super().surrogate(draws)


class WrongFactor(LeaveOneOut):
    def surrogate(self, draws):
        draws.score = draws.score * (1 - 1 / self.num_samples)
        return super().surrogate(draws)


class OwnDrawInBaseline(VIMCO):
    """The advantage forgets to leave a draw's own weight out."""

    def surrogate(self, draws):
        log_weight = draws.log_weight.detach()
        advantage = log_weight.logsumexp(0) - log_weight
        return (advantage * draws.score + log_weight.softmax(0) * draws.log_weight).sum(0)


class WeightsAttached(VIMCO):
    """The advantage is differentiated too."""

    def surrogate(self, draws):
        advantage = draws.log_weight.logsumexp(0)
        return (advantage * draws.score + draws.log_weight.detach().softmax(0) * draws.log_weight).sum(0)


class NoWeightGradient(VIMCO):
    def surrogate(self, draws):
        draws.log_joint = draws.log_joint.detach()
        return super().surrogate(draws)


@pytest.mark.parametrize(
    ("objective", "samples"),
    [(WrongSign, 1), (WrongFactor, 1), (OwnDrawInBaseline, 2), (WeightsAttached, 2), (NoWeightGradient, 2)],
)
def test_planted_mistakes_in_estimators_are_seen(program, objective, samples):
    assert excess(gradients(program, objective(2)), program.exact(samples)) > 4


@pytest.mark.parametrize("mistake", ["own-draw", "attached"])
def test_planted_mistakes_in_baselines_are_seen(program, mistake):
    def guide(x):
        with poutine.trace() as trace:
            program.guide(x)
        for site in trace.trace.nodes.values():
            if site["type"] == "sample" and site["name"] not in ("draws", "data"):
                log_q = site["fn"].log_prob(site["value"])
                value = 2 * log_q.detach() if mistake == "own-draw" else 0.5 * log_q
                site["infer"]["baseline"] = {"baseline_value": value}

    assert excess(gradients(program, TraceGraph_ELBO(), guide), program.exact()) > 4
