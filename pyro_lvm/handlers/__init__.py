"""Effect handlers, one per file."""

from pyro_lvm.handlers.clamp import clamp
from pyro_lvm.handlers.hide_enumerated import hide_enumerated
from pyro_lvm.handlers.minibatch import minibatch
from pyro_lvm.handlers.normalized import normalized
from pyro_lvm.handlers.open_mixtures import open_mixtures

__all__ = ["clamp", "hide_enumerated", "minibatch", "normalized", "open_mixtures"]
