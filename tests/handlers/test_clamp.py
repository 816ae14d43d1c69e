"""Sites observed for some rows and latent for others, under every inference; labels through the front door."""

import copy
from itertools import permutations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, infer_discrete

import pyro_lvm as lvm
from pyro_lvm.infer.by_row import row_log_likelihood

ROWS = 12
X = torch.randn(ROWS, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 + 2
Y = torch.arange(ROWS) % 2
Z = torch.arange(ROWS) * 7 % 3
KNOWN = {"y": torch.arange(ROWS) % 3 == 0, "z": torch.arange(ROWS) % 3 == 1}  # no row has both


def two(x):
    """Two discrete sites, one under the other."""
    root = pyro.param("root", torch.tensor([0.3, 0.7]).double(), constraint=dist.constraints.simplex)
    table = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]]).double()
    table = pyro.param("table", table, constraint=dist.constraints.simplex)
    loc = pyro.param("loc", torch.arange(6).reshape(2, 3).double())
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(root), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Categorical(table[y]), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[y, z], 1.0), obs=x)


def clamped(**change):
    return lvm.handlers.clamp(two, {"y": Y, "z": Z, **change}, mask=KNOWN)


def parameters():
    return [pyro.param(name).detach().clone() for name in ("root", "table", "loc")]


def joint(root, table, loc):
    """Log p(x, y, z) of every row with what is known, shape (rows, 2, 3)."""
    terms = root.log()[:, None] + table.log() + dist.Normal(loc, 1.0).log_prob(X[:, None, None])
    for i in range(ROWS):
        for y in range(2):
            for z in range(3):
                if (KNOWN["y"][i] and y != Y[i]) or (KNOWN["z"][i] and z != Z[i]):
                    terms[i, y, z] = -torch.inf
    return terms


def test_learning_where_no_row_has_everything_equals_brute_force(local):
    em = lvm.infer.EM(clamped())
    em.loss(X)
    for _ in range(5):
        terms = joint(*parameters())
        assert em.step(X) == pytest.approx(-float(terms.flatten(1).logsumexp(1).sum()), abs=1e-10)
        posterior = terms.flatten(1).softmax(1).reshape(ROWS, 2, 3)
        mass = posterior.sum(0)
        root, table, loc = parameters()
        torch.testing.assert_close(root, mass.sum(1) / ROWS)
        torch.testing.assert_close(table, mass / mass.sum(1, keepdim=True))
        torch.testing.assert_close(loc, (posterior * X[:, None, None]).sum(0) / mass)


def test_every_enumerating_inference_gives_the_same_evidence(local):
    model = clamped()
    em = lvm.infer.EM(model)
    evidence = -em.loss(X)
    posterior = em.posterior(X)
    assert torch.equal(posterior["y"][KNOWN["y"]], torch.nn.functional.one_hot(Y[KNOWN["y"]]).double())
    rows = row_log_likelihood(model, 1, (X,), {})
    torch.testing.assert_close(rows, joint(*parameters()).flatten(1).logsumexp(1))
    assert -lvm.infer.SVI(model).loss(X) == pytest.approx(evidence)
    assert -TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda x: None, X) == pytest.approx(evidence)
    with lvm.handlers.clamp(values={"y": Y, "z": Z}, mask=KNOWN):
        assert -lvm.infer.EM(two).loss(X) == pytest.approx(evidence)
    with lvm.handlers.minibatch(total=2 * ROWS):
        assert -em.loss(X) == pytest.approx(2 * evidence)
    for temperature in (0, 1):
        trace = poutine.trace(infer_discrete(model, first_available_dim=-2, temperature=temperature)).get_trace(X)
        for name, values in (("y", Y), ("z", Z)):
            assert torch.equal(trace.nodes[name]["value"][KNOWN[name]], values[KNOWN[name]])


def test_gradients_equal_brute_force(local):
    model = clamped()
    TraceEnum_ELBO(max_plate_nesting=1).loss_and_grads(model, lambda x: None, X)
    found = [pyro.param(name).unconstrained().grad.clone() for name in ("root", "table", "loc")]
    leaves = [pyro.param(name) for name in ("root", "table", "loc")]
    free = [leaf.unconstrained() for leaf in leaves]
    expected = torch.autograd.grad(-joint(*leaves).flatten(1).logsumexp(1).sum(), free)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_entries_that_are_not_known_are_never_read(local):
    values = Y.double().masked_fill(~KNOWN["y"], torch.nan)
    assert lvm.infer.EM(clamped(y=values)).loss(X) == lvm.infer.EM(clamped()).loss(X)


