"""Laws that hold their model's tensors are made once; all others anew."""

import pyro
import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm.infer.kept_law import KeptLaw


@pytest.fixture
def rows():
    torch.manual_seed(0)
    return (torch.rand(20, 5) < 0.4).float()


@pytest.fixture(autouse=True)
def local_parameters():
    with pyro.settings.context(module_local_params=True):
        yield


def made(kind, rows):
    model = kind(3)
    model.initialize(rows)
    return model


def test_a_law_of_parameters_alone_is_made_once_and_is_that_of_now(rows):
    model, law_of = made(lvm.models.RBM, rows), KeptLaw()
    first = law_of(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert law_of(model) is first
    torch.testing.assert_close(first.free_energy(rows), model.law().free_energy(rows))


def test_new_parameters_make_a_new_law(rows):
    model, law_of = made(lvm.models.RBM, rows), KeptLaw()
    law_of(model)
    model.initialize(rows)
    torch.testing.assert_close(law_of(model).free_energy(rows), model.law().free_energy(rows))
    other = made(lvm.models.RBM, rows)
    torch.testing.assert_close(law_of(other).free_energy(rows), other.law().free_energy(rows))
    model.register_buffer("visible_offset", torch.zeros(5))
    torch.testing.assert_close(law_of(model).free_energy(rows), model.law().free_energy(rows))


def test_what_is_computed_from_parameters_is_computed_again(rows):
    model, law_of = made(lvm.models.GaussianRBM, rows), KeptLaw()
    law_of(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(law_of(model).free_energy(rows), model.law().free_energy(rows))


def test_handlers_that_change_parameters_are_asked_every_time(rows):
    model, law_of = made(lvm.models.RBM, rows), KeptLaw()
    law_of(model)
    with pyro.poutine.trace(param_only=True) as trace, pyro.poutine.substitute(data={"hidden_bias": torch.ones(3)}):
        law = law_of(model)
    assert {"weight", "visible_bias", "hidden_bias"} <= set(trace.trace.nodes)
    torch.testing.assert_close(law.hidden_bias, torch.ones(3))
