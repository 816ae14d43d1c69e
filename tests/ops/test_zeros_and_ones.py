"""Draws of zeros and ones against their probabilities, and against independence."""

import math

import pytest
import torch

from pyro_lvm.ops.zeros_and_ones import zeros_and_ones


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_probability_is_kept(dtype):
    """Each frequency within 5 standard errors: a failure has odds of 1e-5."""
    probs = torch.tensor([1e-6, 1e-4, 0.01, 0.3, 0.5, 0.5 + 2**-17, 0.9, 0.9999], dtype=dtype)
    count = 2_000_000
    ones = sum(zeros_and_ones(probs.expand(count // 4, -1)).double().sum(0) for _ in range(4))
    error = (ones - count * probs).abs() / (count * probs * (1 - probs)).sqrt()
    assert float(error.max()) < 5


def test_the_shared_digits_count_as_much_as_they_should():
    """A probability below 2^-16 is met by the shared digits alone: ones come in few draws, but as often in all."""
    probs, draws = torch.full((64, 64), 2.0**-18), 4000
    ones = sum(float(zeros_and_ones(probs).sum()) for _ in range(draws))
    mean = draws * probs.numel() * 2.0**-18
    assert abs(ones - mean) < 5 * math.sqrt(mean)


def test_zero_and_one_are_certain():
    for _ in range(300):  # of shared digits there are 256
        assert not bool(zeros_and_ones(torch.zeros(50, 40)).any())
        assert bool(zeros_and_ones(torch.ones(50, 40)).all())


def test_entries_are_independent():
    """Neighbours, which are cut from one number, and far ones: 4 standard errors of a mean of products."""
    signs = 2 * zeros_and_ones(torch.full((20_000, 50), 0.5)) - 1
    for shift in (1, 2, 3, 4, 17):
        mean = float((signs[:, shift:] * signs[:, :-shift]).mean())
        assert abs(mean) < 4 / math.sqrt(20_000 * (50 - shift))
    assert abs(float((signs[1:] * signs[:-1]).mean())) < 4 / math.sqrt(19_999 * 50)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3, 5), (0, 4)])
def test_shapes_types_and_seeds(shape):
    probs = torch.full(shape, 0.5).requires_grad_()
    with torch.no_grad():
        torch.manual_seed(3)
        first = zeros_and_ones(probs)
        torch.manual_seed(3)
        again = zeros_and_ones(probs)
    assert first.shape == shape
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert bool(((first == 0) | (first == 1)).all())
    assert zeros_and_ones(probs.detach().mT if len(shape) > 1 else probs.detach()).numel() == probs.numel()
