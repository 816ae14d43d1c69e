"""Restricted Boltzmann machines: speed, centring, small sets of binary data, and independent sources.

`PYRO_LVM_DATA=folder python benchmarks/rbm.py` prints all tables; `--only speed|centring|binary|sources` prints one;
`--quick` takes about a minute and judges nothing. Files: `folder/mnist/mnist.npz` (grey values, 60,000 and 10,000) and
`folder/density_binary/density_binary.npz` (packed bits).

How it is measured, log-likelihoods in nats per test row:

* Speed: epochs of persistent contrastive divergence on 10,000 rows of MNIST (grey > .5), 784-256, batches of 100, one
  Gibbs step, in turn by `lvm.fit` (everything included), by scikit-learn's `BernoulliRBM` in float32 (its own inner
  loop, without its set-up), by a bare loop of the same five matrix products, and by that loop tuned (draws and updates
  in place), each in one thread. Ratios are medians of ratios within a round. Log-likelihoods after all rounds, each by
  its own way to learn (`lvm.fit` with its defaults; the others move along the gradient), are by annealed importance
  sampling.
* Centring: 16 hidden units on MNIST (grey > .5) for 50 epochs in batches of 100, by name of the inference with its
  defaults; on flipped rows (1 - x) too, and by contrastive divergence. The normalizer is exact. Means of three seeds.
* Binary: settings were chosen by the log-likelihood of the validation rows, see `SETTINGS`; the machine is then trained
  on the training rows alone and scored once on the test rows. The normalizer is by annealed importance sampling, from
  the model back as well: a log-likelihood lies between the two.
* Sources: two unit Laplace variables, mixed and whitened, 100,000 rows to learn from and as many to test. The
  normalizer is exact; the start with the best log-likelihood of the training rows is kept.

References:
    J. Melchior, A. Fischer, L. Wiskott (2016), How to center deep Boltzmann machines, JMLR 17, table 5.
    H. Larochelle, I. Murray (2011), The neural autoregressive distribution estimator, AISTATS, table 1.
    J. Melchior, N. Wang, L. Wiskott (2017), Gaussian-binary restricted Boltzmann machines for modeling natural image
        statistics, PLOS ONE 12.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pyro_lvm as lvm
from pyro_lvm.evidence.ais import annealed_importance_sampling, reverse_annealed_importance_sampling

HIDDEN, BATCH, RATE = 256, 100, 0.05
ROUNDS = 20
CENTRED, TRIALS = -142.6, 3
SOURCES, STARTS = -2.740, 6


@dataclass(frozen=True)
class Setting:
    """How the machine of one set of binary data is trained.

    Attributes:
        hidden: Hidden units.
        learning_rate: Of Adam; constant for half of the training, then falling to zero.
        decay: Weight decay of the weights, by unit of learning rate.
        epochs: Passes over the training rows.
        chains: Persistent chains.
        goal: Mean log-likelihood of test rows to reach, nats.
    """

    hidden: int
    learning_rate: float
    decay: float
    epochs: int
    chains: int
    goal: float


# Chosen by the validation rows among the settings tried: dna, 50 or 100 units, rates .001 and .003, decays 0, .1, 1, 5;
# nips, 50 units, rates .001 and .003, decays 0, 1, 5; mushrooms, 25, 50 or 100 units, rates .0005 to .01, decays 0, .1,
# .3, and 100 to 1000 chains or ten steps from the rows.
SETTINGS = {
    "dna": Setting(50, 0.003, 0.1, 200, 100, -96.7),
    "mushrooms": Setting(50, 0.001, 0.1, 300, 500, -15.2),
    "nips": Setting(50, 0.001, 1.0, 200, 100, -277.4),
}


def digits(folder: Path) -> tuple[Tensor, Tensor]:
    """Training and test rows of MNIST, zeros and ones by a threshold at half of the grey scale."""
    with np.load(folder / "mnist" / "mnist.npz") as file:
        parts = (torch.from_numpy(file[f"x_{part}"]).reshape(-1, 784) for part in ("train", "test"))
        train, test = ((part > 127.5).float() for part in parts)
    return train, test


def binary(folder: Path, name: str) -> list[Tensor]:
    """Training, validation and test rows of a set of binary data."""
    with np.load(folder / "density_binary" / "density_binary.npz") as file:
        columns = int(file[f"{name}_nvars"])
        parts = [np.unpackbits(file[f"{name}_{part}"], axis=1)[:, :columns] for part in ("train", "valid", "test")]
    return [torch.from_numpy(part).float() for part in parts]


def laplace_sources(count: int, seed: int) -> Tensor:
    """Two independent unit Laplace variables, mixed and whitened: turned by some angle, shape (count, 2)."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(count, 2, generator=generator, dtype=torch.float64) - 0.5
    sources = -uniform.sign() * (1 - 2 * uniform.abs()).clamp_min(1e-300).log() / 2**0.5  # of variance 1
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=torch.float64)
    return sources @ turn.T


