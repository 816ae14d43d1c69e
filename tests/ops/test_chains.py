"""Every function on chains against brute force over all paths."""

import itertools
from dataclasses import dataclass
from functools import cached_property

import pytest
import torch

from pyro_lvm.ops import chains
from pyro_lvm.ops.scratch import Scratch
from pyro_lvm.testing.chain_oracles import all_paths

ALGORITHMS = ["sequential", "blocked", "scan"]
INF = torch.inf
EXACT = {"atol": 1e-10, "rtol": 1e-10}


@dataclass
class Case:
    initial: torch.Tensor
    transition: torch.Tensor
    emission: torch.Tensor
    lengths: torch.Tensor | None

    @property
    def inputs(self):
        return self.initial, self.transition, self.emission, self.lengths

    @cached_property
    def paths(self):
        """The paths of each chain of the batch, by its index."""
        return dict(self._paths())

    def _paths(self):
        *batch, steps, states = self.emission.shape
        lengths = torch.full(batch, steps) if self.lengths is None else self.lengths
        initial = self.initial.expand(*batch, states)
        matrices = self.transition.shape[-3]
        transition = self.transition.expand(*batch, matrices, states, states)
        for index in itertools.product(*map(range, batch)):
            size = int(lengths[index])
            used = transition[index] if matrices == 1 else transition[index][: size - 1]
            yield index, all_paths(initial[index], used, self.emission[index][:size])

    def shorter(self, steps):
        lengths = None if self.lengths is None else self.lengths.clamp_max(steps)
        return Case(self.initial, self.transition[..., : steps - 1, :, :], self.emission[..., :steps, :], lengths)


def rule_out(logits, generator, share=0.25):
    """Some of the states impossible, never all of a row."""
    hidden = torch.rand(logits.shape, generator=generator) < share
    hidden.scatter_(-1, logits.argmax(-1, keepdim=True), False)
    return logits.masked_fill(hidden, -INF)


def random_case(
    seed, steps, states, *, batch=(3,), varying=False, ragged=False, per_chain=False, zeros=False, spread=1.0
):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return 2 * torch.randn(shape, generator=generator, dtype=torch.float64)

    own = batch if per_chain else ()
    initial = normal(*own, states).log_softmax(-1)
    transition = normal(*own, steps - 1 if varying else 1, states, states).log_softmax(-1)
    emission = 2 * normal(*batch, steps, states) - 1
    if spread > 1:  # half of the logarithms far apart
        for logits in (initial, transition, emission):
            logits[torch.rand(logits.shape, generator=generator) < 0.5] *= spread
    if zeros:
        initial, transition, emission = (rule_out(t, generator) for t in (initial, transition, emission))
    if steps > 2:
        emission[..., 1, :] = 0.0
    lengths = None
    if ragged:
        lengths = torch.randint(1, steps + 1, batch, generator=generator)
        padding = torch.arange(steps) >= lengths.unsqueeze(-1)
        emission[padding] = torch.tensor([torch.nan, INF, -INF, 3.0][seed % 4], dtype=torch.float64)
    return Case(initial, transition, emission, lengths)


FLAGS = [
    {},
    {"varying": True},
    {"ragged": True},
    {"zeros": True},
    {"per_chain": True, "ragged": True},
    {"varying": True, "ragged": True, "zeros": True, "per_chain": True},
    {"ragged": True, "zeros": True, "batch": (2, 2)},
    {"varying": True, "batch": (), "zeros": True},
    {"batch": (1,)},
    {"spread": 150.0, "ragged": True},
    {"spread": 2000.0},
    {"spread": 300.0, "varying": True, "zeros": True, "per_chain": True, "batch": (4,)},
]
SIZES = [(1, 1), (1, 3), (2, 1), (2, 3), (3, 2), (4, 4), (5, 3), (6, 4)]


@pytest.fixture(params=range(len(SIZES)), ids=lambda i: "T={},K={}".format(*SIZES[i]))
def size(request):
    return SIZES[request.param]


@pytest.fixture(params=range(len(FLAGS)), ids=lambda i: "-".join(FLAGS[i]) or "plain")
def case(request, size):
    return random_case(10 * size[0] + size[1] + request.param, *size, **FLAGS[request.param])


def close(found, expected, **tolerance):
    torch.testing.assert_close(found, expected, **(tolerance or EXACT))


def test_smoothing(case):
    for algorithm in ALGORITHMS:
        check_smoothing(case, algorithm)


