"""EM through the chain kernel against EM of the same program written out step by step with `pyro.markov`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.ops.indexing import Vindex
from torch import Tensor
from torch.distributions import constraints

import pyro_lvm as lvm
from pyro_lvm.distributions import HMM
from pyro_lvm.handlers.open_mixtures import select

STATES, STEPS, ROWS = 3, 5, 4
LENGTHS = torch.tensor([5, 2, 1, 4])
SIMPLEX = constraints.simplex


@pytest.fixture(autouse=True)
def _double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True, params=["plain", "products"])
def _scores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small data are scored by `log_prob`; all tests run with the matrix products of large data, too."""
    if request.param == "products":
        monkeypatch.setattr("pyro_lvm.infer.log_density.FEW", 0)


def unrolled(law: HMM, x: Tensor) -> None:
    """The site "x" step by step: one enumerated site per state."""
    total = x.shape[-1 - law.emission.event_dim]
    lengths = torch.full(x.shape[:1], total) if law.lengths is None else law.lengths
    z: Any = None
    for t in pyro.markov(range(total)):
        inside = t < lengths
        moves = law.transition.probs[..., min(t - 1, law.transition.batch_shape[-2] - 1), :, :] if t else None
        probs = law.initial.probs if moves is None else Vindex(moves)[..., z, :]
        with pyro.poutine.mask(mask=inside):
            z = pyro.sample(f"z_{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})
            value = x.select(x.dim() - 1 - law.emission.event_dim, t)
            batch = law.emission.batch_shape
            emission = law.emission
            if len(batch) > 1:
                emission = _at_step(emission, t)
            there = ~value.isnan() if not law.emission.event_dim else ~value.isnan().all(-1)
            value = torch.where(there if not law.emission.event_dim else there.unsqueeze(-1), value, x[0, 0])
            with pyro.poutine.mask(mask=there):
                pyro.sample(f"x_{t}", select(emission, z), obs=value)


def _at_step(emission: Any, t: int) -> Any:
    if isinstance(emission, torch.distributions.Independent):
        return _inner_step(emission.base_dist, t, 1).to_event(1)
    return _inner_step(emission, t, 0)


def _inner_step(fn: Any, t: int, inside: int) -> Any:
    names = [n for n in ("loc", "scale", "rate", "probs") if n in fn.arg_constraints and n in vars(fn)]
    return type(fn)(**{n: getattr(fn, n).select(-2 - inside, t) for n in names})


def start(name: str, value: Tensor, constraint: Any = constraints.real) -> Tensor:
    return pyro.param(name, value, constraint=constraint)


def chain() -> tuple[Tensor, Tensor]:
    initial = start("initial", torch.tensor([0.5, 0.3, 0.2]), SIMPLEX)
    transition = start("transition", torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6]]), SIMPLEX)
    return initial, transition


def normal(x: Tensor) -> HMM:
    loc = start("loc", torch.tensor([-1.0, 0.5, 2.0]))
    scale = start("scale", torch.tensor([1.0, 0.5, 1.5]), constraints.positive)
    return HMM(*chain(), dist.Normal(loc, scale))


def columns(x: Tensor) -> HMM:
    loc = start("loc", torch.arange(6.0).reshape(3, 2) - 2)
    scale = start("scale", torch.ones(2), constraints.positive)
    return HMM(*chain(), dist.Normal(loc, scale).to_event(1))


def full(x: Tensor) -> HMM:
    loc = start("loc", torch.arange(6.0).reshape(3, 2) - 2)
    covariance = start("covariance", torch.eye(2).repeat(3, 1, 1), constraints.positive_definite)
    return HMM(*chain(), dist.MultivariateNormal(loc, covariance))


def tied(x: Tensor) -> HMM:
    loc = start("loc", torch.arange(6.0).reshape(3, 2) - 2)
    covariance = start("covariance", torch.eye(2), constraints.positive_definite)
    return HMM(*chain(), dist.MultivariateNormal(loc, covariance))


def poisson(x: Tensor) -> HMM:
    return HMM(*chain(), dist.Poisson(start("rate", torch.tensor([0.5, 2.0, 4.0]), constraints.positive)))


def symbols(x: Tensor) -> HMM:
    probs = start("probs", torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.1, 0.4, 0.4, 0.1], [0.2, 0.2, 0.2, 0.4]]), SIMPLEX)
    return HMM(*chain(), dist.Categorical(probs))


def left_to_right(x: Tensor) -> HMM:
    initial = start("initial", torch.tensor([1.0, 0.0, 0.0]), SIMPLEX)
    moves = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.4, 0.6], [0.0, 0.0, 1.0]])
    loc = start("loc", torch.tensor([-1.0, 0.5, 2.0]))
    return HMM(initial, start("transition", moves, SIMPLEX), dist.Normal(loc, 1.0))


