"""Programs that write a chain step by step: which are sent to the chain kernel, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.ops.indexing import Vindex
from torch import Tensor
from torch.distributions import constraints

import pyro_lvm as lvm
from pyro_lvm.infer import markov

STEPS, ROWS, WIDTH = 12, 3, 4
LENGTHS = torch.tensor([12, 5, 1])
THERE = torch.ones(ROWS, STEPS, dtype=torch.bool)
THERE[0, 3] = THERE[2, 0] = False


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def start(name: str, value: Tensor, constraint: Any = constraints.real) -> Tensor:
    return pyro.param(name, value, constraint=constraint)


def law() -> tuple[Tensor, Tensor]:
    initial = start("initial", torch.tensor([0.6, 0.4]), constraints.simplex)
    return initial, start("transition", torch.tensor([[0.8, 0.2], [0.3, 0.7]]), constraints.simplex)


def discrete(name: str, probs: Tensor) -> Tensor:
    return pyro.sample(name, dist.Categorical(probs), infer={"enumerate": "parallel"})


def single(x: Tensor) -> None:
    initial, transition = law()
    rate = start("rate", torch.tensor([1.0, 4.0]), constraints.positive)
    z: Any = None
    for t in pyro.markov(range(STEPS)):
        z = discrete(f"z_{t}", initial if z is None else transition[z])
        pyro.sample(f"x_{t}", dist.Poisson(rate[z]), obs=x[t])


def ragged(x: Tensor) -> None:
    """Sequences in one plate, notes in another, as Pyro's own example has them."""
    initial, transition = law()
    probs = start("probs", torch.linspace(0.2, 0.8, 2 * WIDTH).reshape(2, WIDTH), constraints.unit_interval)
    notes = pyro.plate("notes", WIDTH, dim=-1)
    z: Any = None
    with pyro.plate("sequences", ROWS, dim=-2):
        for t in pyro.markov(range(STEPS)):
            with poutine.mask(mask=(t < LENGTHS).unsqueeze(-1)):
                z = discrete(f"z_{t}", initial if z is None else transition[z])
                with notes:
                    pyro.sample(f"x_{t}", dist.Bernoulli(probs[z.squeeze(-1)]), obs=x[:, t])


def vectors(x: Tensor) -> None:
    initial, transition = law()
    loc = start("loc", torch.tensor([[-1.0, 0.0], [1.0, 0.5]]))
    covariance = start("covariance", torch.eye(2), constraints.positive_definite)
    z: Any = None
    with pyro.plate("data", ROWS):
        for t in pyro.markov(range(STEPS)):
            z = discrete(f"z_{t}", initial if z is None else transition[z])
            with poutine.mask(mask=THERE[:, t]):
                pyro.sample(f"x_{t}", dist.MultivariateNormal(loc[z], covariance), obs=x[:, t])


def transformed(x: Tensor) -> None:
    """A location that has to be learned by gradient steps."""
    initial, transition = law()
    loc = start("loc", torch.tensor([0.1, 1.0]))
    z: Any = None
    for t in pyro.markov(range(STEPS)):
        z = discrete(f"z_{t}", initial if z is None else transition[z])
        pyro.sample(f"x_{t}", dist.Normal(loc[z].exp(), 1.0), obs=x[t])


def counts(*shape: int) -> Tensor:
    return torch.randint(0, 6, shape, generator=torch.Generator().manual_seed(1)).double()


def vectors_of_rows() -> Tensor:
    return torch.randn(ROWS, STEPS, 2, generator=torch.Generator().manual_seed(2))


RECOGNISED: list[tuple[Callable, Callable]] = [
    (single, lambda: counts(STEPS)),
    (ragged, lambda: (counts(ROWS, STEPS, WIDTH) > 2).double()),
    (vectors, vectors_of_rows),
    (transformed, lambda: counts(STEPS)),
]


def train(
    program: Callable, x: Tensor, count: int = 4
) -> tuple[list[float], dict[str, Tensor], str, dict[str, Tensor]]:
    with pyro.get_param_store().scope():
        em = lvm.infer.EM(program)
        losses = [em.step(x) for _ in range(count)]
        values = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
        return losses, values, str(em.plan(x)), em.posterior(x)


