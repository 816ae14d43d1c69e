"""Networks that a plain function closes over: what is learned is the fit's, and goes with it."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_lvm as lvm


@pytest.fixture
def program():
    torch.manual_seed(0)
    network = torch.nn.Linear(1, 2)

    def model(x):
        decode = pyro.module("decoder", network)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(decode(torch.ones(len(x), 1)), 1.0).to_event(1), obs=x)

    model.network = network
    return model


@pytest.mark.parametrize("inference", ["svi", "em"])
def test_what_is_learned_is_shown_saved_and_loaded(program, inference, tmp_path):
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)) + 3
    start = {name: value.clone() for name, value in program.network.state_dict().items()}
    fit = lvm.fit(program, x, inference=inference, max_epochs=300, seed=0, checkpoint=tmp_path / "run", progress=False)
    mean = fit.params["decoder$$$weight"][:, 0] + fit.params["decoder$$$bias"]
    torch.testing.assert_close(mean, x.mean(0), atol=0.5, rtol=0)
    fit.save(tmp_path / "fit")
    scores = fit.log_likelihood(x)
    for folder in ("fit", "run"):
        loaded = lvm.load(tmp_path / folder, model=program)
        assert torch.equal(loaded.log_likelihood(x), scores)
        assert all(torch.equal(loaded.params[name], value) for name, value in fit.params.items())
        resumed = loaded.resume(x, max_epochs=1, progress=False)
        assert resumed.history["loss"][-1] <= fit.history["loss"][-1] + 0.1
    for name, value in program.network.state_dict().items():
        assert torch.equal(value, start[name])


def test_a_file_written_from_inside_is_the_same(program, tmp_path):
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)) + 3

    def keep(run):
        run.result().save(tmp_path / "inside")

    fit = lvm.fit(program, x, inference="svi", max_epochs=50, seed=0, callbacks=keep, progress=False)
    loaded = lvm.load(tmp_path / "inside", model=program)
    assert torch.equal(loaded.log_likelihood(x), fit.log_likelihood(x))


def test_a_parameter_with_two_names_takes_one_step():
    class Tied(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.one = torch.nn.Parameter(torch.zeros(()))
            self.other = self.one

        def forward(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal((self.one + self.other) / 2, 1.0), obs=x)

    svi = lvm.infer.SVI(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.001))
    fit = lvm.fit(Tied(), torch.ones(10), inference=svi, max_epochs=1, progress=False)
    assert float(fit.model.one.detach()) == pytest.approx(0.01)


@pytest.mark.parametrize("as_function", [False, True])
def test_a_tensor_that_a_parameter_starts_at_is_not_written_to(as_function):
    start = torch.zeros(())

    def model(x):
        loc = pyro.param("loc", (lambda: start) if as_function else start)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    x = torch.ones(10)
    assert lvm.fit(model, x, inference="em", max_epochs=2, progress=False).params["loc"] == pytest.approx(1.0)
    assert float(start.detach()) == 0
