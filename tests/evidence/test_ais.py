"""Annealed importance sampling against normalizers by enumeration."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import softplus

import pyro_lvm as lvm
from pyro_lvm.evidence.ais import annealed_importance_sampling, reverse_annealed_importance_sampling


class SmallMachine:
    """Six visible and four hidden units, written out."""

    def __init__(self, seed=0, scale=1.0):
        generator = torch.Generator().manual_seed(seed)
        self.weight = scale * torch.randn(6, 4, generator=generator).double()
        self.visible, self.hidden = (torch.randn(k, generator=generator).double() for k in (6, 4))

    def free_energy(self, v, beta=1.0):
        return -beta * (v @ self.visible) - softplus(beta * (v @ self.weight + self.hidden)).sum(-1)

    def base_log_normalizer(self):
        return 10 * torch.tensor(2.0).double().log()

    def base_sample(self, count):
        return torch.bernoulli(torch.full((count, 6), 0.5).double())

    def annealed_step(self, v, beta, next_beta):
        gain = self.free_energy(v, beta) - self.free_energy(v, next_beta)
        h = torch.bernoulli((next_beta * (v @ self.weight + self.hidden)).sigmoid())
        return torch.bernoulli((next_beta * (h @ self.weight.T + self.visible)).sigmoid()), gain

    @property
    def every(self):
        return torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 6)

    @property
    def exact(self):
        return float((-self.free_energy(self.every)).logsumexp(0))

    def exact_sample(self, count):
        return self.every[torch.multinomial((-self.free_energy(self.every)).softmax(0), count, replacement=True)]


@pytest.mark.parametrize("reverse", [False, True])
def test_weights_are_unbiased(reverse):
    torch.manual_seed(0)
    law, path = SmallMachine(), torch.linspace(0, 1, 6)  # few temperatures: a mistake in the weights shows
    if reverse:
        found = reverse_annealed_importance_sampling(law, law.exact_sample(20_000), path)
    else:
        found = annealed_importance_sampling(law, 20_000, path)
    assert abs(found.value - law.exact) < 4 * found.standard_error
    assert found.standard_error < 0.02
    assert 1 <= found.effective_sample_size <= 20_000


def test_standard_errors_cover():
    torch.manual_seed(1)
    law, path = SmallMachine(), torch.linspace(0, 1, 30)
    inside = 0
    for _ in range(200):
        found = annealed_importance_sampling(law, 100, path)
        inside += abs(found.value - law.exact) < 2 * found.standard_error
    assert inside >= 178  # of 200 at .95: fewer than 178 less than once in a thousand runs


def test_forward_and_reverse_bracket_on_average():
    torch.manual_seed(2)
    law, path = SmallMachine(scale=2.0), torch.linspace(0, 1, 4)
    low = [annealed_importance_sampling(law, 2, path).value for _ in range(300)]
    high = [reverse_annealed_importance_sampling(law, law.exact_sample(2), path).value for _ in range(300)]
    assert sum(low) / 300 < law.exact < sum(high) / 300


@pytest.mark.parametrize("path", [[0.0], [0.0, 0.5], [0.0, 0.7, 0.3, 1.0], [0.1, 1.0]])
def test_bad_temperatures_are_refused(path):
    with pytest.raises(ValueError, match=r"rise from 0 to 1"):
        annealed_importance_sampling(SmallMachine(), 10, torch.tensor(path))


def test_one_chain_and_infinite_energies_are_refused():
    law = SmallMachine()
    with pytest.raises(ValueError, match=r"at least 2 chains"):
        annealed_importance_sampling(law, 1)
    law.annealed_step = lambda v, beta, next_beta: (v, torch.full((len(v),), torch.inf))
    with pytest.raises(ValueError, match=r"finite weights"):
        annealed_importance_sampling(law, 10, torch.linspace(0, 1, 2))


def test_a_fit_is_no_law():
    fit = lvm.fit(lvm.models.RBM(2), torch.eye(3), max_epochs=1, seed=0, progress=False)
    said = r"expected the law of an undirected site, .*; got Fit\. Of a fit pass fit\.model\.law\(\), of"
    with pytest.raises(TypeError, match=f"^annealed_importance_sampling: {said}"):
        lvm.evidence.annealed_importance_sampling(fit)
    with pytest.raises(TypeError, match=f"^reverse_annealed_importance_sampling: {said}"):
        lvm.evidence.reverse_annealed_importance_sampling(fit, torch.eye(3))
    assert lvm.evidence.annealed_importance_sampling(fit.model.law(), 2, torch.linspace(0, 1, 3)).value > 0
