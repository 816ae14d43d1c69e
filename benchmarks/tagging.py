"""Part-of-speech tagging of UD English EWT by hidden Markov models: all, some and none of the tags known.

`PYRO_LVM_DATA=folder python benchmarks/tagging.py` prints the tables; `--quick` takes a minute or two on part of the
sentences and judges nothing. `folder/pos_ud_ewt/en_ewt_{train,dev,test}.tsv.gz` hold words and tags by line.

How it is measured:

* Accuracy is the share of words whose tag is the one on the most probable path. Tags are the 17 universal ones; words
  seen less than twice stand for what they look like (`lvm.datasets.Vocabulary`), capitals do not count otherwise.
* All tags known: the states are data (`{"x": words, "z": tags}`), a Dirichlet prior adds 0.01 to every count of a word
  and 0.1 to every count of a transition. Nothing was tuned on the test sentences.
* One in a hundred sentences tagged, drawn anew for each of three runs. *Supervised* learns from those only: words seen
  there, classes for all others (words seen once count for both). *EM* takes all sentences of up to 40 words, and the
  tags of the same ones. It starts from the supervised model, spread over the words of all sentences by class, and is
  held to it by a Dirichlet prior worth c words a tag. EM is known to raise accuracy for a few steps and to lower it
  after that: likelihood prefers other classes to parts of speech. Hence c and the number of steps are chosen by
  accuracy on the development sentences, and the last column says what happens if the smallest c goes on.
* No tags known: EM from several starts, the best by likelihood, never by tags; every state stands for the tag it occurs
  with most (many-to-one, which grows with the number of states). 45 states is the usual number; the usual corpus (WSJ,
  about 63 %) is another one, with other tags.

References:
    B. Merialdo (1994), Tagging English text with a probabilistic model, Computational Linguistics 20.
    M. Johnson (2007), Why doesn't EM find good HMM POS-taggers?, EMNLP-CoNLL.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_lvm as lvm
from pyro_lvm.datasets import TaggedCorpus, Vocabulary, read_tagged
from pyro_lvm.diagnostics import many_to_one

FIGURE = 0.88  # accuracy to reach with all tags known
LONGEST = 40  # words; padding to the longest sentence would take four times the memory
STRENGTHS = (1000.0, 10_000.0)
STEPS = 6
RUNS, ONE_IN = 3, 100
STATES, RESTARTS, EPOCHS = 45, 3, 60
WORD, MOVE = 0.01, 0.1  # added to counts

Encode = Callable[[Sequence[str]], Tensor]


def tagger(words: Tensor, moves: Tensor, first: Tensor) -> lvm.models.CategoricalHMM:
    """A model whose priors add these numbers to the counts: (K, V), (K, K) and (K,)."""
    priors = {
        "initial_probs": dist.Dirichlet(1 + first),
        "transition_probs": dist.Dirichlet(1 + moves).to_event(1),
        "probs": dist.Dirichlet(1 + words.unsqueeze(1)).to_event(2),
    }
    return lvm.models.CategoricalHMM(len(first), num_categories=words.shape[1], priors=priors)


def even(num_tags: int, num_symbols: int, word: float, move: float) -> lvm.models.CategoricalHMM:
    """A model whose priors add the same number to all counts of a kind."""
    sizes = ((num_tags, num_symbols), (num_tags, num_tags), (num_tags,))
    return tagger(*(torch.full(size, count) for size, count in zip(sizes, (word, move, move), strict=True)))


def learn(model: lvm.models.CategoricalHMM, x: list[Tensor], z: list[Tensor]) -> lvm.Fit:
    """MAP estimates from tagged sentences: exact after one step."""
    return lvm.fit(model, {"x": x, "z": z}, inference="em", max_epochs=2, seed=0, device="cpu", progress=False)


def encoded(corpus: TaggedCorpus, encode: Encode) -> list[Tensor]:
    """All sentences as numbers."""
    return [encode(words).double() for words in corpus.words]


def accuracy(fit: lvm.Fit, corpus: TaggedCorpus, encode: Encode) -> float:
    """Share of words tagged right."""
    found = torch.cat(fit.predict(encoded(corpus, encode)))
    return float((found == torch.cat(corpus.states)).double().mean())


def supervised(train: TaggedCorpus, test: TaggedCorpus) -> tuple[lvm.Fit, Vocabulary, float, float]:
    """All tags known: the fit, its words, accuracy on all words, and on those without a symbol of their own."""
    vocabulary = Vocabulary(train.words)
    model = even(len(train.tag_names), len(vocabulary), WORD, MOVE)
    fit = learn(model, encoded(train, vocabulary.encode), train.states)
    found = torch.cat(fit.predict(encoded(test, vocabulary.encode)))
    right = found == torch.cat(test.states)
    unknown = torch.tensor([word not in vocabulary for words in test.words for word in words])
    return fit, vocabulary, float(right.double().mean()), float(right[unknown].double().mean())


class Few:
    """What a few tagged sentences teach.

    Words seen there have a symbol of their own; the others share classes, learned from the words seen once.

    Attributes:
        fit: The supervised model.
    """

    def __init__(self, tagged: TaggedCorpus) -> None:
        self.seen, self.frequent = Vocabulary(tagged.words, min_count=1), Vocabulary(tagged.words)
        x = [*encoded(tagged, self.encode), *encoded(tagged, self._classes)]
        model = even(len(tagged.tag_names), len(self.frequent) + len(self.seen), WORD, MOVE)
        self.fit = learn(model, x, [*tagged.states, *tagged.states])

    def encode(self, words: Sequence[str]) -> Tensor:
        """Own symbols for words seen, classes for others."""
        return torch.tensor([self._number(word, self.seen) for word in words])

    def _classes(self, words: Sequence[str]) -> Tensor:
        return torch.tensor([self._number(word, self.frequent) for word in words])

    def _number(self, word: str, own: Vocabulary) -> int:
        return len(self.frequent) + self.seen.number(word) if word in own else self.frequent.number(word)

    def spread(self, words: Counter[str], vocabulary: Vocabulary) -> Tensor:
        """Probabilities of another vocabulary's symbols by tag, (K, V): each symbol shared out as words occur."""
        probs = self.fit.params["probs"].squeeze(1)
        shares = torch.zeros(probs.shape[1], len(vocabulary)).to(probs)
        for word, times in words.items():
            shares[self._number(word, self.seen), vocabulary.number(word)] += times
        spread = probs @ (shares / shares.sum(1, keepdim=True).clamp_min(1)) + 1e-9
        return spread / spread.sum(1, keepdim=True)


