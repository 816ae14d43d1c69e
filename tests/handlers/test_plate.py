"""Our plate is Pyro's, but for the message that asks for a subsample where none of Pyro's handlers listens."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_lvm.handlers import minibatch
from pyro_lvm.handlers.plate import plate


@pytest.mark.parametrize(
    "shape", [(), (1,), (3,), (2, 3), (2, 1)], ids=["number", "one", "rows", "more to the left", "more, one row"]
)
@pytest.mark.parametrize("outer", [False, True])
def test_sites_have_the_shapes_scales_and_frames_of_pyros(shape, outer):
    def model(kind):
        with pyro.plate("draws", 2, dim=-2) if outer else poutine.scale(scale=1.0), kind("data", 3):
            pyro.sample("x", dist.Normal(torch.zeros(shape), 1.0))
            pyro.sample("v", dist.Normal(torch.zeros(*shape, 4), 1.0).to_event(1))

    ours, theirs = (poutine.trace(minibatch(model, total=30)).get_trace(kind) for kind in (plate, pyro.plate))
    assert set(theirs.nodes) == set(ours.nodes)
    for name in ("x", "v"):
        mine, other = ours.nodes[name], theirs.nodes[name]
        assert mine["fn"].batch_shape == other["fn"].batch_shape
        assert mine["value"].shape == other["value"].shape
        assert mine["scale"] == other["scale"] == 10.0
        assert mine["cond_indep_stack"] == other["cond_indep_stack"]


def test_only_handlers_of_pyros_own_are_asked_for_a_subsample():
    class Sites(poutine.messenger.Messenger):
        def __init__(self):
            super().__init__()
            self.names = []

        def _pyro_sample(self, msg):
            self.names.append(msg["name"])

    with Sites() as sites:
        for kind in (plate, pyro.plate):
            with kind("data", 3):
                pyro.sample("x", dist.Normal(0.0, 1.0))
    assert sites.names == ["x", "data", "x"]


def test_a_guide_with_pyros_plate_goes_with_a_model_with_ours():
    def program(kind):
        def run(x):
            with kind("data", len(x)):
                pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

        return run

    with pyro.validation_enabled(True), pyro.get_param_store().scope():
        pyro.infer.Trace_ELBO().loss(program(plate), program(pyro.plate), torch.zeros(3))


def test_a_site_of_other_rows_is_refused():
    with pytest.raises(ValueError, match="Shape mismatch"), poutine.trace(), plate("data", 3):
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0))


def test_a_plate_in_use_is_refused():
    with pytest.raises(ValueError, match="data"), plate("data", 3), plate("data", 3):
        pass


def test_parameters_of_rows_are_not_cut():
    with pyro.get_param_store().scope(), plate("data", 3):
        assert pyro.param("a", torch.zeros(3), event_dim=0).shape == (3,)
