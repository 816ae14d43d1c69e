"""Fully connected networks against matrix products by hand."""

import math

import pytest
import torch
from torch import nn

from pyro_lvm.nn import MLP

X = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("activation", "function"), [("relu", torch.relu), ("tanh", torch.tanh), ("silu", nn.SiLU())])
def test_it_is_linear_maps_with_an_activation_between_them(activation, function):
    net = MLP(3, [5, 4], 2, activation=activation)
    first, second, last = (layer for layer in net if isinstance(layer, nn.Linear))
    hidden = function(function(X @ first.weight.T + first.bias) @ second.weight.T + second.bias)
    torch.testing.assert_close(net(X), hidden @ last.weight.T + last.bias)
    torch.testing.assert_close(net(X.expand(2, 7, 3))[1], net(X))


def test_no_hidden_layer_is_a_linear_map():
    net = MLP(3, [], 2)
    torch.testing.assert_close(net(X) - net(torch.zeros(3)), X @ net[0].weight.T)


def test_weights_start_uniform_with_variances_that_keep_signals_alike():
    """Glorot's bound: weights of a layer from m to n numbers are uniform within the root of 6 / (m + n)."""
    net = MLP(200, [300], 100)
    for layer, bound in ((net[0], math.sqrt(6 / 500)), (net[2], math.sqrt(6 / 400))):
        weight = layer.weight.detach()
        assert bound * 0.99 < float(weight.abs().max()) <= bound
        # the variance of n uniform numbers has the standard error sqrt(4 / 5 n) of itself
        relative = float(weight.var()) / (bound**2 / 3) - 1
        assert abs(relative) < 5 * math.sqrt(0.8 / weight.numel())
        assert not bool(layer.bias.any())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, [4], 2), "input_dim"),
        ((3, [4], 0), "output_dim"),
        ((3, [4, 0], 2), "hidden"),
        ((3, [2.5], 2), "hidden"),
        ((3, 4, 2), "sequence of sizes"),
        ((3, "44", 2), "sequence of sizes"),
        ((3, [4], 2, "step"), "relu, silu, tanh; got 'step'"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        MLP(*arguments)
