"""A Helmholtz machine learns bars almost as well as can be, by enumeration."""

import itertools

import pytest
import torch
from torch.nn.functional import softplus

import pyro_lvm as lvm


def log_likelihood(model, x):
    """Log-likelihood of each row, shape (m,), every state of two hidden layers listed."""
    h1, h2 = (torch.tensor(list(itertools.product((0.0, 1.0), repeat=units))) for units in model.hidden)
    with torch.no_grad():
        top = h2 @ model.top_bias - softplus(model.top_bias).sum()
        middle, bottom = model.decoder[1](h2), model.decoder[0](h1)
        prior = (h1 @ middle.T - softplus(middle).sum(-1) + top).logsumexp(-1)
        return (x @ bottom.T - softplus(bottom).sum(-1) + prior).logsumexp(-1)


def excess(seed, **options):
    """Cross-entropy of the law of bars under a machine of 8 and 8 units, less the law's entropy, nats."""
    law = lvm.datasets.bars(4)
    x = law.sample(2000, torch.Generator().manual_seed(seed))
    fit = lvm.fit(lvm.models.SigmoidBeliefNet((8, 8)), x, seed=seed, progress=False, **options)
    log_p = log_likelihood(fit.model, law.x)
    assert float(log_p.exp().sum()) <= 1 + 1e-4
    return -float((law.probabilities * log_p).sum()) - law.entropy


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_bars_are_learned_to_within_three_tenths_of_a_nat(seed):
    """Four units on top, which must hold the direction and the bars both, end above now and then."""
    loss = lvm.infer.WakeSleep(num_samples=5, wake_guide=1.0)
    svi = lvm.infer.SVI(loss=loss, learning_rate=0.1, schedule="linear")
    assert 0 < excess(seed, inference=svi, batch_size=100, max_epochs=150) < 0.3


@pytest.mark.slow
def test_bars_are_learned_by_default():
    """The default draws several times a row, and its rate falls."""
    assert 0 < excess(0, inference="wake-sleep") < 0.3