class BareLoop:
    """The same learning without anything around it, as it is usually written: five matrix products a step."""

    def __init__(self, rows: Tensor) -> None:
        torch.manual_seed(0)
        self.rows = rows
        self.weight = 0.01 * torch.randn(rows.shape[1], HIDDEN)
        self.visible_bias = ((rows.sum(0) + 0.5) / (len(rows) + 1)).logit()
        self.hidden_bias = torch.zeros(HIDDEN)
        self.hidden = torch.rand(BATCH, HIDDEN).lt_(0.5)

    def epoch(self) -> None:
        """One pass over the rows."""
        for index in torch.randperm(len(self.rows)).split(BATCH):
            rows = self.rows[index]
            positive = torch.sigmoid(rows @ self.weight + self.hidden_bias)
            probs = torch.sigmoid(self.hidden @ self.weight.T + self.visible_bias)
            chains = (torch.rand_like(probs) < probs).float()
            negative = torch.sigmoid(chains @ self.weight + self.hidden_bias)
            self.hidden = (torch.rand_like(negative) < negative).float()
            rate = RATE / len(rows)
            self.hidden_bias += rate * (positive - negative).sum(0)
            self.visible_bias += rate * (rows - chains).sum(0)
            self.weight += rate * (rows.T @ positive - chains.T @ negative)


class TunedLoop(BareLoop):
    """The bare loop with everything in place that can be."""

    def epoch(self) -> None:
        """One pass over the rows."""
        weight, visible_bias, hidden_bias = self.weight, self.visible_bias, self.hidden_bias
        for index in torch.randperm(len(self.rows)).split(BATCH):
            rows = self.rows.index_select(0, index)
            positive = torch.addmm(hidden_bias, rows, weight).sigmoid_()
            probs = torch.addmm(visible_bias, self.hidden, weight.T).sigmoid_()
            chains = torch.rand_like(probs).lt_(probs)
            negative = torch.addmm(hidden_bias, chains, weight).sigmoid_()
            self.hidden = torch.rand_like(negative).lt_(negative)
            rate = RATE / len(rows)
            hidden_bias.add_(positive.sum(0) - negative.sum(0), alpha=rate)
            visible_bias.add_(rows.sum(0) - chains.sum(0), alpha=rate)
            weight.addmm_(rows.T, positive, alpha=rate).addmm_(chains.T, negative, alpha=-rate)


class ScikitLearn:
    """scikit-learn's machine, its start made beforehand."""

    def __init__(self, rows: Tensor) -> None:
        from sklearn.neural_network import BernoulliRBM

        random = np.random.RandomState(0)
        self.rows = rows.numpy()
        self.machine = BernoulliRBM(HIDDEN, learning_rate=RATE, batch_size=BATCH, n_iter=0, random_state=random)
        self.machine.fit(self.rows)

    def epoch(self) -> None:
        """One pass over the rows, as in its `fit`."""
        for start in range(0, len(self.rows), BATCH):
            self.machine._fit(self.rows[start : start + BATCH], self.machine.random_state)


class Rounds:
    """Times epochs of a fit, and after each an epoch of every peer.

    Attributes:
        seconds: By name, those of every round.
    """

    def __init__(self, peers: dict[str, Callable[[], None]]) -> None:
        self.peers = peers
        self.seconds: dict[str, list[float]] = {name: [] for name in ("lvm.fit", *peers)}
        self.since: float | None = None

    def __call__(self, run: Any) -> None:
        """What `lvm.fit` calls after each epoch; the first is not counted."""
        if self.since is not None:
            self.seconds["lvm.fit"].append(time.perf_counter() - self.since)
        for name, epoch in self.peers.items():
            begin = time.perf_counter()
            epoch()
            if self.since is not None:
                self.seconds[name].append(time.perf_counter() - begin)
        self.since = time.perf_counter()

    def ratio(self, over: str, under: str) -> float:
        """The median over rounds of a ratio of seconds."""
        pairs = zip(self.seconds[over], self.seconds[under], strict=True)
        return statistics.median(one / other for one, other in pairs)


def score(law: lvm.distributions.RBM, rows: Tensor) -> float:
    """Mean log-likelihood by annealed importance sampling, nats."""
    log_z = annealed_importance_sampling(law, 100, torch.linspace(0, 1, 2000, dtype=torch.float64)).value
    return float(-law.free_energy(rows).double().mean()) - log_z