def check_smoothing(case, algorithm):
    found = chains.smooth(*case.inputs, algorithm=algorithm, pairwise=True)
    summed = chains.smooth(*case.inputs, algorithm=algorithm)
    over_batch = chains.smooth(*case.inputs, algorithm=algorithm, sum_batch=True, pairwise=True)
    value = chains.log_likelihood(*case.inputs, algorithm=algorithm)
    total = torch.zeros_like(over_batch.transitions)
    homogeneous = case.transition.shape[-3] == 1
    for index, paths in case.paths.items():
        size = paths.states.shape[1]
        close(value[index], paths.log_likelihood)
        close(found.log_likelihood[index], paths.log_likelihood)
        close(found.marginals[index][:size], paths.marginals)
        assert not found.marginals[index][size:].any()
        close(found.transitions[index][: size - 1], paths.pairs)
        assert not found.transitions[index][size - 1 :].any()
        total[: size - 1] += paths.pairs
        close(
            summed.transitions[index] if homogeneous else summed.transitions[index][: size - 1],
            paths.pairs.sum(0) if homogeneous else paths.pairs,
        )
    close(over_batch.transitions, total)
    if homogeneous:
        close(chains.smooth(*case.inputs, algorithm=algorithm, sum_batch=True).transitions, total.sum(0))


def test_filtering_and_prediction(case):
    for algorithm in ALGORITHMS:
        check_filtering_and_prediction(case, algorithm)


def check_filtering_and_prediction(case, algorithm):
    found = chains.filter(*case.inputs, algorithm=algorithm)
    lagged = [chains.fixed_lag(*case.inputs, lag=lag, algorithm=algorithm) for lag in (0, 1, 2, 9)]
    states = case.emission.shape[-1]
    future = torch.randn(2, states, states, dtype=torch.float64).log_softmax(-1)
    predicted = chains.predict(*case.inputs, horizon=2, future=future, algorithm=algorithm)
    steps = case.emission.shape[-2]
    for index, paths in case.paths.items():
        size = paths.states.shape[1]
        initial = case.initial.expand(*case.emission.shape[:-2], states)[index]
        transition = case.transition.expand(*case.emission.shape[:-2], *case.transition.shape[-3:])[index]
        until = [
            all_paths(initial, transition[:end] if len(transition) > 1 else transition, case.emission[index][: end + 1])
            for end in range(size)
        ]
        evidence = torch.stack([part.log_likelihood for part in until])
        close(found.increments[index][:size], evidence.diff(prepend=evidence.new_zeros(1)).nan_to_num(-INF, -INF, -INF))
        assert not found.increments[index][size:].any()
        for t in range(size):
            close(found.probabilities[index][t], until[t].marginals[-1])
            for lag, probabilities in zip((0, 1, 2, 9), lagged, strict=True):
                close(probabilities[index][t], until[min(t + lag, size - 1)].marginals[t])
        assert not any(p[index][size:].any() for p in [found.probabilities, *lagged])
        ahead = until[-1].marginals[-1] @ future[0].exp()
        close(predicted[index], torch.stack([ahead, ahead @ future[1].exp()]))
    if case.transition.shape[-3] == 1 and steps > 1:
        last = chains.predict(*case.inputs, algorithm=algorithm)
        again = chains.predict(*case.inputs, algorithm=algorithm, future=case.transition)
        close(last, again)


def test_best_paths(case):
    for algorithm in ALGORITHMS:
        check_best_paths(case, algorithm)


def check_best_paths(case, algorithm):
    states, log_joint = chains.viterbi(*case.inputs, algorithm=algorithm)
    several, scores = chains.viterbi(*case.inputs, num_best=5, algorithm=algorithm)
    for index, paths in case.paths.items():
        size = paths.states.shape[1]
        expected, best = paths.best(5)
        close(log_joint[index], torch.cat([best, best.new_tensor([-INF])])[0])
        if len(best):
            assert torch.equal(states[index][:size], expected[0])
        assert bool((states[index][size:] == -1).all())
        close(scores[index][: len(best)], best)
        assert bool((scores[index][len(best) :] == -INF).all())
        assert torch.equal(several[index][: len(best), :size], expected)
        assert bool((several[index][len(best) :] == -1).all())
        assert bool((several[index][:, size:] == -1).all())


def test_drawn_paths(case):
    for algorithm in ALGORITHMS:
        check_drawn_paths(case, algorithm)


