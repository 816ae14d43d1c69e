"""Fully connected networks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from pyro_lvm.ops.whole_number import whole_number

__all__ = ["MLP", "layer_sizes"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}


class MLP(nn.Sequential):
    """Linear layers with an activation between them; none after the last.

    Acts on the last axis, whatever stands before it. Weights are drawn as Glorot and Bengio do, biases start at 0.

    Args:
        input_dim: Length of the last axis of what comes in, >= 1.
        hidden: Sizes of the hidden layers; none gives a linear map.
        output_dim: Length of the last axis of what comes out, >= 1.
        activation: "relu", "silu" or "tanh".

    Raises:
        ValueError: A size is not a whole number >= 1, or the activation is unknown.

    References:
        X. Glorot, Y. Bengio (2010), Understanding the difficulty of training deep feedforward neural networks, AISTATS,
            equation 16.

    Example:
        >>> import torch
        >>> MLP(3, [8, 8], 2)(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(self, input_dim: int, hidden: Sequence[int], output_dim: int, activation: str = "relu") -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"MLP: expected activation to be one of {', '.join(ACTIVATIONS)}; got {activation!r}.")
        sizes = [whole_number("MLP", "input_dim", input_dim), *layer_sizes("MLP", hidden)]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), ACTIVATIONS[activation]()]
        super().__init__(*layers, nn.Linear(sizes[-1], whole_number("MLP", "output_dim", output_dim)))
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)


def layer_sizes(caller: str, hidden: Sequence[int]) -> tuple[int, ...]:
    """Sizes of hidden layers as a tuple.

    Raises:
        ValueError: It is no sequence of whole numbers >= 1.
    """
    if isinstance(hidden, (str, bytes, int, float, torch.Tensor)):
        raise ValueError(f"{caller}: expected hidden to be a sequence of sizes, as in (512, 512); got {hidden!r}.")
    return tuple(whole_number(caller, "hidden", size) for size in hidden)
