"""A Helmholtz machine learns bars almost as well as can be, by enumeration."""

import itertools

import pytest
import torch
from torch.nn.functional import softplus

import pyro_lvm as lvm

STEPS = 3000


class Decaying(torch.optim.Adam):
    """Adam whose rate falls to a hundredth over the run."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] *= 0.01 ** (1 / STEPS)
        return super().step(closure)


def log_likelihood(model, x):
    """Log-likelihood of each row, shape (m,), every state of two hidden layers listed."""
    h1, h2 = (torch.tensor(list(itertools.product((0.0, 1.0), repeat=units))) for units in model.hidden)
    with torch.no_grad():
        top = h2 @ model.top_bias - softplus(model.top_bias).sum()
        middle, bottom = model.decoder[1](h2), model.decoder[0](h1)
        prior = (h1 @ middle.T - softplus(middle).sum(-1) + top).logsumexp(-1)
        return (x @ bottom.T - softplus(bottom).sum(-1) + prior).logsumexp(-1)


@pytest.mark.slow
def test_bars_are_learned_to_within_three_tenths_of_a_nat():
    law = lvm.datasets.bars(4)
    x = law.sample(2000, torch.Generator().manual_seed(0))
    svi = lvm.infer.SVI(
        loss=lvm.infer.WakeSleep(num_samples=5, wake_guide=1.0),
        optimizer=lambda parameters: Decaying(parameters, lr=0.1),
    )
    fit = lvm.fit(
        lvm.models.SigmoidBeliefNet((8, 4)),
        x,
        guide="recognition-net",
        inference=svi,
        seed=0,
        batch_size=100,
        max_epochs=STEPS // 20,
        progress=False,
    )
    log_p = log_likelihood(fit.model, law.x)
    assert float(log_p.exp().sum()) <= 1 + 1e-4
    cross_entropy = -float((law.probabilities * log_p).sum())
    assert cross_entropy - law.entropy < 0.3, f"{cross_entropy - law.entropy:.3f} nats"