def test_a_mixture_of_known_and_latent_steps_of_a_chain(local):
    length, states = 4, 3
    start = torch.tensor([0.5, 0.3, 0.2]).double()
    move = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]]).double()
    rate = torch.tensor([1.0, 4.0, 9.0]).double()
    x = torch.poisson(torch.full((2, length), 4.0), generator=torch.Generator().manual_seed(0)).double()

    def chain(x):
        with pyro.plate("data", len(x)):
            z = None
            for t in pyro.markov(range(length)):
                z = pyro.sample(f"z_{t}", dist.Categorical(start if z is None else move[z]))
                pyro.sample(f"x_{t}", dist.Poisson(rate[z]), obs=x[:, t])

    values = {"z_0": torch.tensor([1, 0]), "z_2": torch.tensor([2, 2])}
    mask = {"z_0": torch.tensor([True, False]), "z_2": torch.tensor([True, True])}
    expected = torch.zeros(())
    for row in range(2):
        paths = []
        for path in torch.cartesian_prod(*[torch.arange(states)] * length):
            if any(mask[f"z_{t}"][row] and path[t] != values[f"z_{t}"][row] for t in (0, 2)):
                continue
            terms = start[path[0]].log() + move[path[:-1], path[1:]].log().sum()
            paths.append(terms + dist.Poisson(rate[path]).log_prob(x[row]).sum())
        expected = expected + torch.stack(paths).logsumexp(0)
    model = lvm.handlers.clamp(chain, values, mask=mask)
    assert -lvm.infer.EM(model).loss(x) == pytest.approx(float(expected))
    latent_last = lvm.infer.EM(lvm.handlers.clamp(chain, {"z_0": values["z_0"]}, mask=mask["z_0"]))
    assert -latent_last.loss(x) > float(expected)


def local_level(x):
    """A normal latent per row."""
    loc = pyro.param("loc", torch.tensor(0.5).double())
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def local_evidence(loc, values, known):
    latent = dist.Normal(loc, 1.25**0.5).log_prob(X)
    given = dist.Normal(loc, 1.0).log_prob(values) + dist.Normal(values, 0.5).log_prob(X)
    return torch.where(known, given, latent).sum()


def test_continuous_latents_reach_the_exact_bound_under_a_guide(local):
    known = KNOWN["y"]
    values = torch.where(known, X + 0.3, torch.nan)
    model = lvm.handlers.clamp(local_level, {"z": values}, mask=known)

    def guide(x):  # the exact posterior; where z is known, the prior
        loc = torch.where(known, pyro.param("loc").detach(), (0.5 + 4 * x) / 5)
        scale = torch.where(known, 1.0, 0.2**0.5).double()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale))

    loc = pyro.param("loc", torch.tensor(0.5).double())
    expected = local_evidence(loc, values.nan_to_num(), known)
    assert -Trace_ELBO().loss(model, guide, X) == pytest.approx(expected.item())
    gradient = torch.autograd.grad(expected, loc.unconstrained())[0]
    total = 4000
    Trace_ELBO(num_particles=total, vectorize_particles=True, max_plate_nesting=1).loss_and_grads(model, guide, X)
    error = float(known.sum()) ** 0.5 + float((~known).sum() * 0.2) ** 0.5
    assert -loc.unconstrained().grad.item() == pytest.approx(gradient.item(), abs=5 * error / total**0.5)


def test_known_everywhere_is_observed(local):
    model = lvm.handlers.clamp(local_level, {"z": X})
    assert -Trace_ELBO().loss(model, lambda x: None, X) == pytest.approx(
        float(local_evidence(torch.tensor(0.5).double(), X, torch.ones(ROWS, dtype=torch.bool)))
    )
    em = lvm.infer.EM(model)
    em.step(X)
    assert pyro.param("loc").item() == pytest.approx(float(X.mean()))


@pytest.mark.filterwarnings("ignore:Found non-auxiliary vars in guide:UserWarning")
@pytest.mark.parametrize("informed", [False, True])
def test_a_guide_that_draws_what_is_known_everywhere(informed):
    """Its density would count, the model's would not: unless it draws the known values, it is refused."""
    x, values = torch.tensor([0.5, -1.0]), torch.tensor([1.0, 2.0])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 0.5))

    clamped = lvm.handlers.clamp(model, {"z": values})
    if informed:
        loss = Trace_ELBO().loss(clamped, lvm.handlers.inform(guide, {"z": values}), x)
        expected = dist.Normal(0.0, 1.0).log_prob(values) + dist.Normal(values, 1.0).log_prob(x)
        assert loss == pytest.approx(-float(expected.sum()))
    else:
        with pytest.raises(ValueError, match=r"clamp: expected a guide that does not draw 'z'.*handlers\.inform"):
            Trace_ELBO().loss(clamped, guide, x)