def driven(x: Tensor) -> HMM:
    table = torch.stack([torch.eye(3) * 0.7 + 0.1, torch.full((3, 3), 1 / 3)])
    tables = start("transition", table, SIMPLEX)
    which = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1], [1, 0, 1, 0]])
    loc = start("loc", torch.tensor([-1.0, 0.5, 2.0]))
    return HMM(chain()[0], tables[which], dist.Normal(loc, 1.0))


def regression(x: Tensor) -> HMM:
    u = torch.linspace(-1, 1, ROWS * STEPS).reshape(ROWS, STEPS, 1)
    slope, intercept = start("slope", torch.tensor([-1.0, 0.5, 1.0])), start("intercept", torch.tensor([0.0, 1.0, 2.0]))
    scale = start("scale", torch.ones(3), constraints.positive)
    return HMM(*chain(), dist.Normal(u * slope + intercept, scale))


REAL = [normal, left_to_right, driven, regression]
VECTORS = [columns, full, tied]


def data(law: Callable) -> Tensor:
    torch.manual_seed(3)
    if law in VECTORS:
        return torch.randn(ROWS, STEPS, 2) * 2
    if law in (poisson, symbols):
        return torch.randint(0, 4, (ROWS, STEPS)).double()
    return torch.randn(ROWS, STEPS) * 2


def programs(law: Callable, lengths: Tensor | None = None) -> tuple[Callable, Callable]:
    """The program as one site and step by step."""

    def with_lengths(x: Tensor) -> HMM:
        made = law(x)
        if lengths is None:
            return made
        moves = made.transition.probs
        return HMM(made.initial.probs, moves, made.emission, lengths=lengths)

    def whole(x: Tensor) -> None:
        made = with_lengths(x)
        with pyro.plate("data", len(x)):
            pyro.sample("x", made, obs=x, infer={"states": "z"})

    def steps(x: Tensor) -> None:
        made = with_lengths(x)
        with pyro.plate("data", len(x)):
            unrolled(made, x)

    return whole, steps


def train(program: Callable, x: Tensor, count: int = 3, **options: Any) -> tuple[list[float], dict[str, Tensor]]:
    with pyro.get_param_store().scope():
        em = lvm.infer.EM(program, **options)
        losses = [em.step(x) for _ in range(count)]
        plan = em.plan(x)
        assert all(entry.closed for entry in plan), plan
        return losses, {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def same(one: tuple, other: tuple, tolerance: float = 1e-9) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-11)
    for name, value in one[1].items():
        torch.testing.assert_close(value, other[1][name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize("law", [*REAL, *VECTORS, poisson, symbols], ids=lambda law: law.__name__)
def test_same_steps_as_enumeration(law: Callable, lengths: Tensor | None) -> None:
    whole, steps = programs(law, lengths)
    x = data(law)
    same(train(whole, x), train(steps, x))


@pytest.mark.parametrize("law", [normal, full, symbols], ids=lambda law: law.__name__)
def test_missing_steps(law: Callable) -> None:
    whole, steps = programs(law, LENGTHS)
    x = data(law)
    x[0, 1] = x[0, 2] = x[3, 0] = torch.nan
    x[2, 0] = torch.nan  # a sequence of which nothing is known
    same(train(whole, x), train(steps, x))


def test_what_stands_in_padding_is_never_read() -> None:
    whole, _ = programs(symbols, LENGTHS)
    x = data(symbols)
    clean = train(whole, x)
    for filler in (-1.0, torch.nan, 1e9):
        dirty = torch.where(torch.arange(STEPS) < LENGTHS.unsqueeze(-1), x, filler)
        same(train(whole, dirty), clean)


@pytest.mark.parametrize("options", [{"annealing": (0.5, 0.8)}, {"acceleration": "squarem"}], ids=str)
def test_variants(options: dict[str, Any]) -> None:
    whole, steps = programs(normal)
    x = data(normal)
    same(train(whole, x, 4, **options), train(steps, x, 4, **options))


def test_sample_weights_are_repeated_sequences() -> None:
    def weighted(x: Tensor) -> None:
        law = normal(x)
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=torch.tensor([2.0, 1.0, 1.0, 3.0])):
            pyro.sample("x", law, obs=x)

    whole, _ = programs(normal)
    x = data(normal)
    same(train(weighted, x), train(whole, x[[0, 0, 1, 2, 3, 3, 3]]))


def test_masked_sequences_do_not_count() -> None:
    def masked(x: Tensor) -> None:
        law = normal(x)
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=torch.tensor([True, False, True, True])):
            pyro.sample("x", law, obs=x)

    whole, _ = programs(normal)
    x = data(normal)
    same(train(masked, x), train(whole, x[[0, 2, 3]]))