def speed(folder: Path, quick: bool) -> list[bool]:
    """Print seconds of an epoch."""
    from threadpoolctl import threadpool_limits

    train, test = digits(folder)
    train = train[:10_000]
    torch.set_num_threads(1)
    threadpool_limits(1)  # scikit-learn's matrix products too
    bare, peer = BareLoop(train), ScikitLearn(train)
    rounds = Rounds({"bare loop": bare.epoch, "tuned loop": TunedLoop(train).epoch, "scikit-learn": peer.epoch})
    epochs = 4 if quick else ROUNDS
    options = {"batch_size": BATCH, "seed": 0, "device": "cpu", "progress": False, "callbacks": [rounds]}
    fit = lvm.fit(lvm.models.RBM(HIDDEN), train, inference="pcd", max_epochs=epochs + 1, **options)
    base = bare.visible_bias.new_tensor(((train.sum(0) + 0.5) / (len(train) + 1)).tolist()).logit()
    machine = peer.machine
    theirs = (machine.components_.T, machine.intercept_visible_, machine.intercept_hidden_)
    laws = {
        "lvm.fit": fit.model.law(),
        "bare loop": lvm.distributions.RBM(bare.weight, bare.visible_bias, bare.hidden_bias, base_visible_bias=base),
        "scikit-learn": lvm.distributions.RBM(
            *(torch.from_numpy(np.ascontiguousarray(part)) for part in theirs), base_visible_bias=base
        ),
    }
    print(f"\nPCD-1, 10,000 rows, 784-{HIDDEN}, batches of {BATCH}: seconds an epoch, nats after {epochs + 1} epochs")
    print(f"{'':16}{'median':>9}{'least':>9}{'test':>9}")
    torch.manual_seed(0)
    scores = {}
    with torch.no_grad():
        for name, seconds in rounds.seconds.items():
            print(f"{name:16}{statistics.median(seconds):9.3f}{min(seconds):9.3f}", end="")
            scores[name] = score(laws[name], test) if name in laws else math.nan
            print(f"{scores[name]:9.1f}" if name in laws else "", flush=True)
    faster, slower = rounds.ratio("scikit-learn", "lvm.fit"), rounds.ratio("lvm.fit", "bare loop")
    verdicts = [faster >= 1.2 and scores["lvm.fit"] >= scores["scikit-learn"], slower <= 1.1]
    print(f"scikit-learn / lvm.fit {faster:.2f} (goal: at least 1.2, no less likely)  {word(verdicts[0])}")
    print(f"lvm.fit / bare loop    {slower:.2f} (goal: at most 1.1)  {word(verdicts[1])}")
    print(f"lvm.fit / tuned loop   {rounds.ratio('lvm.fit', 'tuned loop'):.2f}")
    return verdicts


def centring(folder: Path, quick: bool) -> list[bool]:
    """Print log-likelihoods of 16 hidden units."""
    train, test = digits(folder)
    train, epochs = (train[:5000], 1) if quick else (train, 50)
    print(f"\n16 hidden units, MNIST at a threshold, {epochs} epochs, exact normalizer, nats a test row")
    means, errors = {}, {}
    for name, inference, flipped in (("pcd", "pcd", False), ("pcd, flipped", "pcd", True), ("cd", "cd", False)):
        begin, scores = time.perf_counter(), []
        rows, held_out = (1 - train, 1 - test) if flipped else (train, test)
        for seed in range(1 if quick else TRIALS):
            options = {"batch_size": BATCH, "max_epochs": epochs, "seed": seed, "device": "cpu", "progress": False}
            fit = lvm.fit(lvm.models.RBM(16), rows, inference=inference, **options)
            scores.append(fit.score(held_out))
        means[name] = statistics.mean(scores)
        errors[name] = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else math.nan
        each = " ".join(f"{score:.2f}" for score in scores)
        print(f"{name:16}{means[name]:9.2f}{time.perf_counter() - begin:9.0f} s   each: {each}", flush=True)
    loss, error = means["pcd"] - means["pcd, flipped"], math.hypot(errors["pcd"], errors["pcd, flipped"])
    verdicts = [means["pcd"] >= CENTRED, loss <= 1, means["pcd"] > means["cd"]]
    print(f"goals: at least {CENTRED} {word(verdicts[0])};")
    print(f"       flipping loses at most 1 nat: {loss:.2f}, standard error {error:.2f}, {word(verdicts[1])};")
    print(f"       persistent chains better than others {word(verdicts[2])}")
    return verdicts