def semi_supervised(tagged: TaggedCorpus, plain: TaggedCorpus, dev: TaggedCorpus, test: TaggedCorpus) -> list[float]:
    """Test accuracy of the supervised model, of EM as development sentences choose, and of EM that goes on."""
    few = Few(tagged)
    vocabulary = Vocabulary((*tagged.words, *plain.words))
    spread = few.spread(Counter(word for words in (*tagged.words, *plain.words) for word in words), vocabulary)
    params = few.fit.params
    known = {"x": encoded(tagged, vocabulary.encode), "z": tagged.states}
    hidden = [torch.full_like(states, -1) for states in plain.states]
    both = {"x": [*known["x"], *encoded(plain, vocabulary.encode)], "z": [*known["z"], *hidden]}
    tried = []
    for strength in STRENGTHS:
        model = tagger(strength * spread, strength / 10 * params["transition_probs"], params["initial_probs"])
        fit = learn(model, known["x"], known["z"])
        for step in range(1, STEPS + 1):
            fit.resume(both, max_epochs=1, progress=False)
            scores = [accuracy(fit, corpus, vocabulary.encode) for corpus in (dev, test)]
            tried.append((scores[0], scores[1], strength, step))
    best = max(tried)
    print(f"    chosen: c = {best[2]:g}, {best[3]} steps", flush=True)
    return [accuracy(few.fit, test, few.encode), best[1], tried[STEPS - 1][1]]


def unsupervised(train: TaggedCorpus, states: int, restarts: int, epochs: int) -> tuple[float, list[float]]:
    """Many-to-one accuracy on the training sentences of the best start by likelihood, and losses of all."""
    vocabulary = Vocabulary(train.words)
    model = even(states, len(vocabulary), WORD, MOVE)
    x = encoded(train, vocabulary.encode)
    options = {"max_epochs": epochs, "tol": 1e-5, "seed": 0, "device": "cpu", "progress": False}
    fit = lvm.fit(model, x, inference="em", restarts=restarts, **options)
    losses = [start["loss"] for start in fit.restarts] if restarts > 1 else fit.history["loss"][-1:]
    return many_to_one(torch.cat(fit.predict(x)), torch.cat(train.states))[0], losses


