"""Two of Pyro's own published programs, unchanged, trained by EM and by Pyro's SVI from the same starts.

`python benchmarks/pyro_programs.py --pyro FOLDER` takes a checkout of github.com/pyro-ppl/pyro; without the option git
clones the tag 1.9.1 into a temporary folder. Nothing in the files is edited:

* the mixture is `model` of `tutorial/source/gmm.ipynb`. Of the notebook's first cell run the imports and assignments
  (it also wants Pyro's version to be 1.9.1), then every cell up to the one that starts the training; `data` are the
  tutorial's five points, and both inferences start where the tutorial does.
* the chain is `model_1` of `examples/hmm.py`, imported as a module, on sequences of zeros and ones of unequal length
  that are made here, or with `--chorales` on the first of the Bach chorales in
  `PYRO_LVM_DATA/polyphonic_music/polyphonic.npz`, cut short. Its argument `include_prior=False` makes the same program
  one of maximum likelihood.

How it is measured:

* Both inferences have guides of point masses over the program's continuous sites, `lvm.guides.MAP` and Pyro's
  `AutoDelta`, with the same starts; the chain's are drawn by Pyro's `init_to_median` under several seeds.
* SVI has the optimizer of the tutorial or the example, and 200 steps: as many as the tutorial takes, four times as many
  as the example. EM has 60.
* Both ends are scored by Pyro's own `TraceEnum_ELBO`, in nats: the mixture by the log joint density of data and sites,
  the chain, as in the example itself, by the log-likelihood, `include_prior=False`. The log joint density of the chain
  has no maximum: its Beta(0.1, 0.9) and Dirichlet(0.1, 1) are infinite on the boundary. EM stays one millionth
  inside of it and says so; SVI goes on towards it as long as it runs, to no one's good. The run without
  priors has a maximum.
* The exit status is one if EM falls at some step, also if its guard took the fall back, if Pyro's elbo does not confirm
  what EM says, or if EM ends lower than SVI by more than rounding in float32.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.contrib.examples
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta, init_to_value
from pyro.optim import Adam
from torch import Tensor

import pyro_lvm as lvm

REPOSITORY, TAG = "https://github.com/pyro-ppl/pyro", "1.9.1"
ROUNDING = 1e-5  # of a log joint density, relative, in float32
EM_STEPS, SVI_STEPS = 60, 200


@dataclass(frozen=True)
class Case:
    """A program, how to call it, and how it is trained where it comes from.

    Attributes:
        name: Printed.
        program: Pyro's own.
        args: Its arguments.
        training: Keyword arguments while it is trained.
        scoring: Keyword arguments when the ends are compared.
        optimizer: Adam's options.
        max_plate_nesting: What its elbo is told.
        start: Values of the continuous sites; drawn if None.
    """

    name: str
    program: Callable[..., Any]
    args: tuple[Any, ...]
    training: dict[str, Any]
    scoring: dict[str, Any]
    optimizer: dict[str, Any]
    max_plate_nesting: int
    start: dict[str, Tensor] | None = None


@contextlib.contextmanager
def checkout(folder: Path | None) -> Iterator[Path]:
    """The folder, or a fresh clone."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        command = ["git", "clone", "--quiet", "--depth", "1", "--branch", TAG, REPOSITORY, temporary]
        subprocess.run(command, check=True)
        yield Path(temporary)


def hidden_markov_example(folder: Path) -> ModuleType:
    """`examples/hmm.py` as a module; its loader of data, which needs torchvision and a download, is left out."""
    spec = importlib.util.spec_from_file_location("pyro_hidden_markov_example", folder / "examples" / "hmm.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder}: expected examples/hmm.py.")
    module = importlib.util.module_from_spec(spec)
    loader = "pyro.contrib.examples.polyphonic_data_loader"
    sys.modules.setdefault(loader, ModuleType(loader))
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    spec.loader.exec_module(module)
    root.handlers[:], root.level = handlers, level
    return module


