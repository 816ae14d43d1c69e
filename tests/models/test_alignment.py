"""Word alignment models against enumeration, a textbook's EM, the general engine, and programs in plain Pyro."""

import itertools
import math
from collections import Counter, defaultdict

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate

import pyro_lvm as lvm
from pyro_lvm.distributions.independent_alignment import IndependentAlignment
from pyro_lvm.distributions.lexicon import DenseLexicon
from pyro_lvm.distributions.markov_alignment import MarkovAlignment

PAIRS = [
    ("the house", "la casa"),
    ("the green house", "la casa verde"),
    ("a house", "una casa"),
    ("green", "verde"),
    ("the big green house", "la casa verde grande"),
    ("a big house", "una gran casa"),
]
SENTENCES = [([0, 1, 2], [2, 0, 1, 1]), ([1], [0, 2]), ([2, 0], [1]), ([0, 0, 1], [2, 2, 0])]
MODELS = {
    "IBMModel1": lambda **kw: lvm.models.IBMModel1(**kw),
    "IBMModel2": lambda **kw: lvm.models.IBMModel2(**{"position_smoothing": 0.3, **kw}),
    "HMMAlignment": lambda **kw: lvm.models.HMMAlignment(**{"max_jump": 2, "jump_smoothing": 0.3, **kw}),
}


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def corpus():
    return lvm.datasets.parallel_corpus(PAIRS)


def padded(sentences):
    rows = [torch.tensor(sentence) for sentence in sentences]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])


def law_of(kind, vocabulary=3):
    """A law over random sentences, and functions for what it says of a single pair: p(z | I, J) and t(e | f)."""
    generator = torch.Generator().manual_seed(3)

    def simplex(*shape):
        return torch.rand(shape, generator=generator) + 0.1

    source, sizes = padded([s for s, _ in SENTENCES])
    target, lengths = padded([t for _, t in SENTENCES])
    table = simplex(4, vocabulary)
    lexicon = DenseLexicon(table.log(), torch.arange(4), empty_word=3)
    translation = table / table.sum(-1, keepdim=True)
    common = lexicon, source, sizes, lengths, target.shape[1]
    if kind == "uniform":
        return IndependentAlignment(*common), target, translation, lambda z, size: (1 + size) ** -len(z)
    if kind == "positions":
        positions = simplex(3, 4, 4) * torch.ones(3, 4).tril(1).unsqueeze(1)

        def prior(z, size):
            rows = positions[size - 1] / positions[size - 1].sum(-1, keepdim=True)
            return math.prod(float(rows[j, i]) for j, i in enumerate(z))

        return IndependentAlignment(*common, positions), target, translation, prior
    first, jumps, null = simplex(2), simplex(3), 0.3

    def prior(z, size):
        starts = [float(first[min(i, 1)]) for i in range(size)]
        total = 0.0
        # the empty word at the beginning hides the position that the chain starts from
        for hidden in range(size):
            here, p = hidden, starts[hidden] / sum(starts)
            for j, i in enumerate(z):
                if i == 0:
                    p *= null
                    continue
                if j == 0:
                    p *= (1 - null) * (hidden == i - 1)
                else:
                    scores = [float(jumps[max(-1, min(1, k - here)) + 1]) for k in range(size)]
                    p *= (1 - null) * scores[i - 1] / sum(scores)
                here = i - 1
            total += p
        return total

    return MarkovAlignment(*common, first, jumps, null), target, translation, prior


KINDS = ["uniform", "positions", "jumps"]


