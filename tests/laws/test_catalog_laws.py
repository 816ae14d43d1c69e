"""Every law over every entry, variant, inference and guide of the catalog, and over two plain functions."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import pyro_lvm as lvm
from pyro_lvm.evidence import importance
from pyro_lvm.models.word_alignment import WordAlignment
from pyro_lvm.testing import laws, oracles
from pyro_lvm.training import choices, learned

GUIDE_DRAWS = 40
# Few will do: the density, unlike its logarithm, is estimated without bias by any number. Too few for a Pareto k-hat,
# which short fits, and rows far from the data, would not pass.
ROW_SAMPLES = 10
NUM_ROWS = 120
NUM_DRAWS = 15_000

pytestmark = pytest.mark.filterwarnings("ignore:.*Heywood case")  # where a law takes half of the rows


def bernoulli_mixture(x):
    weights = pyro.param("weights", lambda: x.new_tensor([0.4, 0.6]), constraint=constraints.simplex)
    probs = pyro.param(
        "probs",
        lambda: x.new_tensor([[0.3, 0.4, 0.6], [0.6, 0.5, 0.4]]),
        constraint=constraints.unit_interval,
    )
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        return pyro.sample("x", dist.Bernoulli(probs[z]).to_event(1), obs=x)


def poisson_mixture(x):
    weights = pyro.param("weights", lambda: x.new_tensor([0.3, 0.3, 0.4]), constraint=constraints.simplex)
    rate = pyro.param(
        "rate", lambda: x.new_tensor([[1.0, 4.0], [5.0, 2.0], [9.0, 9.0]]), constraint=constraints.positive
    )
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        return pyro.sample("x", dist.Poisson(rate[z]).to_event(1), obs=x)


@functools.cache
def bits():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        z = torch.rand(NUM_ROWS, 1) < 0.35
        probs = torch.where(z, torch.tensor([0.1, 0.2, 0.9]), torch.tensor([0.8, 0.7, 0.3]))
        return torch.bernoulli(probs).double()


@functools.cache
def counts():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        rate = torch.tensor([[1.0, 6.0], [7.0, 1.5], [12.0, 12.0]])
        return torch.poisson(rate[torch.randint(3, (NUM_ROWS,))]).double()


def standardised(x):
    """Columns of one spread: a spherical model of others lies far outside of the rows."""
    return x / x.std(0)


def most_varied(x):
    """Few columns, since an integral by independent proposals needs ever more draws the more columns there are."""
    return x[:, x.var(0).argsort(descending=True)[:6].sort().values]


def without_flavanoids(x):
    """Columns of which two factors explain none wholly."""
    return x[:, [i for i in range(13) if i != 6]]


def few_draws(x):
    """Counts with one small total, in the proportions of those in every row."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.multinomial(x / x.sum(-1, keepdim=True), 4, replacement=True, generator=generator)
    return torch.nn.functional.one_hot(draws, x.shape[1]).sum(1).to(x)


# How the laws take the rows of the catalog's data sets: as they are, or prepared.
PREPARED = {
    "wine": without_flavanoids,
    "faithful": standardised,
    "geyser": standardised,
    "digits234": most_varied,
    "seatbelts": few_draws,
}

# Steps of a sequence: few, since all paths of states are added up, and densities integrated over all steps.
STEPS = 3

# Kinds of the columns of models whose columns are not real numbers and that do not say so in `columns`.
KINDS = {
    "BernoulliMixture": ["bernoulli"] * 6,
    "PoissonMixture": ["poisson"],
    "CategoricalMixture": ["categorical"] * 5,
    "BernoulliHMM": ["bernoulli"] * STEPS,
    "CategoricalHMM": ["categorical"] * STEPS,
    "PoissonHMM": ["poisson"] * STEPS,
    "NeuralHMM": ["categorical"] * STEPS,
    "VAE-bernoulli": ["bernoulli"] * 6,
    "SigmoidBeliefNet": ["bernoulli"] * 6,
    "DeepBeliefNet": ["bernoulli"] * 6,
    "RBM": ["bernoulli"] * 6,
}

# Proposals for rows of other kinds than those.
PROPOSALS = {
    "MultinomialHMM": oracles.broad_shares(3),
    # their steps are too dependent for a proposal of independent ones
    "LinearDynamicalSystem": oracles.broad_reals,
    "SlowFeatureAnalysis": oracles.broad_reals,
}

