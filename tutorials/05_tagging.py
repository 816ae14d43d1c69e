# %% [markdown]
# # Words and what they are: one hidden Markov model, five questions
#
# Words are steps, tags are states. One model answers: which tag has a word, if all, some or none of the tags were
# given? Which word is missing? What would it say itself? The sample, 122 short English sentences with universal tags,
# travels with the package. (`PYRO_LVM_SHORT=1`: few steps, no pictures.)

# %%
import os
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure

import pyro_lvm as lvm
from pyro_lvm.datasets import Vocabulary, tagged_sentences
from pyro_lvm.diagnostics import many_to_one

SHORT = os.environ.get("PYRO_LVM_SHORT") == "1"
PICTURES = Path(__file__).parent / "pictures"
torch.set_default_dtype(torch.float64)

corpus = tagged_sentences()
names = corpus.tag_names
train = corpus[[i for i in range(len(corpus)) if i % 3]]
test = corpus[::3]
print(" ".join(f"{word}/{tag}" for word, tag in zip(test.words[1], test.tags[1], strict=True)))

# %% [markdown]
# ## Words become numbers
#
# A word seen twice or more has a number. Every other word, an unseen one too, stands for what it looks like: its
# ending, its capitals, its digits. What is learned of rare words then holds for unknown ones.

# %%
vocabulary = Vocabulary(train.words)
symbols, tags = len(vocabulary), len(names)
x, x_test = ([vocabulary.encode(words).double() for words in part.words] for part in (train, test))
print(f"{symbols} symbols, such as", vocabulary.decode(vocabulary.encode(["the", "Sailors", "whistling", "1904"])))

# %% [markdown]
# ## All tags known
#
# Labels are data under the name of the states. Priors are counts: a tenth of a word for every pair, so that nothing is
# impossible only because it did not occur.


# %%
def tagger(words, moves, first):
    """Priors that add these numbers to the counts of words, of transitions and of first tags, by tag."""
    priors = {
        "initial_probs": dist.Dirichlet(1 + first),
        "transition_probs": dist.Dirichlet(1 + moves).to_event(1),
        "probs": dist.Dirichlet(1 + words[:, None]).to_event(2),
    }
    return lvm.models.CategoricalHMM(tags, num_categories=symbols, priors=priors)


def learn(x, z):
    weak = tagger(torch.full((tags, symbols), 0.1), torch.full((tags, tags), 0.1), torch.full((tags,), 0.1))
    return lvm.fit(weak, {"x": x, "z": z}, inference="em", seed=0)


def accuracy(fit):
    return float((torch.cat(fit.predict(x_test)) == torch.cat(test.states)).double().mean())


taught = learn(x, train.states)
print(f"all tags known: {accuracy(taught):.1%} of test words right")

# %% [markdown]
# What it learned of grammar is the table of transitions: a determiner calls for a noun or an adjective, a pronoun for a
# verb.
#
# ![Which tag follows which](pictures/tag_transitions.png)

# %%
moves = taught.params["transition_probs"]
figure = Figure(figsize=(5.4, 4.6), layout="constrained")
ax = figure.subplots()
image = ax.imshow(moves.numpy(), cmap="Blues", vmin=0)
ax.set(xticks=range(tags), yticks=range(tags), xlabel="next tag", ylabel="tag")
ax.set_xticklabels(names, rotation=90, fontsize=8)
ax.set_yticklabels(names, fontsize=8)
figure.colorbar(image, label="probability")
if not SHORT:
    figure.savefig(PICTURES / "tag_transitions.png", dpi=75)

# %% [markdown]
# ## A tenth of the sentences tagged
#
# The other sentences have words, but -1 for every tag. Plain EM would soon trade parts of speech for classes that
# predict words better. So it is held to what the few sentences taught, by priors worth 30 words a tag, and takes few
# steps: `resume` goes on from the supervised fit, with more data. (`benchmarks/tagging.py` chooses both by development
# sentences, on a real corpus.)

# %%
few = range(0, len(train), 10)
known = [states if i in few else torch.full_like(states, -1) for i, states in enumerate(train.states)]
alone = learn([x[i] for i in few], [train.states[i] for i in few])
taught_by_few = {name: value.clone() for name, value in alone.params.items()}
held = tagger(30 * taught_by_few["probs"][:, 0], 30 * taught_by_few["transition_probs"], taught_by_few["initial_probs"])
helped = lvm.fit(held, {"x": [x[i] for i in few], "z": [train.states[i] for i in few]}, inference="em", seed=0)
helped.resume({"x": x, "z": known}, max_epochs=3)
print(f"{len(few)} sentences tagged: alone {accuracy(alone):.1%}, with the others' words {accuracy(helped):.1%}")

# %% [markdown]
# ## No tags at all
#
# States have no names then. Each stands for the tag that it occurs with most: better than calling every word a noun,
# and far from the tags. Likelihood alone does not know what a linguist is after.

# %%
free = lvm.models.CategoricalHMM(tags, num_categories=symbols)
blind = lvm.fit(free, x, restarts=1 if SHORT else 10, seed=0, max_epochs=10 if SHORT else 200)
truth = torch.cat(train.states)
share, meaning = many_to_one(torch.cat(blind.predict(x)), truth)
commonest = float((truth == truth.mode().values).double().mean())
print(f"no tags: {share:.1%} of words right by the best naming of the states; one tag for all: {commonest:.1%}")

# %% [markdown]
# ## A missing word
#
# The same model fills gaps: NaN is a word nobody heard. Its tag is predicted with the others', the words that may stand
# there follow from the tag.
#
# ![Tags of a sentence with a gap](pictures/tags_of_a_sentence.png)

# %%
sentence = ["the", "old", "captain", "bought", "a", "boat", "at", "the", "market", "."]
heard = vocabulary.encode(sentence).double()
heard[5] = torch.nan
belief = taught.predict_proba([heard])[0]
words = belief[5] @ taught.params["probs"][:, 0]
likely = [i for i in words.argsort(descending=True).tolist() if i >= vocabulary.num_classes][:5]
print("in place of the gap a", names[int(belief[5].argmax())], "such as", vocabulary.decode(likely))

figure = Figure(figsize=(7.2, 3.2), layout="constrained")
ax = figure.subplots()
ax.imshow(belief.T.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
ax.set(yticks=range(tags), xticks=range(len(sentence)))
ax.set_yticklabels(names, fontsize=8)
ax.set_xticklabels(["?" if i == 5 else word for i, word in enumerate(sentence)])
if not SHORT:
    figure.savefig(PICTURES / "tags_of_a_sentence.png", dpi=75)

# %% [markdown]
# ## Its own sentences
#
# Grammar of two words at a time: every pair is plausible, the whole is not.

# %%
torch.manual_seed(0)
stop = vocabulary.number(".")
for row in taught.sample(6, num_steps=16)[..., 0].long():
    ends = (row == stop).nonzero().flatten()
    print(" ".join(vocabulary.decode(row[: int(ends[0]) + 1] if len(ends) else row)))

# %% [markdown]
# ## What we claimed

# %%
assert accuracy(taught) > 0.85
assert accuracy(taught) > accuracy(helped) > accuracy(alone)
assert share > commonest
assert np.isclose(float(words.sum()), 1)
assert names[int(belief[5].argmax())] == "NOUN"
