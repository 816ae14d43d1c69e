"""Special to the hidden Markov models: missing steps, topologies, weights, starts, checks, every inference."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm.testing.chain_oracles import all_paths

pytestmark = pytest.mark.usefixtures("local")
NAN = float("nan")


def simulate(num_rows=20, num_steps=30, seed=0):
    """Three well-separated states of two columns; their paths."""
    generator = torch.Generator().manual_seed(seed)
    transition = torch.tensor([[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.05, 0.15, 0.8]]).double()
    states = torch.randint(3, (num_rows, 1), generator=generator)
    for _ in range(num_steps - 1):
        move = torch.multinomial(transition[states[:, -1]], 1, generator=generator)
        states = torch.cat([states, move], 1)
    loc = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 5.0]]).double()
    noise = torch.randn(num_rows, num_steps, 2, generator=generator, dtype=torch.float64)
    return loc[states] + noise, states


def brute_force(model, x, lengths, densities):
    """Log-likelihood of every sequence by adding up all paths; `densities` are those of steps by state."""
    initial, transition = (table.log() for table in model.chain())
    return torch.stack(
        [
            all_paths(initial, transition.unsqueeze(0), e[:t]).log_likelihood
            for e, t in zip(densities, lengths, strict=True)
        ]
    )


@pytest.mark.parametrize("covariance", ["full", "diag", "tied", "spherical"])
def test_missing_steps_and_entries_are_summed_out(covariance):
    x = torch.randn(4, 5, 2).double()
    lengths = torch.tensor([5, 3, 4, 1])
    model = lvm.models.GaussianHMM(2, covariance=covariance)
    model.initialize(x, lengths)
    gaps = x.clone()
    gaps[0, 1] = gaps[1, 0] = NAN
    gaps[2, 2, 0] = gaps[0, 4, 1] = gaps[3, 0, 1] = NAN
    gaps[1, 3:] = 1e6  # padding
    loc, variance = model.loc.detach(), model.covariance.detach()
    matrix = {"full": lambda c: c, "tied": lambda c: c.expand(2, 2, 2), "diag": torch.diag_embed}.get(
        covariance, lambda c: c[:, None, None] * torch.eye(2).double()
    )(variance)
    densities = torch.zeros(4, 5, 2).double()
    for n, t, k in itertools.product(range(4), range(5), range(2)):
        known = ~gaps[n, t].isnan()
        if known.any():
            part = dist.MultivariateNormal(loc[k, known], matrix[k][known][:, known])
            densities[n, t, k] = part.log_prob(gaps[n, t, known])
    expected = brute_force(model, gaps, lengths.tolist(), densities)
    with pyro.poutine.trace() as capture:
        model(gaps, lengths)
    capture.trace.compute_log_prob()
    ours = capture.trace.nodes["x"]["log_prob"]
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    fit = lvm.fit(
        model, {"x": gaps[:, :3], "lengths": lengths.clamp_max(3)}, inference="em", max_epochs=10, progress=False
    )
    assert all(b <= a + 1e-9 * abs(a) for a, b in itertools.pairwise(fit.history["loss"]))


def test_missing_steps_of_regressions_are_summed_out():
    x, u = torch.randn(3, 4, 2).double(), torch.randn(3, 4, 3).double()
    model = lvm.models.RegressionHMM(2)
    model.initialize(x, covariates=u)
    x[0, 1], x[1, 2, 0] = NAN, NAN
    mean = torch.einsum("kdq,ntq->ntkd", model.coefficients, u) + model.intercept
    density = dist.Normal(mean, model.scale).log_prob(x.nan_to_num(0.0).unsqueeze(-2))
    density = torch.where(x.isnan().unsqueeze(-2), 0.0, density).sum(-1)
    expected = brute_force(model, x, [4, 4, 4], density)
    with pyro.poutine.trace() as capture:
        model(x, covariates=u)
    capture.trace.compute_log_prob()
    torch.testing.assert_close(capture.trace.nodes["x"]["log_prob"], expected, rtol=1e-10, atol=1e-10)


def accuracy(predicted, states):
    """Share of steps in the right state, under the best naming of states."""
    return max(
        float((torch.tensor(names)[predicted] == states).double().mean()) for names in itertools.permutations(range(3))
    )


def test_accuracy_degrades_gracefully_without_a_third_of_the_steps():
    x, states = simulate()
    gone = torch.rand(x.shape[:2]) < 0.3
    gaps = torch.where(gone.unsqueeze(-1), NAN, x)
    whole = lvm.fit(lvm.models.GaussianHMM(3), x, restarts=2, seed=0, progress=False)
    less = lvm.fit(lvm.models.GaussianHMM(3), gaps, restarts=2, seed=0, progress=False)
    best, worse = accuracy(whole.predict(x), states), accuracy(less.predict(gaps), states)
    assert best > 0.95
    assert best - 0.15 < worse < best
    assert accuracy(less.predict(gaps)[~gone], states[~gone]) > 0.93


def test_a_gaussian_mixture_emission_is_a_larger_chain():
    """States (i, m) that follow one another by A_ij w_jm have the same law of sequences."""
    x = lvm.datasets.load("geyser").x[:40].reshape(4, 10, 2)
    small = lvm.models.GaussianMixtureHMM(2, 3)
    small.initialize(x)
    large = lvm.models.GaussianHMM(6)
    large.initialize(x)
    weights, (initial, transition) = small.weights, small.chain()
    large.initial_probs = (initial.unsqueeze(-1) * weights).flatten().detach()
    moves = transition[:, None, :, None] * weights[None, None]
    large.transition_probs = moves.expand(2, 3, 2, 3).reshape(6, 6).detach()
    large.loc, large.covariance = small.loc.detach().flatten(0, 1), small.covariance.detach().flatten(0, 1)
    losses = [lvm.infer.EM(model).loss(x) for model in (small, large)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_impossible_transitions_stay_impossible_and_nothing_is_lost():
    x = lvm.datasets.load("seatbelts").x.unsqueeze(0)
    fit = lvm.fit(lvm.models.MultinomialHMM(2, topology="left-to-right"), x, seed=0, progress=False)
    transition = fit.params["transition_probs"]
    assert transition[1].tolist() == [0.0, 1.0]
    assert fit.model.chain()[0].tolist() == [1.0, 0.0]
    path = fit.predict(x)[0].tolist()
    assert path == sorted(path)
    assert path.index(1) == 169  # February 1983, the first month under the law
    table = [[1, 1, 0], [0, 1, 1], [1, 0, 1]]
    x, _ = simulate(5)
    fit = lvm.fit(lvm.models.GaussianHMM(3, topology=table), x, seed=0, max_epochs=20, progress=False)
    assert torch.equal(fit.params["transition_probs"] == 0, torch.tensor(table) == 0)
    accelerated = lvm.fit(
        lvm.models.GaussianHMM(3, topology=table),
        x,
        inference=lvm.infer.EM(acceleration="squarem"),
        seed=0,
        progress=False,
    )
    assert torch.equal(accelerated.params["transition_probs"] == 0, torch.tensor(table) == 0)


def test_weights_of_sequences_are_repetitions():
    x, _ = simulate(4, 10)
    weights = torch.tensor([2.0, 0.0, 1.0, 3.0]).double()
    repeated = x.repeat_interleave(weights.long(), 0)
    model, twin = lvm.models.GaussianHMM(2), lvm.models.GaussianHMM(2)
    for each in (model, twin):
        torch.manual_seed(3)
        each.initialize(x)
    one, other = lvm.infer.EM(model), lvm.infer.EM(twin)
    for _ in range(5):
        assert one.step(x, sample_weights=weights) == pytest.approx(other.step(repeated), rel=1e-10)
    torch.testing.assert_close(model.transition_probs, twin.transition_probs, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(model.covariance, twin.covariance, rtol=1e-8, atol=1e-10)


def test_other_seeds_give_other_starts_and_restarts_the_optimum():
    x, states = simulate(10)
    starts = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = lvm.models.GaussianHMM(3)
        model.initialize(x)
        starts.append(model.transition_probs.detach())
    assert not torch.equal(*starts)
    fit = lvm.fit(lvm.models.GaussianHMM(3), x, restarts=3, seed=0, progress=False)
    truth = torch.tensor([[0.0, 0.0], [0.0, 5.0], [4.0, 0.0]]).double()
    found = fit.params["loc"]
    order = (found[:, 0] * 10 + found[:, 1]).argsort()
    torch.testing.assert_close(found[order], truth, rtol=0, atol=0.4)
    assert accuracy(fit.predict(x), states) > 0.95


def test_the_bound_of_coordinate_ascent_rises_below_the_evidence():
    x = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 0.0]).double().reshape(1, 6, 1)
    fit = lvm.fit(
        lvm.models.BernoulliHMM(2, priors=True), x, inference="coordinate-ascent", max_epochs=30, seed=0, progress=False
    )
    bounds = [-loss for loss in fit.history["loss"]]
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(bounds))
    evidence = (
        0.0  # of all paths: parameters have uniform priors, integrated by counting (Dirichlet and beta functions)
    )
    for path in itertools.product(range(2), repeat=6):
        term = torch.tensor(0.5).double()
        for i in range(2):
            moves = torch.tensor(
                [sum(a == i and b == j for a, b in itertools.pairwise(path)) for j in range(2)]
            ).double()
            ones = sum(float(v) for v, z in zip(x.flatten(), path, strict=True) if z == i)
            zeros = path.count(i) - ones
            for counts in (moves, torch.tensor([ones, zeros]).double()):
                term = term * (torch.lgamma(counts + 1).sum() - torch.lgamma(counts.sum() + 2)).exp()
        evidence += float(term)
    assert bounds[-1] < torch.tensor(evidence).log().item()
    assert bounds[-1] > torch.tensor(evidence).log().item() - 2


def test_every_inference_runs_and_agrees_on_easy_data():
    x, _ = simulate(10, 20)
    em = lvm.fit(lvm.models.GaussianHMM(3, covariance="diag"), x, restarts=2, seed=0, progress=False)
    svi = lvm.fit(
        lvm.models.GaussianHMM(3, covariance="diag"),
        x,
        inference=lvm.infer.SVI(learning_rate=0.05),
        max_epochs=200,
        seed=0,
        progress=False,
    )
    stepwise = lvm.fit(
        lvm.models.GaussianHMM(3, covariance="diag"),
        x,
        inference=lvm.infer.EM(decay=0.7),
        batch_size=5,
        max_epochs=30,
        seed=0,
        progress=False,
    )
    mcmc = lvm.fit(
        lvm.models.GaussianHMM(3, covariance="diag", priors=True),
        x[:3],
        inference=lvm.infer.MCMC(num_samples=10, warmup_steps=10, max_tree_depth=4),
        seed=0,
        progress=False,
    )
    best = em.score(x)
    assert svi.score(x) > best - 1.0
    assert stepwise.score(x) > best - 0.5
    assert torch.isfinite(mcmc.log_likelihood(x[:3])).all()


def test_a_state_that_is_never_visited_keeps_its_parameters():
    x = torch.randn(2, 15, 1).double()
    model = lvm.models.GaussianHMM(2, covariance="diag")
    model.initialize(x)
    model.loc = torch.tensor([[0.0], [1e4]]).double()
    model.covariance = torch.ones(2, 1).double()
    model.transition_probs = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).double()
    model.initial_probs = torch.tensor([1.0, 0.0]).double()
    em = lvm.infer.EM(model)
    with pytest.warns(RuntimeWarning, match="no rows left in state 1"):
        em.step(x)
    em.step(x)
    assert model.loc[1].item() == 1e4
    assert model.covariance[1].item() == 1.0
    torch.testing.assert_close(model.transition_probs[1], torch.tensor([0.5, 0.5]).double())
    assert model.loc[0].item() == pytest.approx(x.mean().item())


@pytest.mark.parametrize(
    ("make", "x", "message"),
    [
        (lambda: lvm.models.CategoricalHMM(2, 3), [[[0.5]], [[1.0]]], "answers 0 to 2 in column 0; got 0.5 in step 0"),
        (lambda: lvm.models.CategoricalHMM(2, 3), [[[0.0]], [[3.0]]], "got 3 in step 0 of sequence 1"),
        (lambda: lvm.models.CategoricalHMM(2), [[[0.0], [-1.0]]], "got -1 in step 1 of sequence 0"),
        (lambda: lvm.models.PoissonHMM(2), [[[0.0], [1.5]]], "counts 0, 1, 2"),
        (lambda: lvm.models.BernoulliHMM(2), [[[0.0], [2.0]]], "expected 0 or 1.*Threshold"),
        (lambda: lvm.models.GaussianHMM(2, data_dim=2), [[[0.0], [2.0]]], r"shape \(n, T, 2\); got \(1, 2, 1\)"),
        (lambda: lvm.models.GaussianHMM(4), [[[0.0], [2.0], [1.0]]], "at least 4 steps.*num_states"),
        (lambda: lvm.models.GaussianHMM(2), [[[1.0], [1.0], [1.0]]], "constant column 0"),
        (lambda: lvm.models.StudentTHMM(2), [[[1.0, NAN], [1.0, 2.0], [3.0, 1.0]]], "missing .* as a whole"),
        (lambda: lvm.models.MultinomialHMM(2, total_count=3), [[[1, 2], [1, 1.0]]], "counts"),
        (lambda: lvm.models.AutoregressiveHMM(2), [[[1.0], [NAN], [3.0]]], "missing"),
        (lambda: lvm.models.RegressionHMM(2), [[[1.0], [2.0], [3.0]]], "covariates of shape .* got none"),
    ],
)
def test_bad_steps_are_turned_away(make, x, message):
    with pytest.raises(ValueError, match=message):
        lvm.fit(make(), torch.tensor(x).double(), progress=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lvm.models.GaussianHMM(0), "num_states to be a whole number >= 1; got 0"),
        (lambda: lvm.models.GaussianHMM(2, data_dim=0), "data_dim"),
        (lambda: lvm.models.GaussianHMM(2, covariance="round"), "full, diag, tied, spherical; got 'round'"),
        (lambda: lvm.models.GaussianHMM(2, topology="ring"), "'left-to-right'"),
        (lambda: lvm.models.GaussianHMM(2, topology=[[1, 0]]), r"\(2, 2\) table of zeros and ones"),
        (lambda: lvm.models.GaussianHMM(2, topology=[[0.5, 0.5], [0, 1]]), "zeros and ones"),
        (lambda: lvm.models.GaussianHMM(2, topology=[[1, 1], [0, 0]]), "state 1 has none"),
        (lambda: lvm.models.GaussianHMM(2, priors={"weights": None}), "priors for initial_probs.*got weights"),
        (lambda: lvm.models.HiddenMarkov(2, emission="square"), "got 'square'"),
        (lambda: lvm.models.HiddenMarkov(3, emission=dist.Normal(torch.zeros(2), 1.0)), r"batch shape \(3,\)"),
        (lambda: lvm.models.StudentTHMM(2, degrees_of_freedom=-1.0), "degrees_of_freedom > 0"),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def own_emission():
    loc = pyro.param("centre_of_state", torch.tensor([0.0, 3.0]))
    scale = pyro.param("scale_of_state", torch.ones(2), constraint=dist.constraints.positive)
    return dist.Laplace(loc, scale)


@pytest.mark.parametrize(
    "emission",
    [
        dist.Gamma(torch.tensor([1.0, 5.0]), torch.tensor([1.0, 1.0])),
        dist.NegativeBinomial(torch.tensor([2.0, 8.0]), logits=torch.tensor([0.0, 0.0])),
        dist.MultivariateNormal(torch.tensor([[0.0], [4.0]]), torch.eye(1)),
        "gamma",
        "exponential",
        own_emission,
    ],
    ids=["gamma", "negative-binomial", "multivariate", "named-gamma", "named-exponential", "function"],
)
def test_emissions_of_ones_own(emission):
    generator = torch.Generator().manual_seed(2)
    rate = torch.where(torch.rand(6, 20, generator=generator) < 0.5, 1.0, 6.0).double()
    x = 1 + torch.poisson(rate, generator=generator).unsqueeze(-1)
    fit = lvm.fit(lvm.models.HiddenMarkov(2, emission), x, inference="em", seed=0, max_epochs=30, progress=False)
    losses = fit.history["loss"]
    assert losses[-1] < losses[0]
    assert all(b <= a + 1e-9 * abs(a) for a, b in itertools.pairwise(losses))
    assert set(fit.params) > {"initial_probs", "transition_probs"}
    assert fit.sample(3).shape == (3, 20, 1)
    assert fit.predict(x).shape == (6, 20)


def test_a_function_with_priors_is_bayesian():
    def emission():
        loc = pyro.sample("loc", dist.Normal(torch.tensor([0.0, 3.0]).double(), 1.0).to_event(1))
        return dist.Normal(loc, 1.0)

    x, _ = simulate(5, 10)
    fit = lvm.fit(lvm.models.HiddenMarkov(2, emission, priors=True), x[..., :1], seed=0, max_epochs=100, progress=False)
    assert fit.draws["loc"].shape[-1] == 2


def test_an_autoregression_is_found():
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(1, 400, 1).double()
    for t in range(1, 400):
        weight = 0.95 if (t // 100) % 2 == 0 else -0.8
        x[0, t] = weight * x[0, t - 1] + torch.randn(1, generator=generator).double()
    fit = lvm.fit(lvm.models.AutoregressiveHMM(2), x, restarts=3, seed=0, progress=False)
    assert fit.params["coefficients"].flatten().sort().values.tolist() == pytest.approx([-0.8, 0.95], abs=0.12)
    assert fit.sample(2, num_steps=7).shape == (2, 7, 1)


def test_the_law_of_an_autoregression_is_that_of_its_steps():
    """One state: the product of conditional densities, by hand."""
    model = lvm.models.AutoregressiveHMM(1, order=2)
    x = torch.randn(3, 6, 2).double()
    model.initialize(x)
    past = torch.cat([model.centre.expand(3, 2, 2), x], 1) - model.centre
    expected = torch.zeros(3).double()
    for t in range(6):
        lags = torch.cat([past[:, t + 1], past[:, t]], -1)
        mean = lags @ model.coefficients[0].T + model.intercept[0]
        expected = expected + dist.Normal(mean, model.scale[0]).log_prob(x[:, t]).sum(-1)
    with pyro.poutine.trace() as capture:
        model(x)
    capture.trace.compute_log_prob()
    torch.testing.assert_close(capture.trace.nodes["x"]["log_prob"], expected, rtol=1e-12, atol=1e-12)
