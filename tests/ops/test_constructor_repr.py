"""Inferences and objectives show how they were made, before and after they are copied."""

import copy

import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm.training.choices import INFERENCES, OBJECTIVES

infer = lvm.infer
SHOWN = {
    "EM()": lambda: infer.EM(),
    "EM(decay=0.7)": lambda: infer.EM(decay=0.7),
    "EM(model=GaussianMixture(num_components=2, covariance='full'))": lambda: infer.EM(lvm.models.GaussianMixture(2)),
    "SVI(loss=WakeSleep(num_samples=2), learning_rate=0.1)": lambda: infer.SVI(
        loss=infer.WakeSleep(2), learning_rate=0.1
    ),
    "SVI(optimizer=SGD)": lambda: infer.SVI(optimizer=torch.optim.SGD),
    "SVI(guide=Sequential(...))": lambda: infer.SVI(guide=torch.nn.Sequential(torch.nn.Linear(2, 2))),
    "ContrastiveDivergence(persistent=True, base=NVIL())": lambda: infer.ContrastiveDivergence(
        persistent=True, base=infer.NVIL()
    ),
}


@pytest.mark.parametrize("text", SHOWN)
def test_the_call_that_made_it(text):
    thing = SHOWN[text]()
    assert repr(thing) == repr(copy.deepcopy(thing)) == text


@pytest.mark.parametrize("name", [*INFERENCES, *OBJECTIVES])
def test_every_inference_and_objective(name):
    thing = {**INFERENCES, **OBJECTIVES}[name]()
    assert repr(thing).startswith(type(thing).__name__ + "(")
    namespace = {**vars(infer), "__builtins__": {}}
    assert repr(eval(repr(thing), namespace)) == repr(thing)


def test_an_inference_of_a_fit_shows_what_was_asked_for(faithful):
    fit = lvm.fit(lvm.models.GaussianMixture(2), faithful, inference=infer.EM(), max_epochs=2, progress=False)
    assert repr(fit.inference) == "EM()"
