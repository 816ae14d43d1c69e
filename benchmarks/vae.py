"""Importance-weighted test log-likelihood of variational autoencoders on statically binarized MNIST.

`PYRO_LVM_DATA=folder python benchmarks/vae.py --all` prints the whole table, in about twenty-five minutes of one core.
Without `--all` it is one run: 12 epochs of 50,000 rows in batches of 128 (4,692 steps: the goal is set for 5,000), or
with `--long` 51 (19,941 of 20,000); `--guide inverse-autoregressive` and `--importance K` swap the guide and the
objective. `--quick` takes about a minute and judges nothing. The data are
`folder/mnist_static_binarized/mnist_sm_binary.npz`.

How it is measured: the model has 128 latent dimensions and two hidden layers of 512 either way; Adam, learning rate
0.001, which falls to zero over the second half of the steps; the first 50,000 training rows. A figure is the mean over
all 10,000 test rows of the importance-weighted log-likelihood in nats with `--samples` samples a row: a lower bound on
average, so that fewer samples look worse. Nothing is chosen by the test rows: the flow's form and the falling rate were
chosen by 2,000 of the other 10,000 training rows. The goals are: -107.0 and -100.0 after the two numbers of steps; with
the flow guide, better than with the normal guide after equal steps; with five importance-weighted draws, better by a
nat after equal epochs.

References:
    D. Kingma, M. Welling (2014), Auto-encoding variational Bayes, ICLR.
    Y. Burda, R. Grosse, R. Salakhutdinov (2016), Importance weighted autoencoders, ICLR.
    D. Kingma, T. Salimans, R. Jozefowicz, X. Chen, I. Sutskever, M. Welling (2016), Improved variational inference with
        inverse autoregressive flow, NeurIPS.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pyro_lvm as lvm

BATCH, TRAIN = 128, 50_000
SHORT, LONG = 12, 51
MARGIN = 1.0  # nats that five draws gain


@dataclass(frozen=True)
class Case:
    """One training."""

    guide: str = "amortized"
    importance: int = 1
    epochs: int = SHORT

    def __str__(self) -> str:
        return f"{self.guide}, {self.importance} draw{'s' * (self.importance > 1)}, {self.epochs} epochs"


PLAIN = Case()
FLOW = Case("inverse-autoregressive")
CASES = (PLAIN, FLOW, Case(importance=5), replace(PLAIN, epochs=LONG), replace(FLOW, epochs=LONG))
GOALS = {PLAIN: -107.0, CASES[3]: -100.0}


def rows() -> tuple[Tensor, Tensor]:
    """Training and test rows, zeros and ones in float32."""
    packed = np.load(Path(os.environ["PYRO_LVM_DATA"]) / "mnist_static_binarized" / "mnist_sm_binary.npz")
    train, test = (torch.from_numpy(np.unpackbits(packed[part], axis=1)).float() for part in ("train", "test"))
    return train[:TRAIN], test


def train_and_score(case: Case, train: Tensor, test: Tensor, options: argparse.Namespace) -> float:
    """Nats a row of the test rows."""
    loss = lvm.infer.ImportanceWeighted(case.importance) if case.importance > 1 else None
    begin = time.perf_counter()

    def tell(run: Any) -> None:
        bound = -run.history["loss"][-1] / len(train)
        done = len(run.history["loss"])
        print(f"  {case}: {done} done, bound {bound:.2f}, {time.perf_counter() - begin:.0f} s", file=sys.stderr)

    fit = lvm.fit(
        lvm.models.VAE(128),
        train,
        guide=case.guide,
        inference=lvm.infer.SVI(loss=loss, learning_rate=1e-3, schedule="linear"),
        batch_size=BATCH,
        max_epochs=case.epochs,
        tol=0.0,
        patience=10**6,
        seed=options.seed,
        checkpoint=options.checkpoint and f"{options.checkpoint}/{case}".replace(", ", "-").replace(" ", "-"),
        callbacks=tell,
    )
    trained = time.perf_counter() - begin
    steps = case.epochs * -(-len(train) // BATCH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # many rows have heavy weights: values are too low, not too high
        evidence = fit.evidence(test, num_samples=options.samples)
    mean = evidence.total / evidence.num_rows
    bound = -fit.history["loss"][-1] / len(train)
    cost = f"{trained:5.0f} s {1000 * trained / steps:7.1f}"
    print(f"{case!s:46s} {steps:6d} {bound:8.2f} {mean:8.2f} {cost}", end="", flush=True)
    return mean


def verdict(case: Case, figures: dict[Case, float]) -> str:
    """Whether a figure reaches its goal, if it has one."""
    goal, rival = GOALS.get(case), replace(PLAIN, epochs=case.epochs)
    if case != rival and rival in figures:
        goal = figures[rival] + (MARGIN if case.importance == 5 else 0.0)
    if goal is None:
        return ""
    return f"  goal {goal:.2f}: {'reached' if figures[case] >= goal else 'MISSED'}"


def main() -> None:
    """Train, score, and print a line for each training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="the whole table")
    parser.add_argument("--guide", default="amortized")
    parser.add_argument("--importance", type=int, default=1, metavar="K", help="samples of the training objective")
    parser.add_argument("--epochs", type=int, help=f"by default {SHORT}")
    parser.add_argument("--long", action="store_true", help=f"{LONG} epochs")
    parser.add_argument("--quick", action="store_true", help="one epoch of the short runs on a tenth of the rows")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", help="folder that keeps the fits")
    options = parser.parse_args()
    train, test = rows()
    cases = CASES if options.all else (Case(options.guide, options.importance, LONG if options.long else SHORT),)
    if options.quick:
        train, test = train[:5000], test[:500]
        cases = tuple(case for case in cases if case.epochs == SHORT)
    if options.quick or options.epochs:
        cases = tuple(replace(case, epochs=options.epochs or 1) for case in cases)
    figures: dict[Case, float] = {}
    print(f"{'':46s} {'steps':>6s} {'bound':>8s} {'test':>8s} {'':>7s} {'ms/step':>7s}")
    for case in cases:
        figures[case] = train_and_score(case, train, test, options)
        print(verdict(case, figures), flush=True)


if __name__ == "__main__":
    main()
