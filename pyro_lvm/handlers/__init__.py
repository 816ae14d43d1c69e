"""Effect handlers, one per file."""

from pyro_lvm.handlers.baseline import baseline
from pyro_lvm.handlers.clamp import clamp
from pyro_lvm.handlers.dream import dream
from pyro_lvm.handlers.hide_enumerated import hide_enumerated
from pyro_lvm.handlers.inform import inform
from pyro_lvm.handlers.minibatch import minibatch
from pyro_lvm.handlers.negative_phase import negative_phase
from pyro_lvm.handlers.normalized import normalized
from pyro_lvm.handlers.open_mixtures import open_mixtures
from pyro_lvm.handlers.rows import rows
from pyro_lvm.handlers.wake import wake

__all__ = [
    "baseline",
    "clamp",
    "dream",
    "hide_enumerated",
    "inform",
    "minibatch",
    "negative_phase",
    "normalized",
    "open_mixtures",
    "rows",
    "wake",
]