def test_known_states_are_counted() -> None:
    states = torch.randint(0, STATES, (ROWS, STEPS), generator=torch.Generator().manual_seed(1))

    def supervised(x: Tensor) -> None:
        law = symbols(x).clamp(states)
        with pyro.plate("data", len(x)):
            pyro.sample("x", law, obs=x)

    x = data(symbols)
    _, found = train(supervised, x)
    counts = torch.zeros(STATES, STATES).index_put_(
        (states[:, :-1].flatten(), states[:, 1:].flatten()), torch.ones(()), accumulate=True
    )
    torch.testing.assert_close(found["transition"], counts / counts.sum(-1, keepdim=True))
    torch.testing.assert_close(found["initial"], torch.bincount(states[:, 0], minlength=3) / ROWS)


def test_a_mixture_in_every_state() -> None:
    def emission() -> tuple[Tensor, Tensor, Tensor]:
        mixing = start("mixing", torch.tensor([[0.6, 0.4], [0.5, 0.5], [0.3, 0.7]]), SIMPLEX)
        loc = start("loc", torch.tensor([[-2.0, -1.0], [0.0, 1.0], [2.0, 3.0]]))
        return mixing, loc, start("scale", torch.ones(3, 2), constraints.positive)

    def whole(x: Tensor) -> None:
        mixing, loc, scale = emission()
        law = dist.MixtureSameFamily(dist.Categorical(mixing), dist.Normal(loc, scale))
        with pyro.plate("data", len(x)):
            pyro.sample("x", HMM(*chain(), law), obs=x)

    def steps(x: Tensor) -> None:
        (initial, transition), (mixing, loc, scale) = chain(), emission()
        z: Any = None
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(STEPS)):
                probs = transition[z] if t else initial
                z = pyro.sample(f"z_{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})
                c = pyro.sample(f"c_{t}", dist.Categorical(mixing[z]), infer={"enumerate": "parallel"})
                pyro.sample(f"x_{t}", dist.Normal(Vindex(loc)[z, c], Vindex(scale)[z, c]), obs=x[:, t])

    x = data(normal)
    same(train(whole, x), train(steps, x))


def test_any_emission_by_gradient() -> None:
    def program(x: Tensor) -> None:
        loc = start("loc", torch.tensor([-1.0, 0.5, 2.0]))
        base = dist.Normal(loc, 1.0)
        law = dist.TransformedDistribution(base, [dist.transforms.AffineTransform(1.0, 2.0)])
        with pyro.plate("data", len(x)):
            pyro.sample("x", HMM(*chain(), law), obs=x)

    def plain(x: Tensor) -> None:
        loc = start("loc", torch.tensor([-1.0, 0.5, 2.0]))
        with pyro.plate("data", len(x)):
            pyro.sample("x", HMM(*chain(), dist.Normal(1.0 + 2.0 * loc, 2.0)), obs=x)

    x = data(normal)
    with pyro.get_param_store().scope():
        em = lvm.infer.EM(program)
        losses = [em.step(x) for _ in range(4)]
        assert not em.plan(x).parameters["loc"].closed
    assert losses == pytest.approx(train(plain, x, 4)[0], rel=1e-5)


def test_priors_by_map_and_coordinate_ascent() -> None:
    def prior() -> tuple[Tensor, Tensor, Tensor]:
        initial = pyro.sample("initial", dist.Dirichlet(torch.full((3,), 1.5)))
        transition = pyro.sample("transition", dist.Dirichlet(torch.ones(3, 3) + torch.eye(3)).to_event(1))
        rate = pyro.sample("rate", dist.Gamma(torch.tensor([1.0, 3.0, 6.0]), 1.5).to_event(1))
        return initial, transition, rate

    def whole(x: Tensor) -> None:
        initial, transition, rate = prior()
        with pyro.plate("data", len(x)):
            pyro.sample("x", HMM(initial, transition, dist.Poisson(rate)), obs=x)

    def steps(x: Tensor) -> None:
        initial, transition, rate = prior()
        with pyro.plate("data", len(x)):
            unrolled(HMM(initial, transition, dist.Poisson(rate)), x)

    x = data(poisson)
    values = {
        "initial": torch.full((3,), 1 / 3),
        "transition": torch.eye(3) * 0.4 + 0.2,
        "rate": torch.tensor([0.5, 2, 4]),
    }
    found = []
    for program in (whole, steps):
        with pyro.get_param_store().scope():
            guide = lvm.guides.MAP(program, values)
            em = lvm.infer.EM(program, guide)
            map_losses = [em.step(x) for _ in range(3)]
        model = program
        model.initial_values = values  # type: ignore[attr-defined]
        guide = lvm.guides.Conjugate(model)
        ascent = lvm.infer.CoordinateAscent(model, guide)
        found.append((map_losses, [ascent.step(x) for _ in range(4)]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-10)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-10)
    assert all(b <= a + 1e-9 for a, b in itertools.pairwise(found[0][1]))


def test_stepwise_reaches_the_full_batch() -> None:
    torch.manual_seed(0)
    law = HMM(
        torch.ones(3) / 3, torch.eye(3) * 0.7 + 0.1, dist.Normal(torch.tensor([-3.0, 0.0, 3.0]), 0.7), num_steps=10
    )
    x = law.sample((300,))
    whole, _ = programs(normal)
    full_batch = train(whole, x, 30)[0][-1]
    with pyro.get_param_store().scope():
        em = lvm.infer.EM(whole, decay=0.7)
        for _ in range(12):
            for batch in x.split(50):
                em.step(batch)
        assert em.loss(x) == pytest.approx(full_batch, rel=2e-3)


def test_an_impossible_sequence_is_named() -> None:
    def program(x: Tensor) -> None:
        law = left_to_right(x).clamp(torch.tensor([[2, 1, -1, -1, -1]]))
        with pyro.plate("data", len(x)):
            pyro.sample("x", law, obs=x)

    with (
        pyro.get_param_store().scope(),
        pytest.raises(ValueError, match="sequence 0 of site 'x' has probability zero"),
    ):
        lvm.infer.EM(program).step(torch.randn(1, STEPS))


def test_a_mixture_of_chains_keeps_them_whole() -> None:
    def program(x: Tensor) -> None:
        weights = start("weights", torch.tensor([0.4, 0.6]), SIMPLEX)
        rate = start("rate", torch.tensor([[0.5, 2.0], [1.0, 5.0]]), constraints.positive)
        switch = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", HMM(torch.ones(2) / 2, switch, dist.Poisson(rate[k].unsqueeze(-2))), obs=x)

    x = data(poisson)
    with pyro.get_param_store().scope():
        em = lvm.infer.EM(program)
        losses = [em.step(x) for _ in range(5)]
        assert em.posterior(x)["k"].shape == (ROWS, 2)
    assert all(b <= a + 1e-9 for a, b in itertools.pairwise(losses))


def test_many_symbols_are_looked_up() -> None:
    torch.manual_seed(1)
    x = torch.randint(0, 100, (ROWS, STEPS, 2)).double()
    x[0, 1, 0] = torch.nan
    probs = torch.rand(STATES, 2, 100).softmax(-1)

    def law(x: Tensor) -> HMM:
        known = ~x.isnan()
        emission = dist.Categorical(start("probs", probs, SIMPLEX)).mask(known.unsqueeze(-2)).to_event(1)
        return HMM(*chain(), emission, lengths=LENGTHS)

    def whole(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", law(x), obs=x.nan_to_num(0.0))

    def steps(x: Tensor) -> None:
        initial, transition = chain()
        table = start("probs", probs, SIMPLEX)
        z: Any = None
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(STEPS)):
                with pyro.poutine.mask(mask=t < LENGTHS):
                    first = transition[z] if t else initial
                    z = pyro.sample(f"z_{t}", dist.Categorical(first), infer={"enumerate": "parallel"})
                    emission = dist.Categorical(Vindex(table)[z.unsqueeze(-1), torch.arange(2)])
                    emission = emission.mask(~x[:, t].isnan()).to_event(1)
                    pyro.sample(f"x_{t}", emission, obs=x[:, t].nan_to_num(0.0))

    same(train(whole, x), train(steps, x))


def test_seeds_give_starts_that_depend_on_the_data() -> None:
    torch.manual_seed(0)
    law = HMM(
        torch.ones(3) / 3, torch.eye(3) * 0.7 + 0.1, dist.Normal(torch.tensor([-9.0, 0.0, 9.0]), 0.5), num_steps=9
    )
    x = law.sample((20,))
    whole, _ = programs(normal)
    with pyro.get_param_store().scope():
        em = lvm.infer.EM(whole)
        em.seed(x)
        em.step(x)
        torch.testing.assert_close(pyro.param("loc").sort()[0], torch.tensor([-9.0, 0.0, 9.0]), rtol=0, atol=0.3)


def test_working_memory_is_kept_between_steps_and_given_back() -> None:
    whole, _ = programs(full, LENGTHS)
    x = data(full)
    with pyro.get_param_store().scope():
        em = lvm.infer.EM(whole)
        found = em.posterior(x)["z"]
        before = found.clone()
        em.step(x)
        em.step(x)
        torch.testing.assert_close(found, before, rtol=0, atol=0)  # it was no part of that memory
        assert em._memory.scratch._kept
        em.release()
        assert not em._memory.scratch._kept
        em.step(x)
    fit = lvm.fit(lvm.models.GaussianHMM(2), x, inference="em", seed=0, max_epochs=3, progress=False)
    assert not fit.inference._memory.scratch._kept
