"""Masks of discrete sites: a state that does not count must not explain anything that does."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.infer.factors import Factor

__all__ = ["check_masks"]


def check_masks(factors: Iterable[Factor]) -> None:
    """Raise a ValueError where a discrete site is masked and a site that depends on it is not.

    The mask of an enumerated site says that its states are not there, as after the end of a ragged sequence. Whether
    a row still comes from one of them then has no answer: its prior would count in the likelihood, as Pyro has it, and
    not in what is learned of the prior.

    Args:
        factors: The sites of a program.
    """
    factors = list(factors)
    masked = {f.site["infer"]["_enumerate_symbol"]: f for f in factors if f.enumerated and _mask(f) is not None}
    for factor in factors if masked else []:
        for symbol in masked.keys() & set(_pyro.dims_of(_pyro.pack(factor.log_density, factor.site))):
            parent = masked[symbol]
            if factor is not parent and _counts_beyond(factor, parent):
                raise ValueError(
                    f"Exact enumeration: expected site '{factor.name}', which depends on '{parent.name}', to be masked "
                    f"wherever '{parent.name}' is; it is not everywhere. Put both under one mask, or mask the "
                    f"distribution itself: pyro.sample('{parent.name}', fn.mask(m))."
                )


def _counts_beyond(factor: Factor, parent: Factor) -> bool:
    """Whether a site's density counts, and depends on the parent's state, somewhere where the parent is masked."""
    own, mask = _mask(factor), _mask(parent)
    if mask is None or own is mask:
        return False
    beyond = ~mask if own is None else own & ~mask
    if factor.enumerated or not bool(beyond.any()):
        return bool(beyond.any())
    dim = parent.site["infer"]["_enumerate_dim"]
    density = factor.log_density
    return bool((beyond & (density.amax(dim, keepdim=True) != density.amin(dim, keepdim=True))).any())


def _mask(factor: Factor) -> Tensor | None:
    mask = factor.site["mask"]
    return mask if mask is None or isinstance(mask, Tensor) else torch.as_tensor(mask)
