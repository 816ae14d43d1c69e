"""Restricted Boltzmann machines against tables of all states and mixtures of normals."""

import itertools

import pytest
import torch
from scipy import stats

from pyro_lvm.distributions import RBM, GaussianRBM

FAILURE_RATE = 1e-4


def states(count):
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=count)), dtype=torch.float64)


def parameters(d, m, seed=0):
    torch.manual_seed(seed)
    weight = torch.randn(d, m, dtype=torch.float64)
    biases = torch.randn(d, dtype=torch.float64), torch.randn(m, dtype=torch.float64)
    return (weight, *biases), torch.rand(d, dtype=torch.float64), torch.rand(m, dtype=torch.float64)


def machine(d=5, m=4, seed=0, **options):
    given, mu, la = parameters(d, m, seed)
    return RBM(*given, visible_offset=mu, hidden_offset=la, **options)


def gaussian(d=2, m=3, seed=0):
    given, mu, la = parameters(d, m, seed)
    scale = torch.full((d,), 0.7, dtype=torch.float64)
    return GaussianRBM(*given, scale, visible_offset=mu, hidden_offset=la)


def table(law):
    """Minus the energy of every pair of states, by a loop."""
    v, h = (states(count) for count in law.weight.shape)
    rows = []
    for one in v:
        left = one - law.visible_offset
        rows.append(
            [
                left @ law.visible_bias
                + (other - law.hidden_offset) @ law.hidden_bias
                + left @ law.weight @ (other - law.hidden_offset)
                for other in h
            ]
        )
    return v, torch.tensor(rows)


def mixture(law):
    """The normal mixture that a Gaussian machine is."""
    shifts = (states(law.weight.shape[1]) - law.hidden_offset) @ law.weight.T
    precision = law.noise_scale**-2
    mean = law.visible_bias + shifts
    weights = (states(law.weight.shape[1]) - law.hidden_offset) @ law.hidden_bias
    weights = weights + (precision * (0.5 * (mean**2 - law.visible_bias**2) - law.visible_offset * shifts)).sum(-1)
    components = torch.distributions.Independent(torch.distributions.Normal(mean, law.noise_scale), 1)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=weights), components)


def chi_square(law, draws):
    """The p-value of counts of all visible states."""
    index = (draws.long() << torch.arange(draws.shape[-1] - 1, -1, -1)).sum(-1)
    counts = torch.bincount(index, minlength=2 ** draws.shape[-1]).double()
    expected = law.log_prob(states(draws.shape[-1])).exp() * len(draws)
    few = expected < 5
    counts, expected = (torch.cat([t[~few], t[few].sum().reshape(1)]) for t in (counts, expected))
    return stats.chisquare(counts[expected > 0].numpy(), expected[expected > 0].numpy()).pvalue


@pytest.mark.parametrize("shape", [(5, 4), (4, 6)])
def test_energies_and_normalizer_are_sums_over_all_states(shape):
    law = machine(*shape)
    v, energies = table(law)
    torch.testing.assert_close(law.free_energy(v), -energies.logsumexp(1))
    torch.testing.assert_close(law.exact_log_normalizer(), energies.logsumexp((0, 1)))
    torch.testing.assert_close(law.log_prob(v).exp().sum(), torch.ones((), dtype=torch.float64))


def test_blocks_of_states_add_up(monkeypatch):
    whole = machine().exact_log_normalizer()
    monkeypatch.setattr("pyro_lvm.distributions.rbm.BLOCK", 12)
    torch.testing.assert_close(machine().exact_log_normalizer(), whole)


def test_offsets_are_coordinates():
    law = machine()
    usual = RBM(
        law.weight,
        law.visible_bias - law.weight @ law.hidden_offset,
        law.hidden_bias - law.visible_offset @ law.weight,
    )
    torch.testing.assert_close(law.log_prob(states(5)), usual.log_prob(states(5)))


def test_gaussian_machine_is_a_mixture_of_normals():
    law, x = gaussian(), torch.randn(20, 2, dtype=torch.float64)
    torch.testing.assert_close(law.log_prob(x), mixture(law).log_prob(x))


