"""Sparse coding by prior: planted dictionaries, supports, likelihoods, and what each takes."""

import itertools
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm.distributions import SpikeAndSlab
from pyro_lvm.handlers import rows

PRIORS = {
    "laplace": {"sparsity": 2.0, "noise_scale": 0.2},
    "student-t": {"sparsity": 10.0, "noise_scale": 0.1},
    "spike-and-slab": {"inclusion_probability": 0.2, "slab_scale": 1.4, "noise_scale": 0.1},
}
each_prior = pytest.mark.parametrize("prior", PRIORS)
OPTIONS = {"seed": 1, "progress": False}


def planted(n: int, d: int = 6, k: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, their dictionary and their codes."""
    torch.manual_seed(3)
    weight = torch.nn.functional.normalize(torch.randn(d, k, dtype=torch.float64), dim=0)
    codes = torch.distributions.Laplace(0.0, 1.0).sample((n, k)).double() * (torch.rand(n, k) < 0.2)
    return 2 + codes @ weight.mT + 0.05 * torch.randn(n, d, dtype=torch.float64), weight, codes


def train(prior: str, x: torch.Tensor, k: int = 9, **options) -> lvm.Fit:
    return lvm.fit(lvm.models.SparseCoding(k, prior=prior, **PRIORS[prior]), x, **{**OPTIONS, **options})


def log_joint(fit: lvm.Fit, x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Of known entries and codes, by hand, nats by row."""
    model = fit.model
    rest = (x - fit.params["loc"] - codes @ fit.params["weight"].mT) / model.noise_scale
    noise = torch.where(x.isnan(), 0.0, -0.5 * rest.square() - math.log(model.noise_scale * math.sqrt(2 * math.pi)))
    if model.prior == "laplace":
        prior = math.log(model.sparsity / 2) - model.sparsity * codes.abs()
    elif model.prior == "student-t":
        prior = torch.distributions.Cauchy(codes.new_zeros(()), codes.new_tensor(1 / model.sparsity)).log_prob(codes)
    else:
        narrow = (model.noise_scale**-2 + model.slab_scale**-2) ** -0.5
        slab = -0.5 * (codes / model.slab_scale).square() + math.log(narrow / model.slab_scale)
        pi = model.inclusion_probability
        prior = torch.where(codes == 0, math.log(1 - pi), math.log(pi) + slab)
    return noise.sum(-1) + prior.sum(-1)


@pytest.mark.parametrize("gaps", [False, True], ids=["complete", "gaps"])
@each_prior
def test_loss_is_the_joint_density_and_never_rises(prior, gaps):
    x = planted(150)[0]
    if gaps:
        x[torch.rand_like(x) < 0.1] = torch.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the guard of EM has nothing to undo
        fit = train(prior, x, max_epochs=12)
    losses = torch.tensor(fit.history["loss"], dtype=torch.float64)
    assert bool((losses.diff() <= 1e-9 * losses[0].abs()).all())
    assert losses[-1] < losses[1] - 10
    codes = fit.transform(x)
    with fit.scope(), torch.no_grad(), rows():
        assert fit.inference.loss(x) == pytest.approx(-float(log_joint(fit, x, codes).sum()), rel=1e-8)
    for _ in range(20):  # codes near by are no more probable
        near = codes + 1e-3 * torch.randn_like(codes) * (codes != 0)
        assert bool((log_joint(fit, x, near) <= log_joint(fit, x, codes) + 1e-9).all())


def test_a_planted_dictionary_is_found_with_students_prior():
    x, weight, _ = planted(600)
    fit = train("student-t", x, max_epochs=60, restarts=2)
    assert float((weight.mT @ fit.params["weight"]).abs().amax(1).min()) > 0.95


def test_a_planted_dictionary_and_supports_are_found_with_spikes():
    x, weight, codes = planted(600, d=8)
    fit = train("spike-and-slab", x, max_epochs=60, restarts=2)
    likeness = weight.mT @ fit.params["weight"]
    assert float(likeness.abs().amax(1).min()) > 0.95
    found = fit.transform(x)[:, likeness.abs().argmax(1)]
    telling = (codes.abs() > 0.3) | (codes == 0)  # others drown in the noise
    few = ((codes != 0).sum(-1) <= 4).unsqueeze(-1) & telling  # of more, there are other ways to the same row
    assert float(((found != 0) == (codes != 0))[few].double().mean()) > 0.98


def test_units_do_not_matter_to_spikes():
    x = planted(60)[0]
    fit = train("spike-and-slab", x, max_epochs=5)
    options = {"inclusion_probability": 0.2, "slab_scale": 1.4e3, "noise_scale": 100.0, "prior": "spike-and-slab"}
    other = lvm.fit(lvm.models.SparseCoding(9, **options), 1e3 * x, max_epochs=5, **OPTIONS)
    torch.testing.assert_close(other.transform(1e3 * x), 1e3 * fit.transform(x))
    ours, theirs = (one.evidence(rows, num_samples=1).values for one, rows in ((fit, x), (other, 1e3 * x)))
    torch.testing.assert_close(theirs + 6 * math.log(1e3), ours)


def test_spikes_have_their_likelihood():
    """Against a mixture of normal laws of rows over all supports, of what is known of each row."""
    x = planted(25, d=4, k=3)[0]
    fit = train("spike-and-slab", x, k=3, max_epochs=5)
    x[torch.rand_like(x) < 0.2] = torch.nan
    found = fit.evidence(x, num_samples=10)
    assert float(found.standard_error.max()) < 1e-9
    weight, loc = fit.params["weight"], fit.params["loc"]
    for row, value in zip(x, found.values, strict=True):
        known = ~row.isnan()
        terms = []
        for support in itertools.product([0.0, 1.0], repeat=3):
            on = torch.tensor(support).double()
            covariance = 0.01 * torch.eye(4).double() + (1.4**2 * weight * on) @ weight.mT
            law = dist.MultivariateNormal(loc[known], covariance[known][:, known])
            terms.append(law.log_prob(row[known]) + (on * math.log(0.2) + (1 - on) * math.log(0.8)).sum())
        assert float(value) == pytest.approx(float(torch.stack(terms).logsumexp(0)), abs=1e-6)


def test_long_codes_with_spikes_have_about_their_likelihood():
    """Twelve entries are drawn from a mean field: on average no more than over all supports, and near it."""
    torch.manual_seed(0)
    model = lvm.models.SparseCoding(12, noise_scale=0.4, data_dim=40, prior="spike-and-slab", slab_scale=1.0).double()
    x = model(size=12).detach()
    fit = lvm.fit(model, x, max_epochs=1, **OPTIONS)
    weight, loc = fit.params["weight"], fit.params["loc"]
    bits = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 12)
    found = fit.evidence(x[:5], num_samples=4000).values
    columns = weight / 0.4
    for row, value in zip((x[:5] - loc) / 0.4, found, strict=True):
        gram = columns.mT @ columns * bits.unsqueeze(-1) * bits.unsqueeze(-2) + torch.eye(12).double()
        level = (row @ columns * bits).unsqueeze(-1)
        fits = 0.5 * (level * torch.linalg.solve(gram, level)).sum((1, 2)) - 0.5 * torch.linalg.slogdet(gram)[1]
        prior = (bits * math.log(0.2) + (1 - bits) * math.log(0.8)).sum(-1)
        normal = -0.5 * row.square().sum() - 40 * math.log(0.4 * math.sqrt(2 * math.pi))
        assert float(value) == pytest.approx(float((fits + prior).logsumexp(0) + normal), abs=0.15)


