"""One step of a chain that a program writes out: its parts, in a layout that all steps share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_lvm.distributions.hidden_markov import HMM
from pyro_lvm.distributions.state_laws import built_from
from pyro_lvm.handlers.open_mixtures import rebuilt
from pyro_lvm.ops.cells import compact

__all__ = ["Step", "Unlike", "plates_of", "wide_dims"]


class Unlike(Exception):  # noqa: N818 - no error
    """The program is not a chain of equal steps."""


@dataclass
class Step:
    """Two successive states and what is observed at the second."""

    before: dict
    state: dict
    seen: dict

    @property
    def inner(self) -> int:
        """Plates of the observed site that states do not stand in, to the right of theirs."""
        plates = [f.dim for f in self.state["cond_indep_stack"] if f.vectorized]
        own = [f.dim for f in self.seen["cond_indep_stack"] if f.vectorized and f.dim not in plates]
        return -min(own) if own else 0

    @property
    def depth(self) -> int:
        """Number of batch dimensions of the states' plates."""
        return max([-f.dim - self.inner for f in self.state["cond_indep_stack"] if f.vectorized], default=0)

    def initial(self) -> dict[str, Tensor]:
        """Argument of the first state's law, plates + (K,)."""
        kind = built_from(self.before["fn"])
        return {kind: self._outer(compact(vars(self.before["fn"])[kind], 1), 1)}

    def transition(self) -> dict[str, Tensor]:
        """Argument of the next state's law, plates + (1, K, K)."""
        kind = built_from(self.state["fn"])
        param = compact(vars(self.state["fn"])[kind], 1)
        k = param.shape[-1]
        param = _to_end(param, self.before["infer"]["_enumerate_dim"], 1)
        return {kind: self._outer(param.expand(*param.shape[:-2], k, k), 2).unsqueeze(-3)}

    def emission(self) -> Any:
        """Law of a step in every state, plates + (1, K) + inner plates."""
        return self._by_state(self.seen["fn"], 0)

    def _by_state(self, fn: Any, inside: int) -> Any:
        if isinstance(fn, torch.distributions.Independent):
            inner = fn.reinterpreted_batch_ndims
            base = self._by_state(fn.base_dist, inside + inner)
            return None if base is None else base.to_event(inner)
        dim = self.state["infer"]["_enumerate_dim"]
        plates = {f.dim: f.size for f in self.seen["cond_indep_stack"] if f.vectorized}
        sizes = [plates.get(d, 1) for d in range(-self.inner, 0)]

        def moved(tensor: Tensor, event_dim: int) -> Tensor:
            event = inside + event_dim
            tensor = compact(tensor, event)
            short = self.inner + event - tensor.dim()
            tensor = tensor.reshape((1,) * max(0, short) + tuple(tensor.shape))
            tensor = _to_end(tensor, dim, event, self.inner)
            tensor = self._outer(tensor, 1 + self.inner + event, held=0).unsqueeze(-2 - self.inner - event)
            return tensor.expand(
                *tensor.shape[: tensor.dim() - self.inner - event], *sizes, *tensor.shape[tensor.dim() - event :]
            )

        made = rebuilt(fn, moved)
        return made if made is None or inside else made.to_event(self.inner)

    def _outer(self, tensor: Tensor, inside: int, held: int | None = None) -> Tensor:
        """Drop the batch dimensions of inner plates, and those on the left that have size one."""
        skipped = self.inner if held is None else held
        batch = tensor.shape[: tensor.dim() - inside]
        kept = batch[: len(batch) - skipped] if skipped else batch
        if any(size > 1 for size in (*batch[len(kept) :], *kept[: max(0, len(kept) - self.depth)])):
            raise Unlike
        kept = kept[max(0, len(kept) - self.depth) :]
        return tensor.reshape((*kept, *tensor.shape[tensor.dim() - inside :]))

    def plates(self, tensor: Tensor) -> Tensor:
        """A scale in the layout of the states' plates."""
        return self._outer(tensor, 0)

    def mask(self, site: dict, batch: torch.Size) -> Tensor:
        """Which of a site's sequences count, plates."""
        mask = torch.as_tensor(True if site["mask"] is None else site["mask"])
        return (self.plates(mask) if mask.dim() else mask).expand(batch)

    def value(self) -> Tensor:
        """What is observed, plates + inner plates + event."""
        sizes = {f.dim: f.size for f in self.seen["cond_indep_stack"] if f.vectorized}
        batch = [sizes.get(dim, 1) for dim in range(-self.depth - self.inner, 0)]
        value, event = self.seen["value"], self.seen["fn"].event_shape
        value = value.reshape(value.shape[max(0, value.dim() - len(batch) - len(event)) :])
        return value.expand(torch.Size((*batch, *event)))

    def site(self, law: HMM, value: Tensor) -> dict:
        """The whole chain as one observed site."""
        scale = self.state["scale"]
        frames = [f._replace(dim=f.dim + self.inner) for f in self.state["cond_indep_stack"] if f.vectorized]
        return {
            **self.seen,
            "fn": law,
            "value": value,
            "mask": None,
            "scale": self.plates(scale) if isinstance(scale, Tensor) and scale.dim() else scale,
            "cond_indep_stack": tuple(frames),
        }


def _to_end(tensor: Tensor, dim: int, inside: int, skip: int = 0) -> Tensor:
    """Move the enumerated batch dimension `dim` to the right end of the batch but for `skip` dimensions."""
    batch = tensor.dim() - inside
    if batch < -dim:
        tensor = tensor.reshape((1,) * (-dim - batch) + tuple(tensor.shape))
        batch = -dim
    return tensor.movedim(batch + dim, batch - 1 - skip)


def plates_of(site: dict) -> set[int]:
    """Batch dimensions of the plates that a site stands in."""
    return {f.dim for f in site["cond_indep_stack"] if f.vectorized}


def wide_dims(site: dict) -> set[int]:
    """Batch dimensions along which a site's law has more than one entry."""
    shape = site["fn"].batch_shape
    return {d - len(shape) for d, size in enumerate(shape) if size > 1}