def decayed(rate: float, decay: float, parameters: Any) -> torch.optim.Optimizer:
    """Adam whose weight decay leaves biases alone."""
    parameters = list(parameters)
    weights, biases = ([p for p in parameters if (p.dim() > 1) == kind] for kind in (True, False))
    groups = [{"params": weights, "weight_decay": decay}, {"params": biases, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=rate, fused=True)


def train_binary(train: Tensor, setting: Setting, seed: int = 0) -> lvm.Fit:
    """Persistent contrastive divergence at a setting."""
    pcd = lvm.infer.SVI(
        optimizer=partial(decayed, setting.learning_rate, setting.decay),
        loss=lvm.infer.ContrastiveDivergence(persistent=True, num_chains=setting.chains),
        schedule="linear",
    )
    options = {"batch_size": 50, "max_epochs": setting.epochs, "seed": seed, "device": "cpu", "progress": False}
    return lvm.fit(lvm.models.RBM(setting.hidden), train, inference=pcd, **options)


def sets(folder: Path, quick: bool) -> list[bool]:
    """Print log-likelihoods of the sets of binary data."""
    print("\nbinary sets, nats a row; the test row lies between forward and reverse")
    print(f"{'':12}{'hidden':>7}{'validation':>12}{'forward':>9}{'s.e.':>6}{'reverse':>9}{'goal':>8}{'seconds':>9}")
    verdicts = []
    path = torch.linspace(0, 1, 500 if quick else 10_000, dtype=torch.float64)
    for name, setting in SETTINGS.items():
        begin = time.perf_counter()
        train, validation, test = binary(folder, name)
        if quick:
            setting = Setting(setting.hidden, setting.learning_rate, setting.decay, 5, setting.chains, setting.goal)
        law = train_binary(train, setting).model.law()
        torch.manual_seed(0)
        with torch.no_grad():
            forward = annealed_importance_sampling(law, 200, path)
            draws = law.gibbs(law.base_sample(200), 10 if quick else 10_000)
            reverse = reverse_annealed_importance_sampling(law, draws, path)
            energy, held_out = (float(-law.free_energy(part).double().mean()) for part in (test, validation))
        verdicts.append(min(energy - forward.value, energy - reverse.value) >= setting.goal)
        found = f"{held_out - forward.value:12.2f}{energy - forward.value:9.2f}{forward.standard_error:6.2f}"
        seconds = time.perf_counter() - begin
        print(
            f"{name:12}{setting.hidden:7}{found}{energy - reverse.value:9.2f}{setting.goal:8.1f}{seconds:9.0f}"
            f"  {word(verdicts[-1])}",
            flush=True,
        )
    return verdicts


def sources(folder: Path, quick: bool) -> list[bool]:
    """Print the log-likelihood of a Gaussian machine of independent sources."""
    train, test = laplace_sources(100_000, 0), laplace_sources(100_000, 1)
    begin, outcomes = time.perf_counter(), []
    for seed in range(1 if quick else STARTS):
        pcd = lvm.infer.SVI(
            loss=lvm.infer.ContrastiveDivergence(persistent=True, num_chains=1000),
            learning_rate=0.03,
            schedule="linear",
        )
        options = {"batch_size": 1000, "max_epochs": 1 if quick else 40, "device": "cpu", "progress": False}
        fit = lvm.fit(lvm.models.GaussianRBM(4), train, inference=pcd, seed=seed, **options)
        outcomes.append((fit.score(train), fit.score(test)))
    best = max(outcomes)[1]
    print(
        f"\ntwo Laplace sources, 4 hidden units, the best of {len(outcomes)} starts, exact normalizer, nats a test row"
    )
    print(f"{best:.3f} (goal: at least {SOURCES:.3f}), {time.perf_counter() - begin:.0f} s  {word(best >= SOURCES)}")
    print("all starts: " + " ".join(f"{score:.3f}" for _, score in outcomes))
    return [best >= SOURCES]


def word(reached: bool) -> str:
    """What to print of a goal."""
    return "reached" if reached else "NOT reached"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything and print it."""
    parts = {"speed": speed, "centring": centring, "binary": sets, "sources": sources}
    parser = argparse.ArgumentParser(description="Restricted Boltzmann machines against their goals.")
    parser.add_argument("--only", choices=parts)
    parser.add_argument("--quick", action="store_true", help="about a minute; judges nothing")
    options = parser.parse_args(arguments)
    folder = os.environ.get("PYRO_LVM_DATA")
    if folder is None or not (Path(folder) / "mnist").is_dir():
        print("Set PYRO_LVM_DATA to a folder that holds mnist/mnist.npz and density_binary.", file=sys.stderr)
        return 2
    print(f"pyro_lvm {lvm.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    verdicts = []
    for name, part in parts.items():
        if options.only in (None, name):
            verdicts += part(Path(folder), options.quick)
    print("a quick run judges nothing" if options.quick else "reached" if all(verdicts) else "not all reached")
    return 0


if __name__ == "__main__":
    sys.exit(main())
