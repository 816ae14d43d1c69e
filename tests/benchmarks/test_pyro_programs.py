"""The benchmark of Pyro's programs on a made-up checkout: a notebook and an example of the same layout."""

import json

import pytest

pytestmark = pytest.mark.usefixtures("local")

SETUP = """%matplotlib inline
import torch
import pyro, pyro.distributions as dist
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoDelta

size = 2
assert pyro.__version__ == "none"
"""
MODEL = """data = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0])

@config_enumerate
def model(data):
    weights = pyro.sample("weights", dist.Dirichlet(2 * torch.ones(size)))
    locs = pyro.sample("locs", dist.Normal(torch.zeros(size), 10.0).to_event(1))
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=data)
"""
START = """def initialize():
    global global_guide
    start = {"weights": torch.tensor([0.5, 0.5]), "locs": torch.tensor([2.0, 8.0])}
    global_guide = AutoDelta(poutine.block(model, hide=["z"]), init_loc_fn=lambda site: start[site["name"]])
    global_guide(data)

initialize()
"""
TRAINING = "raise ValueError('not this far')"
EXAMPLE = """import logging
import pyro
import pyro.contrib.examples.polyphonic_data_loader as poly
import pyro.distributions as dist
import torch
from pyro import poutine

logging.getLogger().setLevel(logging.DEBUG)

def model_1(sequences, lengths, args, include_prior=True):
    k, d = args.hidden_dim, sequences.shape[-1]
    with poutine.mask(mask=include_prior):
        probs_x = pyro.sample("probs_x", dist.Dirichlet(torch.eye(k) + 1).to_event(1))
        probs_y = pyro.sample("probs_y", dist.Beta(2.0, 2.0).expand([k, d]).to_event(2))
    tones = pyro.plate("tones", d, dim=-1)
    with pyro.plate("sequences", len(sequences), dim=-2):
        x = 0
        for t in pyro.markov(range(3)):
            with poutine.mask(mask=(t < lengths)[:, None]):
                x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer={"enumerate": "parallel"})
                with tones:
                    pyro.sample(f"y_{t}", dist.Bernoulli(probs_y[x.squeeze(-1)]), obs=sequences[:, t])
"""


@pytest.fixture
def benchmark(script, monkeypatch):
    module = script("pyro_programs")
    monkeypatch.setattr(module, "EM_STEPS", 10)
    monkeypatch.setattr(module, "SVI_STEPS", 20)
    return module


@pytest.fixture
def folder(tmp_path):
    cells = [{"cell_type": "code", "source": cell.splitlines(True)} for cell in (SETUP, MODEL, START, TRAINING)]
    for name, text in (("tutorial/source/gmm.ipynb", json.dumps({"cells": cells})), ("examples/hmm.py", EXAMPLE)):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_programs_are_run_as_they_are(benchmark, folder, capsys):
    mixture, chain, likelihood = benchmark.cases(folder, benchmark.sequences(5, 3, 2), 2)
    assert mixture.start["locs"].tolist() == [2.0, 8.0]
    assert likelihood.training == chain.scoring == {"include_prior": False}
    assert benchmark.run(mixture, 0)
    assert benchmark.run(chain, 0)
    text = capsys.readouterr().out
    assert "gmm.ipynb, model\nE-step: exact enumeration of z (2 states)" in text
    assert "MAP.probs_y  (2, 2)  closed form" in text
    assert text.count("EM ends at") == 2


def test_a_fall_is_found(benchmark, folder, monkeypatch, capsys):
    mixture, *_ = benchmark.cases(folder, benchmark.sequences(5, 3, 2), 2)
    step = benchmark.lvm.infer.EM.step
    monkeypatch.setattr(benchmark.lvm.infer.EM, "step", lambda self, *args: -step(self, *args))
    assert not benchmark.run(mixture, 0)
    assert "FALLS" in capsys.readouterr().out


def test_an_end_below_svi_is_found(benchmark, folder, monkeypatch, capsys):
    mixture, *_ = benchmark.cases(folder, benchmark.sequences(5, 3, 2), 2)
    monkeypatch.setattr(benchmark, "by_svi", lambda case, start: 0.0)
    assert not benchmark.run(mixture, 0)
    assert "EM IS LOWER" in capsys.readouterr().out


def test_sequences_are_padded_with_zeros(benchmark):
    x, lengths = benchmark.sequences(20, 12, 8)
    assert all((row[length:] == 0).all() for row, length in zip(x, lengths, strict=True))
    assert lengths.max() == 12
