"""The hidden Markov law: conventions, shapes, missing steps, conversions, draws, errors."""

from __future__ import annotations

import itertools
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_lvm.distributions import HMM

INITIAL = torch.tensor([0.6, 0.4], dtype=torch.float64)
SWITCH = torch.tensor([[0.7, 0.3], [0.2, 0.8]], dtype=torch.float64)
EMISSION = dist.Normal(torch.tensor([-1.0, 2.0], dtype=torch.float64), 1.0)
X = torch.tensor([[-1.2, 0.3, 2.2, 1.9], [2.0, 2.5, -0.5, -1.0]], dtype=torch.float64)


def by_paths(x: Tensor, allowed: Any = None) -> Tensor:
    """Sum over all paths, one after another."""
    terms = []
    for path in itertools.product(range(2), repeat=len(x)):
        if allowed is not None and any(a >= 0 and a != z for a, z in zip(allowed, path, strict=True)):
            continue
        term = INITIAL[path[0]].log() + sum(SWITCH[a, b].log() for a, b in itertools.pairwise(path))
        for value, z in zip(x, path, strict=True):
            if not value.isnan():
                term = term + dist.Normal(EMISSION.loc[z], 1.0).log_prob(value)
        terms.append(term)
    return torch.stack(terms).logsumexp(0)


def test_log_prob_is_the_sum_over_paths() -> None:
    hmm = HMM(INITIAL, SWITCH, EMISSION)
    torch.testing.assert_close(hmm.log_prob(X), torch.stack([by_paths(row) for row in X]))
    torch.testing.assert_close(hmm.log_prob(X[0]), by_paths(X[0]))


def test_missing_steps_known_states_and_lengths() -> None:
    x = X.clone()
    x[0, 1] = x[1, 0] = torch.nan
    hmm = HMM(INITIAL, SWITCH, EMISSION, lengths=torch.tensor([4, 2]))
    torch.testing.assert_close(hmm.log_prob(x), torch.stack([by_paths(x[0]), by_paths(x[1, :2])]))
    clamped = hmm.clamp(torch.tensor([[-1, 0, -1, 1], [1, -1, -1, -1]]))
    expected = torch.stack([by_paths(x[0], [-1, 0, -1, 1]), by_paths(x[1, :2], [1, -1])])
    torch.testing.assert_close(clamped.log_prob(x), expected)


def test_conversion_to_and_from_pyro() -> None:
    hmm = HMM(INITIAL, SWITCH, EMISSION, num_steps=4)
    theirs = hmm.to_discrete_hmm()
    torch.testing.assert_close(theirs.log_prob(X), hmm.log_prob(X))
    torch.testing.assert_close(HMM.from_discrete_hmm(theirs).log_prob(X), hmm.log_prob(X))
    plain = dist.DiscreteHMM(INITIAL.log(), SWITCH.log(), EMISSION, duration=4)
    torch.testing.assert_close(HMM.from_discrete_hmm(plain).log_prob(X), plain.log_prob(X))


def test_draws_agree_with_the_density() -> None:
    torch.manual_seed(0)
    law = HMM(INITIAL, SWITCH, dist.Bernoulli(torch.tensor([0.1, 0.8], dtype=torch.float64)), num_steps=3)
    x, z = law.sample_with_states((20000,))
    assert x.shape == z.shape == (20000, 3)
    for values in itertools.product([0.0, 1.0], repeat=3):
        row = torch.tensor(values, dtype=torch.float64)
        share = (x == row).all(-1).double().mean()
        p = law.log_prob(row).exp()
        assert abs(float(share - p)) < 4 * float((p * (1 - p) / 20000).sqrt())
    moves = torch.stack([((z[:, :-1] == a) & (z[:, 1:] == b)).sum() for a in range(2) for b in range(2)]).reshape(2, 2)
    torch.testing.assert_close(moves / moves.sum(-1, keepdim=True), SWITCH.float(), rtol=0, atol=0.02)


def test_batches_of_parameters_and_plates() -> None:
    loc = torch.randn(5, 1, 2, 3, dtype=torch.float64)
    hmm = HMM(INITIAL, SWITCH.expand(5, 1, 2, 2), dist.Normal(loc, 1.0).to_event(1), num_steps=4)
    assert hmm.batch_shape == (5,)
    assert hmm.event_shape == (4, 3)
    x = hmm.sample()
    one = HMM(INITIAL, SWITCH, dist.Normal(loc[2, 0], 1.0).to_event(1))
    torch.testing.assert_close(hmm.log_prob(x)[2], one.log_prob(x[2]))
    with pyro.plate("data", 7):
        assert pyro.sample("x", HMM(INITIAL, SWITCH, EMISSION, num_steps=4)).shape == (7, 4)


def test_impossible_transitions_have_no_gradient_of_nan() -> None:
    initial = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    moves = torch.tensor([[0.5, 0.5], [0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    HMM(initial, moves, EMISSION, validate_args=False).log_prob(X).sum().backward()
    assert torch.isfinite(initial.grad).all()
    assert torch.isfinite(moves.grad).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"initial_probs": INITIAL, "transition_probs": SWITCH * 2, "emission": EMISSION},
            "transition_probs whose rows sum to one; row 0 sums to 2. Normalise it",
        ),
        ({"initial_probs": INITIAL / 2, "transition_probs": SWITCH, "emission": EMISSION}, "initial_probs whose rows"),
        ({"transition_probs": SWITCH, "emission": EMISSION}, "initial_probs or initial_logits"),
        ({"initial_probs": INITIAL, "emission": EMISSION}, "transition_probs or transition_logits"),
        ({"initial_probs": INITIAL, "transition_probs": SWITCH}, "expected an emission"),
        ({"initial_probs": INITIAL, "transition_probs": SWITCH[0], "emission": EMISSION}, "square matrices"),
        (
            {"initial_probs": torch.ones(3) / 3, "transition_probs": SWITCH, "emission": EMISSION},
            "initial over 2 states",
        ),
        (
            {"initial_probs": INITIAL, "transition_probs": SWITCH, "emission": dist.Normal(torch.zeros(3), 1.0)},
            "emission over 2 states",
        ),
        (
            {
                "initial_probs": INITIAL,
                "transition_probs": SWITCH.expand(4, 2, 2),
                "emission": EMISSION,
                "num_steps": 9,
            },
            "one number of steps",
        ),
    ],
)
def test_what_does_not_fit_is_said(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HMM(**arguments)
