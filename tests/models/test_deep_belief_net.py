"""Deep belief nets: density, draws and gradients by enumeration, pretraining, and what they refuse."""

import itertools

import pytest
import torch
from pyro import poutine
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

import pyro_lvm as lvm
from pyro_lvm.infer import SVI, ContrastiveDivergence, WakeSleep

ERRORS = 4


def states(units):
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=units)), dtype=torch.float64)


def net(hidden=(4, 3, 2), d=5, factor=2.0):
    """A net and its guide with weights that matter, in float64."""
    torch.manual_seed(2)
    model = lvm.models.DeepBeliefNet(hidden, d)
    guide = lvm.guides.RecognitionNet(model)
    with torch.no_grad():
        for layer in (*model.decoder, *guide.recognition):
            layer.weight.mul_(factor)
            layer.bias.normal_()
        for name, shape in (("weight", hidden[-2:]), ("visible_bias", hidden[-2]), ("hidden_bias", hidden[-1])):
            getattr(model.top, name).unconstrained().data.copy_(torch.randn(shape))
    return model.double(), guide.double()


def prior(model, h):
    """Log-probability of the top two layers' lower one, by listing both: an energy in plain coordinates."""
    top = model.top
    w, b, c = top.weight, top.visible_bias, top.hidden_bias
    mean, rate = top.visible_offset, c.sigmoid()

    def log_weight(v):
        u = states(len(c))
        field = (v - mean) @ b[:, None] + (u - rate) @ c + (v - mean) @ w @ (u - rate).T
        return field.logsumexp(-1)

    return log_weight(h) - log_weight(states(len(b))).logsumexp(0)


def joint(model, x):
    """log p(x, h1, h2) of two drawn layers, shape (states of h2, states of h1, rows)."""
    h1, h2 = states(model.hidden[0]), states(model.hidden[1])
    top = prior(model, h2)
    middle = -cross_entropy(
        model.decoder[1](h2)[:, None].expand(-1, len(h1), -1), h1.expand(len(h2), -1, -1), reduction="none"
    )
    rows = -cross_entropy(
        model.decoder[0](h1)[:, None].expand(-1, len(x), -1), x.expand(len(h1), -1, -1), reduction="none"
    )
    return top[:, None, None] + middle.sum(-1)[..., None] + rows.sum(-1)


def rows(n=12, d=5):
    return torch.bernoulli(torch.full((n, d), 0.4), generator=torch.Generator().manual_seed(0)).double()


def agrees(draws, exact):
    """Whether the mean of draws (r, p) is within so many standard errors of the exact vector, in each entry."""
    draws = torch.stack(draws)
    return bool(((draws.mean(0) - exact).abs() <= ERRORS * draws.std(0) / len(draws) ** 0.5 + 1e-9).all())


def flat(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


@pytest.mark.filterwarnings("ignore:evidence. .* Pareto")  # k-hat means little where weights take few values
def test_evidence_equals_enumeration():
    x = rows()
    fit = lvm.fit(lvm.models.DeepBeliefNet((4, 3, 2)), x, max_epochs=1, seed=0, progress=False)
    model, _ = net()
    fit.model.load_state_dict(model.state_dict())
    found = fit.evidence(x, num_samples=4000)
    with torch.no_grad():
        exact = joint(fit.model, x).flatten(0, 1).logsumexp(0)
    assert float(((found.values - exact).abs() / found.standard_error).max()) < ERRORS
    assert float(found.standard_error.max()) < 0.2


def test_draws_follow_the_enumerated_law():
    model, _ = net(d=4)
    patterns = states(4)
    with torch.no_grad():
        law = joint(model, patterns).flatten(0, 1).logsumexp(0).exp()
        assert float(law.sum()) == pytest.approx(1, abs=1e-9)
        share = (model(size=20_000)[:, None] == patterns).all(-1).double().mean(0)
    assert float(((share - law).abs() / (law * (1 - law) / 20_000).sqrt()).max()) < ERRORS


def gradients(objective, x, program, repeats):
    """Gradients of the objective for the parameters of a part of the model or of the guide."""
    model, guide = net((3, 3, 2), d=4)
    part = program(model, guide)
    found = []
    for _ in range(repeats):
        objective.loss_and_grads(model, guide, x)
        found.append(flat([p.grad.clone() for p in part.parameters()]))
        for p in (*model.parameters(), *guide.parameters()):
            p.grad = None
    return model, guide, part, found


@pytest.mark.parametrize("persistent", [False, True])
def test_the_gradient_of_the_prior_equals_the_exact_one(persistent):
    """Of the expected log-prior under the guide, all states of both drawn layers listed."""
    x = rows(6, 4).repeat(20, 1)
    objective = ContrastiveDivergence(num_steps=12, persistent=persistent, base=WakeSleep(sleep_every=10**6))
    objective.load_state_dict({"chains": {}, "base": {"steps": 1}})  # awake only
    model, guide, part, found = gradients(objective, x, lambda model, guide: model.top, 60)
    with torch.no_grad():
        h1 = states(3)
        up = (-cross_entropy(guide.recognition[0](x)[:, None].expand(-1, 8, -1), h1.expand(len(x), -1, -1), reduction="none"))
        top = guide.recognition[1](h1)
        further = -cross_entropy(top[:, None].expand(-1, 8, -1), h1.expand(8, -1, -1), reduction="none")
        weights = up.sum(-1).exp().sum(0) @ further.sum(-1).exp()  # how many rows are expected in each state of h2
    exact = flat(torch.autograd.grad(-(weights * prior(model, states(3))).sum(), list(part.parameters())))
    assert agrees(found, exact)


@pytest.mark.parametrize("persistent", [False, True])
def test_dreams_come_from_the_chains(persistent):
    """So the guide's gradient is that of its cross-entropy under the model, all states listed."""
    x = rows(6, 4).repeat(20, 1)
    objective = ContrastiveDivergence(num_steps=12, persistent=persistent, base=WakeSleep())
    model, guide, part, found = gradients(objective, x, lambda model, guide: guide, 60)
    h, v = states(3), states(4)
    with torch.no_grad():
        law = joint(model, v).exp()  # (h2, h1, x)
    one = -cross_entropy(guide.recognition[0](v)[:, None].expand(-1, 8, -1), h.expand(16, -1, -1), reduction="none")
    two = -cross_entropy(guide.recognition[1](h)[:, None].expand(-1, 8, -1), h.expand(8, -1, -1), reduction="none")
    expected = (law.sum(0).T * one.sum(-1)).sum() + (law.sum(-1).T * two.sum(-1)).sum()
    exact = flat(torch.autograd.grad(-len(x) * expected, list(part.parameters())))
    assert agrees(found, exact)


def digits():
    return (lvm.datasets.load("digits234").x > 0.5).float()


def test_the_bound_improves_layer_by_layer():
    x = digits()
    options = {"batch_size": 50, "max_epochs": 60, "seed": 0, "progress": False}
    machine = lvm.fit(lvm.models.RBM(12), x, **options)
    bounds, below = [machine.score(x)], machine
    for hidden in ((12, 30), (12, 30, 18)):
        below = lvm.greedy_pretrain(lvm.models.DeepBeliefNet(hidden), x, below=below, **options)
        draws = torch.stack([below.evidence(x, num_samples=1).values.mean() for _ in range(3)])
        bounds.append(float(draws.mean()))
    print(bounds)
    assert bounds[0] < bounds[1] < bounds[2]
