"""Chains side by side and states that last, against sums over everything that can happen, written down one by one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

import pyro_lvm as lvm
from pyro_lvm.distributions import HMM, FactorialHMM, HiddenSemiMarkov

pytestmark = pytest.mark.usefixtures("local")
STEPS = 4
SIMPLEX = constraints.simplex


def numbers(*entries: Any) -> Tensor:
    return torch.tensor(entries, dtype=torch.float64)


FIRST = [numbers(0.6, 0.4), numbers(0.2, 0.5, 0.3)]
MOVES = [numbers([0.7, 0.3], [0.1, 0.9]), numbers([0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.0, 0.4, 0.6])]
LOC = numbers(-1.0, 0.0, 2.0, 3.0, 5.0, 6.5)

BEGIN = numbers(0.5, 0.3, 0.2)
FOLLOW = numbers([0.0, 0.4, 0.6], [0.7, 0.0, 0.3], [0.5, 0.5, 0.0])
LAST = numbers([0.1, 0.6, 0.3], [0.5, 0.0, 0.5], [0.2, 0.2, 0.6])
MEANS = numbers(-1.0, 0.5, 2.0)


def rows(count: int = 3) -> Tensor:
    return 2 * torch.randn(count, STEPS, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def factorial(**options: Any) -> FactorialHMM:
    return FactorialHMM(FIRST, MOVES, dist.Normal(LOC, 1.0), **options)


def semi(**options: Any) -> HiddenSemiMarkov:
    return HiddenSemiMarkov(BEGIN, FOLLOW, LAST, dist.Normal(MEANS, 1.0), **options)


Story = tuple[float, list[int], list[tuple[str, tuple[int, ...]]]]


def factorial_stories(x: Tensor) -> Iterator[Story]:
    """Log-probability, joint states, and which laws were drawn from, for every pair of paths."""
    for a in itertools.product(range(2), repeat=len(x)):
        for b in itertools.product(range(3), repeat=len(x)):
            draws: list[tuple[str, tuple[int, ...]]] = [("initial_0", (a[0],)), ("initial_1", (b[0],))]
            draws += [("transition_0", pair) for pair in itertools.pairwise(a)]
            draws += [("transition_1", pair) for pair in itertools.pairwise(b)]
            states = [3 * i + j for i, j in zip(a, b, strict=True)]
            yield weighed(x, states, draws, FACTORIAL), states, draws


def semi_stories(x: Tensor) -> Iterator[Story]:
    """The same for every sequence of states and durations; the last duration may reach beyond the end."""

    def grow(path: list[int], draws: list) -> Iterator[tuple[list[int], list]]:
        if len(path) >= len(x):
            yield path[: len(x)], draws
            return
        for k in range(3):
            before = ("initial", (k,)) if not path else ("transition", (path[-1], k))
            for r in range(1, 4):
                yield from grow(path + [k] * r, [*draws, before, ("duration", (k, r - 1))])

    for states, draws in grow([], []):
        yield weighed(x, states, draws, SEMI), states, draws


def weighed(x: Tensor, states: list[int], draws: list, law: HMM) -> float:
    """Log-probability of what was drawn, and of the steps."""
    value = 0.0
    for name, index in draws:
        chance = TABLES[name][index].item()
        value += math.log(chance) if chance else -math.inf
    loc = law.emission.loc
    for v, z in zip(x.tolist(), states, strict=True):
        value -= 0.0 if math.isnan(v) else 0.5 * (v - loc[z].item()) ** 2 + 0.5 * math.log(2 * math.pi)
    return value


FACTORIAL, SEMI = factorial(), semi()
TABLES = {"initial": BEGIN, "transition": FOLLOW, "duration": LAST}
TABLES |= {f"initial_{m}": FIRST[m] for m in range(2)} | {f"transition_{m}": MOVES[m] for m in range(2)}


KINDS: dict[str, tuple[Callable[..., HMM], Callable[[Tensor], Iterator[Story]]]] = {
    "factorial": (factorial, factorial_stories),
    "semi": (semi, semi_stories),
}


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> tuple[Callable[..., HMM], Callable[[Tensor], Iterator[Story]]]:
    return KINDS[request.param]


def test_log_prob_and_posterior_are_sums_over_stories(kind: tuple) -> None:
    make, stories = kind
    x = rows(2)
    x[1, 2] = torch.nan
    law = make()
    for row, value, marginals, best in zip(x, law.log_prob(x), law.smooth(x).marginals, law.viterbi(x), strict=True):
        found = list(stories(row))
        weights = torch.tensor([w for w, _, _ in found])
        torch.testing.assert_close(value, weights.logsumexp(0), rtol=1e-10, atol=1e-10)
        expected = torch.zeros(STEPS, law.num_states)
        for weight, (_, states, _) in zip(weights.softmax(0), found, strict=True):
            expected[range(STEPS), states] += weight
        torch.testing.assert_close(marginals, expected, rtol=1e-10, atol=1e-10)
        assert found[int(weights.argmax())][1] == best.tolist()
    pairs = law.smooth(x, pairwise=True).transitions
    torch.testing.assert_close(pairs.sum(-1), law.smooth(x).marginals[:, :-1])
    torch.testing.assert_close(law.smooth(x).transitions, pairs.sum(-3))


def test_lengths_known_states_and_batches(kind: tuple) -> None:
    make, stories = kind
    x = rows(3)
    lengths, states = torch.tensor([4, 2, 3]), torch.full((3, STEPS), -1)
    states[0, 1], states[2, 0] = 1, 2
    law = make(lengths=lengths).clamp(states)
    for n, value in enumerate(law.log_prob(x)):
        seen = x[n, : lengths[n]]
        known = states[n].tolist()
        fits = [w for w, path, _ in stories(seen) if all(k in (-1, z) for k, z in zip(known, path, strict=False))]
        torch.testing.assert_close(value, torch.tensor(fits).logsumexp(0), rtol=1e-10, atol=1e-10)
    wide = make(num_steps=STEPS).expand((3,))
    assert type(wide) is type(law)
    torch.testing.assert_close(wide.log_prob(x), make().log_prob(x))
    assert law.sample_states(x, 7).amax() < law.num_states


def test_draws_have_the_moments_of_the_law(kind: tuple) -> None:
    make, stories = kind
    law = make(num_steps=3)
    torch.manual_seed(0)
    values, states = law.sample_with_states((4000,))
    nothing = torch.full((3,), torch.nan)
    expected = torch.zeros(3, law.num_states)
    for weight, path, _ in stories(nothing):
        expected[range(3), path] += math.exp(weight)
    torch.testing.assert_close(
        torch.nn.functional.one_hot(states, law.num_states).double().mean(0), expected, atol=0.035, rtol=0
    )
    assert torch.isfinite(values).all()


def program(x: Tensor, make: Callable[..., HMM], weights: Tensor | None = None, lengths: Tensor | None = None) -> None:
    scale = torch.ones(len(x)) if weights is None else weights
    with pyro.plate("data", len(x)), poutine.scale(scale=scale):
        pyro.sample("x", make(lengths=lengths), obs=x, infer={"states": "z"})


def learned_factorial(**options: Any) -> FactorialHMM:
    names = [f"{kind}_{m}" for kind in ("initial", "transition") for m in range(2)]
    start = [
        pyro.param(name, value.clone(), constraint=SIMPLEX) for name, value in zip(names, [*FIRST, *MOVES], strict=True)
    ]
    return FactorialHMM(start[:2], start[2:], dist.Normal(pyro.param("loc", LOC.clone()), 1.0), **options)


def learned_semi(**options: Any) -> HiddenSemiMarkov:
    start = {"initial": BEGIN, "transition": FOLLOW, "duration": LAST}
    laws = [pyro.param(name, value.clone(), constraint=SIMPLEX) for name, value in start.items()]
    return HiddenSemiMarkov(*laws, dist.Normal(pyro.param("loc", MEANS.clone()), 1.0), **options)


@pytest.mark.parametrize("counted", [False, True], ids=["once", "weighted"])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("name", list(KINDS))
def test_one_step_of_em_counts(name: str, ragged: bool, counted: bool) -> None:
    """The M-step of every law is its expected number of draws, row by row normalised; of the locations, the mean."""
    make, stories = {"factorial": learned_factorial, "semi": learned_semi}[name], KINDS[name][1]
    x = rows()
    weights = torch.tensor([1.0, 2.0, 0.5]) if counted else torch.ones(3)
    lengths = torch.tensor([4, 1, 3]) if ragged else torch.full((3,), STEPS)
    em = lvm.infer.EM(program)
    loss = em.step(x, make, weights, lengths if ragged else None)
    law = KINDS[name][0]()
    counts = {part: torch.zeros(made.fn.param_shape[made.timed :]) for part, made in law.laws.items()}
    total, sums, times = torch.zeros(()), torch.zeros(law.num_states), torch.zeros(law.num_states)
    for row, weight, length in zip(x, weights, lengths, strict=True):
        found = list(stories(row[:length]))
        values = torch.tensor([w for w, _, _ in found])
        total = total + weight * values.logsumexp(0)
        for share, (_, states, draws) in zip(values.softmax(0) * weight, found, strict=True):
            for part, index in draws:
                counts[part][index] += share
            for state, value in zip(states, row[:length], strict=True):
                sums[state] += share * value
                times[state] += share
    assert -loss == pytest.approx(float(total), rel=1e-12)
    for part, table in counts.items():
        found_table = pyro.param(part).detach()
        expected = table / table.sum(-1, keepdim=True)
        torch.testing.assert_close(found_table, expected.reshape(found_table.shape), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(pyro.param("loc").detach(), sums / times, rtol=1e-9, atol=1e-9)
    plan = em.plan(x, make, weights, lengths if ragged else None)
    assert all(entry.closed for entry in plan), plan
    assert em.posterior(x, make, weights, lengths if ragged else None)["z"].shape == (3, STEPS, law.num_states)


@pytest.mark.parametrize("make", [learned_factorial, learned_semi])
@pytest.mark.parametrize("options", [{}, {"acceleration": "squarem"}, {"annealing": (0.5,)}], ids=str)
def test_em_never_falls(make: Callable[..., HMM], options: dict[str, Any]) -> None:
    em = lvm.infer.EM(program, **options)
    losses = [em.step(rows(20), make) for _ in range(12)][1:]
    assert all(b <= a + 1e-9 for a, b in itertools.pairwise(losses))


def test_tables_may_change_with_time() -> None:
    torch.manual_seed(1)
    moves = torch.rand(2, STEPS - 1, 3, 3).softmax(-1)
    x = rows(2)
    law = HiddenSemiMarkov(BEGIN, moves, LAST, dist.Normal(MEANS, 1.0))
    for n in range(2):
        one = HiddenSemiMarkov(BEGIN, moves[n], LAST, dist.Normal(MEANS, 1.0))
        torch.testing.assert_close(law.log_prob(x)[n], one.log_prob(x[n]))
    wide = FactorialHMM([FIRST[1], FIRST[1]], [moves, MOVES[1]], dist.Normal(torch.arange(9.0), 1.0))
    assert wide.log_prob(x).shape == (2,)

    def timed(x: Tensor) -> None:
        table = pyro.param("table", moves[:, :2].flatten(0, 1), constraint=SIMPLEX)
        which = torch.tensor([[0, 1, 1], [2, 3, 0]])
        with pyro.plate("data", len(x)):
            pyro.sample("x", HiddenSemiMarkov(BEGIN, table[which], LAST, dist.Normal(MEANS, 1.0)), obs=x)

    em = lvm.infer.EM(timed)
    losses = [em.step(x) for _ in range(5)]
    assert all(b <= a + 1e-9 for a, b in itertools.pairwise(losses))
    assert em.plan(x).parameters["table"].closed


def test_durations_of_one_step_are_a_plain_chain() -> None:
    moves = MOVES[1]
    semi_markov = HiddenSemiMarkov(BEGIN, moves, torch.ones(3, 1), dist.Normal(MEANS, 1.0))
    plain = HMM(BEGIN, moves, dist.Normal(MEANS, 1.0))
    torch.testing.assert_close(semi_markov.log_prob(rows()), plain.log_prob(rows()))


def test_geometric_durations_are_a_plain_chain() -> None:
    """As far as the longest duration allows: the rest of the geometric law is put on it."""
    stay, longest = torch.tensor([0.3, 0.5, 0.2]), 40
    powers = stay.unsqueeze(-1) ** torch.arange(longest)
    durations = powers * (1 - stay).unsqueeze(-1)
    durations[:, -1] = powers[:, -1]
    plain = stay.diag() + FOLLOW * (1 - stay).unsqueeze(-1)
    law = HiddenSemiMarkov(BEGIN, FOLLOW, durations, dist.Normal(MEANS, 1.0))
    torch.testing.assert_close(law.log_prob(rows()), HMM(BEGIN, plain, dist.Normal(MEANS, 1.0)).log_prob(rows()))


def test_gradients_where_transitions_are_impossible() -> None:
    tables = [t.clone().requires_grad_() for t in (BEGIN, FOLLOW, LAST)]
    HiddenSemiMarkov(*tables, dist.Normal(MEANS, 1.0), validate_args=False).log_prob(rows()).sum().backward()
    assert all(torch.isfinite(t.grad).all() for t in tables if t.grad is not None)


def test_joint_states_split_and_join() -> None:
    law = factorial()
    joint = torch.tensor([[0, 4, 5], [3, -1, 2]])
    split = law.split(joint)
    assert split[0].tolist() == [[0, 0], [1, 1], [1, 2]]
    assert split[1, 1].tolist() == [-1, -1]
    assert torch.equal(law.join(split), joint)
    table = torch.rand(4, 6)
    first, second = law.by_chain(table)
    torch.testing.assert_close(first[:, 1], table[:, 3:].sum(-1))
    torch.testing.assert_close(second[:, 2], table[:, [2, 5]].sum(-1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FactorialHMM([], [], dist.Normal(LOC, 1.0)), "at least one; got 0"),
        (lambda: FactorialHMM(FIRST, MOVES[:1], dist.Normal(LOC, 1.0)), "as many chains, at least one; got 2 and 1"),
        (lambda: FactorialHMM(FIRST, MOVES[::-1], dist.Normal(LOC, 1.0)), r"transition_probs\[0\] to be a square"),
        (lambda: FactorialHMM(FIRST, MOVES, dist.Normal(MEANS, 1.0)), "expected emission over 6 states"),
        (
            lambda: HiddenSemiMarkov(BEGIN, MOVES[0], LAST, dist.Normal(MEANS, 1.0)),
            r"probs to end in \(3, 3",
        ),
        (lambda: HiddenSemiMarkov(BEGIN, FOLLOW, LAST[0], dist.Normal(MEANS, 1.0)), "duration_probs of shape"),
        (lambda: HiddenSemiMarkov(BEGIN, FOLLOW, LAST[:, :0], dist.Normal(MEANS, 1.0)), "duration_probs of shape"),
        (lambda: HiddenSemiMarkov(BEGIN, FOLLOW, LAST, dist.Normal(LOC, 1.0)), "expected emission over 3 states"),
        (lambda: semi(num_steps=STEPS).to_discrete_hmm(), "an emission for every position"),
    ],
)
def test_errors(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
