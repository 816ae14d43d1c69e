# %% [markdown]
# # Word alignment
#
# Two languages, pairs of sentences, no dictionary: which word translates which? Every target word is taken to translate
# one source word, or the empty word; which one is latent. Four models say how it is chosen.
#
# Set `PYRO_LVM_SHORT=1` to run it as the tests do; without it, it draws its picture anew.

# %%
import os
from pathlib import Path

import torch

import pyro_lvm as lvm
from pyro_lvm.diagnostics.alignment import alignment_plot, transpose

SHORT = os.environ.get("PYRO_LVM_SHORT") == "1"
corpus = lvm.datasets.phrases()
print(corpus.num_pairs, "pairs,", len(corpus.source_words), "English and", len(corpus.target_words), "Spanish words")
print(*corpus.sentences(4), sep="\n")

# %% [markdown]
# ## From Model 1 to the HMM
#
# Model 1 chooses source words blindly, Model 2 by position, the HMM by the jump from the word before. All are trained
# by exact EM: alignments are summed out of the law of a sentence, and the M-step is in closed form, but for the jumps,
# whose scores an MM algorithm raises. `smoothing` is a Dirichlet prior on translations, which EM maximises with.

# %%
models = {
    "Model 1": lvm.models.IBMModel1(smoothing=0.01),
    "Model 2": lvm.models.IBMModel2(smoothing=0.01, position_smoothing=0.1),
    "HMM": lvm.models.HMMAlignment(smoothing=0.01, jump_smoothing=0.1),
}
fits = {name: lvm.fit(model, corpus, max_epochs=10, progress=False) for name, model in models.items()}
rates = {
    name: lvm.diagnostics.alignment_error_rate(fit.model.align(**corpus), corpus.links) for name, fit in fits.items()
}
print({name: round(rate, 3) for name, rate in rates.items()})
assert rates["HMM"] < rates["Model 1"]

# %% [markdown]
# What the HMM learned about jumps: one step forward is the rule, two forward lead to the noun that stands before its
# adjective in Spanish. (These are scores; they are normalised over the words of each source sentence.)

# %%
jumps = fits["HMM"].params["jump_probs"]
widest = len(jumps) // 2
print({jump: round(float(jumps[widest + jump]), 2) for jump in range(-2, 4)})
assert jumps.argmax() == widest + 1

# %% [markdown]
# ## A sentence in both directions
#
# A target word has one link, a source word any number, so the two directions differ. Links that both have are the most
# precise; "grow-diag-final" adds to them from the others.

# %%
back = corpus.swapped()
reverse = lvm.fit(models["HMM"], back, max_epochs=10, progress=False)
forward = fits["HMM"].model.align(**corpus)
backward = [transpose(links) for links in reverse.model.align(**back)]
for method in ("intersection", "union", "grow-diag-final"):
    scores = lvm.diagnostics.alignment_scores(lvm.diagnostics.symmetrise(forward, backward, method), corpus.links)
    print(f"{method:<16} precision {scores.precision:.3f}, recall {scores.recall:.3f}, AER {scores.error_rate:.3f}")

# %%
row = 41
source, target = corpus.sentences(row)
probabilities = fits["HMM"].model.posterior(**corpus)[row, : len(target), 1 : 1 + len(source)]
figure = alignment_plot(source, target, probabilities, corpus.links[row])
if not SHORT:
    figure.savefig(Path(__file__).parent / "pictures" / "word_alignment.png", dpi=100)

# %% [markdown]
# ## Other sentences, and a network
#
# New sentences are encoded in the same vocabularies. In `NeuralHMMAlignment` a network over embeddings of words takes
# the table's place; its law is differentiable, so that plain SVI on batches trains it.

# %%
other = corpus.encode([("the green dog sleeps", "el perro verde duerme")])
print(sorted(fits["HMM"].model.align(**other)[0]), "score", round(fits["HMM"].score(other), 1), "nats")
assert (1, 2) in fits["HMM"].model.align(**other)[0]  # green, verde
neural = lvm.fit(
    lvm.models.NeuralHMMAlignment(embedding_dim=12, hidden_dim=12),
    corpus,
    inference=lvm.infer.SVI(learning_rate=0.03),
    batch_size=15,
    max_epochs=15 if SHORT else 60,
    seed=0,
    progress=False,
)
rate = lvm.diagnostics.alignment_error_rate(neural.model.align(**corpus), corpus.links)
print("neural HMM", round(rate, 3))
assert SHORT or rate < rates["Model 1"]
assert torch.isfinite(neural.log_likelihood(other)).all()
