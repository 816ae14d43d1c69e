"""Annealed importance sampling of a published restricted Boltzmann machine against its published normalizer.

    PYRO_LVM_DATA=... python benchmarks/ais.py [--quick]

The 500-hidden CD25 machine on statically binarized MNIST, 200 chains and 14,501 temperatures forward and reverse.
Goals: log Z within three standard errors of 451.28, the reverse estimate no lower within theirs, a mean test
log-likelihood within 0.5 of -86.34, in under three minutes. Reverse chains start from training rows after 1,000 Gibbs
sweeps at the model's own temperature.

References:
    R. Salakhutdinov, I. Murray (2008), On the quantitative analysis of deep belief networks, ICML, table 1.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch

from pyro_lvm.distributions import RBM
from pyro_lvm.evidence.ais import annealed_importance_sampling, reverse_annealed_importance_sampling

PUBLISHED_LOG_Z, PUBLISHED_TEST = 451.28, -86.34
CHAINS, SWEEPS = 200, 1000


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="500 temperatures: shows that it runs.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    folder = Path(os.environ["PYRO_LVM_DATA"]) / "mnist_static_binarized"
    rows = np.load(folder / "mnist_sm_binary.npz")
    train, test = (torch.from_numpy(np.unpackbits(rows[part], axis=1)).float() for part in ("train", "test"))
    saved = np.load(folder / "rbm_cd25_500.npz")
    weight, visible, hidden = (torch.from_numpy(saved[name]).float() for name in ("W", "vbias", "hbias"))
    rate = (train.sum(0) + 5) / (len(train) + 10)  # of a pixel that is never on, the log-odds stay finite
    law = RBM(weight, visible, hidden, base_visible_bias=rate.logit(), validate_args=False)
    path = torch.linspace(0, 1, 500) if options.quick else None
    start = time.perf_counter()
    forward = annealed_importance_sampling(law, CHAINS, path)
    forward_seconds = time.perf_counter() - start
    values = train[torch.randperm(len(train))[:CHAINS]]
    values = law.gibbs(values, 10 if options.quick else SWEEPS)
    reverse = reverse_annealed_importance_sampling(law, values, path)
    seconds = time.perf_counter() - start
    energy = float(law.free_energy(test).double().mean())
    print(f"{'':24}{'log Z':>10}{'s.e.':>8}{'ESS':>7}{'test':>9}   goal")
    for name, found in (("forward", forward), ("reverse", reverse)):
        mean = -energy - found.value
        line = f"{found.value:>10.2f}{found.standard_error:>8.2f}{found.effective_sample_size:>7.1f}{mean:>9.2f}"
        print(f"{name:24}{line}   {PUBLISHED_LOG_Z} within 3 s.e.; {PUBLISHED_TEST} within 0.5")
    print(
        f"forward {forward_seconds:.0f} s, both {seconds:.0f} s (goal: under 180 s), {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