# Columns from which there is little to learn, but which do a model no harm.
DISCRETE = (
    "BernoulliMixture",
    "PoissonMixture",
    "CategoricalMixture",
    "BernoulliHMM",
    "CategoricalHMM",
    "PoissonHMM",
    "MultinomialHMM",
    "NeuralHMM",
    "SigmoidBeliefNet",
)
NETWORKS = ("VAE", "SigmoidBeliefNet", "RBM", "DeepBeliefNet")
HARMLESS = dict.fromkeys((*DISCRETE, *NETWORKS, "SparseCoding", "ProbabilisticPCA"), ("constant column",))
HARMLESS["IndependentComponentAnalysis"] = ("too few rows",)  # its components are no clusters of rows


@functools.cache
def example_rows(data, sequences):
    """Rows of a data set, or its first steps cut into sequences."""
    x = PREPARED.get(data, torch.clone)(lvm.datasets.load(data).x[:NUM_ROWS].double())
    return x.unfold(0, STEPS, STEPS).mT.contiguous() if sequences else x


@dataclass(frozen=True)
class Program:
    """A generative program with rows to try it on."""

    name: str
    make: Any = field(compare=False)
    rows: Any = field(compare=False)
    proposal: Any = field(compare=False)
    shipped: bool = True
    kinds: Any = field(default=None, compare=False)
    num_covariates: int = 0

    @property
    def arguments(self):
        rows, q = self.rows(), self.num_covariates
        return {"x": rows[..., q:], "covariates": rows[..., :q]} if q else {"x": rows}

    @property
    def data(self):
        return self.arguments if self.num_covariates else self.rows()

    @property
    def one_row_of_covariates(self):
        return {name: value[:1] for name, value in self.arguments.items() if name != "x"}

    def load_options(self):
        return {} if self.shipped else {"model": self.make()}


def _words(variant):
    return ["-".join(value) if isinstance(value, list) else str(value) for value in variant.values()]


def _catalog_programs(**options):
    for entry in lvm.CATALOG.values():
        if options.keys() - inspect.signature(entry.model).parameters.keys():
            continue
        for variant in entry.variants:
            name = "-".join([entry.name, *_words(variant)])
            make = functools.partial(entry.example, **variant, **options)
            kinds = variant.get("columns", KINDS.get(name, KINDS.get(entry.name)))
            reals = oracles.broad_steps(STEPS) if entry.model.sequences else oracles.broad_reals
            broad = oracles.broad_columns(kinds) if kinds else reals
            proposal = PROPOSALS.get(entry.name, broad)
            rows = functools.partial(example_rows, entry.data, entry.model.sequences)
            yield entry, Program(name, make, rows, proposal, kinds=kinds, num_covariates=entry.covariates)


PLAIN = [
    Program("bernoulli_mixture", lambda: bernoulli_mixture, bits, oracles.broad_bits, shipped=False),
    Program("poisson_mixture", lambda: poisson_mixture, counts, oracles.broad_counts, shipped=False),
]


def _inferences(entry, program):
    """Those that go with a guide of its latent sites of rows; none if such sites are all summed out."""
    if entry.model is lvm.models.IndependentComponentAnalysis:
        return ("svi",) if program.make().noise else ()
    return [kind for kind in entry.inferences if kind != "mcmc"] if entry.model in choices.PAIRS else ()


# Programs whose latent sites are all summed out.
POINT = [
    program for entry, program in _catalog_programs() if "em" in entry.inferences and not _inferences(entry, program)
] + PLAIN
EXACT_STEPS = ("em", "squarem")
SAMPLED = ("amortized", "local", "sparse-codes")  # guides by which densities are estimated, not known


@dataclass(frozen=True)
class Case:
    """A program with a way of training it."""

    program: Program
    inference: str
    guide: str | None = None

    @property
    def options(self):
        known = {
            "em": lvm.infer.EM(),
            "svi": lvm.infer.SVI(learning_rate=0.02),
            "coordinate-ascent": lvm.infer.CoordinateAscent(),
            "mcmc": lvm.infer.MCMC(num_samples=5, warmup_steps=5, num_chains=2, max_tree_depth=3),
        }
        return {"inference": known.get(self.inference, self.inference), "guide": self.guide}

    def __str__(self):
        return "-".join(filter(None, [self.program.name, self.inference, self.guide]))