def test_nothing_is_latent_where_all_discrete_sites_are_known(local):
    assert not lvm.infer.EM(lvm.handlers.clamp(two, {"y": Y, "z": Z})).posterior(X)


def test_nuts_agrees_with_the_conjugate_posterior():
    known = KNOWN["y"]

    def program(x):
        loc = pyro.sample("loc", dist.Normal(torch.tensor(0.0).double(), 2.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            y = pyro.sample("y", dist.Categorical(torch.tensor([0.5, 0.5]).double()))
            pyro.sample("x", dist.Normal(z + y, 0.5), obs=x)

    model = lvm.handlers.clamp(program, {"z": X + 0.3, "y": Y}, mask={"z": known})
    sampler = lvm.infer.MCMC(model, num_samples=400, warmup_steps=150, num_chains=1)
    draws = sampler.run(X)["loc"].flatten()
    precision = 0.25 + torch.where(known, 1.0, 0.8).sum()
    centre = torch.where(known, X + 0.3, 0.8 * (X - Y)).sum() / precision
    error = 5 * float(precision) ** -0.5 / 100**0.5
    assert float(draws.mean()) == pytest.approx(float(centre), abs=error)
    assert float(draws.std()) == pytest.approx(float(precision) ** -0.5, rel=0.25)


def test_states_that_a_guide_enumerates(local):
    values = Y.double()
    model = lvm.handlers.clamp(two, {"y": values}, mask=KNOWN["y"])
    lvm.infer.EM(two).loss(X)
    prior, *_ = parameters()
    free = joint(*parameters()).masked_fill(torch.ones(ROWS, 2, 3, dtype=torch.bool), 0)
    root, table, loc = parameters()
    free = root.log()[:, None] + table.log() + dist.Normal(loc, 1.0).log_prob(X[:, None, None])
    posterior = free.logsumexp(2).softmax(1)
    probs = torch.where(KNOWN["y"][:, None], prior, posterior)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(probs), infer={"enumerate": "parallel"})

    expected = free.logsumexp(2)
    expected = torch.where(KNOWN["y"], expected[torch.arange(ROWS), Y], expected.logsumexp(1)).sum()
    assert -TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, X) == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": {"q": Y}}, "it has no site 'q'"),
        ({"values": {"x": X}}, "'x' is observed by the program"),
        ({"values": {"y": Y[:5]}}, r"expected values of 'y' of shape \(12,\).*got \(5,\)"),
        ({"values": {"y": Y}, "mask": KNOWN["y"][:5]}, r"expected the mask of 'y' of shape \(12,\).*got \(5,\)"),
        ({"values": {"y": Y + 1}}, r"got 2 at \(1,\)"),
        ({"values": {"y": Y / 2}}, r"got 0.5 at \(1,\)"),
        ({"values": {"y": torch.full((ROWS,), torch.nan)}, "mask": KNOWN["y"]}, r"got NaN at \(0,\)"),
        ({"values": {}}, "expected values by site name"),
        ({"values": {"y": Y}, "mask": {"z": KNOWN["z"]}}, "expected masks for y; got one for 'z'"),
        ({"values": {"y": Y}, "mask": Y}, "True or False; got torch.int64"),
    ],
)
def test_mistakes_are_one_sentence(local, change, message):
    with pytest.raises(ValueError, match=message):
        lvm.infer.EM(lvm.handlers.clamp(two, **change)).loss(X)


def test_a_clamped_program_can_be_copied(local):
    assert lvm.infer.EM(copy.deepcopy(clamped())).loss(X) == lvm.infer.EM(clamped()).loss(X)


# Labels through the front door


@pytest.fixture(scope="module")
def wine():
    data = lvm.datasets.load("wine")
    return (data.x - data.x.mean(0)) / data.x.std(0, correction=0), data.labels