@each_prior
def test_weights_count_rows(prior):
    x = lvm.datasets.load("iris").x
    counts = torch.randint(0, 2, (150,), generator=torch.Generator().manual_seed(0))

    def fit(data):
        model = lvm.models.SparseCoding(3, noise_scale=0.3, prior=prior)
        return lvm.fit(model, data, max_epochs=10, seed=0, progress=False)

    some, left = fit({"x": x, "sample_weights": counts}), fit(x[counts == 1])
    torch.testing.assert_close(some.params, left.params)
    assert some.history["loss"][-1] == pytest.approx(left.history["loss"][-1])
    twice = fit({"x": x, "sample_weights": torch.full((150,), 2.0)})
    assert twice.history["loss"][-1] == pytest.approx(2 * fit(x).history["loss"][-1])


@pytest.mark.parametrize("prior", ["student-t", "spike-and-slab"])
def test_gaps_are_filled(prior):
    """A code alone that what is known tells of at all tells the rest of its row."""
    x, _, codes = planted(600)
    fit = train(prior, x, max_epochs=40)
    big = (codes.abs() > 1).sum(-1) * ((codes != 0).sum(-1) == 1) == 1
    gappy = x[big].clone()
    gappy[:, 1] = torch.nan
    filled = fit.impute(gappy)
    assert torch.equal(filled[:, 0], x[big][:, 0])
    assert float((filled - x[big])[:, 1].abs().median()) < 0.15
    assert fit.sample(5).shape == (5, 6)


def test_students_prior_by_a_law_for_every_row():
    x = planted(40, d=4, k=3)[0]
    fit = train("student-t", x, k=3, inference="svi", guide="local", max_epochs=10)
    assert fit.transform(x).shape == (40, 3)
    assert fit.history["loss"][-1] < 0.6 * fit.history["loss"][0]


