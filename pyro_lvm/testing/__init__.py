"""Laws that hold for every model, guide and inference, and the oracles they are checked against.

They ship with the package so that you can test programs of your own:

    from pyro_lvm.testing import laws
    laws.em_never_falls(my_model, x)
"""

from pyro_lvm.testing import laws, oracles

__all__ = ["laws", "oracles"]
