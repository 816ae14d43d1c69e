"""Held-out log-likelihood of polyphonic music by hidden Markov models with 88 coins a state, exact EM.

`PYRO_LVM_DATA=folder python benchmarks/music.py` prints the tables; `--quick` takes under a minute on 16 states and
judges nothing. `folder/polyphonic_music/polyphonic.npz` holds four sets of piano rolls, standard splits, as packed bits
(`JSB_Chorales_train`, ...) and lengths of the pieces (`JSB_Chorales_train_len`, ...).

How it is measured:

* A figure is minus the log-likelihood of all test steps over their number, all 88 notes counted, nats. (Pyro's example
  `hmm.py` leaves out 37 notes that never sound: not comparable.)
* Independent notes: every note has its share of the training steps, one step with and one without the note added.
* The model is `BernoulliHMM`; MAP-EM with a Beta prior on every probability, worth one step that looks like the
  training mean, and a Dirichlet prior that adds 0.1 to every expected count of a transition. Training stops when the
  validation pieces have not gained for ten epochs, and the best epoch is kept (`lvm.fit(..., validation=)`).
* For every number of states, the start (k-means, several seeds) and whether the first nine steps are annealed are
  chosen by the validation pieces. Only that fit is scored on the test pieces, once. Validation pieces are never trained
  on.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_lvm as lvm

NOTES = 88
INDEPENDENT = {"JSB_Chorales": 11.06, "Nottingham": 10.25, "Piano_midi": 11.05, "MuseData": 11.51}
FIGURES = {16: 8.20, 32: 7.57, 64: 7.05, 128: 6.70}  # JSB chorales, by number of states; to be no larger
SMOOTHING = 0.1  # added to every expected count of a transition
ANNEALED = tuple(i / 10 for i in range(1, 10))  # temperatures of the first steps
RESTARTS = {16: 5, 32: 5, 64: 3, 128: 2}  # the more states, the less a start matters
MAX_EPOCHS = 200


@dataclass(frozen=True)
class Pieces:
    """Piano rolls padded on the right.

    Attributes:
        x: Zeros and ones, float32, shape (n, T, 88).
        lengths: Number of steps of each piece, shape (n,).
    """

    x: Tensor
    lengths: Tensor

    @property
    def arguments(self) -> dict[str, Tensor]:
        """What the model takes."""
        return {"x": self.x, "lengths": self.lengths}

    @property
    def steps(self) -> Tensor:
        """All steps of all pieces, shape (steps, 88)."""
        return self.x[torch.arange(self.x.shape[1]) < self.lengths.unsqueeze(-1)]

    def loss(self, fit: lvm.Fit) -> float:
        """Minus the log-likelihood of a step, nats."""
        return -float(fit.log_likelihood(self.arguments).double().sum() / self.lengths.sum())


@dataclass(frozen=True)
class Outcome:
    """What validation chose; losses in nats per step."""

    annealed: bool
    seed: int
    epochs: int
    validation: float
    test: float
    seconds: float


def read(folder: Path, name: str) -> list[Pieces]:
    """Training, validation and test pieces of a set."""
    parts = []
    with np.load(folder / "polyphonic_music" / "polyphonic.npz") as file:
        for part in ("train", "valid", "test"):
            rolls = torch.from_numpy(np.unpackbits(file[f"{name}_{part}"], axis=1)[:, :NOTES]).float()
            lengths = torch.from_numpy(file[f"{name}_{part}_len"]).long()
            x = torch.nn.utils.rnn.pad_sequence(list(rolls.split(lengths.tolist())), batch_first=True)
            parts.append(Pieces(x, lengths))
    return parts


def share_of_notes(pieces: Pieces) -> Tensor:
    """How often every note sounds, shape (88,); never 0 or 1."""
    steps = pieces.steps.double()
    return (steps.sum(0) + 1) / (len(steps) + 2)


def independent_notes(train: Pieces, test: Pieces) -> float:
    """Loss of notes that know nothing of each other, nats per step."""
    return -float(dist.Bernoulli(share_of_notes(train)).log_prob(test.steps.double()).sum(-1).mean())


def fit(train: Pieces, validation: Pieces, states: int, annealed: bool, seed: int) -> lvm.Fit:
    """MAP-EM, stopped by the validation pieces."""
    share = share_of_notes(train).float().expand(states, -1)
    priors = {
        "initial_probs": dist.Dirichlet(torch.full((states,), 1 + SMOOTHING)),
        "transition_probs": dist.Dirichlet(torch.full((states, states), 1 + SMOOTHING)).to_event(1),
        "probs": dist.Beta(1 + share, 2 - share).to_event(2),
    }
    model = lvm.models.BernoulliHMM(states, priors=priors)
    em = lvm.infer.EM(annealing=ANNEALED if annealed else ())
    options = {"max_epochs": MAX_EPOCHS, "seed": seed, "device": "cpu", "progress": False}
    return lvm.fit(model, train.arguments, inference=em, validation=validation.arguments, **options)


def measure(parts: Sequence[Pieces], states: int, restarts: int) -> Outcome:
    """Choose by the validation pieces, then look at the test pieces."""
    train, validation, test = parts
    begin = time.perf_counter()
    outcomes = []
    for annealed, seed in itertools.product((False, True), range(restarts)):
        fitted = fit(train, validation, states, annealed, seed)
        outcomes.append((validation.loss(fitted), annealed, seed, fitted))
    loss, annealed, seed, fitted = min(outcomes, key=lambda outcome: outcome[0])
    seconds = time.perf_counter() - begin
    return Outcome(annealed, seed, len(fitted.history["loss"]), loss, test.loss(fitted), seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything and print it."""
    parser = argparse.ArgumentParser(description="Held-out log-likelihood of polyphonic music.")
    parser.add_argument("--quick", action="store_true", help="16 states, one start, under a minute")
    options = parser.parse_args(arguments)
    folder = os.environ.get("PYRO_LVM_DATA")
    if folder is None or not (Path(folder) / "polyphonic_music").is_dir():
        print("Set PYRO_LVM_DATA to a folder that holds polyphonic_music/polyphonic.npz.", file=sys.stderr)
        return 2
    pyro.enable_validation(False)
    print(f"pyro_lvm {lvm.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads; nats per step")
    reached = []
    print(f"{'independent notes':20}{'test':>8}{'known':>8}")
    for name, figure in INDEPENDENT.items():
        train, _, test = read(Path(folder), name)
        loss = independent_notes(train, test)
        reached.append(round(loss, 2) == figure)
        print(f"{name:20}{loss:8.2f}{figure:8.2f}  {'equal' if reached[-1] else 'DIFFERENT'}", flush=True)
    parts = read(Path(folder), "JSB_Chorales")
    columns = (
        ("annealed", 10),
        ("start", 7),
        ("epochs", 8),
        ("validation", 12),
        ("test", 8),
        ("reach", 8),
        ("seconds", 9),
    )
    print(f"\n{'JSB, states':20}" + "".join(f"{name:>{width}}" for name, width in columns))
    for states in list(FIGURES)[: 1 if options.quick else None]:
        outcome = measure(parts, states, 1 if options.quick else RESTARTS[states])
        reached.append(outcome.test <= FIGURES[states])
        chosen = f"{'yes' if outcome.annealed else 'no':>10}{outcome.seed:7}{outcome.epochs:8}"
        losses = f"{outcome.validation:12.3f}{outcome.test:8.3f}{FIGURES[states]:8.2f}{outcome.seconds:9.1f}"
        print(f"{states:<20}{chosen}{losses}  {'reached' if reached[-1] else 'not reached'}", flush=True)
    print("a quick run judges nothing" if options.quick else "reached" if all(reached) else "not reached")
    return 0


if __name__ == "__main__":
    sys.exit(main())
