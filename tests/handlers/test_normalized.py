"""Undirected factors against brute force: normalizers, gradients, a hidden-state conditional random field."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.ops.indexing import Vindex

import pyro_lvm as lvm

LABELS, STATES, LENGTH, FEATURES = 2, 3, 4, 2
NAMES = ("unary", "label", "pair")


def sequences(count, seed=0):
    """The label says in which order a sequence visits its two regimes: no single frame tells it."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(LABELS, (count,), generator=generator)
    high = (torch.arange(LENGTH) >= LENGTH // 2)[None] ^ (y == 1)[:, None]
    x = torch.randn(count, LENGTH, FEATURES, generator=generator, dtype=torch.float64) * 0.7
    x[..., 0] += torch.where(high, 1.5, -1.5)
    return x, y


def free(*shape):
    return dist.Categorical(logits=torch.zeros(shape, dtype=torch.float64)).mask(False)


def starts():
    generator = torch.Generator().manual_seed(5)
    shapes = ((STATES, FEATURES), (LABELS, STATES), (LABELS, STATES, STATES))
    return {
        name: 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in zip(NAMES, shapes, strict=True)
    }


def field(x, y=None):
    """Scores of a label and a chain of hidden states given a sequence."""
    unary, label, pair = (pyro.param(name, start) for name, start in starts().items())
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", free(LABELS), obs=y)
        z = None
        for t in pyro.markov(range(x.shape[1])):
            last, z = z, pyro.sample(f"z_{t}", free(STATES))
            pyro.factor(f"unary_{t}", Vindex(x[:, t] @ unary.T)[torch.arange(len(x)), z] + label[y, z])
            if t:
                pyro.factor(f"pair_{t}", pair[y, last, z])


def conditional(x, y):
    """Log p(y | x) by a sum over every label and path."""
    unary, label, pair = (pyro.param(name) for name in NAMES)
    rows = []
    for row in range(len(x)):
        scores = []
        for c in range(LABELS):
            paths = []
            for path in itertools.product(range(STATES), repeat=LENGTH):
                total = sum((x[row, t] @ unary[s]) + label[c, s] for t, s in enumerate(path))
                paths.append(total + sum(pair[c, a, b] for a, b in itertools.pairwise(path)))
            scores.append(torch.stack(paths).logsumexp(0))
        rows.append(torch.stack(scores).log_softmax(0)[y[row]])
    return torch.stack(rows)


@pytest.fixture
def trained(local):
    x, y = sequences(5)
    model = lvm.handlers.normalized(field)
    model(x, y)
    return model, x, y


def free_values():
    return [pyro.param(name).unconstrained() for name in NAMES]


def test_value_and_gradient_equal_brute_force(trained):
    model, x, y = trained
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(config_enumerate(model), lambda x, y: None, x, y)
    expected = -conditional(x, y).sum()
    assert (loss - expected).abs().item() < 1e-10
    pairs = zip(torch.autograd.grad(loss, free_values()), torch.autograd.grad(expected, free_values()), strict=True)
    for found, exact in pairs:
        assert float((found - exact).abs().max()) < 1e-10


def test_em_and_svi_start_at_the_same_evidence(trained):
    model, x, y = trained
    expected = -float(conditional(x, y).sum().detach())
    assert lvm.infer.EM(model).loss(x, y) == pytest.approx(expected, abs=1e-10)
    assert lvm.infer.SVI(model).loss(x, y) == pytest.approx(expected, abs=1e-10)
    with lvm.handlers.minibatch(total=15):
        assert lvm.infer.EM(model).loss(x, y) == pytest.approx(3 * expected, abs=1e-9)


def test_without_labels_it_is_a_law_that_sums_to_one(trained):
    model, x, _ = trained
    assert lvm.infer.EM(model).loss(x) == pytest.approx(0.0, abs=1e-10)
    posterior = lvm.infer.EM(model).posterior(x)["y"]
    each = torch.stack([conditional(x, torch.full((5,), c)) for c in range(LABELS)], -1).detach().exp()
    torch.testing.assert_close(posterior, each)


def test_labels_may_be_clamped_for_some_rows(trained):
    model, x, y = trained
    known = torch.tensor([True, False, True, True, False])
    clamped = lvm.handlers.clamp(model, {"y": y}, mask=known)
    expected = -float(conditional(x, y).detach()[known].sum())
    assert lvm.infer.EM(clamped).loss(x) == pytest.approx(expected, abs=1e-10)


def test_masks_and_weights_of_rows_reach_the_normalizer(trained):
    _, x, y = trained
    weights = torch.tensor([1.0, 0.5, 2.0, 1.0, 3.0]).double()

    def weighted(x, y):
        weight = pyro.param("weight", torch.tensor(0.5).double())
        with pyro.plate("data", len(x)), poutine.scale(scale=weights):
            label = pyro.sample("y", free(2), obs=y)
            pyro.factor("score", weight * x[:, 0, 0] * label)

    def masked(x, y):
        weight = pyro.param("weight", torch.tensor(0.5).double())
        with pyro.plate("data", len(x)), poutine.mask(mask=weights > 0.5):
            label = pyro.sample("y", free(2), obs=y)
            pyro.factor("score", weight * x[:, 0, 0] * label)

    rows = dist.Bernoulli(logits=0.5 * x[:, 0, 0]).log_prob(y.double())
    for program, share in ((weighted, weights), (masked, weights > 0.5)):
        found = lvm.infer.SVI(lvm.handlers.normalized(program)).loss(x, y)
        assert found == pytest.approx(-float((share * rows).sum()), abs=1e-10)


@pytest.mark.parametrize("inference", ["em", "svi"])
def test_a_hidden_state_field_learns_to_label_sequences(inference):
    x, y = sequences(120)
    new, truth = sequences(200, seed=1)
    model = lvm.handlers.normalized(field)
    settings = {"em": ("em", 25), "svi": (lvm.infer.SVI(learning_rate=0.1), 80)}
    how, epochs = settings[inference]
    fit = lvm.fit(model, {"x": x, "y": y}, inference=how, max_epochs=epochs, seed=0, progress=False, tol=0.0)
    losses = torch.tensor(fit.history["loss"])
    assert losses[-1] < 0.4 * losses[0]
    if inference == "em":
        assert bool((losses.diff() < 1e-8).all())
    assert float((fit.predict(new)["y"] == truth).double().mean()) > 0.93
    assert fit.score({"x": new, "y": truth}) > -0.25


def test_a_label_of_every_frame():
    """Labels in a plate of frames within rows, no chain: a softmax per frame."""
    weight = torch.randn(3, FEATURES, dtype=torch.float64)
    x, _ = sequences(5)
    y = torch.randint(3, (5, LENGTH))

    def frames(x, y=None):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("frames", LENGTH, dim=-1):
            y = pyro.sample("y", free(3), obs=y)
            place = torch.arange(len(x))[:, None], torch.arange(LENGTH)
            pyro.factor("score", Vindex(x @ weight.T)[(*place, y)])

    model = lvm.handlers.normalized(frames)
    expected = dist.Categorical(logits=x @ weight.T).log_prob(y)
    assert -lvm.infer.EM(model).loss(x, y) == pytest.approx(float(expected.sum()), abs=1e-10)


def test_several_labels_in_a_row():
    """An Ising chain of labels given fields: sites y_0, y_1, y_2."""
    x = torch.randn(4, 3, dtype=torch.float64)
    y = torch.randint(2, (4, 3))

    def chain(x, y=None, coupling=0.7):
        with pyro.plate("data", len(x)):
            last = None
            for t in pyro.markov(range(3)):
                now = pyro.sample(f"y_{t}", free(2), obs=None if y is None else y[:, t]) * 2.0 - 1
                now = now.double()
                pyro.factor(f"field_{t}", x[:, t] * now)
                if t:
                    pyro.factor(f"pair_{t}", coupling * last * now)
                last = now

    model = lvm.handlers.normalized(chain, sites=("y_0", "y_1", "y_2"))

    def score(spins):
        spins = spins.double()
        return (x * spins).sum(-1) + 0.7 * (spins[:, 1:] * spins[:, :-1]).sum(-1)

    every = torch.cartesian_prod(*[torch.tensor([-1, 1])] * 3)
    expected = score(y * 2 - 1) - torch.stack([score(s[None]) for s in every]).logsumexp(0)
    assert -lvm.infer.EM(model).loss(x, y) == pytest.approx(float(expected.sum()), abs=1e-10)


def test_priors_on_the_weights_and_nuts(local):
    """A Bayesian logistic regression in disguise: the normalizer is that of the drawn weight."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, generator=generator, dtype=torch.float64)
    y = torch.bernoulli((1.5 * x).sigmoid(), generator=generator).long()

    def logistic(x, y=None):
        weight = pyro.sample("weight", dist.Normal(torch.tensor(0.0).double(), 2.0))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", free(2), obs=y)
            pyro.factor("score", weight * x * y)

    model = lvm.handlers.normalized(logistic)
    weight = torch.tensor(0.8).double()
    trace = poutine.trace(poutine.condition(model, {"weight": weight})).get_trace(x, y)
    expected = (
        dist.Normal(0.0, weight.new_tensor(2.0)).log_prob(weight)
        + dist.Bernoulli(logits=weight * x).log_prob(y.double()).sum()
    )
    assert float(trace.log_prob_sum()) == pytest.approx(float(expected), abs=1e-10)

    draws = lvm.infer.MCMC(model, num_samples=150, warmup_steps=80, num_chains=1).run(x, y)["weight"].flatten()
    grid = torch.linspace(-2, 6, 2001).double()
    log_density = dist.Normal(0.0, 2.0).log_prob(grid)
    log_density = log_density + dist.Bernoulli(logits=grid[:, None] * x).log_prob(y.double()).sum(-1)
    mean = float((log_density.softmax(0) * grid).sum())
    spread = float((log_density.softmax(0) * (grid - mean) ** 2).sum()) ** 0.5
    assert float(draws.mean()) == pytest.approx(mean, abs=5 * spread / 40**0.5)


def test_subsampled_rows_are_scaled(trained):
    _, x, y = trained
    index = torch.tensor([3, 1])

    def subsampled(x, y):
        weight = pyro.param("weight", torch.tensor(0.5).double())
        with pyro.plate("data", len(x), subsample=index):
            label = pyro.sample("y", free(2), obs=y[index])
            pyro.factor("score", weight * x[index, 0, 0] * label)

    found = -lvm.infer.SVI(lvm.handlers.normalized(subsampled)).loss(x, y)
    rows = dist.Bernoulli(logits=0.5 * x[index, 0, 0]).log_prob(y[index].double())
    assert found == pytest.approx(2.5 * float(rows.sum()), abs=1e-10)


def test_mistakes_are_one_sentence(local):
    x, y = sequences(3)

    def outside(x, y=None):
        global_label = pyro.sample("z", free(2))
        with pyro.plate("data", len(x)):
            label = pyro.sample("y", free(2), obs=y)
            pyro.factor("score", (label == global_label).double())

    def continuous(x, y=None):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y.float())

    for program, sites, message in (
        (field, ("q",), "it has no site 'q'"),
        (outside, ("y",), "the whole score inside the plates of site 'y' \\(data\\); part of it stands outside"),
        (continuous, ("y",), "'y' \\(Normal\\) is not"),
    ):
        with pytest.raises(ValueError, match=message):
            lvm.infer.EM(lvm.handlers.normalized(program, sites)).loss(x, y)
    with pytest.raises(ValueError, match="at least one site"):
        lvm.handlers.normalized(field, ())
    with pytest.raises(TypeError, match="expected a Pyro program; got int"):
        lvm.handlers.normalized(3)
    elbo = TraceEnum_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    with pytest.raises(ValueError, match=r"plates that the program opens itself; got 'num_particles_vectorized'"):
        elbo.loss(config_enumerate(lvm.handlers.normalized(field)), lambda x, y: None, x, y)
