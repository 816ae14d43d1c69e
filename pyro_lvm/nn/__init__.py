"""Networks that models and guides are made of."""

from pyro_lvm.nn.mlp import MLP

__all__ = ["MLP"]