def test_parameters_may_differ_by_row():
    (weight, _, c), _, _ = parameters(5, 4)
    b = torch.randn(3, 5, dtype=torch.float64)
    together = RBM(weight, b, c).log_prob(states(5)[:3])
    alone = torch.stack([RBM(weight, b[i], c).log_prob(states(5)[i]) for i in range(3)])
    torch.testing.assert_close(together, alone)
    assert RBM(weight, b, c).expand((6, 3)).sample().shape == (6, 3, 5)


@pytest.mark.parametrize("shape", [(5, 4), (4, 6)])
def test_exact_draws(shape):
    law = machine(*shape)
    assert chi_square(law, law.sample((20_000,))) > FAILURE_RATE


@pytest.mark.parametrize("num_steps", [1, 3])
def test_gibbs_leaves_the_law_invariant(num_steps):
    law = machine()
    assert chi_square(law, law.gibbs(law.sample((20_000,)), num_steps)) > FAILURE_RATE


def test_steps_of_chains_leave_the_law_invariant():
    law = machine()
    values, state = law.chain_steps(law.chain_start(law.sample((20_000,))), 2)
    assert chi_square(law, values) > FAILURE_RATE
    assert chi_square(law, law.chain_steps(state, 1)[0]) > FAILURE_RATE


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_annealed_steps_leave_their_law_invariant(beta):
    law = machine()
    here = law.annealed(beta)
    assert chi_square(here, law.annealed_step(here.sample((20_000,)), beta, beta)[0]) > FAILURE_RATE


def test_gaussian_kernel_leaves_the_law_invariant():
    law = gaussian()
    x = law.gibbs(law.sample((20_000,)), 1)
    for column in range(2):
        grid = mixture(law).sample((20_000,))[:, column]
        assert stats.ks_2samp(x[:, column].numpy(), grid.numpy()).pvalue > FAILURE_RATE


@pytest.mark.parametrize("make", [machine, gaussian])
def test_path_runs_from_the_base_to_the_law(make):
    law = make()
    values = law.sample((7,))
    torch.testing.assert_close(law.annealed(0.0).exact_log_normalizer(), law.base_log_normalizer())
    torch.testing.assert_close(law.annealed(1.0).free_energy(values), law.free_energy(values))


@pytest.mark.parametrize("make", [machine, gaussian])
def test_fast_annealed_step_is_the_generic_one(make):
    law = make()
    values = law.sample((7,))
    torch.manual_seed(1)
    fast = law.annealed_step(values, 0.2, 0.6)
    torch.manual_seed(1)
    slow = super(RBM, law).annealed_step(values, 0.2, 0.6)
    torch.testing.assert_close(fast, slow)


def test_extreme_biases_are_finite():
    law = RBM(1e3 * torch.ones(3, 2), -1e3 * torch.ones(3), 1e3 * torch.ones(2))
    assert bool(torch.isfinite(law.log_prob(torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))).all())


def test_large_machine_says_how_to_get_a_normalizer():
    law = RBM(torch.zeros(21, 21), torch.zeros(21), torch.zeros(21), sample_steps=3)
    with pytest.raises(ValueError, match=r"too large to sum up. Pass log_normalizer=.*annealed_importance_sampling"):
        law.log_prob(torch.zeros(21))
    known = law.with_log_normalizer(law.base_log_normalizer())
    torch.testing.assert_close(known.log_prob(torch.zeros(21)), torch.tensor(-21 * 2.0).new_tensor(-14.5561))
    assert law.sample((2,)).shape == (2, 21)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"expected weight of shape .* \(3, 2\); got \(2, 3\). Transpose it"):
        RBM(torch.zeros(2, 3), torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="sample_steps to be a whole number >= 1"):
        RBM(torch.zeros(3, 2), torch.zeros(3), torch.zeros(2), sample_steps=0)
    with pytest.raises(ValueError, match="support"):
        RBM(torch.zeros(3, 2), torch.zeros(3), torch.zeros(2), validate_args=True).log_prob(torch.full((3,), 0.5))


def test_annealing_goes_along_the_larger_side():
    """A machine upside down has the same normalizer, offsets and all."""
    law = machine(3, 7)
    turned = law.for_annealing()
    assert tuple(turned.weight.shape) == (7, 3)
    torch.testing.assert_close(turned.exact_log_normalizer(), law.exact_log_normalizer())
    assert turned.for_annealing() is turned