@pytest.mark.parametrize(("program", "data"), RECOGNISED, ids=lambda f: getattr(f, "__name__", ""))
def test_same_numbers_as_enumeration(program: Callable, data: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    x = data()
    losses, values, plan, posterior = train(program, x)
    assert "forward-backward over z_0, z_1, ... (2 states, 12 steps)" in plan
    monkeypatch.setattr(markov, "FEW_STEPS", 1000)
    expected = train(program, x)
    assert "exact enumeration" in expected[2]
    assert losses == pytest.approx(expected[0], rel=1e-10)
    for name, value in values.items():
        torch.testing.assert_close(value, expected[1][name], rtol=1e-8, atol=1e-9)
    assert posterior.keys() == expected[3].keys()
    for name, table in posterior.items():
        there = expected[3][name].sum(-1) > 0
        torch.testing.assert_close(table[there], expected[3][name][there], rtol=1e-8, atol=1e-9)


def test_priors_by_map_and_coordinate_ascent(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"rate": torch.tensor([1.0, 4.0]), "transition": torch.tensor([[0.8, 0.2], [0.3, 0.7]])}

    def program(x: Tensor) -> None:
        transition = pyro.sample("transition", dist.Dirichlet(torch.full((2, 2), 2.0)).to_event(1))
        rate = pyro.sample("rate", dist.Gamma(torch.tensor([1.0, 3.0]), 1.0).to_event(1))
        z: Any = None
        for t in pyro.markov(range(STEPS)):
            z = discrete(f"z_{t}", torch.ones(2) / 2 if z is None else transition[z])
            pyro.sample(f"x_{t}", dist.Poisson(rate[z]), obs=x[t])

    program.initial_values = values  # type: ignore[attr-defined]
    found = []
    for few in (8, 1000):
        monkeypatch.setattr(markov, "FEW_STEPS", few)
        with pyro.get_param_store().scope():
            em = lvm.infer.EM(program, lvm.guides.MAP(program, values))
            losses = [em.step(counts(STEPS)) for _ in range(3)]
        ascent = lvm.infer.CoordinateAscent(program, lvm.guides.Conjugate(program))
        found.append([*losses, *(ascent.step(counts(STEPS)) for _ in range(4))])
    assert found[0] == pytest.approx(found[1], rel=1e-10)


def by_time(x: Tensor) -> None:
    """Every step has a rate of its own, though all start alike."""
    initial, transition = law()
    rate = start("rate", torch.ones(STEPS, 2) * torch.tensor([1.0, 4.0]), constraints.positive)
    z: Any = None
    for t in pyro.markov(range(STEPS)):
        z = discrete(f"z_{t}", initial if z is None else transition[z])
        pyro.sample(f"x_{t}", dist.Poisson(rate[t, z]), obs=x[t])


def autoregressive(x: Tensor) -> None:
    initial, transition = law()
    slope = start("slope", torch.tensor([0.1, 0.5]))
    z: Any = None
    for t in pyro.markov(range(STEPS)):
        z = discrete(f"z_{t}", initial if z is None else transition[z])
        pyro.sample(f"x_{t}", dist.Normal(slope[z] * (x[t - 1] if t else 0.0), 1.0), obs=x[t])


def second_order(x: Tensor) -> None:
    initial, _ = law()
    moves = start("moves", torch.tensor([[[0.8, 0.2], [0.5, 0.5]], [[0.4, 0.6], [0.1, 0.9]]]), constraints.simplex)
    rate = start("rate", torch.tensor([1.0, 4.0]), constraints.positive)
    a: Any = None
    b: Any = None
    for t in pyro.markov(range(STEPS), history=2):
        probs = initial if b is None else (moves[0][b] if a is None else Vindex(moves)[a, b])
        a, b = b, discrete(f"z_{t}", probs)
        pyro.sample(f"x_{t}", dist.Poisson(rate[b]), obs=x[t])


def with_an_end(x: Tensor) -> None:
    single(x)
    pyro.sample("y", dist.Normal(start("end", torch.zeros(())), 1.0), obs=torch.ones(()))


def two_emissions(x: Tensor) -> None:
    initial, transition = law()
    rate = start("rate", torch.tensor([1.0, 4.0]), constraints.positive)
    z: Any = None
    for t in pyro.markov(range(STEPS)):
        z = discrete(f"z_{t}", initial if z is None else transition[z])
        pyro.sample(f"x_{t}", dist.Poisson(rate[z]), obs=x[t])
        pyro.sample(f"y_{t}", dist.Poisson(rate[z]), obs=x[t])


def growing_beta(x: Tensor) -> None:
    """A family that keeps its arguments inside another."""
    initial, transition = law()
    a = start("a", torch.tensor([1.0, 2.0]), constraints.positive)
    z: Any = None
    for t in pyro.markov(range(STEPS)):
        z = discrete(f"z_{t}", initial if z is None else transition[z])
        pyro.sample(f"x_{t}", dist.Beta(a[z] * (1 + t), 2.0), obs=x[t] / 10 + 0.1)


def late_lognormal(x: Tensor) -> None:
    initial, transition = law()
    loc, other = start("loc", torch.tensor([0.0, 1.0])), start("other", torch.tensor([0.0, 1.0]))
    z: Any = None
    for t in pyro.markov(range(STEPS)):
        z = discrete(f"z_{t}", initial if z is None else transition[z])
        pyro.sample(f"x_{t}", dist.LogNormal((loc if t < 6 else other)[z], 1.0), obs=x[t] + 1)


def other_first_state(x: Tensor) -> None:
    initial = start("three", torch.ones(3) / 3, constraints.simplex)
    first = start("first", torch.full((3, 2), 0.5), constraints.simplex)
    _, transition = law()
    rate = start("rate", torch.tensor([1.0, 4.0, 2.0]), constraints.positive)
    z: Any = None
    for t in pyro.markov(range(STEPS)):
        z = discrete(f"z_{t}", initial if t == 0 else (first if t == 1 else transition)[z])
        pyro.sample(f"x_{t}", dist.Poisson(rate[z]), obs=x[t])


def copied(x: Tensor) -> None:
    """Values that do not follow the data: they are made anew by every run."""
    single(x + 1)


OTHERS = [
    by_time,
    autoregressive,
    second_order,
    with_an_end,
    two_emissions,
    growing_beta,
    late_lognormal,
    other_first_state,
    copied,
]


@pytest.mark.parametrize("program", OTHERS)
def test_other_programs_are_enumerated(program: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    x = counts(STEPS)
    losses, _, plan, _ = train(program, x, 3)
    assert "exact enumeration" in plan
    monkeypatch.setattr(markov, "FEW_STEPS", 1000)
    assert losses == pytest.approx(train(program, x, 3)[0], rel=1e-12)


def test_other_data_are_seen() -> None:
    with pyro.get_param_store().scope():
        em = lvm.infer.EM(single)
        x = counts(STEPS)
        first = em.loss(x)
        assert em.loss(x + 1) != pytest.approx(first)
        assert em.loss(x) == pytest.approx(first)
        x.add_(1)
        assert em.loss(x) != pytest.approx(first)


@pytest.mark.parametrize("how", ["numpy", "data", "version"])
def test_data_changed_in_place_are_seen(how: str) -> None:
    x, other = counts(STEPS), counts(STEPS).flip(0) + 1
    with pyro.get_param_store().scope():
        em = lvm.infer.EM(single)
        for _ in range(4):  # the next look at the whole program is far away
            em.loss(x)
        if how == "numpy":
            x.numpy()[:] = other.numpy()
        elif how == "data":
            x.data.copy_(other)
        else:
            x.copy_(other)
        assert em.loss(x) == pytest.approx(lvm.infer.EM(single).loss(other), rel=1e-12)


def test_minibatches_are_drawn_anew() -> None:
    def program(x: Tensor) -> None:
        initial, transition = law()
        rate = start("rate", torch.tensor([1.0, 4.0]), constraints.positive)
        z: Any = None
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            for t in pyro.markov(range(STEPS)):
                z = discrete(f"z_{t}", initial if z is None else transition[z])
                pyro.sample(f"x_{t}", dist.Poisson(rate[z]), obs=x[rows, t])

    with pyro.get_param_store().scope():
        em = lvm.infer.EM(program, decay=0.7)
        x = counts(20, STEPS)
        assert len({em.loss(x) for _ in range(6)}) > 1


def test_steps_that_come_to_differ_are_enumerated() -> None:
    """Alike at the start, where the kink does not show, and no more where EM takes the parameter."""

    def program(x: Tensor) -> None:
        initial, transition = law()
        loc = start("loc", torch.tensor([0.0, 2.0]))
        z: Any = None
        for t in pyro.markov(range(STEPS)):
            z = discrete(f"z_{t}", initial if z is None else transition[z])
            pyro.sample(f"x_{t}", dist.Normal(loc[z] + torch.relu(loc[1] - 2.5) * t, 1.0), obs=x[t])

    x = counts(STEPS) * 2
    with pyro.get_param_store().scope():
        em = lvm.infer.EM(program)
        for _ in range(12):
            em.step(x)
        assert em.loss(x) == pytest.approx(lvm.infer.EM(program).loss(x), rel=1e-12)


def test_only_two_steps_are_run() -> None:
    runs = []

    def program(x: Tensor) -> None:
        single(x)
        runs.append(len(x))

    with pyro.get_param_store().scope():
        em = lvm.infer.EM(program)
        x = counts(STEPS)
        em.step(x)
        whole = len(runs)
        for _ in range(30):
            em.step(x)
    assert len(runs) <= whole + 2  # looked at again after 2 and 8 steps
