"""Networks of the user's that behave otherwise in training: they learn in steps, and serve everywhere else."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule

import pyro_lvm as lvm
from pyro_lvm.ops.networks import networks

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
shared = torch.nn.Linear(1, 1)


def moody():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5))


def draw(x, decode):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(decode(z.expand(len(x), 2)), 1.0).to_event(1), obs=x)


class Program(PyroModule):
    def __init__(self):
        super().__init__()
        self.decoder = moody()

    def forward(self, x):
        draw(x, self.decoder)


def function():
    network = moody()

    def model(x):
        draw(x, pyro.module("decoder", network))

    model.decoder = network
    return model


class Holder:
    def __init__(self):
        self.decoder = moody()

    def model(self, x):
        draw(x, pyro.module("decoder", self.decoder))


class Modular(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = moody()

    def model(self, x):
        pyro.module("all", self)
        draw(x, self.decoder)


PROGRAMS = {
    "module": Program,
    "under a handler": lambda: pyro.poutine.scale(Program(), 1.0),
    "function": function,
    "method": lambda: Holder().model,
    "method of a module": lambda: Modular().model,
}


def decoder_of(program):
    (network,) = networks(program).values()
    return getattr(network, "decoder", network)


def buffers(fit):
    return {name: tensor.clone() for name, tensor in fit.tensors().items() if "running" in name or "tracked" in name}


def guide(x):
    loc = pyro.param("loc", torch.zeros(2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def train(program, **options):
    options = {"inference": "svi", "batch_size": 20, "seed": 0, "max_epochs": 5, "progress": False, **options}
    return lvm.fit(program, X, guide=guide, **options)


@pytest.mark.parametrize("kind", PROGRAMS)
def test_networks_learn_in_steps_and_nowhere_else(kind, tmp_path):
    program = PROGRAMS[kind]()
    before = {name: value.clone() for name, value in decoder_of(program).state_dict().items()}
    fit = train(program, validation=X[:20])
    learned = buffers(fit)
    (steps,) = (int(value) for name, value in learned.items() if "tracked" in name)
    assert steps in range(3, 16, 3)  # at the end of the best epoch
    one = fit.evidence(X[:1], num_samples=20)
    fit.evidence(X, num_samples=20)
    assert bool(torch.isfinite(one.values).all())
    assert all(torch.equal(value, learned[name]) for name, value in buffers(fit).items())
    assert decoder_of(program).training
    assert all(torch.equal(value, before[name]) for name, value in decoder_of(program).state_dict().items())

    fit.save(tmp_path / "fit")
    loaded = lvm.load(tmp_path / "fit", model=program, guide=guide)
    assert all(torch.equal(value, learned[name]) for name, value in buffers(loaded).items())
    resumed = loaded.resume(X, max_epochs=1, progress=False)
    again = fit.resume(X, max_epochs=1, progress=False)
    assert resumed.history == again.history
    assert all(torch.equal(value, buffers(again)[name]) for name, value in buffers(resumed).items())


def test_a_network_that_serves_goes_on_serving():
    program = Program()
    program.decoder.eval()
    fit = train(program)
    assert int(fit.model.decoder[1].num_batches_tracked) == 0
    assert not fit.model.decoder.training


class Hidden(Program):
    def __init__(self):
        super().__init__()
        self.decoder = PyroModule[torch.nn.Sequential](torch.nn.Linear(2, 3), PyroModule[torch.nn.Linear](3, 4))


def test_layers_that_pyro_is_not_told_of_are_named():
    with pytest.warns(UserWarning, match=r"decoder.0.weight, decoder.0.bias will not be trained"):
        train(Hidden())


def test_networks_are_found_wherever_a_function_reads_them():
    parts = {"deep": [torch.nn.Linear(1, 1)]}

    def inner(x):
        return shared(x)

    def outer(x):
        return inner(parts["deep"][0](x))

    assert networks(outer) == {"shared": shared, "parts.deep.0": parts["deep"][0]}
    assert networks(print) == networks(len) == {}