def check_drawn_paths(case, algorithm):
    if case.emission.shape[-1] ** case.emission.shape[-2] > 300:
        case = case.shorter(3)
    num_samples = 2000
    drawn = chains.sample(*case.inputs, num_samples=num_samples, algorithm=algorithm)
    assert drawn.shape == (num_samples, *case.emission.shape[:-1])
    for index, paths in case.paths.items():
        size = paths.states.shape[1]
        mine = drawn[(slice(None), *index)]
        assert bool((mine[:, size:] == -1).all())
        if paths.log_likelihood == -INF:
            assert bool((mine == -1).all())
            continue
        weight = paths.num_states ** torch.arange(size).flip(0)
        counts = (mine[:, :size] * weight).sum(-1).bincount(minlength=len(paths.states)).double()
        expected = paths.probabilities * num_samples
        assert bool((counts[expected == 0] == 0).all())
        error = (expected * (1 - expected / num_samples)).sqrt()
        # 5 standard errors; the 3 is for cells of which Poisson counts are expected
        assert bool(((counts - expected).abs() <= 5 * error + 3).all())


def test_gradients(case):
    inputs = [t.clone().requires_grad_() for t in (case.initial, case.transition, case.emission)]
    value = chains.log_likelihood(*inputs, case.lengths)
    weights = torch.randn(value.shape, dtype=torch.float64)
    found = torch.autograd.grad((value * weights).sum(), inputs)
    same = Case(*inputs, case.lengths)
    expected = torch.autograd.grad(
        sum(paths.log_likelihood * weights[index] for index, paths in same.paths.items()),
        inputs,
        materialize_grads=True,
    )
    for ours, oracle in zip(found, expected, strict=True):
        close(ours, oracle, atol=1e-8, rtol=1e-8)


def test_gradients_of_gradients():
    case = random_case(3, 4, 3, zeros=True, ragged=True, varying=True)
    case.emission = case.emission.nan_to_num(0.0, 0.0, -INF)
    logits = (case.initial, case.transition, case.emission)
    finite = [t.isfinite() for t in logits]
    start = [t[m].clone().requires_grad_() for t, m in zip(logits, finite, strict=True)]

    def value(*parts):
        full = [
            torch.full(m.shape, -INF, dtype=torch.float64).masked_scatter(m, p)
            for m, p in zip(finite, parts, strict=True)
        ]
        return chains.log_likelihood(*full, case.lengths)

    assert torch.autograd.gradcheck(value, start)
    assert torch.autograd.gradgradcheck(value, start)


def test_hessian_equals_that_of_brute_force():
    case = random_case(5, 4, 3, batch=())

    def brute(emission):
        return all_paths(case.initial, case.transition, emission).log_likelihood

    def ours(emission):
        return chains.log_likelihood(case.initial, case.transition, emission)

    close(
        torch.autograd.functional.hessian(ours, case.emission), torch.autograd.functional.hessian(brute, case.emission)
    )


@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
def test_an_empty_batch(algorithm):
    initial, transition = torch.zeros(2), torch.zeros(1, 2, 2)
    for emission in (torch.zeros(0, 3, 2), torch.zeros(2, 0, 3, 2)):
        inputs = (initial, transition, emission)
        batch = emission.shape[:-2]
        assert chains.log_likelihood(*inputs, algorithm=algorithm).shape == batch
        smoothed = chains.smooth(*inputs, algorithm=algorithm, sum_batch=True)
        assert smoothed.marginals.shape == emission.shape
        assert smoothed.transitions.shape == (2, 2)
        assert chains.filter(*inputs, algorithm=algorithm).increments.shape == (*batch, 3)
        assert chains.predict(*inputs, horizon=4, algorithm=algorithm).shape == (*batch, 4, 2)
        assert chains.fixed_lag(*inputs, lag=1, algorithm=algorithm).shape == emission.shape
        assert chains.viterbi(*inputs, algorithm=algorithm)[0].shape == (*batch, 3)
        assert chains.viterbi(*inputs, num_best=2)[0].shape == (*batch, 2, 3)
        assert chains.sample(*inputs, num_samples=5, algorithm=algorithm).shape == (5, *batch, 3)


