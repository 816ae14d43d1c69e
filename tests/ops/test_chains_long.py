"""Long chains: blocks and scans against a plain loop in logarithms, in both precisions, and what underflows."""

import pytest
import torch

from pyro_lvm.ops import chains
from pyro_lvm.ops.chains import scaled
from pyro_lvm.ops.chains.blocks import Matrices, cut
from pyro_lvm.ops.chains.fast import FastFilter, FastPosterior
from pyro_lvm.ops.chains.inputs import prepare

INF = torch.inf
ALGORITHMS = ["auto", "sequential", "blocked", "scan"]


def simulated(chain_count, steps, states, *, varying=False, dtype=torch.float64, separation=1.5):
    """Chains of a hidden Markov model with normal emissions: initial, transition, emission."""
    initial = torch.randn(states, dtype=torch.float64).log_softmax(-1)
    transition = torch.randn(steps - 1 if varying else 1, states, states, dtype=torch.float64)
    transition = (transition + 2 * torch.eye(states)).log_softmax(-1)
    path = chains.sample(initial, transition, torch.zeros(1, steps, states), num_samples=chain_count)[:, 0]
    x = separation * path + torch.randn(chain_count, steps, dtype=torch.float64)
    emission = -0.5 * (x.unsqueeze(-1) - separation * torch.arange(states)).square() - 0.919
    return initial.to(dtype), transition.to(dtype), emission.to(dtype)


def plain_loop(initial, transition, emission):
    """Log-likelihood, marginals and pairs of one chain by a loop over its steps in logarithms."""
    steps = len(emission)
    transition = transition.expand(steps - 1, -1, -1)
    forward = [initial + emission[0]]
    for t in range(1, steps):
        forward.append((forward[-1].unsqueeze(-1) + transition[t - 1]).logsumexp(0) + emission[t])
    backward = [torch.zeros_like(initial)]
    for t in reversed(range(1, steps)):
        backward.append((transition[t - 1] + emission[t] + backward[-1]).logsumexp(-1))
    forward, backward = torch.stack(forward), torch.stack(backward[::-1])
    evidence = forward[-1].logsumexp(-1)
    pairs = forward[:-1].unsqueeze(-1) + transition + (emission + backward)[1:].unsqueeze(-2) - evidence
    return evidence, (forward + backward - evidence).exp(), pairs.exp()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("varying", [False, True])