def mixture_tutorial(folder: Path) -> dict[str, Any]:
    """The names that the notebook defines before it trains, its guide at its start among them."""
    notebook = json.loads((folder / "tutorial" / "source" / "gmm.ipynb").read_text())
    first, *cells = ("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    plain = "\n".join(line for line in first.splitlines() if not line.startswith("%"))
    wanted = [node for node in ast.parse(plain).body if isinstance(node, ast.Import | ast.ImportFrom | ast.Assign)]
    found: dict[str, Any] = {}
    exec(compile(ast.Module(wanted, []), "gmm.ipynb", "exec"), found)
    for cell in cells:
        exec(compile(cell, "gmm.ipynb", "exec"), found)
        if "initialize" in found:
            return found
    raise ValueError(f"{folder}: expected a cell of tutorial/source/gmm.ipynb that defines `initialize`.")


def sequences(num_sequences: int, max_length: int, data_dim: int) -> tuple[Tensor, Tensor]:
    """Zeros and ones of a chain with two moods, shape (n, t, d), and lengths, shape (n,)."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, max_length + 1, (num_sequences,), generator=generator)
    lengths[0] = max_length
    mood = (torch.rand(num_sequences, max_length, 1, generator=generator) < 0.3).cumsum(1) % 2
    probs = torch.rand(2, data_dim, generator=generator)
    x = torch.bernoulli(probs[mood.squeeze(-1)], generator=generator)
    return x * (torch.arange(max_length)[:, None] < lengths[:, None, None]), lengths


def chorales(num_sequences: int, max_length: int) -> tuple[Tensor, Tensor]:
    """The first chorales, cut, without the keys that never sound."""
    with np.load(Path(os.environ["PYRO_LVM_DATA"]) / "polyphonic_music" / "polyphonic.npz") as file:
        keys = torch.from_numpy(np.unpackbits(file["JSB_Chorales_train"], axis=1)[:, :88]).float()
        all_lengths = file["JSB_Chorales_train_len"].tolist()
    pieces = [piece[:max_length] for piece in keys.split(all_lengths)[:num_sequences]]
    x = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)
    return x[..., x.sum((0, 1)) > 0], torch.tensor([len(piece) for piece in pieces])


def cases(folder: Path, data: tuple[Tensor, Tensor], num_states: int) -> list[Case]:
    """The tutorial's mixture; the example's chain with its priors and without."""
    tutorial, chain = mixture_tutorial(folder), hidden_markov_example(folder).model_1
    points = (tutorial["data"],)
    start = values_of(tutorial["global_guide"], points)
    args = (*data, SimpleNamespace(hidden_dim=num_states, jit=False))
    adam, slow = {"lr": 0.1, "betas": [0.8, 0.99]}, {"lr": 0.05}
    prior, none = {"include_prior": True}, {"include_prior": False}
    return [
        Case("gmm.ipynb, model", tutorial["model"], points, {}, {}, adam, 1, start),
        Case("hmm.py, model_1, with its priors", chain, args, prior, none, slow, 2),
        Case("hmm.py, model_1, without", chain, args, none, none, slow, 2),
    ]


def values_of(guide: Callable[..., dict[str, Tensor]], args: tuple[Any, ...]) -> dict[str, Tensor]:
    """Where a guide of point masses is."""
    return {name: value.detach().clone() for name, value in guide(*args).items()}


def drawn_start(case: Case, seed: int) -> dict[str, Tensor]:
    """Where Pyro's guide would start."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    return values_of(AutoDelta(lvm.handlers.hide_enumerated(case.program)), case.args)


def score(case: Case, guide: Callable[..., Any], kwargs: dict[str, Any]) -> float:
    """The log joint density, or the log-likelihood, by Pyro's elbo, nats."""
    elbo = TraceEnum_ELBO(max_plate_nesting=case.max_plate_nesting)
    return -elbo.loss(case.program, guide, *case.args, **kwargs)


def by_svi(case: Case, start: dict[str, Tensor]) -> float:
    """Where SVI ends, nats."""
    pyro.clear_param_store()
    guide = AutoDelta(lvm.handlers.hide_enumerated(case.program), init_loc_fn=init_to_value(values=start))
    elbo = TraceEnum_ELBO(max_plate_nesting=case.max_plate_nesting)
    svi = SVI(case.program, guide, Adam(case.optimizer), elbo)
    for _ in range(SVI_STEPS):
        svi.step(*case.args, **case.training)
    return score(case, guide, case.scoring)


def by_em(case: Case, start: dict[str, Tensor]) -> tuple[bool, float]:
    """Print the plan and every step; whether all is well, and where EM ends, nats."""
    pyro.clear_param_store()
    guide = lvm.guides.MAP(case.program, start)
    em = lvm.infer.EM(case.program, guide)
    print(em.plan(*case.args, **case.training))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        values = [-em.step(*case.args, **case.training) for _ in range(EM_STEPS)]
        values.append(-em.loss(*case.args, **case.training))
    said = [str(warning.message) for warning in caught]
    print(*said, "log joint density by step, nats", sep="\n")
    for begin in range(0, len(values), 10):
        print("".join(f"{value:11.3f}" for value in values[begin : begin + 10]))
    falls = sum(b < a - ROUNDING * abs(a) for a, b in itertools.pairwise(values)) + sum("fell" in text for text in said)
    confirmed = score(case, guide, case.training)
    agree = abs(confirmed - values[-1]) <= ROUNDING * max(1.0, abs(confirmed))
    if falls:
        print(f"{falls} FALLS")
    if not agree:
        print(f"EM SAYS {values[-1]:.6f} where Pyro's elbo says {confirmed:.6f}")
    return not falls and agree, score(case, guide, case.scoring)


def run(case: Case, seed: int) -> bool:
    """Print one case from one start; whether EM rose all the way, and as high as SVI."""
    print(f"\n{case.name}" if case.start else f"\n{case.name}, start {seed}")
    start = case.start or drawn_start(case, seed)
    sound, em = by_em(case, start)
    svi = by_svi(case, start)
    high = em >= svi - ROUNDING * max(1.0, abs(svi))
    print(f"EM ends at {em:.4f}, SVI at {svi:.4f}{'' if high else ': EM IS LOWER'}", flush=True)
    return sound and high


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every case from every start."""
    parser = argparse.ArgumentParser(description="Pyro's published programs, unchanged, by EM and by SVI.")
    parser.add_argument("--pyro", type=Path, help="a checkout of github.com/pyro-ppl/pyro; cloned if left out")
    parser.add_argument("--chorales", action="store_true", help="30 chorales of 30 steps, 8 states (PYRO_LVM_DATA)")
    parser.add_argument("--starts", type=int, default=3, help="how many starts the chain gets")
    options = parser.parse_args(arguments)
    data, num_states = (chorales(30, 30), 8) if options.chorales else (sequences(20, 12, 8), 4)
    torch.set_num_threads(1)
    print(f"pyro_lvm {lvm.__version__}, Pyro {pyro.__version__}, sequences {tuple(data[0].shape)}, {num_states} states")
    with checkout(options.pyro) as folder:
        good = [
            run(case, seed)
            for case in cases(folder, data, num_states)
            for seed in range(1 if case.start else options.starts)
        ]
    print(f"\n{sum(good)} of {len(good)} runs: EM never falls and ends at least as high as SVI")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
