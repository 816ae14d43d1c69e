"""The law of linear dynamical systems: published figures, forms of arguments, verbs of a user's own program."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm.distributions import LinearGaussianChain
from pyro_lvm.testing.oracles import broad_reals

ONE = torch.ones(1, 1, dtype=torch.float64)


def some_law(**options):
    torch.manual_seed(5)
    turn = torch.tensor([[0.9, 0.3], [-0.3, 0.9]]).double()
    return LinearGaussianChain(
        turn, torch.randn(3, 2).double(), 0.5 + torch.rand(3).double(), torch.arange(3.0).double(), **options
    )


def test_batches_of_any_shape_are_sequences_one_by_one() -> None:
    law = some_law(num_steps=6)
    x = law.sample((4, 5))
    assert x.shape == (4, 5, 6, 3)
    x[1, 2, 3, 0] = torch.nan
    expected = torch.stack([torch.stack([law.log_prob(row) for row in part]) for part in x])
    torch.testing.assert_close(law.log_prob(x), expected)
    wide = law.expand((4, 5))
    torch.testing.assert_close(wide.log_prob(x), expected)
    torch.testing.assert_close(wide.log_prob(x[0, 0]), expected[0, 0].expand(4, 5))
    torch.testing.assert_close(law.latent_mean(x)[1, 2], law.latent_mean(x[1, 2]))
    assert law.posterior_sample(x, 7).shape == (7, 4, 5, 6, 2)


def test_a_single_step_has_the_law_of_factor_analysis() -> None:
    law = some_law()
    x = law.lasting(1).sample((5,))
    covariance = law.weight @ law.weight.mT + law.noise_scale.square().diag()
    expected = torch.distributions.MultivariateNormal(law.loc, covariance).log_prob(x[:, 0])
    torch.testing.assert_close(law.log_prob(x), expected, rtol=1e-12, atol=1e-12)


def test_padding_does_not_matter() -> None:
    lengths = torch.tensor([6, 2, 4])
    law, plain = some_law(lengths=lengths), some_law()
    x = plain.lasting(6).sample((3,))
    x[1, 2:] = torch.nan
    x[2, 4:] = 1e6
    expected = torch.stack([plain.log_prob(row[:length]) for row, length in zip(x, lengths, strict=True)])
    torch.testing.assert_close(law.log_prob(x), expected)
    for i, length in enumerate(lengths):
        torch.testing.assert_close(law.latent_mean(x)[i, :length], plain.latent_mean(x[i, :length]))
        torch.testing.assert_close(law.filter(x)[i, :length], plain.filter(x[i, :length]))
        assert not law.latent_mean(x)[i, length:].any()
        assert not law.posterior_sample(x, 2)[:, i, length:].any()


def test_the_last_filtered_and_smoothed_states_are_the_same() -> None:
    law = some_law()
    x = law.lasting(8).sample((2,))
    torch.testing.assert_close(law.filter(x)[:, -1], law.latent_mean(x)[:, -1])
    assert not torch.allclose(law.filter(x)[:, 0], law.latent_mean(x)[:, 0])


def test_missing_entries_are_expected_by_the_joint_law() -> None:
    """The mean of the entry of a pair: by integration over a grid."""
    law = some_law()
    x = law.lasting(4).sample((1,))
    gap = x.clone()
    gap[0, 2, 1] = torch.nan
    grid = torch.linspace(-20, 20, 4001, dtype=x.dtype) + x[0, 2, 1]
    every = x.repeat(len(grid), 1, 1)
    every[:, 2, 1] = grid
    density = law.log_prob(every)
    expected = (density.softmax(0) * grid).sum()
    assert float(law.conditional_mean(gap)[0, 2, 1]) == pytest.approx(float(expected), abs=1e-9)
    step = math.log(float(grid[1] - grid[0]))
    assert float(law.log_prob(gap)) == pytest.approx(float(density.logsumexp(0)) + step, abs=1e-9)


def test_parameters_in_single_precision_give_single_precision() -> None:
    law = some_law()
    single = LinearGaussianChain(*(p.float() for p in (law.transition, law.weight, law.noise_scale, law.loc)))
    x = law.lasting(50).sample((3,))
    assert single.log_prob(x.float()).dtype == torch.float32
    torch.testing.assert_close(single.log_prob(x.float()), law.log_prob(x).float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"weight": ONE[0]}, "expected weight of shape"),
        ({"transition": torch.eye(2).double()}, "expected transition of shape"),
        ({"noise_scale": ONE}, "expected noise_scale of shape"),
        ({"initial_covariance": ONE[0]}, "expected initial_covariance of shape"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, why) -> None:
    with pytest.raises(ValueError, match=why):
        LinearGaussianChain(**{"transition": ONE, "weight": ONE, "noise_scale": ONE[0], **change})


def test_values_that_do_not_fit_are_refused() -> None:
    law = some_law()
    with pytest.raises(ValueError, match=r"expected values of shape \(..., T, 3\)"):
        law.log_prob(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="expected num_steps"):
        law.sample()


def random_walks(x):
    """A program of a user's own: a level that wanders, seen with noise."""
    step = pyro.param("step", x.new_tensor(0.5), constraint=dist.constraints.positive)
    noise = pyro.param("noise", x.new_tensor([1.0]), constraint=dist.constraints.positive)
    one = x.new_ones(1, 1)
    law = LinearGaussianChain(one, one, noise, transition_covariance=step.square() * one, initial_covariance=9 * one)
    with pyro.plate("data", len(x)):
        return pyro.sample("x", law, obs=x)


