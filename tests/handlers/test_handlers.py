"""Effect handlers on plain programs."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_lvm as lvm


def program(x):
    pyro.sample("global", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])))
        pyro.sample("x", dist.Normal(z.float(), 1.0), obs=x)


@pytest.mark.parametrize("wrapped", [True, False])
def test_minibatch_scales_the_data_plate_alone(wrapped):
    x = torch.zeros(5)
    if wrapped:
        trace = poutine.trace(lvm.handlers.minibatch(program, total=50)).get_trace(x)
    else:
        with lvm.handlers.minibatch(total=50):
            trace = poutine.trace(program).get_trace(x)
    scales = {name: trace.nodes[name]["scale"] for name in ("global", "z", "x")}
    assert scales == {"global": 1.0, "z": 10.0, "x": 10.0}


def test_minibatch_refuses_a_batch_larger_than_the_data():
    with pytest.raises(ValueError, match="at most total=3 rows"):
        lvm.handlers.minibatch(program, total=3)(torch.zeros(5))


def test_hide_enumerated_leaves_the_continuous_sites():
    trace = poutine.trace(lvm.handlers.hide_enumerated(program)).get_trace(torch.zeros(5))
    assert "z" not in trace.nodes
    assert "global" in trace.nodes
