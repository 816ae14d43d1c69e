"""Models of this package that are run by an inference without `fit`: before their start, and on arrays."""

import pytest
import torch

import pyro_lvm as lvm

X = torch.randn(6, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MODELS = {
    "GaussianMixture": (lambda: lvm.models.GaussianMixture(2), {"x": X[:, 0]}),
    "GaussianHMM": (lambda: lvm.models.GaussianHMM(2), {"x": X}),
    "IBMModel1": (lvm.models.IBMModel1, dict(lvm.datasets.phrases())),
    "NeuralHMMAlignment": (lvm.models.NeuralHMMAlignment, dict(lvm.datasets.phrases())),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_parameters_says_how_to_get_them(name):
    make, data = MODELS[name]
    model = make()
    for act in (lvm.infer.EM(model).plan, lvm.infer.EM(model).step):
        with pytest.raises(AttributeError, match=rf"{name}: expected parameters; '\w+' is not declared yet\. Call"):
            act(**data)
    assert not hasattr(model, "weights")
    model.initialize(**data)
    assert "parameter" in str(lvm.infer.EM(model).plan(**data))


def test_other_missing_names_are_reported_as_ever():
    with pytest.raises(AttributeError, match="has no attribute 'wieghts'"):
        _ = lvm.models.GaussianMixture(2).wieghts


@pytest.mark.parametrize("started", [False, True])
def test_arrays_are_refused_in_one_sentence(started):
    model = lvm.models.GaussianMixture(2)
    if started:
        model.initialize(X[:, 0])
    with pytest.raises(TypeError, match=r"^GaussianMixture: expected tensors; got ndarray\. Pass torch\.as_tensor"):
        lvm.infer.EM(model).plan(X[:, 0].numpy())