def labelled(labels, seed, share=0.1):
    known = torch.zeros(len(labels), dtype=torch.bool)
    known[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[: round(share * len(labels))]] = 1
    return known


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_a_tenth_of_the_labels_helps_on_the_other_rows(wine, covariance):
    x, labels = wine
    scores = {"labelled": 0.0, "unsupervised": 0.0}
    for seed in range(20):
        known = labelled(labels, seed)
        model = lvm.models.GaussianMixture(3, covariance=covariance)
        data = {"x": x, "z": torch.where(known, labels, -1)}
        for name, rows in (("labelled", data), ("unsupervised", x)):
            found = lvm.fit(model, rows, restarts=3, seed=seed, progress=False).predict(x)
            # states of an unsupervised fit get the names that suit it best
            names = [torch.arange(3)] if name == "labelled" else map(torch.tensor, permutations(range(3)))
            scores[name] += max(float((n[found] == labels)[~known].double().mean()) for n in names) / 20
    print(f"wine, {covariance}: {scores}")
    assert scores["labelled"] > 0.95
    if covariance == "full":  # with independent columns, several starts leave labels nothing to add
        assert scores["labelled"] > scores["unsupervised"]


@pytest.mark.parametrize("covariance", ["full", "diag", "tied", "spherical"])
@pytest.mark.parametrize("front", ["data", "clamp"])
def test_all_labels_give_the_supervised_closed_form_in_one_step(wine, covariance, front):
    x, labels = wine
    model = lvm.models.GaussianMixture(3, covariance=covariance)
    data = {"x": x, "z": labels}
    if front == "clamp":
        model, data = lvm.handlers.clamp(model, {"z": labels}), x
    found = lvm.fit(model, data, max_epochs=1, seed=0, progress=False).params
    groups = [x[labels == k] for k in range(3)]
    weights = torch.tensor([len(g) / len(x) for g in groups], dtype=torch.float64)
    covariances = torch.stack([torch.cov(g.T, correction=0) for g in groups])
    diagonal = covariances.diagonal(dim1=-2, dim2=-1)
    expected = {
        "full": covariances,
        "diag": diagonal,
        "spherical": diagonal.mean(-1),
        "tied": (weights[:, None, None] * covariances).sum(0),
    }[covariance]
    for a, b in (
        (found["weights"], weights),
        (found["loc"], torch.stack([g.mean(0) for g in groups])),
        (found["covariance"], expected),
    ):
        assert float((a - b).abs().max()) < 1e-10


def test_both_front_doors_are_one(wine):
    x, labels = wine
    known = labelled(labels, 0)
    options = {"seed": 0, "progress": False, "max_epochs": 5}
    model = lvm.models.GaussianMixture(3)
    fits = [
        lvm.fit(model, {"x": x, "z": torch.where(known, labels, -1)}, **options),
        lvm.fit(model, {"x": x, "z": torch.where(known, labels.double(), torch.nan).numpy()}, **options),
        lvm.fit(lvm.handlers.clamp(model, {"z": labels}, mask=known), x, **options),
        lvm.fit(lvm.handlers.clamp(model, {"z": labels}, mask=known), {"x": x}, **options),
    ]
    for fit in fits[1:]:
        for name, value in fits[0].params.items():
            assert torch.equal(value, fit.params[name])


@pytest.mark.parametrize("priors", [None, True])
@pytest.mark.parametrize("covariance", ["full", "diag", "tied", "spherical"])
def test_states_start_by_the_name_of_their_labels(wine, covariance, priors):
    x, labels = wine
    data = {"x": x, "z": torch.where(labelled(labels, 1), labels, -1)}
    for seed in range(3):
        model = lvm.models.GaussianMixture(3, covariance=covariance, priors=priors)
        guide = "map" if priors else None
        fit = lvm.fit(model, data, guide, "svi", max_epochs=1, seed=seed, progress=False)
        assert float((fit.predict(x) == labels).double().mean()) > 0.85


def test_a_labelled_fit_keeps_all_its_verbs(wine, tmp_path):
    x, labels = wine
    known = labelled(labels, 0)
    data = {"x": x, "z": torch.where(known, labels, -1)}
    model = lvm.models.GaussianMixture(3)
    fit = lvm.fit(model, data, max_epochs=4, seed=0, progress=False, tol=0.0)
    assert fit.predict(x[:7]).shape == (7,)
    assert torch.equal(fit.predict(data)[known], labels[known])
    assert torch.equal(fit.predict_proba(data)[known], torch.nn.functional.one_hot(labels[known]).double())
    assert float(fit.log_likelihood(data).sum()) < float(fit.log_likelihood(x).sum())
    assert set(fit.posterior(data, 3)) == {"z"}
    assert fit.sample(5).shape == (5, 13)
    fit.save(tmp_path / "fit")
    again = lvm.load(tmp_path / "fit")
    straight = lvm.fit(model, data, max_epochs=6, seed=0, progress=False, tol=0.0)
    again.resume(data, max_epochs=2, progress=False, tol=0.0)
    for name, value in straight.params.items():
        assert torch.equal(value, again.params[name])