def test_long_chains_of_many_lengths(algorithm, varying):
    initial, transition, emission = simulated(6, 1100, 3, varying=varying)
    lengths = torch.tensor([1100, 1, 2, 33, 34, 700])
    emission[torch.arange(1100) >= lengths.unsqueeze(-1)] = torch.nan
    found = chains.smooth(initial, transition, emission, lengths, algorithm=algorithm)
    filtered = chains.filter(initial, transition, emission, lengths, algorithm=algorithm)
    lagged = chains.fixed_lag(initial, transition, emission, lengths, lag=60, algorithm=algorithm)
    for n, size in enumerate(lengths.tolist()):
        own = transition[: size - 1] if varying else transition
        evidence, marginals, pairs = plain_loop(initial, own, emission[n, :size])
        torch.testing.assert_close(found.log_likelihood[n], evidence, atol=1e-8, rtol=1e-12)
        torch.testing.assert_close(found.marginals[n, :size], marginals, atol=1e-10, rtol=0)
        torch.testing.assert_close(
            found.transitions[n, : size - 1] if varying else found.transitions[n],
            pairs if varying else pairs.sum(0),
            atol=1e-10,
            rtol=1e-9,
        )
        torch.testing.assert_close(filtered.increments[n].sum(), evidence, atol=1e-8, rtol=1e-12)
        torch.testing.assert_close(filtered.probabilities[n, size - 1], marginals[-1], atol=1e-10, rtol=0)
        # the chain forgets: 60 steps ahead say all
        torch.testing.assert_close(lagged[n, :size], marginals, atol=1e-4, rtol=0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_long_paths(algorithm):
    initial, transition, emission = simulated(3, 700, 4)
    lengths = torch.tensor([700, 300, 5])
    states, log_joint = chains.viterbi(initial, transition, emission, lengths, algorithm=algorithm)
    again, scores = chains.viterbi(initial, transition, emission, lengths, num_best=2)
    assert torch.equal(states, again[:, 0])
    torch.testing.assert_close(log_joint, scores[:, 0])
    assert bool((scores[:, 1] < scores[:, 0]).all())
    for n, size in enumerate(lengths.tolist()):
        path = states[n, :size]
        joint = (
            initial[path[0]] + transition[0, path[:-1], path[1:]].sum() + emission[n, torch.arange(size), path].sum()
        )
        torch.testing.assert_close(joint, log_joint[n])
    num_samples = 400
    drawn = chains.sample(initial, transition, emission, lengths, num_samples=num_samples, algorithm=algorithm)
    assert bool((drawn[:, 1, 300:] == -1).all())
    smoothed = chains.smooth(initial, transition, emission, lengths)
    for n, size in enumerate(lengths.tolist()):
        for state in range(4):
            share = (drawn[:, n, :size] == state).double().mean(0)
            expected = smoothed.marginals[n, :size, state]
            error = (expected * (1 - expected) / num_samples).sqrt()
            # 5 standard errors, and counts of 5 of what is rare
            assert bool(((share - expected).abs() <= 5 * error + 5 / num_samples).all())
        pairs = drawn[:, n, : size - 1] * 4 + drawn[:, n, 1:size]
        counts = pairs.flatten().bincount(minlength=16).reshape(4, 4) / num_samples
        expected = smoothed.transitions[n]
        assert bool(((counts - expected).abs() <= 10 * (expected / num_samples).sqrt() + 0.1).all())


@pytest.mark.parametrize("algorithm", ["auto", "blocked", "scan"])
def test_gradients_of_a_long_chain(algorithm):
    inputs = [t.requires_grad_() for t in simulated(2, 300, 3)]
    value = chains.log_likelihood(*inputs, algorithm=algorithm)
    weights = torch.tensor([1.0, -2.0])
    found = torch.autograd.grad((value * weights).sum(), inputs)
    expected = sum(plain_loop(inputs[0], inputs[1], inputs[2][n])[0] * weights[n] for n in range(2))
    for ours, oracle in zip(found, torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(ours, oracle, atol=1e-9, rtol=1e-9)


def test_a_million_steps_in_single_precision(monkeypatch):
    loops = []
    at = Matrices.at
    monkeypatch.setattr(Matrices, "at", lambda *args: loops.append(1) or at(*args))
    initial, transition, emission = simulated(1, 1_000_000, 4)
    emission = emission[0]
    double = chains.smooth(initial, transition, emission)
    single = chains.smooth(initial.float(), transition.float(), emission.float())
    assert len(loops) < 2000  # no loop over the steps
    assert abs(float(single.log_likelihood) / float(double.log_likelihood) - 1) < 1e-6
    torch.testing.assert_close(single.marginals.double(), double.marginals, atol=1e-4, rtol=0)
    torch.testing.assert_close(single.transitions.double(), double.transitions, atol=0, rtol=1e-4)
    torch.testing.assert_close(double.transitions.sum(), torch.tensor(999_999.0).double())
    assert float(single.marginals.sum(-1).sub_(1).abs().max()) < 1e-4


def hidden_turn(distance, steps, dtype=torch.float64):
    """A state made e^-distance times as likely as the other at one step, and all others ruled out by the next."""
    transition = torch.tensor([[0.9, 0.1], [0.0, 1.0]], dtype=dtype).log().unsqueeze(0)
    emission = torch.zeros(steps, 2, dtype=dtype)
    emission[steps // 2, 1] = -distance
    emission[steps // 2 + 1, 0] = -INF
    return torch.tensor([0.0, -INF], dtype=dtype), transition.masked_fill(torch.eye(2).mT == 2, 0.0), emission


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("distance", [5.0, 60.0, 90.0, 300.0, 700.0, 720.0, 740.0, 745.0, 750.0, 2000.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_underflows_and_is_needed_later(algorithm, distance, dtype):
    steps = 140
    inputs = hidden_turn(distance, steps, dtype)
    turn = steps // 2
    # the turn happens at the unlikely step or before (paying for it there), or right after it
    log_stay, log_turn = torch.tensor([0.9, 0.1], dtype=torch.float64).log()
    after = turn * log_stay + log_stay * 0 + log_turn
    before = torch.logsumexp(torch.arange(turn).double() * log_stay + log_turn, 0) - distance
    expected = torch.logaddexp(after, before)
    found = chains.smooth(*inputs, algorithm=algorithm)
    precision = 1e-9 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(found.log_likelihood.double(), expected, atol=0, rtol=precision)
    torch.testing.assert_close(found.marginals[turn, 1].double(), (before - expected).exp(), atol=precision, rtol=0)
    value = chains.log_likelihood(*inputs, algorithm=algorithm)
    torch.testing.assert_close(value.double(), expected, atol=0, rtol=precision)
    filtered = chains.filter(*inputs, algorithm=algorithm)
    torch.testing.assert_close(filtered.increments.double().sum(), expected, atol=0, rtol=precision)
    assert bool(filtered.probabilities.isfinite().all())
    assert filtered.probabilities[turn + 1].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_only_way_is_2000_nats_below(algorithm):
    transition = torch.eye(3, dtype=torch.float64).log().unsqueeze(0)
    emission = torch.zeros(2, 300, 3, dtype=torch.float64)
    emission[0, 10, 1:] = -2000.0
    emission[0, 250, :2] = -3000.0
    found = chains.smooth(torch.zeros(3), transition, emission, algorithm=algorithm)
    expected = torch.logsumexp(torch.tensor([-3000.0, -5000.0, -2000.0], dtype=torch.float64), 0)
    torch.testing.assert_close(found.log_likelihood[0], expected)
    assert found.marginals[0].argmax(-1).unique().tolist() == [2]
    assert float(found.marginals[0, :, 2].min()) == 1.0
    drawn = chains.sample(torch.zeros(3), transition, emission, num_samples=5, algorithm=algorithm)
    assert drawn[:, 0].unique().tolist() == [2]
    torch.testing.assert_close(chains.log_likelihood(torch.zeros(3), transition, emission)[0], expected)
    filtered = chains.filter(torch.zeros(3), transition, emission, algorithm=algorithm).probabilities[0]
    assert float(filtered[100, 0]) == 1.0
    assert float(filtered[260, 2]) == 1.0


def test_what_underflows_is_wrong_unless_it_is_noticed(monkeypatch):
    emission = torch.zeros(20, 2, dtype=torch.float64)
    emission[0, 1] = -800.0
    emission[10:, 0] = -300.0
    inputs = torch.zeros(2), torch.eye(2).log().unsqueeze(0), emission
    assert float(chains.log_likelihood(*inputs)) == -800.0
    monkeypatch.setattr("pyro_lvm.ops.chains.fast.negligible", lambda losses, *_: torch.ones_like(losses) == 1)
    assert float(chains.log_likelihood(*inputs)) == -3000.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_usual_data_need_no_logarithms(dtype):
    inputs = simulated(20, 400, 4, dtype=dtype, separation=4.0)
    for block in (2, 32, 400):
        given = prepare("test", *inputs, None)
        assert not FastPosterior(given, block).lost.any()
        assert not FastFilter(given, block).lost.any()


def test_chains_from_left_to_right_need_no_logarithms():
    left_to_right = torch.full((4, 4), -INF, dtype=torch.float64).fill_diagonal_(-0.1)
    left_to_right[torch.arange(3), torch.arange(1, 4)] = -2.4
    _, _, emission = simulated(20, 60, 4)
    given = prepare("test", torch.tensor([0.0, -INF, -INF, -INF]), left_to_right.unsqueeze(0), emission, None)
    assert not FastPosterior(given, 60).lost.any()


def test_the_bound_on_losses_holds():
    # losses of a_t are planted: every probability below a floor vanishes, as if floats were that short
    torch.manual_seed(1)
    floor, states, steps = 1e-9, 3, 12
    noticed = 0
    for _ in range(200):
        initial = (4 * torch.randn(states).double()).softmax(-1)
        transition = (6 * torch.randn(1, 1, states, states).double()).softmax(-1)
        emission = (12 * torch.randn(1, steps, states).double()).softmax(-1)
        emission = emission / emission.amax(-1, keepdim=True)
        places = cut(1, steps, None, steps, torch.device("cpu"))
        exact = scaled.Forward(places, (initial * emission[:, 0]).mT, transition, places.gather(emission))
        expected = float(exact.scale.log().sum() + exact.first_scale.log().sum())
        messages, total = initial * emission[0, 0], 0.0
        for t in range(steps):
            if t:
                messages = (messages @ transition[0, 0]) * emission[0, t]
            messages = torch.where(messages < floor, 0.0, messages)
            total += float(messages.sum().log())
            messages = messages / messages.sum()
        bound = floor * states * float(scaled.Backward(exact).losses)
        noticed += bound > 1e-3
        # a loss of a share s changes the logarithm by less than 2 s, where s is below 0.7
        assert abs(total - expected) <= 2 * bound + 1e-12 or bound > 0.7
    assert 5 < noticed < 195


def test_a_row_that_is_no_number_stays_alone():
    initial, transition, emission = simulated(3, 40, 3)
    emission[1, 7, 2] = torch.nan
    found = chains.smooth(initial, transition, emission)
    alone = chains.smooth(initial, transition, emission[::2])
    assert bool(found.log_likelihood[1].isnan())
    torch.testing.assert_close(found.log_likelihood[::2], alone.log_likelihood)
    torch.testing.assert_close(found.marginals[::2], alone.marginals)
    torch.testing.assert_close(found.transitions[::2], alone.transitions)


def test_many_states():
    inputs = simulated(3, 200, 64)
    for algorithm in ALGORITHMS:
        found = chains.smooth(*inputs, algorithm=algorithm, sum_batch=True)
        pairs = sum(plain_loop(inputs[0], inputs[1], inputs[2][n])[2].sum(0) for n in range(3))
        torch.testing.assert_close(found.transitions, pairs, atol=1e-9, rtol=1e-9)


def test_potentials_need_not_be_normalised():
    initial, transition, emission = simulated(2, 500, 3)
    shifted = chains.smooth(initial + 900, transition - 800, emission + 1000)
    plain = chains.smooth(initial, transition, emission)
    torch.testing.assert_close(shifted.marginals, plain.marginals)
    torch.testing.assert_close(shifted.transitions, plain.transitions)
    torch.testing.assert_close(shifted.log_likelihood, plain.log_likelihood + 900 - 499 * 800 + 500 * 1000)