def test_any_program_with_spikes():
    """Two sites with priors of their own, under another name of the plate."""
    torch.manual_seed(0)
    weight = torch.randn(5, 4, dtype=torch.float64)
    pi, scale = torch.tensor([0.1, 0.3]).double(), torch.tensor([1.0, 2.0]).double()

    def program(x):
        with pyro.plate("people", len(x)):
            zero = x.new_zeros(len(x), 2)
            a = pyro.sample("a", SpikeAndSlab(pi, zero, scale).to_event(1))
            b = pyro.sample("b", SpikeAndSlab(0.2, zero, 1.0, unit=0.5).to_event(1))
            pyro.sample("x", dist.Normal(torch.cat([a, b], -1) @ weight.mT, 0.3).to_event(1), obs=x)

    x = torch.randn(20, 5, dtype=torch.float64)
    found = lvm.guides.SparseCodes(program)(x)
    codes = torch.cat([found["a"], found["b"]], -1)
    laws = [SpikeAndSlab(pi, 0.0, scale), SpikeAndSlab(0.2, torch.zeros(2).double(), 1.0, unit=0.5)]

    def density(h):
        prior = sum(law.log_prob(part).sum(-1) for law, part in zip(laws, h.split(2, -1), strict=True))
        return prior + dist.Normal(h @ weight.mT, 0.3).log_prob(x).sum(-1)

    assert bool((codes == 0).any())
    for j in range(4):
        other = codes.clone()
        other[:, j] = 0
        assert bool((density(other) <= density(codes) + 1e-9).all())


def test_priors_that_differ_by_row_are_refused():
    def program(x):
        with pyro.plate("data", len(x)):
            freedom = 1 + (torch.arange(len(x)) == 3).to(x)
            h = pyro.sample("h", dist.StudentT(freedom.unsqueeze(-1), x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(h, 0.3).to_event(1), obs=x)

    with pytest.raises(ValueError, match="a latent site depends on another, or on the rows"):
        lvm.guides.SparseCodes(program)(torch.randn(9, 2))


@pytest.mark.parametrize("options", [{"guide": "local"}, {"guide": "normal"}])
def test_densities_over_real_numbers_are_refused_with_spikes(options):
    with pytest.raises(ValueError, match=r"zero has a probability of its own.*Use guide 'sparse-codes'"):
        train("spike-and-slab", planted(20)[0], inference="svi", max_epochs=1, **options)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"prior": "normal"}, r"expected prior to be one of laplace, student-t, spike-and-slab; got 'normal'"),
        ({"slab_scale": 1.0}, r"expected sparsity for prior='laplace'; got slab_scale=1\.0\. Leave it out"),
        ({"prior": "spike-and-slab", "sparsity": 1.0}, "expected inclusion_probability and slab_scale for prior"),
        ({"prior": "spike-and-slab", "inclusion_probability": 1.0}, r"inclusion_probability in \(0, 1\); got 1\.0"),
        ({"prior": "student-t", "degrees_of_freedom": 0}, "expected degrees_of_freedom > 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, why):
    with pytest.raises(ValueError, match=why):
        lvm.models.SparseCoding(3, **arguments)


@each_prior
def test_it_is_kept_in_files(prior, tmp_path):
    x = planted(60)[0]
    fit = train(prior, x, max_epochs=3)
    fit.save(tmp_path / "fit")
    again = lvm.load(tmp_path / "fit")
    assert repr(again.model) == repr(fit.model)
    assert torch.equal(again.transform(x), fit.transform(x))


@each_prior
def test_what_is_not_given_is_chosen_in_the_units_of_the_rows(prior):
    x = planted(60)[0]
    one, other = (
        lvm.fit(lvm.models.SparseCoding(5, prior=prior), rows, max_epochs=3, **OPTIONS) for rows in (x, 1e3 * x - 7)
    )
    assert one.model.noise_scale == pytest.approx(0.3 * float(x.var(0, correction=0).mean().sqrt()))
    assert other.model.noise_scale == pytest.approx(1e3 * one.model.noise_scale)
    torch.testing.assert_close(other.transform(1e3 * x - 7), 1e3 * one.transform(x))
    kept = lvm.models.SparseCoding(5, prior=prior, noise_scale=0.7)
    assert lvm.fit(kept, x, max_epochs=1, **OPTIONS).model.noise_scale == 0.7
    assert kept.config["noise_scale"] == 0.7
    assert lvm.models.SparseCoding(5, prior=prior, data_dim=4)(size=3).shape == (3, 4)


def test_noise_alone_makes_next_to_no_codes():
    torch.manual_seed(0)
    model = lvm.models.SparseCoding(50, noise_scale=2.0, data_dim=30).double()
    codes = lvm.guides.SparseCodes(model)(2.0 * torch.randn(200, 30, dtype=torch.float64))["h"]
    assert float((codes != 0).double().mean()) < 0.02


def test_codes_that_are_surely_there_are_found() -> None:
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    found = []
    for probability in (1 - 1e-6, 1 - 1e-12):  # single precision holds no number between the latter and 1
        model = lvm.models.SparseCoding(2, prior="spike-and-slab", inclusion_probability=probability)
        found.append(lvm.fit(model, x, max_epochs=2, seed=0, progress=False).transform(x))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)