def _cases():
    for program in POINT:
        yield Case(program, "em")
        yield Case(program, "svi")
    for entry, program in _catalog_programs():
        for kind in _inferences(entry, program):
            first = kind in EXACT_STEPS or "prior" in program.make.keywords  # by others, as for the default prior
            taken = entry.guides[:1] if first else entry.guides
            yield from (Case(program, kind, guide) for guide in taken or (None,))
    for entry, program in _catalog_programs(priors=True):
        if "coordinate-ascent" in entry.inferences:
            yield Case(program, "coordinate-ascent")
        if "em" in entry.inferences and entry.guides:
            yield Case(program, "em", "map")
        if "svi" in entry.inferences:
            yield from (Case(program, "svi", guide) for guide in entry.prior_guides or entry.guides)
        if "mcmc" in entry.inferences:
            yield Case(program, "mcmc")


CASES = list(_cases())
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_program = pytest.mark.parametrize("program", POINT, ids=lambda p: p.name)
each_of_rows_alone = pytest.mark.parametrize(
    "program", [p for p in POINT if not p.num_covariates], ids=lambda p: p.name
)


@pytest.fixture(autouse=True, scope="module")
def _few_guide_draws():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learned, "GUIDE_DRAWS", GUIDE_DRAWS)
        patch.setattr(importance, "NUM_SAMPLES", ROW_SAMPLES)
        yield


@pytest.fixture(autouse=True)
def _more_samples_of_narrow_laws(request, monkeypatch):
    """A law of a row's own is no wider than the posterior: more samples meet the tails that are not normal."""
    case = getattr(request.node, "callspec", None) and request.node.callspec.params.get("case")
    if case and case.guide == "local":
        monkeypatch.setattr(importance, "NUM_SAMPLES", 4 * ROW_SAMPLES)
        monkeypatch.setattr(importance, "MANY", 1.0)  # they are enough for the tails to be told, and warned of


@functools.cache
def fitted(case):
    """One short fit per case, shared by the laws that only read it."""
    epochs = 60 if case.inference == "svi" else 15
    if case.guide == "amortized" and getattr(case.program.make(), "hidden", None) == ():
        epochs = 600  # the encoder starts at random, the model at its maximum
    return lvm.fit(case.program.make(), case.program.data, max_epochs=epochs, seed=0, progress=False, **case.options)


@each_case
def test_density_integrates_to_one(case):
    program = case.program
    laws.density_integrates_to_one(
        fitted(case),
        program.arguments["x"],
        proposal=program.proposal,
        num_draws=NUM_DRAWS,
        covariates=program.one_row_of_covariates,
    )


@each_case
def test_sampler_agrees_with_density(case):
    program = case.program
    laws.sampler_agrees_with_density(
        fitted(case), program.arguments["x"], proposal=program.proposal, covariates=program.one_row_of_covariates
    )


@each_program
def test_enumeration_agrees_with_conditioning(program):
    laws.enumeration_agrees_with_conditioning(program.make(), **program.arguments)


@each_program
def test_em_never_falls(program):
    laws.em_never_falls(program.make(), **program.arguments)


@each_program
def test_em_gradient_is_exact(program):
    laws.em_gradient_is_exact(program.make(), **program.arguments)


# its M-step is of its own; that it ends at a maximum is in its own tests
@pytest.mark.parametrize("program", [p for p in POINT if "Component" not in p.name], ids=lambda p: p.name)
def test_closed_form_is_stationary(program):
    laws.closed_form_is_stationary(program.make(), **program.arguments)


@each_of_rows_alone
def test_parameters_are_recovered(program):
    laws.parameters_are_recovered(program.make, fitted(Case(program, "em")))


# A point guide has no density, and contrastive divergence leaves normalizers out of its loss.
WITH_BOUND = [c for c in CASES if c.guide not in (None, "map") and c.inference != "up-down"]


@pytest.mark.parametrize("case", WITH_BOUND, ids=str)
def test_bound_is_below_evidence(case):
    laws.bound_is_below_evidence(fitted(case), case.program.data, num_bounds=50, num_draws=50)


@each_case
def test_save_load_is_exact(case, tmp_path):
    program = case.program
    laws.save_load_is_exact(
        fitted(case),
        program.data,
        tmp_path / "fit",
        covariates=program.one_row_of_covariates,
        **program.load_options(),
    )