def joint(source, target, translation, prior):
    """p(e, z) for every alignment z of one pair."""
    found = {}
    for z in itertools.product(range(len(source) + 1), repeat=len(target)):
        words = [translation[3 if i == 0 else source[i - 1], e] for i, e in zip(z, target, strict=True)]
        found[z] = prior(z, len(source)) * math.prod(map(float, words))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_laws_equal_sums_over_all_alignments(kind):
    law, target, translation, prior = law_of(kind)
    posterior, best = law.posterior(target), law.most_probable(target)
    for n, (source, words) in enumerate(SENTENCES):
        table = joint(source, words, translation, prior)
        total = sum(table.values())
        assert law.log_prob(target)[n].item() == pytest.approx(math.log(total), abs=1e-12)
        for j in range(target.shape[1]):
            for i in range(posterior.shape[2]):
                expected = sum(p for z, p in table.items() if j < len(words) and z[j] == i) / total
                assert posterior[n, j, i].item() == pytest.approx(expected, abs=1e-12)
        drawn = Counter(tuple(path) for path in law.posterior_sample(target, 2000)[:, n, : len(words)].tolist())
        for path, p in table.items():
            assert abs(drawn[path] - 2000 * p / total) <= 4.5 * math.sqrt(2000 * p / total) + 1
        path = best[n].tolist()
        assert path[len(words) :] == [-1] * (len(path) - len(words))
        if kind != "jumps":  # there the most probable path of states need not be the most probable alignment
            assert table[tuple(path[: len(words)])] == pytest.approx(max(table.values()))


def test_viterbi_follows_the_empty_word():
    law, target, _, _ = law_of("jumps")
    for n, (source, words) in enumerate(SENTENCES):
        size = len(source)
        initial, transition = law.chain(size)
        scores = {}
        for path in itertools.product(range(2 * size), repeat=len(words)):
            states = torch.tensor(path)
            score = initial[states[0]] + transition[0, states[:-1], states[1:]].sum()
            rows = [3 if s >= size else source[s] for s in path]
            value = float(
                score + law.lexicon.log_probs[law.lexicon.find(torch.tensor(rows), torch.tensor(words))].sum()
            )
            scores[tuple(s + 1 if s < size else 0 for s in path), path] = value
        best = max(scores, key=scores.get)[0]
        assert tuple(law.most_probable(target)[n, : len(words)].tolist()) == best


@pytest.mark.parametrize("kind", KINDS)
def test_laws_sum_to_one_and_padding_does_not_matter(kind):
    law, target, _, _ = law_of(kind)
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    total = sum(law.log_prob(row.expand(4, 4)).exp()[0] for row in every)
    assert total.item() == pytest.approx(1.0, abs=1e-12)
    other = torch.where(torch.arange(4) < law.lengths.unsqueeze(-1), target, 1)
    assert torch.equal(law.log_prob(other), law.log_prob(target))
    assert law.log_prob(target.double()).allclose(law.log_prob(target))  # `lvm.fit` makes them floating-point


@pytest.mark.parametrize("kind", KINDS)
def test_samples_follow_the_law(kind):
    law, _, _, _ = law_of(kind)
    draws = law.sample(torch.Size([4000]))[:, 1, :2]
    frequency = torch.zeros(3, 3)
    for row in draws.tolist():
        frequency[row[0], row[1]] += 1 / len(draws)
    exact = torch.zeros(3, 3)
    for a, b in itertools.product(range(3), repeat=2):
        exact[a, b] = law.log_prob(torch.tensor([a, b, 0, 0]).expand(4, 4)).exp()[1]
    error = (exact * (1 - exact) / len(draws)).sqrt()
    assert ((frequency - exact).abs() < 4.5 * error).all()


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_derivatives_and_follow_weights(kind):
    law, target, _, _ = law_of(kind)
    weights = torch.tensor([2.0, 0.5, 0.0, 1.0])
    logs = law.lexicon._log_probs.clone().requires_grad_()
    law.lexicon._log_probs = logs
    (weights * law.log_prob(target)).sum().backward()
    counts = law.expected_counts(target, weights)
    assert torch.allclose(counts.words, logs.grad, atol=1e-12)
    same = law.expected_counts(target, torch.ones(4))
    apart = [law.expected_counts(target, row) for row in torch.eye(4)]
    assert torch.allclose(same.words, sum(part.words for part in apart), atol=1e-12)
    for field in ("positions", "first", "moves"):
        for size in (1, 2, 3):
            total = [sum(t.sum(0) for s, t in getattr(c, field) if s == size) for c in (same, *apart)]
            assert torch.allclose(torch.as_tensor(total[0]), torch.as_tensor(sum(total[1:])), atol=1e-12)