def test_labels_follow_their_rows_into_batches(wine):
    x, labels = wine
    data = {"x": x, "z": torch.where(labelled(labels, 0, 0.5), labels, -1)}
    model = lvm.models.GaussianMixture(3, covariance="diag")
    fit = lvm.fit(model, data, None, "svi", batch_size=50, max_epochs=30, seed=0, progress=False, validation=data)
    assert float((fit.predict(x) == labels).double().mean()) > 0.9
    assert fit.history["validation_loss"][-1] < fit.history["validation_loss"][0]


def test_a_plain_function_takes_labels_too():
    fit = lvm.fit(two, {"x": X, "y": torch.where(KNOWN["y"], Y, -1).tolist()}, seed=0, progress=False)
    assert torch.equal(fit.predict({"x": X, "y": None})["y"], fit.predict(X)["y"])
    assert torch.equal(fit.predict({"x": X, "y": Y})["y"], Y)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": X, "q": Y}, r"arguments \(x\) or its latent sites \(y, z\); got 'q'"),
        ({"x": X, "y": Y[:3]}, r"one value of 'y' for each of the 12 rows; got shape \(3,\)"),
        ({"x": X, "y": Y + 5}, r"got 5 at \(0,\)"),
        ({"x": X, "y": ["a"] * ROWS}, "expected y to hold numbers"),
        ({"x": X, "x_hidden": Y}, "got 'x_hidden'"),
    ],
)
def test_labels_that_do_not_fit(data, message):
    with pytest.raises(ValueError, match=message):
        lvm.fit(two, data, progress=False)


def test_labels_tell_the_states_of_a_posterior_apart(wine):
    """Under NUTS both chains keep the labels' names; without labels they may swap."""
    x, labels = wine[0][:, [0, 6]].contiguous(), wine[1]
    data = {"x": x, "z": torch.where(labelled(labels, 0), labels, -1)}
    model = lvm.models.GaussianMixture(3, priors=True)
    sampler = lvm.infer.MCMC(num_samples=15, warmup_steps=20, num_chains=2, max_tree_depth=4)
    fit = lvm.fit(model, data, inference=sampler, seed=0, progress=False)
    means = torch.stack([x[labels == k].mean(0) for k in range(3)])
    for chain in fit.draws["loc"].mean(1):
        assert torch.equal(torch.cdist(chain, means).argmin(1), torch.arange(3))
    guided = lvm.fit(model, data, "normal", max_epochs=3, seed=0, progress=False)
    assert guided.to_arviz(data).posterior["loc"].shape[-2:] == (3, 2)


class OnceMore:
    """A stream of batches."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize("bad", [7, 0.5])
def test_values_are_checked_whenever_labels_come(wine, bad):
    """In later batches of a stream, and given to a verb after good ones; unknown ones still pass."""
    x, labels = wine
    model, options = lvm.models.GaussianMixture(3, covariance="diag"), {"max_epochs": 1, "seed": 0, "progress": False}
    good, wrong = ({"x": x, "z": z} for z in (labels.double(), torch.full((len(x),), bad).double()))
    with pytest.raises(ValueError, match=rf"expected known values of 'z' in its support .*; got {bad} at \(0,\)"):
        lvm.fit(model, OnceMore([good, wrong]), inference="svi", **options)
    fit = lvm.fit(model, OnceMore([good, good]), inference="svi", **options)
    for verb in (fit.score, fit.predict):
        with pytest.raises(ValueError, match=rf"got {bad} at \(0,\)"):
            verb(wrong)
    assert fit.score({"x": x[:5], "z": torch.full((5,), torch.nan)}) == pytest.approx(fit.score(x[:5]))


def test_a_support_that_is_learned_is_the_one_of_now():
    def model(x):
        top = pyro.param("top", torch.tensor(2.0))
        with pyro.plate("rows", len(x)):
            u = pyro.sample("u", dist.Uniform(0.0, top))
            pyro.sample("x", dist.Normal(u, 1.0), obs=x)

    x = torch.linspace(0.0, 1.0, 8)
    fit = lvm.fit(model, {"x": x, "u": x}, max_epochs=30, inference=lvm.infer.SVI(0.02), seed=0, progress=False)
    top = float(fit.params["top"])
    assert top < 1.9
    for share in (0.99, 1.01):
        data = {"x": x, "u": torch.full((8,), share * top)}
        if share < 1:
            fit.arguments(data)
            continue
        with pytest.raises(ValueError, match="expected known values of 'u'"):
            fit.arguments(data)