@pytest.mark.parametrize("case", list({c.program.name.split("-")[0]: c for c in reversed(CASES)}.values()), ids=str)
def test_every_model_is_drawn(case):
    figure = fitted(case).plot(case.program.data)
    figure.draw_without_rendering()
    assert figure.axes


@pytest.mark.parametrize("case", [c for c in CASES if c.inference != "mcmc"], ids=str)
def test_resume_is_exact(case, tmp_path):
    laws.resume_is_exact(case.program.make, case.program.data, tmp_path / "fit", **case.options)


@pytest.mark.parametrize("case", [c for c in CASES if c.inference == "svi"], ids=str)
def test_resume_is_exact_in_batches(case, tmp_path):
    options = {**case.options, "batch_size": 50}
    laws.resume_is_exact(case.program.make, case.program.data, tmp_path / "fit", epochs=2, **options)


@each_case
def test_seeds_reproduce(case):
    laws.seeds_reproduce(case.program.make, case.program.data, **case.options)


@each_case
def test_fits_do_not_touch(case):
    laws.fits_do_not_touch(case.program.make, case.program.data, **case.options)


@each_of_rows_alone
def test_minibatches_are_unbiased(program):
    laws.minibatches_are_unbiased(program.make(), program.rows())


@pytest.mark.parametrize("inference", ["em", "svi"])
@each_of_rows_alone
def test_dtype_is_kept(program, inference):
    laws.dtype_is_kept(program.make, program.rows(), inference=inference)


BAD_ROW_CASES = {
    "-".join([entry.name, *_words(variant), guide or "point"]): (entry, variant, guide)
    for entry in lvm.CATALOG.values()
    for variant in entry.variants
    for guide in (None, "map")
    if not entry.covariates and (guide is None or guide in entry.guides)
}


@pytest.mark.parametrize(("entry", "variant", "guide"), BAD_ROW_CASES.values(), ids=BAD_ROW_CASES)
def test_rejects_bad_rows(entry, variant, guide):
    options = {} if guide is None else {"priors": True}
    make = functools.partial(entry.example, **variant, **options)
    rows = example_rows(entry.data, entry.model.sequences)
    laws.rejects_bad_rows(make, rows, skip=HARMLESS.get(entry.name, ()), guide=guide)


def takes_gaps(program):
    """Whether single entries may be missing: some models of sequences take steps as a whole only."""
    model = program.make()
    rows = getattr(model, "rows", None) if getattr(model, "sequences", False) else None
    return getattr(model, "handles_missing", False) and (rows is None or rows.takes_gaps) and not program.num_covariates


@pytest.mark.parametrize("case", [c for c in CASES if takes_gaps(c.program) and c.guide not in SAMPLED], ids=str)
def test_missing_entries_are_marginalised(case):
    rows, kinds = case.program.rows(), case.program.kinds
    support = kinds and [oracles.grid(kind, column) for kind, column in zip(kinds, rows.flatten(1).T, strict=True)]
    laws.missing_entries_are_marginalised(fitted(case), rows, support=support)


def test_a_tensor_shared_by_two_fits_is_not_written_to():
    """A start value made outside the program, as in most of Pyro's tutorials."""
    start = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)

    def program(x):
        loc = pyro.param("loc", start)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(3).double()), infer={"enumerate": "parallel"})
            return pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    laws.fits_do_not_touch(lambda: program, counts()[:, 0], inference="em")
    assert start.tolist() == [1.0, 4.0, 9.0]


def _public_classes(module):
    return [getattr(module, name) for name in module.__all__ if inspect.isclass(getattr(module, name))]


def test_every_public_model_is_in_the_catalog():
    of_pairs = {model for model in _public_classes(lvm.models) if issubclass(model, WordAlignment)}  # of sentences
    assert {entry.model for entry in lvm.CATALOG.values()} == set(_public_classes(lvm.models)) - of_pairs
    assert all(choices.MODELS[name] is entry.model for name, entry in lvm.CATALOG.items())


def test_every_public_guide_is_registered():
    assert set(choices.GUIDES.values()) == set(_public_classes(lvm.guides))
    by_svi = {guide for entry in lvm.CATALOG.values() for guide in entry.guides}
    assert by_svi | {guide for kind in choices.INFERENCES.values() for guide in getattr(kind, "guides", ())} == set(
        choices.GUIDES
    )


def test_every_inference_of_the_catalog_is_registered():
    assert {name for entry in lvm.CATALOG.values() for name in entry.inferences} <= set(choices.INFERENCES)