def textbook(pairs, steps, smoothing=0.0):
    """Model 1 as it stands in textbooks: dictionaries of words."""
    pairs = [(["NULL", *f.split()], e.split()) for f, e in pairs]
    vocabulary = {word for _, target in pairs for word in target}
    t = defaultdict(lambda: 1 / len(vocabulary))
    scores = []
    for _ in range(steps):
        count, total, log_likelihood = defaultdict(float), defaultdict(float), 0.0
        for source, target in pairs:
            for e in target:
                z = sum(t[e, f] for f in source)
                log_likelihood += math.log(z / len(source))
                for f in source:
                    count[e, f] += t[e, f] / z
                    total[f] += t[e, f] / z
        scores.append(log_likelihood)
        for e, f in list(count):
            t[e, f] = (count[e, f] + smoothing) / (total[f] + smoothing * len(vocabulary))
    return t, scores


@pytest.mark.parametrize("smoothing", [0.0, 0.05])
def test_model_1_is_the_textbooks(corpus, smoothing):
    table, scores = textbook(PAIRS, 6, smoothing)
    model = lvm.models.IBMModel1(smoothing=smoothing)
    fit = lvm.fit(model, corpus, max_epochs=6, progress=False)
    for source, target in PAIRS:
        for f, e in itertools.product(["NULL", *source.split()], target.split()):
            row = len(corpus.source_words) if f == "NULL" else corpus.source_words.index(f)
            found = fit.model.translation(torch.tensor(row), torch.tensor(corpus.target_words.index(e)))
            assert found.item() == pytest.approx(table[e, f], abs=1e-10)
    if not smoothing:
        assert fit.history["loss"] == pytest.approx([-score for score in scores], abs=1e-10)


def plain(positions):
    """Models 1 and 2 in plain Pyro: a dense table, alignments enumerated."""

    def program(x, source, lengths, source_lengths):
        n, steps = x.shape
        empty, targets = int(source.max()) + 1, int(x.max()) + 1
        start = torch.full((empty + 1, targets), 1 / targets)
        t = pyro.param("t", start, constraint=dist.constraints.simplex)
        a = positions(source_lengths, steps)  # (J, n, 1 + I) or a parameter gathered by I
        inside = torch.arange(steps).unsqueeze(-1) < lengths
        words = torch.cat([torch.full((n, 1), empty), source], 1)
        with pyro.plate("data", n, dim=-1), pyro.plate("words", steps, dim=-2), pyro.poutine.mask(mask=inside):
            z = pyro.sample("z", dist.Categorical(a), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Categorical(t[words[torch.arange(n), z]]), obs=x.T)

    return program


def uniform_positions(source_lengths, steps):
    inside = torch.arange(1 + int(source_lengths.max())) <= source_lengths.unsqueeze(-1)
    return (inside / inside.sum(-1, keepdim=True)).expand(steps, *inside.shape)


def learned_positions(source_lengths, steps):
    longest = int(source_lengths.max())
    inside = torch.ones(longest, 1 + longest).tril(1)
    start = (inside / inside.sum(-1, keepdim=True)).unsqueeze(1).repeat(1, steps, 1)
    a = pyro.param("a", start, constraint=dist.constraints.simplex)
    return a[source_lengths - 1].transpose(0, 1)