def sentences(fit: lvm.Fit, vocabulary: Vocabulary, names: Sequence[str], count: int) -> list[str]:
    """Sentences from the model, of ten words each, with their tags."""
    params = fit.params
    emission = dist.Categorical(params["probs"].squeeze(1))
    law = lvm.distributions.HMM(params["initial_probs"], params["transition_probs"], emission, num_steps=10)
    torch.manual_seed(1)
    words, tags = law.sample_with_states((count,))
    return [
        " ".join(f"{word}/{names[tag]}" for word, tag in zip(vocabulary.decode(row), path.tolist(), strict=True))
        for row, path in zip(words, tags, strict=True)
    ]


def short(corpus: TaggedCorpus) -> TaggedCorpus:
    """Sentences that are not too long."""
    return corpus[[i for i, words in enumerate(corpus.words) if len(words) <= LONGEST]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything and print it."""
    parser = argparse.ArgumentParser(description="Part-of-speech tagging with all, some and none of the tags known.")
    parser.add_argument("--quick", action="store_true", help="part of the sentences, a minute or two")
    options = parser.parse_args(arguments)
    folder = os.environ.get("PYRO_LVM_DATA")
    if folder is None or not (Path(folder) / "pos_ud_ewt").is_dir():
        print("Set PYRO_LVM_DATA to a folder that holds pos_ud_ewt/en_ewt_train.tsv.gz.", file=sys.stderr)
        return 2
    pyro.enable_validation(False)
    train, dev, test = (
        read_tagged(Path(folder) / "pos_ud_ewt" / f"en_ewt_{part}.tsv.gz") for part in ("train", "dev", "test")
    )
    if options.quick:
        train, dev, test = train[: len(train) // 8], dev[:300], test[:300]
    print(f"pyro_lvm {lvm.__version__}, torch {torch.__version__}; {len(train):,} sentences, accuracy on test words")

    begin = time.perf_counter()
    fit, vocabulary, right, unknown = supervised(train, test)
    verdict = "reached" if right >= FIGURE else "not reached"
    print(f"\nall tags known: {right:.4f} (to reach {FIGURE}: {verdict}), of words without a symbol {unknown:.4f}")
    print(f"  {len(vocabulary):,} symbols, {vocabulary.num_classes} of them classes; {clock(begin)}", flush=True)
    print("sentences from it:", *sentences(fit, vocabulary, train.tag_names, 5), sep="\n  ", flush=True)

    begin = time.perf_counter()
    few, pool = len(train) // ONE_IN, short(train)
    print(f"\n{few} of {len(pool):,} sentences tagged")
    print(f"{'':10}{'supervised':>12}{'EM, chosen':>12}{f'EM, {STEPS} steps':>14}")
    rows = []
    for run in range(1 if options.quick else RUNS):
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(run)).tolist()
        rows.append(semi_supervised(pool[order[:few]], pool[order[few:]], dev, test))
        print(f"{run:<10}{rows[-1][0]:12.4f}{rows[-1][1]:12.4f}{rows[-1][2]:14.4f}", flush=True)
    means = [mean(column) for column in zip(*rows, strict=True)]
    better = "EM beats the tagged sentences alone" if all(r[1] > r[0] for r in rows) else "EM does not help in all runs"
    print(f"{'mean':10}{means[0]:12.4f}{means[1]:12.4f}{means[2]:14.4f}  {better}; {clock(begin)}", flush=True)

    begin = time.perf_counter()
    restarts, epochs = (1, 10) if options.quick else (RESTARTS, EPOCHS)
    share, losses = unsupervised(pool, STATES, restarts, epochs)
    print(f"\nno tags known, {STATES} states, {restarts} starts of up to {epochs} steps: many-to-one {share:.4f}")
    print(f"  losses of the starts {', '.join(f'{loss:,.0f}' for loss in losses)}; {clock(begin)}")
    return 0


def clock(begin: float) -> str:
    """Time since then."""
    return f"{time.perf_counter() - begin:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
