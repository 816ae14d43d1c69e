"""Sparse coding: its log joint density, its steps, its codes, its likelihood."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from sklearn.decomposition import sparse_encode

import pyro_lvm as lvm
from pyro_lvm.handlers import rows
from pyro_lvm.handlers.rows import rows_at_hand
from pyro_lvm.ops.lasso import violation


def some_rows(n: int = 200, d: int = 6, k: int = 9, noise: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of a dictionary of unit columns, and the dictionary."""
    torch.manual_seed(3)
    weight = torch.nn.functional.normalize(torch.randn(d, k, dtype=torch.float64), dim=0)
    codes = torch.distributions.Laplace(0.0, 1.0).sample((n, k)).double() * (torch.rand(n, k) < 0.3)
    return 2 + codes @ weight.mT + noise * torch.randn(n, d, dtype=torch.float64), weight


def objective(fit: lvm.Fit, x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Minus the log joint density of known entries, by hand, nats."""
    model, weight, loc = fit.model, fit.params["weight"], fit.params["loc"]
    known = (~x.isnan()).double()
    rest = torch.where(known > 0, x - loc - codes @ weight.mT, 0.0) / model.noise_scale
    noise = 0.5 * rest.square() + known * (math.log(model.noise_scale) + 0.5 * math.log(2 * math.pi))
    prior = model.sparsity * codes.abs() - math.log(model.sparsity / 2)
    return noise.sum() + prior.sum()


def train(x: torch.Tensor, **options) -> lvm.Fit:
    model = lvm.models.SparseCoding(9, sparsity=3.0, noise_scale=0.3)
    return lvm.fit(model, x, **{"max_epochs": 30, "seed": 0, "progress": False, **options})


@pytest.mark.parametrize("gaps", [False, True])
def test_loss_is_the_joint_density_and_never_rises(gaps):
    x, _ = some_rows()
    if gaps:
        x[torch.rand_like(x) < 0.2] = torch.nan
        x[5] = torch.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the guard of EM has nothing to undo
        fit = train(x)
    losses = torch.tensor(fit.history["loss"])
    assert bool((losses.diff() <= 1e-9 * losses[0].abs()).all())
    assert losses[-1] < losses[1] - 20
    assert torch.allclose(fit.params["weight"].norm(dim=0), torch.ones(9, dtype=torch.float64))
    exact = objective(fit, x, fit.transform(x))
    assert exact <= losses[-1] + 1e-6  # the mode itself, not where the last visit ended
    with fit.scope(), torch.no_grad(), rows():
        assert fit.inference.loss(x) == pytest.approx(float(exact), rel=1e-9)


def test_codes_are_those_of_scikit_learn():
    x, _ = some_rows()
    fit = train(x)
    new = some_rows()[0][:50] + 0.1
    weight, loc = fit.params["weight"], fit.params["loc"]
    codes = fit.transform(new)
    penalty = 3.0 * 0.3**2
    assert float(violation((new - loc) @ weight, weight.mT @ weight, penalty, codes).max()) <= 1e-6
    theirs = sparse_encode(
        (new - loc).numpy(), weight.mT.numpy(), algorithm="lasso_cd", alpha=penalty, max_iter=100_000
    )
    assert torch.allclose(codes, torch.from_numpy(theirs), atol=1e-3)
    assert torch.allclose(fit.reconstruct(new), loc + codes @ weight.mT)


def test_a_row_with_gaps_is_coded_by_what_is_known():
    x, _ = some_rows()
    fit = train(x)
    weight, loc = fit.params["weight"], fit.params["loc"]
    gappy = x[:40].clone()
    gappy[torch.rand_like(gappy) < 0.3] = torch.nan
    codes = fit.transform(gappy)
    for row, code in zip(gappy, codes, strict=True):
        known = ~row.isnan()
        own = weight[known]
        short = violation(((row - loc)[known] @ own)[None], own.mT @ own, 3.0 * 0.3**2, code[None])
        assert float(short) <= 1e-6


def test_the_dictionary_is_found_again():
    x, weight = some_rows(2000, noise=0.05)
    fit = lvm.fit(
        lvm.models.SparseCoding(9, sparsity=2.0, noise_scale=0.2), x, max_epochs=300, seed=1, restarts=2, progress=False
    )
    likeness = (weight.mT @ fit.params["weight"]).abs().amax(1)
    assert float(likeness.min()) > 0.97


def test_unused_columns_take_the_place_of_rows_that_fit_badly():
    x, _ = some_rows()
    model = lvm.models.SparseCoding(2, sparsity=3.0, noise_scale=0.3, data_dim=6).double()
    model.loc = x.mean(0)
    h = torch.zeros(len(x), 2, dtype=torch.float64)
    h[:, 0] = 1.0
    with torch.no_grad():
        sums = model._sums(h, x, None, x, torch.ones(len(x), dtype=torch.float64))
        new = model._maximise(h, x, None, x, sums)
    rest = x - new["loc"] - h[:, :1] * new["weight"][:, 0]
    worst = rest[rest.norm(dim=1).argmax()]
    assert torch.allclose(new["weight"][:, 1], worst / worst.norm())


def test_svi_and_em_reach_as_good_dictionaries():
    x, _ = some_rows()
    by_em = train(x, max_epochs=300, seed=1)
    by_svi = train(x, guide="sparse-codes", inference=lvm.infer.SVI(learning_rate=0.02), max_epochs=600, seed=1)
    ours, theirs = (float(objective(fit, x, fit.transform(x))) for fit in (by_em, by_svi))
    assert abs(ours - theirs) < 1e-3 * abs(ours)
    assert torch.allclose(by_svi.params["weight"].norm(dim=0), torch.ones(9, dtype=torch.float64))


def test_validation_counts_the_prior_of_codes():
    x, _ = some_rows()
    fit = train(x[:150], validation=x[150:], max_epochs=5)
    with fit.scope(), torch.no_grad(), rows():
        held_out = fit.inference.held_out_loss(x[150:])
    assert held_out == pytest.approx(float(objective(fit, x[150:], fit.transform(x[150:]))), rel=1e-9)


def test_likelihood_agrees_with_a_grid():
    x, _ = some_rows(60, 3, 2, noise=0.2)
    model = lvm.models.SparseCoding(2, sparsity=1.0, noise_scale=0.4)
    fit = lvm.fit(model, x, max_epochs=20, seed=0, progress=False)
    x = x[:20].clone()
    x[3, 1] = x[4, 0] = torch.nan
    side = torch.linspace(-16, 16, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    weight, loc = fit.params["weight"], fit.params["loc"]
    near = torch.distributions.Normal(loc + grid @ weight.mT, 0.4)
    prior = torch.distributions.Laplace(0.0, 1.0).log_prob(grid).sum(-1) + 2 * math.log(float(side[1] - side[0]))
    for row, found in zip(x, fit.log_likelihood(x).double(), strict=True):
        terms = near.log_prob(row.nan_to_num())
        exact = (torch.where(row.isnan(), 0.0, terms).sum(-1) + prior).logsumexp(0)
        assert abs(float(exact - found)) < 0.1
    evidence = fit.evidence(x, num_samples=20_000)
    assert evidence.estimator == "importance weighting with 20000 samples of laws around the guide's points"
    assert float(evidence.standard_error.max()) < 0.02
    assert float(evidence.pareto_k.max()) < 0.7


def test_long_codes_have_no_likelihood():
    x, _ = some_rows()
    fit = lvm.fit(lvm.models.SparseCoding(65, noise_scale=0.3), x, max_epochs=2, seed=0, progress=False)
    with pytest.raises(ValueError, match=r"expected codes of at most 64 entries.*got 65"):
        fit.score(x)
    assert fit.transform(x).shape == (200, 65)


def test_stepwise_em_learns_from_batches():
    x, _ = some_rows(1000, noise=0.05)
    model = lvm.models.SparseCoding(9, sparsity=2.0, noise_scale=0.2)
    fit = lvm.fit(model, x, inference=lvm.infer.EM(decay=0.6), batch_size=100, max_epochs=10, seed=1, progress=False)
    assert float(objective(fit, x, fit.transform(x))) < 0.75 * fit.history["loss"][0]


def test_statistics_of_batches_are_those_of_all_rows():
    """With equal weights of all batches so far and parameters that do not move, the average is the whole."""
    x, _ = some_rows()
    model = lvm.models.SparseCoding(4, data_dim=6).double()
    codes = torch.randn(200, 4, dtype=torch.float64)
    given: list[dict[str, torch.Tensor]] = []
    model._maximise = lambda h, x, law, value, sums: given.append(sums) or {}

    class Known:
        def __call__(self, x):
            hand = rows_at_hand()
            h = codes if hand is None else codes[hand.index]
            with pyro.plate("data", len(x)):
                pyro.sample("h", dist.Delta(h, event_dim=1))

    em = lvm.infer.EM(model, Known(), decay=1.0)
    for part in torch.arange(200).split(50):
        with rows(part, 200), lvm.handlers.minibatch(total=200):
            em.step(x[part])
    lvm.infer.EM(model, Known()).step(x)
    assert given[-2].keys() == given[-1].keys() == {"rows", "first", "codes", "second", "cross"}
    for name, value in given[-2].items():
        assert torch.allclose(value, given[-1][name]), name


def test_batches_of_a_data_set_know_their_rows():
    x, _ = some_rows()
    fit = train(x, guide="sparse-codes", inference=lvm.infer.SVI(learning_rate=0.02), batch_size=50, max_epochs=20)
    assert fit.guide.table.shape == (200, 9)
    near = fit.transform(x) * 3.0  # in units of the prior
    assert float((fit.guide.table - near).abs().mean()) < 0.1 * float(near.abs().mean())


def test_any_program_of_laplace_sites():
    """Two sites with scales and a location of their own, noise by column, and an own plate name."""
    torch.manual_seed(0)
    weight, shift = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    noise = torch.tensor([0.2, 0.3, 0.4, 0.5, 0.6], dtype=torch.float64)

    def program(x):
        with pyro.plate("people", len(x)):
            zero = x.new_zeros(len(x), 1)
            a = pyro.sample("a", dist.Laplace(zero + x.new_tensor([0.5, 0.0, -1.0]), 0.7).to_event(1))
            b = pyro.sample("b", dist.Laplace(zero.expand(-1, 2), 1.5).to_event(1))
            pyro.sample("x", dist.Normal(1 + a @ weight.mT + b @ shift.mT, noise).to_event(1), obs=x)

    x = 1 + torch.randn(30, 5, dtype=torch.float64)
    guide = lvm.guides.SparseCodes(program)
    found = {name: value.detach() for name, value in guide(x).items()}

    def log_joint(values):
        trace = poutine.trace(poutine.condition(program, values)).get_trace(x)
        trace.compute_log_prob()
        return sum(trace.nodes[name]["log_prob"] for name in ("a", "b", "x"))

    best = log_joint(found)
    assert int((found["b"] == 0).sum()) > 0
    for _ in range(100):
        near = {name: value + 0.01 * torch.randn_like(value) for name, value in found.items()}
        assert bool((log_joint(near) <= best).all())


def test_programs_of_other_kinds_are_refused():
    def program(x):
        with pyro.plate("data", len(x)):
            h = pyro.sample("h", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(h, 1.0), obs=x)

    with pytest.raises(
        ValueError,
        match="affine map of Laplace or StudentT or SpikeAndSlab latent sites; site 'h' is Normal, not Laplace or",
    ):
        lvm.guides.SparseCodes(program)(torch.randn(5))


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"SparseCoding: expected sparsity > 0; got 0\.0"):
        lvm.models.SparseCoding(3, sparsity=0.0)
    with pytest.raises(ValueError, match="SparseCodes: expected num_sweeps"):
        lvm.guides.SparseCodes(lambda x: None, num_sweeps=0)
    x, _ = some_rows()
    with pytest.raises(ValueError, match="takes these sites of rows by guide 'sparse-codes'; got 'map'"):
        train(x, guide="map")
    fit = train(x, max_epochs=1)
    with pytest.raises(ValueError, match=r"SparseCoding: expected x of shape \(n, 6\); got \(200, 5\)"):
        fit.transform(x[:, :5])


def test_constant_columns_do_no_harm_and_rows_must_differ() -> None:
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wide = torch.cat([torch.full((60, 1), 5.0, dtype=torch.float64), x], 1)
    options = {"max_epochs": 20, "seed": 0, "progress": False}
    fit, wider = (lvm.fit(lvm.models.SparseCoding(4, noise_scale=0.3), rows, **options) for rows in (x, wide))
    assert wider.params["weight"][0].abs().max() < 1e-12
    torch.testing.assert_close(wider.reconstruct(wide)[:, 0], wide[:, 0])
    torch.testing.assert_close(wider.reconstruct(wide)[:, 1:], fit.reconstruct(x))
    with pytest.raises(ValueError, match="expected rows that differ; got 60 equal ones"):
        lvm.fit(lvm.models.SparseCoding(2), torch.ones_like(x), **options)