@pytest.mark.parametrize("kind", ["IBMModel1", "IBMModel2"])
def test_the_general_engine_gives_the_same_steps(corpus, kind, local):
    positions = {"IBMModel1": uniform_positions, "IBMModel2": learned_positions}[kind]
    program = plain(positions)
    model = {"IBMModel1": lvm.models.IBMModel1, "IBMModel2": lvm.models.IBMModel2}[kind]()
    model.num_warm_up = 0
    model.initialize(**corpus)
    fast, general = lvm.infer.EM(model), lvm.infer.EM(program)
    for _ in range(4):
        assert fast.step(**corpus) == pytest.approx(general.step(**corpus), abs=1e-10)
    sources = torch.arange(len(corpus.source_words) + 1).unsqueeze(-1)
    found = model.translation(sources, torch.arange(len(corpus.target_words)))
    assert torch.allclose(found, pyro.param("t").detach(), atol=1e-10)
    if kind == "IBMModel2":
        known = model.alignment_probs > 0
        assert torch.allclose(model.alignment_probs[known], pyro.param("a")[known], atol=1e-10)


def test_the_chain_is_that_of_a_program_in_plain_pyro(corpus, local):
    model = lvm.models.HMMAlignment(max_jump=2, num_warm_up=2)
    model.initialize(**corpus)
    em = lvm.infer.EM(model)
    for _ in range(3):
        em.step(**corpus)
    x, source = corpus["x"].long(), corpus["source"]

    @config_enumerate
    def chain(n):
        size, steps = int(corpus["source_lengths"][n]), int(corpus["lengths"][n])
        initial, transition = model.law(source, corpus["source_lengths"], corpus["lengths"], 4).chain(size)
        state = None
        words = torch.cat([source[n, :size], torch.full((size,), len(corpus.source_words))])
        every = torch.arange(len(corpus.target_words))
        rows = model.translation(words.unsqueeze(-1), every)
        for j in pyro.markov(range(steps)):
            law = initial if state is None else transition[0, state]
            state = pyro.sample(f"z{j}", dist.Categorical(logits=law))
            pyro.sample(f"x{j}", dist.Categorical(rows[state]), obs=x[n, j])

    losses = [TraceEnum_ELBO(max_plate_nesting=0).loss(chain, lambda n: None, n) for n in range(len(x))]
    assert em.loss(**corpus) == pytest.approx(sum(losses), abs=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_stock_pyro_scores_and_trains_them(corpus, name, local):
    model = MODELS[name](smoothing=0.1)
    model.initialize(**corpus)
    svi = SVI(model, lambda *args, **kwargs: None, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    assert svi.evaluate_loss(**corpus) == pytest.approx(lvm.infer.EM(model).held_out_loss(**corpus), abs=1e-9)
    losses = [svi.step(**corpus) for _ in range(30)]
    assert losses[-1] < losses[0]


def test_words_without_any_pair_give_no_gradient_of_nan(corpus, local):
    model = lvm.models.HMMAlignment(num_warm_up=2)  # without smoothing, other words have probability zero
    model.initialize(**corpus)
    value = model.law(corpus["source"], corpus["source_lengths"], corpus["lengths"], 4).log_prob(corpus["x"]).sum()
    for gradient in torch.autograd.grad(value, list(model.parameters())):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_em_never_falls(name, smoothing):
    corpus = lvm.datasets.phrases()
    model = MODELS[name](smoothing=smoothing)
    fit = lvm.fit(model, corpus, max_epochs=40, progress=False)
    losses = torch.tensor(fit.history["loss"])
    assert (losses.diff() <= 1e-9 * losses[0].abs()).all()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", MODELS)
def test_em_reaches_a_stationary_point_of_the_joint_density(name):
    corpus = lvm.datasets.parallel_corpus(PAIRS)
    model = MODELS[name](smoothing=0.5)
    fit = lvm.fit(model, corpus, max_epochs=800, tol=0, progress=False)
    with fit.scope():
        values = dict(fit.model.named_parameters())
        law = fit.model.law(corpus["source"], corpus["source_lengths"], corpus["lengths"], corpus["x"].shape[1])
        objective = law.log_prob(corpus["x"]).sum() + fit.model._log_prior()
        gradients = torch.autograd.grad(objective, list(values.values()))
    for gradient in gradients:
        finite = gradient[torch.isfinite(gradient)]  # a probability of zero has no logarithm
        assert finite.abs().max() < 1e-4


def test_better_models_align_better():
    corpus = lvm.datasets.phrases()
    rates = []
    for model in (lvm.models.IBMModel1(), lvm.models.HMMAlignment(jump_smoothing=0.1)):
        fit = lvm.fit(model, corpus, max_epochs=10, progress=False)
        rates.append(lvm.diagnostics.alignment_error_rate(fit.model.align(**corpus), corpus.links))
    assert rates[1] < rates[0] < 0.25


def test_smoothing_gives_words_that_never_met_what_is_left(corpus):
    fit = lvm.fit(lvm.models.IBMModel1(smoothing=0.1), corpus, max_epochs=3, progress=False)
    every = torch.arange(len(corpus.target_words))
    table = fit.model.translation(torch.arange(len(corpus.source_words) + 1).unsqueeze(-1), every)
    assert torch.allclose(table.sum(-1), torch.ones(len(table)))
    a, verde = corpus.source_words.index("a"), corpus.target_words.index("verde")
    assert 0 < table[a, verde] < 0.1
    unseen = corpus.encode([("a green", "una verde")])
    assert torch.isfinite(fit.log_likelihood(unseen)).all()


def test_held_out_losses_know_no_prior(corpus):
    fit = lvm.fit(lvm.models.IBMModel1(smoothing=0.1), corpus, max_epochs=3, progress=False)
    with fit.scope():
        assert fit.inference.held_out_loss(**corpus) == pytest.approx(-fit.log_likelihood(corpus).sum().item())
        assert fit.inference.loss(**corpus) > fit.inference.held_out_loss(**corpus)


def test_long_sentences_may_follow(corpus):
    longer = corpus.encode([("the big big green green house", "la casa casa verde verde grande")])
    for make in MODELS.values():
        fit = lvm.fit(make(smoothing=0.1), corpus, max_epochs=2, progress=False)
        assert torch.isfinite(fit.log_likelihood(longer)).all()
        assert len(fit.model.align(**longer)) == 1


@pytest.mark.parametrize("name", [*MODELS, "NeuralHMMAlignment"])
def test_fits_are_kept_and_generate(corpus, name, tmp_path):
    if name == "NeuralHMMAlignment":
        model = lvm.models.NeuralHMMAlignment(embedding_dim=3, hidden_dim=4, max_jump=2)
        fit = lvm.fit(model, corpus, inference="svi", max_epochs=3, batch_size=4, seed=1, progress=False)
    else:
        fit = lvm.fit(MODELS[name](smoothing=0.1), corpus, max_epochs=3, progress=False)
    fit.save(tmp_path / "fit")
    again = lvm.load(tmp_path / "fit")
    assert torch.equal(again.log_likelihood(corpus), fit.log_likelihood(corpus))
    assert again.model.align(**corpus) == fit.model.align(**corpus)
    given = {key: value for key, value in corpus.items() if key != "x"}
    drawn = fit.sample(len(PAIRS), **given)
    assert drawn.shape == corpus["x"].shape
    assert (drawn[torch.arange(drawn.shape[1]) >= corpus["lengths"].unsqueeze(-1)] == 0).all()
    fit.to_arviz(corpus)


def test_the_neural_model_learns_by_gradients_and_by_em():
    corpus = lvm.datasets.phrases()
    model = lvm.models.NeuralHMMAlignment(embedding_dim=12, hidden_dim=12)
    svi = lvm.infer.SVI(learning_rate=0.03)
    fit = lvm.fit(model, corpus, inference=svi, batch_size=15, max_epochs=60, seed=0, progress=False)
    assert lvm.diagnostics.alignment_error_rate(fit.model.align(**corpus), corpus.links) < 0.25
    small = corpus.take(slice(8))
    fit = lvm.fit(model, small, inference=lvm.infer.EM(gradient_steps=3), max_epochs=4, seed=0, progress=False)
    losses = torch.tensor(fit.history["loss"])
    assert (losses.diff() < 0).all()
    assert "gradient" in str(fit.plan(small))


def test_posterior_decoding(corpus):
    fit = lvm.fit(lvm.models.IBMModel1(), corpus, max_epochs=5, progress=False)
    table = fit.model.posterior(**corpus)
    assert torch.allclose(table.sum((1, 2)), corpus["lengths"].double())
    loose, strict = (fit.model.align(**corpus, threshold=p) for p in (0.1, 0.6))
    assert all(a >= b for a, b in zip(loose, strict, strict=True))
    assert (0, 0) in loose[0]


def test_lengths_may_be_left_out():
    x, source = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[0, 1, 2], [1, 0, 2]])
    fit = lvm.fit(lvm.models.IBMModel1(), {"x": x, "source": source}, max_epochs=2, progress=False)
    assert fit.log_likelihood({"x": x, "source": source}).shape == (2,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": torch.tensor([2, 3, 2, 0, 4, 3])}, "got 0 for sentence 3. Leave empty sentences out"),
        ({"source_lengths": torch.tensor([2, 3, 2, 9, 4, 3])}, r"from 1 to 4 words; got 9 for sentence 3"),
        ({"lengths": torch.tensor([2, 3, 2, 1, 4, 9])}, r"from 1 to 4 words; got 9 for sentence 5"),
        ({"lengths": torch.ones(2, dtype=torch.long)}, r"expected lengths of shape \(6,\)"),
        ({"source": None}, r"expected source sentences of shape \(6, I\)"),
        ({"source": torch.full((6, 4), -1)}, "got -1 in sentence 0, place 0"),
        ({"x": torch.full((6, 4), 0.5)}, "whole numbers from 0 to V - 1; got 0.5"),
        ({"x": torch.zeros(6)}, r"expected x of shape \(n, words\)"),
    ],
)
@pytest.mark.parametrize("name", ["IBMModel1", "HMMAlignment"])
def test_bad_sentences(corpus, change, message, name):
    data = {key: value for key, value in {**corpus, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        lvm.fit(MODELS[name](), data, max_epochs=1, progress=False)


def test_words_out_of_the_vocabulary(corpus):
    fit = lvm.fit(lvm.models.IBMModel1(), corpus, max_epochs=2, progress=False)
    x = corpus["x"].clone()
    x[2, 1] = 17
    with pytest.raises(ValueError, match="whole numbers from 0 to 5; got 17 in sentence 2, place 1"):
        fit.log_likelihood({**corpus, "x": x})
    with pytest.raises(ValueError, match="expected source to hold words, whole numbers from 0 to 4; got 9"):
        fit.model.align(**{**corpus, "source": corpus["source"] + 5})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lvm.models.IBMModel1(smoothing=-1.0), "expected smoothing >= 0"),
        (lambda: lvm.models.IBMModel1(num_source_words=0), "expected num_source_words to be a whole number >= 1"),
        (lambda: lvm.models.IBMModel2(position_smoothing=-0.5), "expected position_smoothing >= 0"),
        (lambda: lvm.models.HMMAlignment(null_probability=1.0), r"expected null_probability in \[0, 1\); got 1.0"),
        (lambda: lvm.models.HMMAlignment(max_jump=0), "expected max_jump to be a whole number >= 1"),
        (lambda: lvm.models.NeuralHMMAlignment(embedding_dim=0), "expected embedding_dim"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", MODELS)
def test_fits_predict_alignments_and_plans_name_them(corpus, name):
    fit = lvm.fit(MODELS[name](smoothing=0.1), corpus, max_epochs=3, progress=False)
    path, table = fit.predict(corpus), fit.predict_proba(corpus)
    links = [{(i - 1, j) for j, i in enumerate(row) if i > 0} for row in path.tolist()]
    assert links == fit.model.align(**corpus)
    assert ((path >= 0).sum(1) == corpus["lengths"]).all()
    assert torch.equal(table, fit.model.posterior(**corpus))
    assert "E-step: alignments of x, summed out exactly by its law" in str(fit.plan(corpus))
