"""Does EM find the optimum of an easy problem? Ten data sets of three well-separated hidden states, two kinds of data.

`python benchmarks/restarts.py` prints the table, in a few minutes; `--quick` takes two of the ten data sets.

How it is measured:

* Symbols: each of three states has two symbols of its own among six, with probability 0.9. Counts: Poisson rates 1, 8
  and 25. Ten sequences of 100 steps; states stay with probability 0.85.
* The optimum is the best log-likelihood that any contestant finds, EM from the true parameters included. A contestant
  finds it if it comes within 0.1 nats in all.
* pyro_lvm: `lvm.fit(model, x, restarts=5, seed=)`. hmmlearn: one start of its own (`random_state=` the seed), as its
  `fit` does, 2000 iterations at most and tol 1e-8, priors off. Both see the same data.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_lvm as lvm

STATES, SEQUENCES, STEPS, STAY = 3, 10, 100, 0.85
RESTARTS, DATA_SETS, NEAR = 5, 10, 0.1
EMISSIONS = {
    "symbols": dist.Categorical(0.05 * torch.ones(3, 6) / 2 + torch.eye(3).repeat_interleave(2, 1) * 0.425),
    "counts": dist.Poisson(torch.tensor([1.0, 8.0, 25.0])),
}


def truth(kind: str) -> lvm.distributions.HMM:
    """The law of the data."""
    moves = torch.full((STATES, STATES), (1 - STAY) / (STATES - 1)).fill_diagonal_(STAY)
    return lvm.distributions.HMM(torch.full((STATES,), 1 / STATES), moves, EMISSIONS[kind], num_steps=STEPS)


def model_of(kind: str) -> Any:
    """Our model of it."""
    if kind == "symbols":
        return lvm.models.CategoricalHMM(STATES, num_categories=6)
    return lvm.models.PoissonHMM(STATES)


def ours(kind: str, x: Tensor, seed: int, restarts: int) -> float:
    """Log-likelihood, nats in all."""
    options = {"tol": 1e-9, "device": "cpu", "progress": False}
    fit = lvm.fit(model_of(kind), x, inference="em", restarts=restarts, seed=seed, **options)
    return float(fit.log_likelihood(x).double().sum())


def from_truth(kind: str, x: Tensor) -> float:
    """Log-likelihood of EM from the true parameters."""
    law = truth(kind)
    values = {"initial_probs": law.initial.probs, "transition_probs": law.transition.probs[0]}
    values |= {"probs": law.emission.probs[:, None]} if kind == "symbols" else {"rate": law.emission.rate[:, None]}
    with pyro.settings.context(module_local_params=True):
        model = model_of(kind)
        model.initialize(x)
        for name, value in values.items():
            setattr(model, name, value.to(x).clone())
        em = lvm.infer.EM(model)
        losses = [em.step(x)]
        while len(losses) < 2000 and (len(losses) < 2 or losses[-2] - losses[-1] > 1e-8):
            losses.append(em.step(x))
    return -losses[-1]


def hmmlearn(kind: str, x: Tensor, seed: int) -> float:
    """Log-likelihood of hmmlearn from one start, nats in all."""
    from hmmlearn.hmm import CategoricalHMM, PoissonHMM

    logging.getLogger("hmmlearn").setLevel(logging.ERROR)
    options = {"n_iter": 2000, "tol": 1e-8, "random_state": seed}
    model = CategoricalHMM(STATES, n_features=6, **options) if kind == "symbols" else PoissonHMM(STATES, **options)
    rows = x.reshape(-1, 1).numpy().astype(int)
    lengths = [STEPS] * SEQUENCES
    with np.errstate(divide="ignore"):
        model.fit(rows, lengths)
        return float(model.score(rows, lengths))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything and print it."""
    parser = argparse.ArgumentParser(description="Does EM find the optimum of an easy problem?")
    parser.add_argument("--quick", action="store_true", help="two of the ten data sets")
    options = parser.parse_args(arguments)
    peer = importlib.util.find_spec("hmmlearn") is not None
    if not peer:
        print("hmmlearn not found, left out. Run: pip install -e .[bench]", file=sys.stderr)
    pyro.enable_validation(False)
    count = 2 if options.quick else DATA_SETS
    found_by_us = []
    for kind in EMISSIONS:
        names = [f"lvm, {RESTARTS} starts", "lvm, 1 start", *(["hmmlearn, 1 start"] if peer else [])]
        hits = dict.fromkeys(names, 0)
        gaps = dict.fromkeys(names, 0.0)
        for seed in range(count):
            torch.manual_seed(seed)
            x = truth(kind).sample((SEQUENCES,)).unsqueeze(-1).double()
            found = [ours(kind, x, seed, RESTARTS), ours(kind, x, seed, 1)]
            found += [hmmlearn(kind, x, seed)] if peer else []
            best = max(*found, from_truth(kind, x))
            for name, value in zip(names, found, strict=True):
                hits[name] += best - value <= NEAR
                gaps[name] = max(gaps[name], best - value)
        found_by_us.append(hits[names[0]] == count)
        print(f"{kind}: optimum found in so many of {count} data sets (largest gap, nats)")
        for name in names:
            print(f"  {name:20}{hits[name]:4}{gaps[name]:12.2f}", flush=True)
    print(f"{RESTARTS} starts find it {'every time' if all(found_by_us) else 'NOT every time'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