@pytest.fixture(scope="module")
def walks():
    torch.manual_seed(3)
    level = torch.randn(10, 60, 1).double().cumsum(1)
    return level, level + 2 * torch.randn(10, 60, 1).double()


def test_a_users_program_is_learned_by_gradients_and_read_by_all_verbs(walks) -> None:
    level, x = walks
    gaps = x.clone()
    gaps[:, 20:25] = torch.nan
    fit = lvm.fit(random_walks, gaps, inference="em", max_epochs=6, seed=0, progress=False)
    assert float(fit.params["step"]) == pytest.approx(1, rel=0.25)
    assert float(fit.params["noise"]) == pytest.approx(2, rel=0.25)
    rate = lvm.infer.SVI(learning_rate=0.05)
    svi = lvm.fit(random_walks, gaps, inference=rate, max_epochs=60, seed=0, progress=False)
    assert svi.score(gaps) == pytest.approx(fit.score(gaps), abs=0.05)
    smooth = fit.transform(gaps)
    assert (smooth - level).square().mean() < 0.5 * (x - level).square().mean()
    torch.testing.assert_close(fit.impute(gaps)[:, 20:25], smooth[:, 20:25])
    assert torch.equal(fit.impute(gaps)[:, :20], x[:, :20])
    draws = fit.posterior(gaps, 300)["h"]
    assert draws.shape == (300, 10, 60, 1)
    assert (draws.mean(0) - smooth).abs().max() < 5 * draws.std(0).max() / math.sqrt(300)
    assert fit.sample(4).shape == (4, 60, 1)
    with pytest.raises(ValueError, match="no discrete latent"):
        fit.predict(x)
    assert "normal states of x, summed out exactly" in str(fit.plan(x))


def test_the_density_of_a_users_program_integrates_to_one(walks) -> None:
    x = walks[1][:, :12].reshape(-1, 3, 1)
    fit = lvm.fit(random_walks, x, inference="em", max_epochs=5, seed=0, progress=False)
    lvm.testing.laws.density_integrates_to_one(fit, x, proposal=broad_reals)
    lvm.testing.laws.sampler_agrees_with_density(fit, x, proposal=broad_reals)