@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
def test_impossible_data_are_marked(algorithm):
    initial, transition = torch.tensor([0.0, -INF]), torch.eye(2).log().unsqueeze(0)
    emission = torch.zeros(2, 4, 2)
    emission[1, 2, 0] = -INF
    leaves = [t.clone().requires_grad_() for t in (initial, transition, emission)]
    value = chains.log_likelihood(*leaves, algorithm=algorithm)
    assert value.tolist() == [0.0, -INF]
    for gradient in torch.autograd.grad(value[0] + value[1], leaves):
        assert bool(gradient.isfinite().all())
    smoothed = chains.smooth(initial, transition, emission, algorithm=algorithm)
    assert smoothed.log_likelihood.tolist() == [0.0, -INF]
    assert not smoothed.marginals[1].any()
    assert not smoothed.transitions[1].any()
    assert smoothed.transitions[0].tolist() == [[3.0, 0.0], [0.0, 0.0]]
    filtered = chains.filter(initial, transition, emission, algorithm=algorithm)
    assert filtered.increments[1].tolist() == [0.0, 0.0, -INF, -INF]
    assert filtered.probabilities[1].tolist() == [[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    assert not chains.predict(initial, transition, emission, algorithm=algorithm)[1].any()
    assert not chains.fixed_lag(initial, transition, emission, lag=1, algorithm=algorithm)[1, 1:].any()
    assert bool((chains.viterbi(initial, transition, emission, algorithm=algorithm)[0][1] == -1).all())
    assert bool((chains.sample(initial, transition, emission, num_samples=3, algorithm=algorithm)[:, 1] == -1).all())


GOOD = {"initial": torch.zeros(2), "transition": torch.zeros(1, 2, 2), "emission": torch.zeros(3, 5, 2)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"initial": torch.zeros(3)}, r"initial to broadcast to \(\*batch, K\) = \(3, 2\); got \(3,\)"),
        ({"initial": torch.zeros(())}, r"got \(\)"),
        ({"transition": torch.zeros(2, 2)}, r"\(3, 4, 2, 2\), its time axis 1 .* got \(2, 2\)"),
        ({"transition": torch.zeros(5, 2, 2)}, r"got \(5, 2, 2\)"),
        ({"transition": torch.zeros(2, 1, 2, 2)}, r"got \(2, 1, 2, 2\)"),
        ({"emission": torch.zeros(2)}, r"emission of shape \(\*batch, T, K\)"),
        ({"emission": torch.zeros(3, 0, 2)}, r"T and K at least 1; got \(3, 0, 2\)"),
        ({"emission": torch.zeros(3, 5, 2, dtype=torch.long)}, "as floats; got torch.int64"),
        ({"lengths": torch.tensor([1, 2])}, r"integers of shape \(3,\)"),
        ({"lengths": torch.tensor([1.0, 2.0, 3.0])}, "got torch.float32"),
        ({"lengths": torch.tensor([0, 2, 5])}, "between 1 and T = 5; got 0 to 5"),
        ({"lengths": torch.tensor([1, 2, 6])}, "got 1 to 6"),
        ({"algorithm": "fast"}, "one of auto, sequential, blocked, scan; got 'fast'"),
    ],
)
@pytest.mark.parametrize("function", [chains.log_likelihood, chains.smooth, chains.filter, chains.viterbi])
def test_mistakes_are_explained(function, wrong, message):
    with pytest.raises(ValueError, match=f"{function.__name__}: expected .*{message}"):
        function(**{**GOOD, **wrong})


def test_mistakes_of_single_functions():
    varying = {**GOOD, "transition": torch.zeros(4, 2, 2)}
    with pytest.raises(ValueError, match=r"predict: expected future, .* got None"):
        chains.predict(**varying)
    with pytest.raises(ValueError, match=r"predict \(future\): expected transition"):
        chains.predict(**varying, horizon=2, future=torch.zeros(3, 2, 2))
    with pytest.raises(ValueError, match="predict: expected a horizon of at least 1; got 0"):
        chains.predict(**GOOD, horizon=0)
    with pytest.raises(ValueError, match="fixed_lag: expected a lag of at least 0; got -1"):
        chains.fixed_lag(**GOOD, lag=-1)
    with pytest.raises(ValueError, match="viterbi: expected num_best of at least 1; got 0"):
        chains.viterbi(**GOOD, num_best=0)
    with pytest.raises(ValueError, match="sample: expected num_samples of at least 0; got -1"):
        chains.sample(**GOOD, num_samples=-1)


def test_memory_of_earlier_calls_does_not_show():
    scratch = Scratch()
    for steps, states, count in ((300, 3, 2), (140, 2, 1), (300, 3, 4), (5, 4, 3)):
        torch.manual_seed(steps + count)
        tables = (torch.randn(states), torch.randn(1, states, states), torch.randn(count, steps, states))
        lengths = torch.randint(1, steps + 1, (count,))
        fresh = chains.smooth(*tables, lengths)
        again = chains.smooth(*tables, lengths, scratch=scratch)
        for name, value in vars(fresh).items():
            torch.testing.assert_close(getattr(again, name), value, rtol=0, atol=0)
