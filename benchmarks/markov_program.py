"""A program with `pyro.markov`, recognised as a chain and enumerated site by site: seconds per EM step of each.

`python benchmarks/markov_program.py` prints both for a Poisson hidden Markov model over 2000 steps written out,
their ratio (to reach: 30), and how far their log-likelihoods and parameters are apart; `--steps` takes another length.
"""

from __future__ import annotations

import argparse
import sys
import time
from statistics import median

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

import pyro_lvm as lvm
from pyro_lvm.infer import markov

RATIO = 30


def program(x: Tensor) -> None:
    """Three states, counts, one site a step."""
    initial = pyro.param("initial", torch.tensor([0.5, 0.3, 0.2]), constraint=constraints.simplex)
    start = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6]])
    transition = pyro.param("transition", start, constraint=constraints.simplex)
    rate = pyro.param("rate", torch.tensor([0.5, 2.0, 5.0]), constraint=constraints.positive)
    z = None
    for t in pyro.markov(range(len(x))):
        probs = initial if z is None else transition[z]
        z = pyro.sample(f"z_{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})
        pyro.sample(f"x_{t}", dist.Poisson(rate[z]), obs=x[t])


def train(x: Tensor, repeats: int) -> tuple[float, list[float], dict[str, Tensor], str]:
    """Median seconds of a step after the first, losses, parameters, and the plan."""
    with pyro.get_param_store().scope():
        em = lvm.infer.EM(program)
        losses, seconds = [em.step(x)], []
        for _ in range(repeats):
            began = time.perf_counter()
            losses.append(em.step(x))
            seconds.append(time.perf_counter() - began)
        values = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
        return median(seconds), losses, values, str(em.plan(x)).splitlines()[0]


def main() -> int:
    """Print the comparison; 1 if the figure is not reached or the numbers differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    law = dist.Poisson(torch.tensor([1.0, 3.0, 7.0]))
    moves = torch.eye(3) * 0.7 + 0.1
    x = lvm.distributions.HMM(torch.ones(3) / 3, moves, law, num_steps=options.steps).sample()
    fast, losses, values, plan = train(x, 5)
    few, markov.FEW_STEPS = markov.FEW_STEPS, sys.maxsize  # nothing is recognised
    slow, expected, others, general = train(x, 3)
    markov.FEW_STEPS = few
    gap = max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=False))
    print(f"{fast * 1e3:10.1f} ms a step   {plan}\n{slow * 1e3:10.1f} ms a step   {general}")
    print(f"{slow / fast:.0f}x as fast (to reach: {RATIO}x); log-likelihoods agree to {gap:.0e} relative")
    _, _, again, _ = train(x, 3)
    apart = max(float((again[name] - value).abs().max()) for name, value in others.items())
    print(f"parameters after four steps agree to {apart:.0e}")
    return 0 if slow / fast >= RATIO and gap < 1e-9 and apart < 1e-9 and values.keys() == others.keys() else 1


if __name__ == "__main__":
    sys.exit(main())
